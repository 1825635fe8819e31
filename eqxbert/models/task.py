"""What the models with a head have in common."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import BertConfig
from ..nn import Embedding, dropout
from ..outputs import BertModelOutput
from .bert import BertModel
from .one_bert import OneBertModel

NO_POSITIONS = np.zeros(0, np.int32)
"""`output_positions` of a head that reads nothing but the pooler's output."""


class TaskModel(OneBertModel):
    """A BERT and a head. The configuration is the BERT's."""

    bert: eqx.AbstractVar[BertModel]

    @property
    def config(self) -> BertConfig:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.bert.config

    def get_input_embeddings(self) -> Embedding:
        return self.bert.get_input_embeddings()


def pooled(out: BertModelOutput) -> Float[Array, "*batch hidden"]:
    """The vector of each sequence.

    **Raises:** `ValueError` if the BERT was left without its pooler.
    """
    if out.pooler_output is None:
        raise ValueError(
            "model.bert.pooler is None, but the head of this model reads its output. Build the "
            "BERT in it with add_pooling_layer=True."
        )
    return out.pooler_output


def head_dropout(
    x: Float[Array, "*shape"], config: BertConfig, key: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """The dropout before a classifier: `classifier_dropout`, or `hidden_dropout_prob` if None."""
    rate = config.classifier_dropout
    return dropout(x, config.hidden_dropout_prob if rate is None else rate, key)
