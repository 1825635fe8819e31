"""Dropout that happens if and only if there is a key."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


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
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def split_key(key: PRNGKeyArray | None, num: int) -> Sequence[PRNGKeyArray | None]:
    """`num` keys for the random parts of a module, or `num` times None where there is no key: the
    same lines then serve training and inference.
    """
    return [None] * num if key is None else list(jax.random.split(key, num))
