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


def check_is_decoder(config: BertConfig) -> None:
    """**Raises:** `ValueError` if the model has no use for a cache."""
    if not config.is_decoder:
        raise ValueError(
            "This model is no decoder (is_decoder is False), so there is no use for a cache: its "
            "tokens also see those to come. Set is_decoder=True."
        )


def check_cache(
    cache: object, config: BertConfig, dtype: DTypeLike, batch_seq: tuple[int, ...]
) -> None:
    """Checks that a cache is one of such a model, for such a batch, with slots for new tokens
    (where it is known how many are filled).

    **Raises:** `ValueError` if it is not.
    """
    check_is_decoder(config)
    if not isinstance(cache, DecoderCache):
        raise ValueError(
            f"cache must be a DecoderCache, got {type(cache).__name__}: what init_cache returns, "
            "or `out.cache` of an earlier call."
        )
    if cache.cross is not None and not config.add_cross_attention:
        raise ValueError(
            "The cache is of a model with cross-attention, and this one has none "
            "(add_cross_attention)."
        )
    if len(cache.layers) != config.num_hidden_layers:
        raise ValueError(
            f"The cache is of a model with {len(cache.layers)} layers, this one has "
            f"{config.num_hidden_layers}."
        )
    for i, layer in enumerate(cache.layers):
        heads, size = layer.keys.shape[-3], layer.keys.shape[-1]
        own_heads = len(config.kept_heads(i))
        if (heads, size) != (own_heads, config.head_size):
            raise ValueError(
                f"The cache is of a model with {heads} heads of size {size} in a layer in which "
                f"this one has {own_heads} of {config.head_size}."
            )
        if layer.keys.dtype != dtype:
            raise ValueError(
                f"The cache is of a model in {layer.keys.dtype}, this one is in {dtype}. Make one "
                "with this model's init_cache."
            )
    _check_room(cache, batch_seq)


def _check_room(cache: DecoderCache, batch_seq: tuple[int, ...]) -> None:
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
