"""What changes the scores of the next token before one is chosen.

A processor is a function of `(ids, logits, step)`:

- `ids: Int[Array, "batch slots"]`: the tokens of each row so far, in order, the prompt's included;
    -1 where there is none: in the padding, and in the slots that are not filled yet.
- `logits: Float[Array, "batch vocab"]`: the scores, in float32; with beams, log-probabilities.
- `step: Int[Array, ""]`: how many new tokens there are already.

It returns the new scores, minus infinity for what must not be chosen. It is compiled into the
program, so it must be made of JAX's functions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Ids = Int[Array, "batch slots"]
Logits = Float[Array, "batch vocab"]
Step = Int[Array, ""]
Processor = Callable[[Ids, Logits, Step], Logits]


class ById:
    """A processor that is compared by identity. Options are keys for compiled programs, and some
    classes, such as Equinox's modules, would compare arrays.
    """

    def __init__(self, process: Processor):
        self.process = process
        # A method is made anew whenever it is asked for; its object and its function are not.
        owner = getattr(process, "__self__", None)
        self._identity = id(owner), id(getattr(process, "__func__", process))

    @classmethod
    def of(cls, process: Processor) -> "ById":
        """The processor so wrapped, if it is not yet."""
        return process if isinstance(process, cls) else cls(process)

    def __call__(self, ids: Ids, logits: Logits, step: Step) -> Any:
        return self.process(ids, logits, step)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return repr(self.process)


def repetition_penalty(penalty: float | int) -> Processor:
    """Divides the positive scores of tokens that have occurred by `penalty`, and multiplies the
    negative ones with it ([Keskar et al., 2019](https://arxiv.org/abs/1909.05858)).
    """

    def process(ids: Ids, logits: Logits, step: Step) -> Logits:
        del step
        penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
        return jnp.where(_occurring(ids, logits), penalised, logits)

    return process


def no_repeat_ngram(size: int) -> Processor:
    """Forbids every token that would complete a sequence of `size` tokens that has occurred."""

    def process(ids: Ids, logits: Logits, step: Step) -> Logits:
        del step
        batch, slots = ids.shape
        if slots < size:
            return logits
        last = _last(ids, size - 1)
        # Every window of `size` slots, without its last one, against the last tokens.
        windows = slots - size + 1
        repeats = jnp.ones((batch, windows), bool)
        for i in range(size - 1):
            here = ids[:, i : i + windows]
            repeats &= (here == last[:, i, None]) & (here >= 0)
        completing = jnp.where(repeats, ids[:, size - 1 :], -1)
        return jnp.where(_occurring(completing, logits), -jnp.inf, logits)

    return process


def forbid_words(words: Sequence[Sequence[int]]) -> Processor:
    """Forbids sequences of tokens: the last of each, where the others precede."""

    def process(ids: Ids, logits: Logits, step: Step) -> Logits:
        del step
        for *before, final in words:
            if len(before) > ids.shape[1]:
                continue
            last = _last(ids, len(before))
            follows = jnp.all(last == jnp.asarray(before, ids.dtype)[None, :], axis=-1)
            column = jnp.where(follows, -jnp.inf, logits[:, final])
            logits = logits.at[:, final].set(column)
        return logits

    return process


def minimum_length(length: int, eos_ids: Sequence[int]) -> Processor:
    """Forbids the end until there are `length` tokens, the prompt's included."""

    def process(ids: Ids, logits: Logits, step: Step) -> Logits:
        del step
        too_short = jnp.sum(ids >= 0, axis=-1) < length
        return jnp.where(too_short[:, None] & _columns(eos_ids, logits)[None, :], -jnp.inf, logits)

    return process


def minimum_new_tokens(count: int, eos_ids: Sequence[int]) -> Processor:
    """Forbids the end until there are `count` new tokens."""

    def process(ids: Ids, logits: Logits, step: Step) -> Logits:
        del ids
        return jnp.where((step < count) & _columns(eos_ids, logits)[None, :], -jnp.inf, logits)

    return process


def suppress(tokens: Sequence[int]) -> Processor:
    """Forbids some tokens."""

    def process(ids: Ids, logits: Logits, step: Step) -> Logits:
        del ids, step
        return jnp.where(_columns(tokens, logits)[None, :], -jnp.inf, logits)

    return process


def force_first(token: int) -> Processor:
    """Makes one token the only choice for the second of all tokens: the one after that with which
    an encoder-decoder's output begins.
    """

    def process(ids: Ids, logits: Logits, step: Step) -> Logits:
        del step
        return jnp.where((jnp.sum(ids >= 0, axis=-1) == 1)[:, None], _only(token, logits), logits)

    return process


def force_last(tokens: Sequence[int], limit: Int[Array, ""]) -> Processor:
    """Makes some tokens the only choice for the last one before the `limit` of new tokens."""

    def process(ids: Ids, logits: Logits, step: Step) -> Logits:
        del ids
        return jnp.where(step == limit - 1, _only(tokens, logits), logits)

    return process


def _only(tokens: int | Sequence[int], logits: Logits) -> Float[Array, "1 vocab"]:
    tokens = [tokens] if isinstance(tokens, int) else tokens
    return jnp.where(_columns(tokens, logits), 0.0, -jnp.inf).astype(logits.dtype)[None, :]


def _columns(tokens: Sequence[int], logits: Logits) -> Bool[Array, " vocab"]:
    return jnp.zeros(logits.shape[-1], bool).at[jnp.asarray(tokens, jnp.int32)].set(True)


def _occurring(ids: Ids, logits: Logits) -> Bool[Array, "batch vocab"]:
    """Which tokens are among the `ids` of each row, of which the negative ones are none."""
    batch, vocab = logits.shape
    rows = jnp.arange(batch)[:, None]
    columns = jnp.where(ids < 0, vocab, ids)
    return jnp.zeros((batch, vocab), bool).at[rows, columns].set(True, mode="drop")


def _last(ids: Ids, count: int) -> Int[Array, "batch count"]:
    """The last tokens of the rows. All rows end in the same slot, but for those that are finished,
    of which nothing is asked any more.
    """
    slots = jnp.arange(ids.shape[1])
    end = jnp.max(jnp.where(jnp.any(ids >= 0, axis=0), slots + 1, 0))
    # With fewer tokens than `count`, the window is of the first slots. It then has padding in it,
    # which equals no token.
    return lax.dynamic_slice_in_dim(ids, jnp.maximum(end - count, 0), count, axis=1)
