"""BERT: embeddings, encoder, and the models composed of them."""

from .architectures import model_class_of as model_class_of
from .bert import BertModel as BertModel, Pooler as Pooler
from .classification import (
    BertForMultipleChoice as BertForMultipleChoice,
    BertForQuestionAnswering as BertForQuestionAnswering,
    BertForSequenceClassification as BertForSequenceClassification,
    BertForTokenClassification as BertForTokenClassification,
)
from .embeddings import Embeddings as Embeddings
from .encoder import Encoder as Encoder, EncoderLayer as EncoderLayer, FeedForward as FeedForward
from .encoder_decoder import EncoderDecoderModel as EncoderDecoderModel
from .language_modeling import (
    BertForCausalLM as BertForCausalLM,
    BertForMaskedLM as BertForMaskedLM,
    BertForPreTraining as BertForPreTraining,
    LMHead as LMHead,
)
from .next_sentence import (
    NSP_IS_NEXT as NSP_IS_NEXT,
    NSP_IS_RANDOM as NSP_IS_RANDOM,
    BertForNextSentencePrediction as BertForNextSentencePrediction,
)
from .pretrained import PretrainedModel as PretrainedModel
