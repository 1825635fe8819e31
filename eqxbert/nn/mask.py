"""Boolean attention masks, and what else tells sequences in a row apart. True means: the query
position may attend to the key position.

Masks are broadcast against attention scores of shape `(*batch, heads, q_seq, kv_seq)`.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Int32, Integer

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


def segment_mask(
    segment_ids: Integer[Array | np.ndarray, "*batch seq"],
) -> Bool[Array, "*batch seq seq"]:
    """Tokens may attend to those of their own segment alone; padding, to padding."""
    segment_ids = jnp.asarray(segment_ids)
    return segment_ids[..., :, None] == segment_ids[..., None, :]


def segment_positions(
    segment_ids: Int[Array | np.ndarray, "*batch seq"],
) -> Int32[Array, "*batch seq"]:
    """Each token's place in its segment; 0 for padding."""
    segment_ids = jnp.asarray(segment_ids)
    places = jnp.arange(segment_ids.shape[-1], dtype=jnp.int32)
    places = jnp.broadcast_to(places, segment_ids.shape)
    before = jnp.roll(segment_ids, 1, axis=-1)
    is_first = (segment_ids != before) | (places == 0)
    firsts = lax.cummax(jnp.where(is_first, places, 0), axis=segment_ids.ndim - 1)
    return jnp.where(segment_ids == 0, 0, places - firsts)
