"""Attention as one kernel of an NVIDIA GPU, which writes no scores to memory: cuDNN's or, with
dropout, our own, since cuDNN's has a seed that is compiled in.
"""

import functools
import logging

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

logger = logging.getLogger("eqxbert")

_LARGEST_HEAD = 128


def fused_attention(
    query: Float[Array, "*batch heads q_seq head_size"],
    keys: Float[Array, "*batch heads kv_seq head_size"],
    values: Float[Array, "*batch heads kv_seq head_size"],
    mask: Bool[Array, "..."] | None,
    *,
    bias: Float[Array, "..."] | None,
    head_mask: Float[Array, " heads"] | None,
    dropout_rate: float,
    key: PRNGKeyArray | None,
    return_weights: bool,
) -> Float[Array, "*batch heads q_seq head_size"] | None:
    """What `dot_product_attention` returns first, for arguments with the heads in front; or None
    where it has to be computed otherwise. Why, is logged once.
    """
    if jax.default_backend() != "gpu" or query.shape[-2] == 1:  # one query is no work
        return None
    if key is None:
        dropout_rate = 0.0
    reason = _obstacle(
        query,
        keys,
        bias=bias,
        head_mask=head_mask,
        dropout_rate=dropout_rate,
        return_weights=return_weights,
    )
    if reason is not None:
        _log_once(logging.WARNING, f"Attention is not computed by cuDNN: {reason}.")
        return None
    *batch, heads, q_seq, head_size = query.shape
    if mask is not None:
        mask = _four_axes(mask, batch)
    # In the order in which projections give them.
    query, keys, values = (
        jnp.swapaxes(jnp.reshape(x, (-1, *x.shape[-3:])), 1, 2) for x in (query, keys, values)
    )
    if key is not None and dropout_rate > 0:
        # Experimental in JAX, and of no use elsewhere: loaded where there is need.
        from .flash_attention import flash_attention

        _log_once(logging.INFO, "Attention with dropout is computed by eqxbert, not by cuDNN.")
        context = flash_attention(query, keys, values, mask, dropout_rate=dropout_rate, key=key)
    else:
        context = _cudnn_attention(query, keys, values, mask)
    return jnp.reshape(jnp.swapaxes(context, 1, 2), (*batch, heads, q_seq, head_size))


def _cudnn_attention(
    query: Float[Array, "batch q_seq heads head_size"],
    keys: Float[Array, "batch kv_seq heads head_size"],
    values: Float[Array, "batch kv_seq heads head_size"],
    mask: Bool[Array, "#batch #heads #q_seq kv_seq"] | None,
) -> Float[Array, "batch q_seq heads head_size"]:
    q_seq, kv_seq = query.shape[1], keys.shape[1]
    odd_q, odd_kv = q_seq % 2, kv_seq % 2  # for which there are no gradients
    if odd_kv and mask is None:
        mask = jnp.ones((1, 1, 1, kv_seq), bool)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], q_seq, kv_seq))
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, odd_q), (0, odd_kv)))
    query, keys, values = (
        jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) if odd else x
        for x, odd in ((query, odd_q), (keys, odd_kv), (values, odd_kv))
    )
    context = jax.nn.dot_product_attention(query, keys, values, mask=mask, implementation="cudnn")
    if mask is not None:  # it lets a query without keys attend to all
        has_keys = jnp.swapaxes(jnp.any(mask, axis=-1, keepdims=True), 1, 2)
        context = jnp.where(has_keys, context, jnp.zeros_like(context))
    return context[:, :q_seq]


def _four_axes(
    mask: Bool[Array, "..."], batch: list[int]
) -> Bool[Array, "#rows #heads #q_seq kv_seq"]:
    """The mask with one axis for the whole batch, and the others there."""
    mask = jnp.reshape(mask, (1,) * (len(batch) + 3 - mask.ndim) + mask.shape)
    if any(size > 1 for size in mask.shape[: len(batch)]):
        mask = jnp.broadcast_to(mask, (*batch, *mask.shape[-3:]))
    return jnp.reshape(mask, (-1, *mask.shape[-3:]))


def _obstacle(
    query: Float[Array, "*batch heads q_seq head_size"],
    keys: Float[Array, "*batch heads kv_seq head_size"],
    *,
    bias: Float[Array, "..."] | None,
    head_mask: Float[Array, " heads"] | None,
    dropout_rate: float,
    return_weights: bool,
) -> str | None:
    """Why a kernel does not compute this; None if one does."""
    head_size = query.shape[-1]
    if return_weights:
        return "the attention weights are asked for"
    if bias is not None:
        return "positions are relative"
    if head_mask is not None:
        return "there is a head mask"
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it is computed in {query.dtype}, not in bfloat16 or float16"
    if head_size % 8 or head_size > _LARGEST_HEAD:
        return f"heads of size {head_size} are no multiple of 8 up to {_LARGEST_HEAD}"
    if dropout_rate >= 1:
        return "all of the weights are dropped"
    if not all(isinstance(size, int) for size in (*query.shape, *keys.shape)):
        return "the program is for any size"
    if not _is_new_enough():
        return "the GPU is no NVIDIA one of compute capability 8.0 or more"
    return None


@functools.cache
def _is_new_enough() -> bool:
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", "")
    return "cuda" in device.client.platform_version and float(capability or 0) >= 8


@functools.cache
def _log_once(level: int, message: str) -> None:
    logger.log(level, message)
