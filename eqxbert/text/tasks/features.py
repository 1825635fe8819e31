"""Examples as tokens, and the batches that are made of them."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ...nn import IGNORED_LABEL
from ...training.batches import batch_indices, check_count, host_rows
from ..batching import Batch, buckets, plan_batches, run_batches
from ..tokenizer import pad_rows

# Of so many batches, examples are sorted by length if they are to be of similar lengths: enough for
# hardly any padding, few enough for batches to differ from epoch to epoch.
_BATCHES_SORTED_TOGETHER = 50


@dataclasses.dataclass(frozen=True)
class Features:
    """The arguments of a model for some examples: a row for each, not padded.

    - `input_ids`, `token_type_ids`: the tokens of each row, special ones included. If rows have
        `choices`, those of each choice, one after the other.
    - `labels`: labels by the names of the model's arguments: an array, with one for each row; or
        a list of arrays, with one for each token of each row. Empty if they are not known.
    - `max_length`: the greatest number of tokens that a row may have.
    - `pad_id`: the token that stands for none.
    - `choices`: the number of sequences in a row; None for one, without an axis of its own.
    """

    input_ids: Sequence[np.ndarray]
    token_type_ids: Sequence[np.ndarray]
    labels: Mapping[str, np.ndarray | list[np.ndarray]]
    max_length: int
    pad_id: int
    choices: int | None = None

    def __len__(self) -> int:
        return len(self.input_ids) // (self.choices or 1)

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        """The number of tokens of each row; of its longest choice."""
        lengths = np.array([len(ids) for ids in self.input_ids], np.int64)
        return lengths.reshape(len(self), self.choices or 1).max(axis=1, initial=0)

    def inputs(
        self, indices: Sequence[int] | Int[np.ndarray, " _"], *, rows: int, seq: int
    ) -> dict[str, np.ndarray]:
        """The arguments for some rows, but for labels.

        **Arguments:**

        - `indices`: which ones.
        - `rows`: how many there shall be; empty ones follow.
        - `seq`: the number of tokens to which each is padded.

        **Returns:** `input_ids`, `attention_mask` and `token_type_ids`, of shape (rows, seq) or
        (rows, choices, seq), int32.
        """
        choices = self.choices or 1
        places = [int(i) * choices + choice for i in indices for choice in range(choices)]
        ids = [self.input_ids[place] for place in places]
        types = [self.token_type_ids[place] for place in places]
        masks = [np.ones(len(row), np.int32) for row in ids]
        inputs = {
            "input_ids": pad_rows(ids, (rows * choices, seq), self.pad_id),
            "attention_mask": pad_rows(masks, (rows * choices, seq), 0),
            "token_type_ids": pad_rows(types, (rows * choices, seq), 0),
        }
        if self.choices is None:
            return inputs
        return {name: x.reshape(rows, choices, seq) for name, x in inputs.items()}

    def batch(
        self, indices: Int[np.ndarray, " all_rows"], part: slice = slice(None)
    ) -> dict[str, np.ndarray]:
        """The arguments for some rows, with labels, padded to one of a few lengths; or for a part
        of these rows, padded as all are.
        """
        longest = int(self.lengths[indices].max())
        seq = next(size for size in buckets(self.max_length) if size >= longest)
        indices = indices[part]
        batch = self.inputs(indices, rows=len(indices), seq=seq)
        for name, labels in self.labels.items():
            if isinstance(labels, np.ndarray):
                batch[name] = labels[indices]
            else:
                rows = [labels[i] for i in indices]
                batch[name] = pad_rows(rows, (len(rows), seq), IGNORED_LABEL)
        return batch


class TrainBatches:
    """The batches of a training: a function of the number of the step.

    Each epoch is a permutation of its own, and all batches are full: the last one of an epoch has
    the first examples of the next. `len` is the number of batches in which an epoch is seen.
    """

    def __init__(
        self,
        features: Features,
        *,
        batch_size: int,
        seed: int,
        group_by_length: bool = False,
        host: int = 0,
        hosts: int = 1,
    ):
        """**Arguments:**

        - `features`: what they are made of.
        - `batch_size`: the number of rows in each, those of all hosts together.
        - `seed`: each has an order of its own.
        - `group_by_length`: whether a batch is of rows of similar lengths. There is less padding,
            but more shapes are compiled, and the order is less random: in each 50 batches, rows are
            sorted by length.
        - `host`, `hosts`: which part of each batch is made, of how many, as in `batch_indices`.

        **Raises:** `ValueError` if there are no rows, `batch_size` is not positive, or a batch
        cannot be split so.
        """
        self._part = host_rows(batch_size, host, hosts)
        check_count("seed", seed)
        if len(features) == 0:
            raise ValueError("There are no examples.")
        self.features = features
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_length = group_by_length

    def __len__(self) -> int:
        return -(-len(self.features) // self.batch_size)

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The arguments of the model, labels included, in a step counted from 0; the host's part of
        them.
        """
        return self.features.batch(self.indices(step), self._part)

    def indices(self, step: int) -> Int[np.ndarray, " batch_size"]:
        """The rows in the batch of a step, those of all hosts."""
        if not self.group_by_length:
            return batch_indices(len(self.features), self.batch_size, seed=self.seed, step=step)
        together = min(_BATCHES_SORTED_TOGETHER, len(self))
        group, place = divmod(step, together)
        rows = batch_indices(
            len(self.features), together * self.batch_size, seed=self.seed, step=group
        )
        by_length = rows[np.argsort(self.features.lengths[rows], kind="stable")]
        # Not the short ones first: the batches of a group come in an order of their own.
        order = batch_indices(together, together, seed=self.seed, step=group)
        return by_length.reshape(together, self.batch_size)[order[place]]


def run(
    model: Any, features: Features, outputs: Sequence[str]
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Runs a model, without dropout.

    **Arguments:**

    - `model`, `features`: what is run, on what.
    - `outputs`: the fields of its output that are wanted, such as "logits".

    **Returns:** the number of each row and its outputs, in float32. The shortest rows come first.
    """
    plan = plan_batches(
        features.lengths.tolist(),
        max_length=features.max_length,
        choices=features.choices or 1,
    )

    def arguments(batch: Batch) -> tuple[Any, ...]:
        inputs = features.inputs(batch.indices, rows=batch.rows, seq=batch.seq)
        return tuple(outputs), model, inputs

    calls = ((batch, arguments(batch)) for batch in plan)
    for batch, arrays in run_batches(_compute, calls):
        values = [np.asarray(array) for array in arrays]
        for row, index in enumerate(batch.indices):
            yield index, [value[row] for value in values]


@eqx.filter_jit
def _compute(
    outputs: tuple[str, ...], model: Any, inputs: Mapping[str, Array | np.ndarray]
) -> list[Float[Array, "..."]]:
    out = model(**inputs)
    return [out[name].astype(jnp.float32) for name in outputs]
