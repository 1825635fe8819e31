"""Checks of what is given to models, with messages that name the argument."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .nn import IGNORED_LABEL, Size

AttentionMask = Bool[Array | np.ndarray, "..."] | Int[Array | np.ndarray, "..."] | None
"""Of shape `(*batch, seq)` or `(*batch, seq, seq)`; see `BertModel`."""


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


def check_ids(name: str, ids: Any, limit: Size, limit_name: str) -> None:
    """Checks that `ids` are integers from 0 up to, but not including, `limit`.

    Values are checked where they are known, that is outside `jax.jit`. (Inside, an id outside the
    range makes a row of NaN.)

    **Raises:** `ValueError` that names the argument, the value and the limit.
    """
    check_array(name, ids, np.integer, "integers")
    is_known = isinstance(limit, int | np.integer) and not isinstance(ids, jax.core.Tracer)
    if not is_known or ids.size == 0:
        return
    values = np.asarray(ids)
    wrong = values[(values < 0) | (values >= limit)]
    if wrong.size:
        raise ValueError(
            f"{name} contains {wrong.flat[0]}, but valid ids are 0 to {limit - 1} ({limit_name} is "
            f"{limit}). {wrong.size} of {values.size} ids are out of range."
        )


def check_labels(
    name: str, labels: Any, limit: int, limit_name: str, shape: tuple[Size, ...]
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


def check_shape(name: str, array: Any, *expected: tuple[Size, ...]) -> None:
    """Checks that `array` has one of the `expected` shapes.

    **Raises:** `ValueError` that names the argument, its shape and what was expected.
    """
    if array.shape not in expected:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}, expected {' or '.join(map(str, expected))}."
        )


def check_broadcasts(name: str, array: Any, to: tuple[Size, ...]) -> None:
    """Checks that `array` can be broadcast to the shape `to`.

    **Raises:** `ValueError` that names the argument, its shape and what was expected.
    """
    try:
        fits = jnp.broadcast_shapes(array.shape, to) == to
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}, which cannot be broadcast to {to}."
        )


def check_mask(
    name: str, mask: AttentionMask, *shapes: tuple[Size, ...]
) -> Bool[Array, "..."] | None:
    """A mask of tokens as booleans, of one of the `shapes`.

    **Raises:** `ValueError` if it has another shape, or holds anything but booleans, 1 and 0.
    """
    checked = boolean_mask(name, mask, *shapes)
    return None if checked is None else jnp.asarray(checked)


def boolean_mask(
    name: str, mask: AttentionMask, *shapes: tuple[Size, ...]
) -> Bool[Array | np.ndarray, "..."] | None:
    """As `check_mask`, but NumPy's arrays stay so: nothing is put on a device, and nothing
    compiled.
    """
    if mask is None:
        return None
    if not isinstance(mask, jax.Array | np.ndarray):
        raise ValueError(
            f"{name} must be an array, got {type(mask).__name__}; use numpy.asarray(...)."
        )
    if not (mask.dtype == bool or jnp.issubdtype(mask.dtype, jnp.integer)):
        raise ValueError(
            f"{name} must be boolean or integer (1 or True: may be attended to), got {mask.dtype}. "
            "If it holds 1 and 0, write `mask.astype(bool)`; if it is added to the scores (0 and "
            "large negative numbers), `mask == 0`."
        )
    if not isinstance(mask, jax.core.Tracer):
        values = np.asarray(mask).astype(np.int64)
        wrong = values[(values != 0) & (values != 1)]
        if wrong.size:
            raise ValueError(
                f"{name} contains {wrong.flat[0]}; expected 1 (may be attended to) and 0. If it is "
                "added to the scores (0 and large negative numbers), pass `mask == 0`."
            )
    check_shape(name, mask, *shapes)
    return mask.astype(bool)
