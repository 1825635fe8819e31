"""The arrays of a language model that checkpoints may have under two names."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .containers import LazyTensor
from .names import DECODER_BIAS, DECODER_WEIGHT, LM_BIAS, WORDS
from .report import CheckpointError

logger = logging.getLogger("eqxbert")


class Found(NamedTuple):
    """An array of a checkpoint: what it is called there, and itself as PyTorch would lay it out."""

    name: str
    tensor: LazyTensor


def settle_ties(
    found: Mapping[str, Found], *, tied: bool
) -> tuple[dict[str, Found], tuple[tuple[Found, str], ...]]:
    """The arrays of a language model without those that repeat others, and these with the names of
    what they repeat.

    The bias has two names, either of which may be the only one. With `tied`, the decoder's weight
    is the word embeddings' table: it, too, may come under either name, or under both.
    """
    found, repeats = dict(found), []

    def settle(alias: str, name: str) -> None:
        if alias in found and name in found:
            repeats.append((found.pop(alias), name))
        elif alias in found:
            found[name] = found.pop(alias)

    if tied:
        settle(DECODER_WEIGHT, WORDS)
    elif DECODER_BIAS in found and LM_BIAS in found:
        # transformers computes with this one; where nothing is tied, the other one is idle.
        found[DECODER_BIAS], found[LM_BIAS] = found[LM_BIAS], found[DECODER_BIAS]
    settle(DECODER_BIAS, LM_BIAS)
    return found, tuple(repeats)


def find_overridden(
    repeats: Sequence[tuple[Found, str]], arrays: Mapping[str, Any], *, tied: bool
) -> tuple[str, ...]:
    """The names of those that are not equal to what they should repeat among the `arrays`, given by
    canonical name. A warning says so.

    **Raises:** `CheckpointError` if it is the bias, of which nobody knows which one is right.
    """
    overridden = [entry for entry, name in repeats if _differ(entry, arrays.get(name))]
    for name in (entry.name for entry in overridden):
        if not tied:
            logger.warning(
                "%s: not used, since with tie_word_embeddings=False transformers' decoder computes "
                "with its own bias.",
                name,
            )
        elif name.endswith("bias"):
            raise CheckpointError(
                f"{name!r} and {LM_BIAS!r} are two names of one array, but their values differ. "
                "Remove one of them, or pass tie_word_embeddings=False if the decoder was trained "
                "apart from the word embeddings."
            )
        else:
            logger.warning(
                "%s: not equal to the word embeddings, which it is tied to by tie_word_embeddings, "
                "and which are used in its place, as in transformers 4. (transformers 5 would not "
                "tie them.) If it was trained apart, pass tie_word_embeddings=False.",
                name,
            )
    return tuple(entry.name for entry in overridden)


def _differ(entry: Found, array: Any) -> bool:
    if array is None or entry.tensor.shape != array.shape:
        return True
    return not np.array_equal(entry.tensor.read().astype(array.dtype), array)


def with_decoder_bias(state: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a model with the bias under its second name too, if nothing is tied: there,
    transformers' decoder has a bias of its own, and computes with it.
    """
    return state | {DECODER_BIAS: state[LM_BIAS]} if DECODER_WEIGHT in state else state
