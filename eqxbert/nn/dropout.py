"""Dropout that happens if and only if there is a key.

What is dropped is told by a hash of the key and of the place in the array, which a kernel can
compute for its part of the array. Bits from `jax.random`, better than needed, take several times
as long.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]


def dropout(
    x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Zeroes each element independently with probability `rate` and scales the others by `1 / (1 -
    rate)` ([Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html)).

    Without a `key`, `x` is returned as it is.
    """
    if key is None or rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    return jnp.where(_kept(key, x.shape, rate), x / (1 - rate), jnp.zeros_like(x))


# Compiled, and so traced but once for all modules in which dropout is alike.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _kept(key: PRNGKeyArray, shape: tuple[int, ...], rate: float) -> Bool[Array, "..."]:
    *rows, size = shape or (1,)
    row = jnp.reshape(lax.iota(jnp.uint32, math.prod(rows)), (*rows, 1))
    column = jnp.reshape(lax.iota(jnp.uint32, size), (*(1 for _ in rows), size))
    return jnp.reshape(keeps(row_words(key_words(key), row), column, rate), shape)


def key_words(key: PRNGKeyArray) -> Words:
    """Two words of a key of any generator; those of similar keys are unrelated."""
    first = second = jnp.uint32(0x9E3779B9)
    for word in jax.random.key_data(key):
        first, second = _hashed(word ^ first, second), first
    return first, second


def row_words(words: Words, row: UInt32[Array, "*rows"]) -> Words:
    """Two words for each row, such that no two rows share random bits, or overlap in them."""
    first, second = words
    own = _mixed(row ^ first, second)
    return own, _hashed(row ^ second, _folded(own))


def keeps(words: Words, column: UInt32[Array, "..."], rate: float) -> Bool[Array, "..."]:
    """Whether dropout keeps an element.

    **Arguments:**

    - `words`: those of its row; a row is all of the last axis, counted through the other axes.
    - `column`: its place in the row. Broadcastable against the words.
    - `rate`: the probability with which it does not, below 1.
    """
    first, second = words
    threshold = min(round((1 - rate) * 2**32), 2**32 - 1)
    # There are many elements, and GPUs are slow at this: it is the hash without its folds. Since a
    # fold undoes a fold, `row_words` does without one for the first (which changes no column below
    # 2^16); the last would change the lower half alone.
    return _multiplied(column ^ first, second) < jnp.uint32(threshold)


def _hashed(x: UInt32[Array, "..."], salt: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """32 bits that look random ([Wellons, 2018](https://nullprogram.com/blog/2018/07/31/))."""
    return _folded(_mixed(x, salt))


def _mixed(x: UInt32[Array, "..."], salt: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    return _multiplied(_folded(x), salt)


def _folded(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The upper half added to the lower, bit by bit; its own inverse."""
    return x ^ (x >> jnp.uint32(16))


def _multiplied(x: UInt32[Array, "..."], salt: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = x * jnp.uint32(0x7FEB352D)
    return ((x ^ (x >> jnp.uint32(15))) + salt) * jnp.uint32(0x846CA68B)


def split_key(key: PRNGKeyArray | None, num: int) -> Sequence[PRNGKeyArray | None]:
    """`num` keys for the random parts of a module, or `num` times None where there is no key: the
    same lines then serve training and inference.
    """
    return [None] * num if key is None else list(jax.random.split(key, num))
