"""What a training step minimises: means that say of how many labels they are."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..models.classification import is_regression
from ..nn import IGNORED_LABEL, as_int32, cross_entropy
from ..outputs import (
    BertForPreTrainingOutput,
    CausalLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
)

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
where they have different numbers of labels, or a tuple of such, which are added.
"""


@dataclasses.dataclass(frozen=True)
class WholeBatchLoss:
    """A loss function that holds the examples of a batch against one another. Of parts of the batch
    it is another one, so `make_train_step` does not take it with `accumulate`.
    """

    function: LossFunction

    def __call__(self, model: Any, batch: Batch, key: PRNGKeyArray | None) -> Any:
        return self.function(model, batch, key)


def check_batch(batch: Any) -> dict[str, Any]:
    """The batch as a dictionary.

    **Raises:** `ValueError` if it is something else.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(
            "A batch must be a dictionary of the model's arguments, such as input_ids and labels; "
            f"got {type(batch).__name__}: {batch!r:.100}."
        )
    return dict(batch)


def model_loss(model: Any, batch: Batch, key: PRNGKeyArray | None) -> tuple[MeanLoss, ...]:
    """The loss that the models define, of a batch that holds their arguments and labels."""
    out = model(**batch, key=key)
    if not hasattr(out, "loss"):
        raise ValueError(
            f"{type(model).__name__} has no loss. Train one of the models with a head, or give a "
            "loss function of your own."
        )
    if out.loss is None:
        raise ValueError(
            f"The batch has no labels for {type(model).__name__}: it holds "
            f"{', '.join(sorted(batch))}. Labels are called {', '.join(_LABELS)}."
        )
    if isinstance(out, QuestionAnsweringModelOutput):
        starts, ends = batch["start_positions"], batch["end_positions"]
        return _position_loss(out.start_logits, starts), _position_loss(out.end_logits, ends)
    if isinstance(out, BertForPreTrainingOutput) and all(
        batch.get(name) is not None for name in ("labels", "next_sentence_label")
    ):
        is_next = batch["next_sentence_label"]
        of_pairs = cross_entropy(out.seq_relationship_logits, as_int32(is_next))
        assert out.loss is not None
        return (
            # The rest of the sum. In half precision, that of the logits in `out`, which are
            # rounded, would be another one.
            MeanLoss(out.loss - of_pairs, count_labels(batch["labels"])),
            MeanLoss(of_pairs, count_labels(is_next)),
        )
    labels = next(batch[name] for name in _LABELS if batch.get(name) is not None)
    if isinstance(out, SequenceClassifierOutput) and is_regression(model.config):
        return (MeanLoss(out.loss, jnp.asarray(labels.size, jnp.int32)),)
    if isinstance(out, CausalLMOutput):
        labels = labels[..., 1:]  # of the first token there is no prediction
    return (MeanLoss(out.loss, count_labels(labels)),)


def count_labels(labels: Any) -> Int[Array, ""]:
    """The number of labels; of classes, those that are ignored left out."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return jnp.asarray(labels.size, jnp.int32)
    return jnp.sum(as_int32(labels) != IGNORED_LABEL, dtype=jnp.int32)


def as_means(loss: Any) -> tuple[MeanLoss, ...]:
    """What a loss function returned, in its most general form. A plain number is a mean over
    batches that all count the same.
    """
    if isinstance(loss, MeanLoss):
        return (loss,)
    if isinstance(loss, tuple):
        if not loss or not all(isinstance(part, MeanLoss) for part in loss):
            kinds = ", ".join(type(part).__name__ for part in loss) or "nothing"
            raise ValueError(
                f"The loss function returned a tuple of {kinds}. It returns the loss, or a tuple "
                "of MeanLoss, which are added; what else it finds cannot be returned."
            )
        return loss
    return (MeanLoss(loss, jnp.ones((), jnp.int32)),)


def total_loss(means: tuple[MeanLoss, ...]) -> Float[Array, ""]:
    """The sum of all kinds."""
    first, *others = (mean.share * mean.mean for mean in means)
    return sum(others, start=first)


def _position_loss(scores: Float[Array, "*batch seq"], positions: Any) -> MeanLoss:
    """Of the starts or the ends, each half of the loss. As in the model, positions beyond the
    sequence do not count, and negative ones mean 0.
    """
    positions = jnp.maximum(as_int32(positions), 0)
    labels = jnp.where(positions < scores.shape[-1], positions, IGNORED_LABEL)
    return MeanLoss(cross_entropy(scores, labels), count_labels(labels), 0.5)
