"""The cache of a decoder: made, and continued with new tokens."""

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from ..config import BertConfig
from ..nn import KVCache, write_slots
from ..outputs import DecoderCache
from .encoder import CachePlace


def empty_cache(
    config: BertConfig, batch: tuple[int, ...], max_length: int, dtype: DTypeLike
) -> DecoderCache:
    """A cache with no token in it."""
    heads = [len(config.kept_heads(i)) for i in range(config.num_hidden_layers)]
    return DecoderCache(
        layers=tuple(KVCache.empty(batch, max_length, n, config.head_size, dtype) for n in heads),
        valid=jnp.zeros((*batch, max_length), bool),
        positions=jnp.zeros((*batch, max_length), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def next_positions(
    cache: DecoderCache, may_attend: Bool[Array, "*batch seq"]
) -> Int[Array, "*batch seq"]:
    """The positions of new tokens: they count on from those before, without padding."""
    before = jnp.sum(cache.valid, axis=-1, keepdims=True, dtype=jnp.int32)
    within = jnp.cumsum(may_attend, axis=-1, dtype=jnp.int32)
    return jnp.maximum(before + within - 1, 0)


def check_room(cache: DecoderCache, batch_seq: tuple[int, ...]) -> None:
    """Checks that the cache has slots for new tokens, where it is known how many are filled.

    **Raises:** `ValueError` if it has not, or is of another batch.
    """
    *batch, seq = batch_seq
    *cache_batch, slots = cache.valid.shape
    if cache_batch != batch:
        raise ValueError(
            f"The cache is for a batch of shape {tuple(cache_batch)}, but the tokens come in one "
            f"of {tuple(batch)}."
        )
    if isinstance(cache.length, jax.core.Tracer):
        return
    if int(cache.length) + seq > slots:
        raise ValueError(
            f"The cache overflows: {int(cache.length)} of its {slots} slots are filled, and there "
            f"are {seq} new tokens. Make it larger: model.init_cache(batch, max_length)."
        )


def is_overflowing(cache: DecoderCache, seq: int) -> Bool[Array, ""]:
    """Whether there are too few slots, for programs that are compiled before it is known."""
    return cache.length + seq > cache.valid.shape[-1]


def advance(
    cache: DecoderCache,
    may_attend: Bool[Array, "*batch seq"],
    position_ids: Int[Array, "*batch seq"],
) -> tuple[DecoderCache, CachePlace, Bool[Array, "*batch 1 seq slots"]]:
    """The cache with new tokens whose keys and values are yet to come, the place of these, and
    which slots each token may attend to: those up to its own that are valid.
    """
    seq, slots = may_attend.shape[-1], cache.valid.shape[-1]
    valid = write_slots(cache.valid, may_attend, cache.length, axis=-1)
    positions = write_slots(cache.positions, position_ids, cache.length, axis=-1)
    own_slots = cache.length + jnp.arange(seq, dtype=jnp.int32)
    is_before = jnp.arange(slots, dtype=jnp.int32)[None, :] <= own_slots[:, None]
    mask = valid[..., None, None, :] & jnp.reshape(is_before, (1,) * (valid.ndim) + is_before.shape)
    advanced = DecoderCache(
        layers=cache.layers,
        valid=valid,
        positions=positions,
        length=cache.length + seq,
        cross=cache.cross,
        cross_mask=cache.cross_mask,
    )
    return advanced, CachePlace(cache.length, (position_ids, positions)), mask


def poison(
    x: Float[Array, "*batch seq hidden"], condition: Bool[Array, ""]
) -> Float[Array, "*batch seq hidden"]:
    """NaN throughout if the condition holds: the nearest thing to an error in compiled code."""
    return jnp.where(condition, jnp.nan, x).astype(x.dtype)
