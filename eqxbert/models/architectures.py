"""Which class a checkpoint was saved from."""

from ..config import BertConfig
from ..convert.names import architecture
from .bert import BertModel
from .classification import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from .language_modeling import BertForCausalLM, BertForMaskedLM, BertForPreTraining
from .next_sentence import BertForNextSentencePrediction
from .pretrained import PretrainedModel

_CLASSES = (
    BertModel,
    BertForPreTraining,
    BertForMaskedLM,
    BertForCausalLM,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertForMultipleChoice,
    BertForTokenClassification,
    BertForQuestionAnswering,
)


def model_class_of(config: BertConfig) -> type[PretrainedModel]:
    """The class that `config.architectures` names, `BertModel` if it names none of ours."""
    by_name = {architecture(model.__name__): model for model in _CLASSES}
    names = (architecture(name) for name in config.architectures or ())
    return next((by_name[name] for name in names if name in by_name), BertModel)
