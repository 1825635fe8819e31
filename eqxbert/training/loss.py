"""What a training step minimises: means that say of how many labels they are."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..nn import IGNORED_LABEL, cross_entropy
from ..outputs import BertForPreTrainingOutput, CausalLMOutput, QuestionAnsweringModelOutput

Batch = Mapping[str, Any]
"""The arguments of a model by their names, with a leading axis of examples."""

_LABELS = ("labels", "next_sentence_label", "start_positions", "end_positions")


class MeanLoss(NamedTuple):
    """A mean over labels.

    - `weight`: how much it counts among others of its kind: the number of labels.
    - `share`: its factor in the loss, which may be a sum of several kinds.
    """

    mean: Float[Array, ""]
    weight: Int[Array, ""] | Float[Array, ""]
    share: float = 1.0


LossFunction = Callable[[Any, Batch, PRNGKeyArray | None], Any]
"""A function `(model, batch, key)` that returns the loss: a mean over the examples; or a `MeanLoss`
where they have different numbers of labels, or a tuple of these, which are added.
"""


def model_loss(model: Any, batch: Batch, key: PRNGKeyArray | None) -> tuple[MeanLoss, ...]:
    """The loss that the models define, of a batch that holds their arguments and labels."""
    out = model(**batch, key=key)
    if out.loss is None:
        raise ValueError(
            f"The batch has no labels for {type(model).__name__}: it holds "
            f"{', '.join(sorted(batch))}. Labels are called {', '.join(_LABELS)}."
        )
    if isinstance(out, QuestionAnsweringModelOutput):
        starts, ends = batch["start_positions"], batch["end_positions"]
        return _position_loss(out.start_logits, starts), _position_loss(out.end_logits, ends)
    if isinstance(out, BertForPreTrainingOutput) and {"labels", "next_sentence_label"} <= {*batch}:
        words, is_next = batch["labels"], batch["next_sentence_label"]
        return (
            MeanLoss(cross_entropy(out.prediction_logits, words), count_labels(words)),
            MeanLoss(cross_entropy(out.seq_relationship_logits, is_next), count_labels(is_next)),
        )
    labels = next(batch[name] for name in _LABELS if name in batch)
    if isinstance(out, CausalLMOutput):
        labels = labels[..., 1:]  # of the first token there is no prediction
    return (MeanLoss(out.loss, count_labels(labels)),)


def count_labels(labels: Any) -> Int[Array, ""]:
    """The number of labels; of classes, those that are ignored left out."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return jnp.asarray(labels.size, jnp.int32)
    return jnp.sum(labels != IGNORED_LABEL, dtype=jnp.int32)


def as_means(loss: Any) -> tuple[MeanLoss, ...]:
    """What a loss function returned, in its most general form. A plain number is a mean over
    batches that all count the same.
    """
    if isinstance(loss, MeanLoss):
        return (loss,)
    if isinstance(loss, tuple):
        return tuple(one for part in loss for one in as_means(part))
    return (MeanLoss(loss, jnp.ones((), jnp.int32)),)


def total_loss(means: tuple[MeanLoss, ...]) -> Float[Array, ""]:
    """The sum of all kinds."""
    return sum((mean.share * mean.mean for mean in means), start=jnp.zeros((), jnp.float32))


def _position_loss(scores: Float[Array, "*batch seq"], positions: Any) -> MeanLoss:
    """Of the starts or the ends, each half of the loss. As in the model, positions beyond the
    sequence do not count, and negative ones mean 0.
    """
    positions = jnp.maximum(jnp.asarray(positions), 0)
    labels = jnp.where(positions < scores.shape[-1], positions, IGNORED_LABEL)
    return MeanLoss(cross_entropy(scores, labels), count_labels(labels), 0.5)
