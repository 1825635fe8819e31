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
    found: Mapping[str, Found], part: str = "", *, tied: bool
) -> tuple[dict[str, Found], tuple[tuple[Found, str], ...]]:
    """The arrays of a language model without those that repeat others, and these with the names of
    what they repeat.

    The bias has two names, either of which may be the only one. With `tied`, the decoder's weight
    is the word embeddings' table: it, too, may come under either name, or under both. `part` is
    what the names begin with in a model of several parts.
    """
    found, repeats = dict(found), []
    decoder_weight, words = part + DECODER_WEIGHT, part + WORDS
    decoder_bias, lm_bias = part + DECODER_BIAS, part + LM_BIAS

    def settle(alias: str, name: str) -> None:
        if alias in found and name in found:
            repeats.append((found.pop(alias), name))
        elif alias in found:
            found[name] = found.pop(alias)

    if tied:
        settle(decoder_weight, words)
    elif decoder_bias in found and lm_bias in found:
        # transformers computes with this one; where nothing is tied, the other one is idle.
        found[decoder_bias], found[lm_bias] = found[lm_bias], found[decoder_bias]
    settle(decoder_bias, lm_bias)
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
    for part in ("", "decoder."):
        if part + DECODER_WEIGHT in state:
            state = state | {part + DECODER_BIAS: state[part + LM_BIAS]}
    return state
