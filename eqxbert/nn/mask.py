"""Boolean attention masks. True means: the query position may attend to the key position.

Masks are broadcast against attention scores of shape `(*batch, heads, q_seq, kv_seq)`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from .numerics import Size


def key_mask(may_attend: Bool[Array, "*batch kv_seq"]) -> Bool[Array, "*batch 1 1 kv_seq"]:
    """Every query may attend to the keys that are marked: the usual mask for padding."""
    return may_attend[..., None, None, :]


def pair_mask(
    may_attend: Bool[Array, "*batch q_seq kv_seq"],
) -> Bool[Array, "*batch 1 q_seq kv_seq"]:
    """Each query has keys of its own that it may attend to, the same ones in all heads."""
    return may_attend[..., None, :, :]


def causal_mask(q_seq: Size, kv_seq: Size) -> Bool[Array, "1 q_seq kv_seq"]:
    """Each query may attend to keys up to its own position, where the queries are the last `q_seq`
    of `kv_seq` positions.
    """
    return jnp.tril(jnp.ones((1, q_seq, kv_seq), bool), k=kv_seq - q_seq)
