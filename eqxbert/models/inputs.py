"""Checks of what is given to a model, and its conversion to what the encoder works with."""

from typing import Any, TypedDict

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..nn import IGNORED_LABEL, align_trailing, causal_mask, key_mask, pair_mask

AttentionMask = Bool[Array | np.ndarray, "..."] | Int[Array | np.ndarray, "..."] | None
"""Of shape `(*batch, seq)` or `(*batch, seq, seq)`; see `BertModel`."""


class BertOptions(TypedDict, total=False):
    """Arguments of `BertModel` that the models with a head hand on to it. It describes them."""

    head_mask: Float[Array | np.ndarray, "layers heads"] | None
    inputs_embeds: Float[Array | np.ndarray, "*batch seq hidden"] | None
    output_hidden_states: bool | None
    output_attentions: bool | None


def check_array(name: str, array: Any, kinds: type | tuple[type, ...], what: str) -> None:
    """Checks that `array` is an array of JAX or NumPy whose dtype is of one of these
    `kinds`.

    **Raises:** `ValueError` that names the argument and says what it is, and that it should be
    `what`.
    """
    if not isinstance(array, jax.Array | np.ndarray):
        raise ValueError(
            f"{name} must be an array of {what}, got {type(array).__name__}. Text goes through "
            "eqxbert.Tokenizer or eqxbert.SentenceEncoder; lists and the like through "
            "numpy.asarray(...)."
        )
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise ValueError(f"{name} must hold {what}, got an array of {array.dtype}.")


def check_ids(name: str, ids: Any, limit: int, limit_name: str) -> None:
    """Checks that `ids` are integers from 0 up to, but not including, `limit`.

    Values are checked where they are known, that is outside `jax.jit`. (Inside, an id outside the
    range makes a row of NaN.)

    **Raises:** `ValueError` that names the argument, the value and the limit.
    """
    check_array(name, ids, np.integer, "integers")
    if isinstance(ids, jax.core.Tracer) or ids.size == 0:
        return
    values = np.asarray(ids)
    wrong = values[(values < 0) | (values >= limit)]
    if wrong.size:
        raise ValueError(
            f"{name} contains {wrong.flat[0]}, but valid ids are 0 to {limit - 1} ({limit_name} is "
            f"{limit}). {wrong.size} of {values.size} ids are out of range."
        )


def check_labels(
    name: str, labels: Any, limit: int, limit_name: str, shape: tuple[int, ...]
) -> None:
    """Checks that `labels` are integers of this `shape`, each from 0 up to, but not including,
    `limit`, or -100 where there is none. Values are checked as by `check_ids`.

    **Raises:** `ValueError` that names the argument, what it is and what was expected.
    """
    check_array(name, labels, np.integer, "integers")
    check_shape(name, labels, shape)
    if isinstance(labels, jax.core.Tracer):
        return
    values = np.asarray(labels)
    wrong = values[((values < 0) | (values >= limit)) & (values != IGNORED_LABEL)]
    if wrong.size:
        raise ValueError(
            f"{name} contains {wrong.flat[0]}, but valid labels are 0 to {limit - 1} ({limit_name} "
            f"is {limit}), and {IGNORED_LABEL} for what has no label. {wrong.size} of "
            f"{values.size} labels are out of range."
        )


def check_shape(name: str, array: Any, *expected: tuple[int, ...]) -> None:
    """Checks that `array` has one of the `expected` shapes.

    **Raises:** `ValueError` that names the argument, its shape and what was expected.
    """
    if array.shape not in expected:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}, expected {' or '.join(map(str, expected))}."
        )


def check_broadcasts(name: str, array: Any, to: tuple[int, ...]) -> None:
    """Checks that `array` can be broadcast to the shape `to`.

    **Raises:** `ValueError` that names the argument, its shape and what was expected.
    """
    try:
        fits = np.broadcast_shapes(array.shape, to) == to
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}, which cannot be broadcast to {to}."
        )


def attention_mask_for_scores(
    attention_mask: AttentionMask,
    batch_seq: tuple[int, ...],
    *,
    causal: bool,
) -> Bool[Array, "..."] | None:
    """The boolean mask for attention scores of shape `(*batch, heads, seq, seq)`.

    **Arguments:**

    - `attention_mask`: of shape `(*batch, seq)`, marking the tokens that may be attended to, or
        `(*batch, seq, seq)`, marking for each token those it may attend to. None means all.
    - `batch_seq`: the shape of the token ids.
    - `causal`: whether, besides, no token may attend to later ones.

    **Raises:** `ValueError` if the mask has another shape or holds neither booleans nor integers.
    """
    seq = batch_seq[-1]
    causality = causal_mask(seq, seq) if causal else None
    if attention_mask is None:
        return causality
    if not isinstance(attention_mask, jax.Array | np.ndarray):
        raise ValueError(
            f"attention_mask must be an array, got {type(attention_mask).__name__}; use "
            "numpy.asarray(...)."
        )
    if not (attention_mask.dtype == bool or jnp.issubdtype(attention_mask.dtype, jnp.integer)):
        raise ValueError(
            "attention_mask must be boolean or integer (1 or True: may be attended to), got "
            f"{attention_mask.dtype}. If it holds 1 and 0, write `mask.astype(bool)`; if it is "
            "added to the scores (0 and large negative numbers), `mask == 0`."
        )
    if not isinstance(attention_mask, jax.core.Tracer):
        values = np.asarray(attention_mask).astype(np.int64)
        wrong = values[(values != 0) & (values != 1)]
        if wrong.size:
            raise ValueError(
                f"attention_mask contains {wrong.flat[0]}; expected 1 (may be attended to) and 0. "
                "If it is added to the scores (0 and large negative numbers), pass `mask == 0`."
            )
    check_shape("attention_mask", attention_mask, batch_seq, (*batch_seq, seq))
    may_attend = jnp.asarray(attention_mask).astype(bool)
    mask = key_mask(may_attend) if may_attend.ndim == len(batch_seq) else pair_mask(may_attend)
    return mask if causality is None else mask & align_trailing(causality, mask)
