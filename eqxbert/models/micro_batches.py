"""Large batches in parts, whose intermediate results stay in the processor's cache."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters.partial_eval import DynamicJaxprTracer
from jaxtyping import Array, Float

from ..nn import platform

T = TypeVar("T")

# With several times as many, each takes up to 1.5 times as long, or thrice in long sequences.
_TOKENS = 1024
# From this length on, attention's scores need the room in the cache of half the tokens.
_LONG = 192


def tokens_in_cache(seq: int) -> int:
    """How many tokens, in sequences of length `seq`, a CPU is fastest with at a time."""
    return _TOKENS if seq < _LONG else _TOKENS // 2


def number_of_parts(x: Float[Array, "*batch seq hidden"]) -> int:
    """In how many parts a batch is best computed: in one, but for large batches on a CPU.

    Also in one where gradients are to be taken, for which all intermediate results are kept anyway;
    and outside of compiled programs, where the loop would be compiled for each call.
    """
    rows, seq = math.prod(x.shape[:-2]), x.shape[-2]
    if not isinstance(rows * seq, int):  # a program for any batch (`jax.export`)
        return 1
    if platform() != "cpu" or not isinstance(x, DynamicJaxprTracer):
        return 1
    return max(1, -(-rows // max(1, tokens_in_cache(seq) // seq)))


def in_parts(function: Callable[[Any], T], arguments: Any, parts: int, batch_ndim: int) -> T:
    """What `function` returns for the `arguments`, computed for some rows of the batch at a time.

    **Arguments:**

    - `arguments`, and what the function returns: trees of arrays whose leading axes are the batch.
    - `batch_ndim`: how many these are.
    """
    leaves = jax.tree.leaves(arguments)
    batch = leaves[0].shape[:batch_ndim]
    rows = math.prod(batch)
    size = -(-rows // parts)

    def split(x: Array) -> Array:
        x = jnp.reshape(x, (rows, *x.shape[batch_ndim:]))
        # Rows to fill up the last part: their results are not used.
        filled = jnp.pad(x, [(0, parts * size - rows)] + [(0, 0)] * (x.ndim - 1))
        return jnp.reshape(filled, (parts, size, *x.shape[1:]))

    def join(x: Array) -> Array:
        x = jnp.reshape(x, (parts * size, *x.shape[2:]))[:rows]
        return jnp.reshape(x, (*batch, *x.shape[1:]))

    return jax.tree.map(join, lax.map(function, jax.tree.map(split, arguments)))
