"""The dtypes that models compute in."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from .containers import LazyTensor

_FLOATS = ("bfloat16", "float16", "float32", "float64")


def quantised(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """What to say of tensors that are not in one of the dtypes that models compute in, if any."""
    rows = [f"{name}: {t.dtype}" for name, t in tensors.items() if t.dtype not in _FLOATS]
    advice = "Quantised checkpoints are not supported; load the original one."
    if not rows:
        return []
    return ["\n  ".join([f"{len(rows)} of a dtype that is not supported:", *rows]) + "\n" + advice]


def target_dtype(dtype: DTypeLike | None, tensors: Mapping[str, LazyTensor]) -> np.dtype:
    """The dtype asked for: float32 if None, the one that holds all tensors if "auto"."""
    if dtype is None:
        return jnp.dtype(jnp.float32)
    if isinstance(dtype, str) and dtype == "auto":
        dtypes = {jnp.dtype(tensor.dtype) for tensor in tensors.values()} or {jnp.dtype("float32")}
        with jax.numpy_dtype_promotion("standard"):
            return functools.reduce(jnp.promote_types, dtypes)
    try:
        name = jnp.dtype(dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in _FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(_FLOATS)} or 'auto', got {name}.")
    target = jnp.dtype(name)
    if target == jnp.float64 and not jax.config.jax_enable_x64:  # pyright: ignore
        raise ValueError('float64 needs jax.config.update("jax_enable_x64", True) first.')
    return target


def is_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite, without a second array where that can be avoided."""
    if array.size == 0:
        return True
    if array.dtype == jnp.bfloat16:  # for which NumPy is slow: the bits of the exponent tell
        exponent = np.uint16(0x7F80)
        return not np.any(array.view(np.uint16) & exponent == exponent)
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))
