"""What several blocks need to say about dtypes and shapes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Shaped
from numpy import dtype

Size = Any
"""The size of an axis: an integer; in a program for any size (`jax.export`), what stands for it."""


def accumulation_dtype(x: Shaped[Array, "..."]) -> dtype:
    """The dtype sums over `x` are taken in: that of `x`, but never less than float32."""
    # Not `jnp.promote_types`, which refuses under `jax_numpy_dtype_promotion="strict"`.
    return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.dtype(jnp.float32)


def as_int32(ids: Int[Array | np.ndarray, "*shape"]) -> Int32[Array, "*shape"]:
    """Integers as int32, in which they can be compared with any size. (A narrower dtype would make
    the size wrap around.) Those beyond it become the nearest there is, which is no valid id either.
    """
    bounds = np.iinfo(np.int32)
    if isinstance(ids, np.ndarray):
        ids = np.clip(ids.astype(np.int64), bounds.min, bounds.max)
    elif ids.dtype == jnp.int64:
        ids = jnp.clip(ids, bounds.min, bounds.max)
    return jnp.asarray(ids, jnp.int32)


def align_trailing(x: Shaped[Array, "..."], to: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """`x` with leading axes of size 1, so that its last axes line up with those of `to`.

    NumPy's broadcasting would add them silently; they are spelled out so that the library also runs
    under `jax_numpy_rank_promotion="raise"`.
    """
    return jnp.reshape(x, (1,) * (to.ndim - x.ndim) + x.shape)
