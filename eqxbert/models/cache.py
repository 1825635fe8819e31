"""The cache of a decoder: made, and continued with new tokens."""

from collections.abc import Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from ..config import BertConfig
from ..nn import KVCache, align_trailing, write_slots
from ..outputs import DecoderCache
from .encoder import CachePlace

BatchShape = int | np.integer | Sequence[int | np.integer]
"""The shape of the leading axes; the size of the only one, if it is a number."""


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


def attended_slots(
    cache: DecoderCache, may_attend: Bool[Array, "..."]
) -> tuple[Bool[Array, "*batch slots"], Bool[Array, "*batch seq slots"]]:
    """Which slots hold tokens once there are new ones in them, and which of these each new token
    attends to: those up to its own.

    **Arguments:**

    - `may_attend`: which new tokens may be attended to, `(*batch, seq)`; or, for each of them, the
        slots that it may attend to, `(*batch, seq, slots)`. Those that may attend to none are
        padding then.
    """
    is_by_slot = may_attend.ndim > cache.valid.ndim
    is_token = jnp.any(may_attend, axis=-1) if is_by_slot else may_attend
    seq, slots = is_token.shape[-1], cache.valid.shape[-1]
    valid = write_slots(cache.valid, is_token, cache.length, axis=-1)
    own_slots = cache.length + jnp.arange(seq, dtype=jnp.int32)
    is_before = jnp.arange(slots, dtype=jnp.int32)[None, :] <= own_slots[:, None]
    attended = valid[..., None, :] & align_trailing(is_before, valid[..., None, :])
    return valid, attended & may_attend if is_by_slot else attended


def counted_positions(attended: Bool[Array, "*batch seq slots"]) -> Int[Array, "*batch seq"]:
    """The positions of new tokens: how many they attend to besides themselves."""
    return jnp.maximum(jnp.sum(attended, axis=-1, dtype=jnp.int32) - 1, 0)


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
    cache: DecoderCache, valid: Bool[Array, "*batch slots"], position_ids: Int[Array, "*batch seq"]
) -> tuple[DecoderCache, CachePlace]:
    """The cache with new tokens whose keys and values are yet to come, and the place of these."""
    positions = write_slots(cache.positions, position_ids, cache.length, axis=-1)
    advanced = DecoderCache(
        layers=cache.layers,
        valid=valid,
        positions=positions,
        length=cache.length + position_ids.shape[-1],
        cross=cache.cross,
        cross_mask=cache.cross_mask,
    )
    return advanced, CachePlace(cache.length, (position_ids, positions))


def poison(
    x: Float[Array, "*batch seq hidden"], condition: Bool[Array, ""]
) -> Float[Array, "*batch seq hidden"]:
    """NaN throughout if the condition holds: the nearest thing to an error in compiled code."""
    return jnp.where(condition, jnp.nan, x).astype(x.dtype)
