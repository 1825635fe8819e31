"""Dropout that happens if and only if there is a key."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt32


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
    keep = _random_bits(key, x.shape) < round((1 - rate) * 2**16)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def _random_bits(key: PRNGKeyArray, shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """16 random bits for each element. JAX would draw 32 for each, and throw half of them away:
    twice the time, which is a good part of what a training step takes.
    """
    *batch, size = shape or (1,)
    bits = jax.random.bits(key, (*batch, -(-size // 2)), jnp.uint32)
    halves = lax.bitcast_convert_type(bits, jnp.uint16)
    halves = jnp.reshape(halves, (*batch, -1))[..., :size]
    return jnp.reshape(halves.astype(jnp.uint32), shape)


def split_key(key: PRNGKeyArray | None, num: int) -> Sequence[PRNGKeyArray | None]:
    """`num` keys for the random parts of a module, or `num` times None where there is no key: the
    same lines then serve training and inference.
    """
    return [None] * num if key is None else list(jax.random.split(key, num))
