"""Attention as one kernel of an NVIDIA GPU, which writes no scores to memory: cuDNN's or, on one
GPU and with dropout or a mask, our own. (cuDNN has a seed for dropout that is compiled in, and is
slower with a mask.) Both have first derivatives alone.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .platform import platform

logger = logging.getLogger("eqxbert")

T = TypeVar("T")

_LARGEST_HEAD = 128
# Up to which our kernel is known to be the faster one.
_LARGEST_MASKED_HEAD = 64


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
    if platform() != "gpu" or query.shape[-2] in (0, 1):  # no work
        return None
    if key is None:
        dropout_rate = 0.0
    reason = _obstacle(
        query,
        keys,
        values,
        bias=bias,
        head_mask=head_mask,
        dropout_rate=dropout_rate,
        return_weights=return_weights,
    )
    if reason is not None:
        _log_once(logging.WARNING, f"Attention is not computed by a kernel of its own: {reason}.")
        return None
    *batch, heads, q_seq, head_size = query.shape
    if mask is not None:
        mask = _four_axes(mask, batch, keys.shape[-2])
    # In the order in which projections give them.
    query, keys, values = (
        jnp.swapaxes(jnp.reshape(x, (-1, *x.shape[-3:])), 1, 2) for x in (query, keys, values)
    )
    is_ours = dropout_rate > 0 or (mask is not None and head_size <= _LARGEST_MASKED_HEAD)
    flash_attention = _flash_attention() if is_ours else None
    if flash_attention is not None:
        context = flash_attention(query, keys, values, mask, dropout_rate=dropout_rate, key=key)
    else:
        assert dropout_rate == 0
        context = _cudnn_attention(query, keys, values, mask)
    return jnp.reshape(jnp.swapaxes(context, 1, 2), (*batch, heads, q_seq, head_size))


def _four_axes(
    mask: Bool[Array, "..."], batch: list[int], kv_seq: int
) -> Bool[Array, "#rows #heads #q_seq kv_seq"]:
    """The mask with one axis for the whole batch, and the others there."""
    mask = jnp.reshape(mask, (1,) * (len(batch) + 3 - mask.ndim) + mask.shape)
    has_batch = any(size > 1 for size in mask.shape[: len(batch)])
    leading = batch if has_batch else mask.shape[: len(batch)]
    mask = jnp.broadcast_to(mask, (*leading, *mask.shape[-3:-1], kv_seq))
    return jnp.reshape(mask, (-1, *mask.shape[-3:]))


def _cudnn_forward(
    query: Float[Array, "batch q_seq heads head_size"],
    keys: Float[Array, "batch kv_seq heads head_size"],
    values: Float[Array, "batch kv_seq heads head_size"],
    mask: Bool[Array, "#batch #heads #q_seq kv_seq"] | None,
) -> Float[Array, "batch q_seq heads head_size"]:
    q_seq, kv_seq = query.shape[1], keys.shape[1]
    # With a mask, it has no gradients for odd lengths.
    odd_q, odd_kv = q_seq % 2, kv_seq % 2
    if odd_kv and mask is None:
        mask = jnp.ones((1, 1, 1, kv_seq), bool)
    has_keys = None if mask is None else jnp.any(mask, axis=-1, keepdims=True)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], q_seq, kv_seq))
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, odd_q), (0, odd_kv)))
    query, keys, values = (
        jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) if odd else x
        for x, odd in ((query, odd_q), (keys, odd_kv), (values, odd_kv))
    )
    context = jax.nn.dot_product_attention(query, keys, values, mask=mask, implementation="cudnn")
    context = context[:, :q_seq]
    if has_keys is None:
        return context
    # A query without keys would attend to all.
    return jnp.where(jnp.swapaxes(has_keys, 1, 2), context, jnp.zeros_like(context))


def _cudnn_backward(
    query: Float[Array, "batch q_seq heads head_size"],
    keys: Float[Array, "batch kv_seq heads head_size"],
    values: Float[Array, "batch kv_seq heads head_size"],
    mask: Bool[Array, "#batch #heads #q_seq kv_seq"] | None,
    gradient: Float[Array, "batch q_seq heads head_size"],
) -> tuple[Array, Array, Array]:
    _, backward = jax.vjp(lambda q, k, v: _cudnn_forward(q, k, v, mask), query, keys, values)
    return backward(gradient)


def _with_rows_for_vmap(function: Callable[..., T]) -> Callable[..., T]:
    """The function of arrays that begin with the rows of a batch, for which `jax.vmap` makes more
    rows. (By JAX's rule for cuDNN's attention, a mask must have as many heads as the query.)
    """
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def _(size: int, is_mapped: Any, *arguments: Any) -> tuple[T, Any]:
        rows = arguments[0].shape[1 if is_mapped[0] else 0]

        def merge(x: Array, is_mapped: bool) -> Array:
            shape = x.shape[2:] if is_mapped else x.shape[1:]
            x = x if is_mapped else x[None]
            return jnp.reshape(jnp.broadcast_to(x, (size, rows, *shape)), (size * rows, *shape))

        out = mapped(*jax.tree.map(merge, arguments, tuple(is_mapped)))
        out = jax.tree.map(lambda y: jnp.reshape(y, (size, rows, *y.shape[1:])), out)
        return out, jax.tree.map(lambda _: True, out)

    return mapped


# Its derivative computes it again: a `custom_vmap` function cannot hand on what JAX would keep.
_forward, _backward = map(_with_rows_for_vmap, (_cudnn_forward, _cudnn_backward))
_cudnn_attention = jax.custom_vjp(lambda *arguments: _forward(*arguments))
_cudnn_attention.defvjp(
    lambda *arguments: (_forward(*arguments), arguments),
    lambda arguments, gradient: (*_backward(*arguments, gradient), None),
)


def _obstacle(
    query: Float[Array, "*batch heads q_seq head_size"],
    keys: Float[Array, "*batch heads kv_seq head_size"],
    values: Float[Array, "*batch heads kv_seq head_size"],
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
    if not query.dtype == keys.dtype == values.dtype:
        return f"keys and values are in {keys.dtype} and {values.dtype}, queries in {query.dtype}"
    if query.shape[:-2] != keys.shape[:-2]:
        return f"the keys are for a batch of {keys.shape[:-3]}, the queries of {query.shape[:-3]}"
    if not all(isinstance(size, int) for size in (*query.shape, *keys.shape)):
        return "the program is for any size"
    if not _is_new_enough():
        return "the GPU is no NVIDIA one of compute capability 8.0 or more"
    if dropout_rate == 0:
        return None
    if dropout_rate == 1:
        return "all of the weights are dropped"
    if jax.device_count() > 1:
        return "with dropout there is a kernel for one GPU, not for several"
    if _flash_attention() is None:
        return "this version of JAX no longer has what the kernel with dropout is written in"
    return None


def _flash_attention() -> Callable[..., Array] | None:
    """`flash_attention`, if it can be had; it is for one GPU, since JAX cannot split it up."""
    return None if jax.device_count() > 1 else _imported_flash_attention()


@functools.cache
def _imported_flash_attention() -> Callable[..., Array] | None:
    """`flash_attention`, or None without Pallas' backend for Triton; imported where there is a GPU
    for it, since that takes long.
    """
    try:
        from .flash_attention import flash_attention
    except ImportError:  # it is written in what JAX calls experimental, and means to remove
        return None
    return flash_attention


@functools.cache
def _is_new_enough() -> bool:
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", "")
    return "cuda" in device.client.platform_version and float(capability or 0) >= 8


@functools.cache
def _log_once(level: int, message: str) -> None:
    logger.log(level, message)
