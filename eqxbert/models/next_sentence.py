"""Whether one sentence follows another."""

from typing import Unpack

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..checks import AttentionMask, check_labels
from ..config import BertConfig
from ..nn import Linear, cross_entropy
from ..outputs import NextSentencePredictorOutput
from .bert import BertModel
from .inputs import BertOptions
from .task import NO_POSITIONS, TaskModel, pooled

NSP_IS_NEXT = 0
"""The label of a second sentence that did follow the first."""
NSP_IS_RANDOM = 1
"""The label of a second sentence that was taken from elsewhere."""


class BertForNextSentencePrediction(TaskModel):
    """A BERT that tells whether the second sentence followed the first, transformers' class of that
    name.
    """

    bert: BertModel
    nsp_head: Linear

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        """A model with new weights, drawn as `BertModel`'s."""
        bert_key, head_key = jax.random.split(key)
        self.bert = BertModel(config, key=bert_key)
        self.nsp_head = Linear(
            config.hidden_size, 2, initializer_range=config.initializer_range, key=head_key
        )

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        attention_mask: AttentionMask = None,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        *,
        labels: Int[Array | np.ndarray, "*batch"] | None = None,
        key: PRNGKeyArray | None = None,
        **options: Unpack[BertOptions],
    ) -> NextSentencePredictorOutput:
        """**Arguments**, besides those of `BertModel`:

        - `labels`: `NSP_IS_NEXT` (0) if the second sentence followed the first, `NSP_IS_RANDOM` (1)
            if not, -100 where it is not known.

        **Returns:** with `labels`, a `loss` as well. `out.logits[..., NSP_IS_NEXT]` is the score of
        the second sentence's being the next.

        **Raises:** as `BertModel`; and `ValueError` if labels have the wrong shape or dtype or,
        outside `jax.jit`, are out of range. Inside, they make the loss NaN.
        """
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            output_positions=NO_POSITIONS,
            key=key,
            **options,
        )
        logits = self.nsp_head(pooled(out))
        return NextSentencePredictorOutput(
            loss=None if labels is None else next_sentence_loss("labels", logits, labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


def next_sentence_loss(
    name: str, logits: Float[Array, "*batch 2"], labels: Int[Array | np.ndarray, "*batch"]
) -> Float[Array, ""]:
    """The loss of labels that the caller calls `name`."""
    check_labels(name, labels, 2, "the number of answers", logits.shape[:-1])
    return cross_entropy(logits, labels)
