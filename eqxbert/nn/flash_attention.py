"""Attention with dropout on a GPU, without its scores ever being written to memory
([Dao, 2023](https://arxiv.org/abs/2307.08691)).

What is dropped is what `dropout` would drop of the weights: a hash, so that the backward pass finds
it again without it having been written either.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

from .dropout import keeps, key_words, row_words

# The sides of a tile of scores. (Operands of products have at least 16 rows and columns.)
_TILE = 64
_LEAST = 16
# The score where a key may not be attended to: finite, so that no difference is NaN.
_MASKED = -1e30


class _Settings(NamedTuple):
    """What a kernel is compiled for."""

    scale: float
    dropout_rate: float
    q_tile: int
    kv_tile: int
    q_seq: int  # before it is filled up to whole tiles
    interpret: bool


def flash_attention(
    query: Float[Array, "batch q_seq heads head_size"],
    keys: Float[Array, "batch kv_seq heads head_size"],
    values: Float[Array, "batch kv_seq heads head_size"],
    mask: Bool[Array, "#batch #heads #q_seq kv_seq"] | None = None,
    *,
    dropout_rate: float,
    key: PRNGKeyArray,
    interpret: bool = False,
) -> Float[Array, "batch q_seq heads head_size"]:
    """`dot_product_attention` with dropout, for NVIDIA GPUs.

    **Arguments:** as there, with one axis for the batch; and

    - `mask`: with all four axes, and all keys.
    - `interpret`: whether JAX interprets the kernels, to try them without a GPU.
    """
    (q_seq, _, head_size), kv_seq = query.shape[1:], keys.shape[1]
    settings = _Settings(
        scale=head_size**-0.5,
        dropout_rate=dropout_rate,
        q_tile=_tile(q_seq),
        kv_tile=_tile(kv_seq),
        q_seq=q_seq,
        interpret=interpret,
    )
    missing_q, missing_kv = -q_seq % settings.q_tile, -kv_seq % settings.kv_tile
    if missing_kv and mask is None:
        mask = jnp.ones((1, 1, 1, kv_seq), bool)
    if mask is not None:
        rows = missing_q if mask.shape[2] > 1 else 0
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, rows), (0, missing_kv)))
    columns = max(_LEAST, pl.next_power_of_2(head_size)) - head_size
    query, keys, values = (
        jnp.pad(x, ((0, 0), (0, rows), (0, 0), (0, columns)))
        for x, rows in ((query, missing_q), (keys, missing_kv), (values, missing_kv))
    )
    seed = jnp.stack(key_words(key))
    context: Array = _attention(settings, query, keys, values, mask, seed)
    return context[:, :q_seq, :, :head_size]


def _tile(seq: int) -> int:
    return min(_TILE, max(_LEAST, pl.next_power_of_2(seq)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    settings: _Settings,
    query: Float[Array, "batch q_seq heads size"],
    keys: Float[Array, "batch kv_seq heads size"],
    values: Float[Array, "batch kv_seq heads size"],
    mask: Bool[Array, "#batch #heads #q_seq kv_seq"] | None,
    seed: UInt32[Array, "2"],
) -> Float[Array, "batch q_seq heads size"]:
    return _forward(settings, query, keys, values, mask, seed)[0]


def _forward(
    settings: _Settings, query: Array, keys: Array, values: Array, mask: Array | None, seed: Array
) -> tuple[Array, Any]:
    batch, q_seq, heads, _ = query.shape
    tile = settings.q_tile
    context, log_sums = _run(
        _forward_kernel,
        settings,
        (query, keys, values, mask, seed),
        grid=(q_seq // tile, heads, batch),
        in_specs=[
            _sequence(query, tile),
            _sequence(keys),
            _sequence(values),
            _mask_tiles(mask, q_tile=tile),
            _SEED,
        ],
        out_specs=[_sequence(query, tile), _numbers(tile)],
        out_shape=[query, jax.ShapeDtypeStruct((batch, heads, q_seq), jnp.float32)],
    )
    return context, (query, keys, values, mask, seed, context, log_sums)


def _backward(settings: _Settings, residuals: Any, gradient: Array) -> tuple[Any, ...]:
    query, keys, values, mask, seed, context, log_sums = residuals
    gradient = gradient.astype(query.dtype)
    batch, q_seq, heads, _ = query.shape
    kv_seq = keys.shape[1]
    q_tile, kv_tile = settings.q_tile, settings.kv_tile
    # The means of the weights' gradients, by the weights: what a softmax's derivative subtracts.
    means = jnp.einsum("bqhd,bqhd->bhq", gradient, context, preferred_element_type=jnp.float32)
    arguments = (query, keys, values, mask, seed, gradient, log_sums, means)
    [query_gradient] = _run(
        _query_kernel,
        settings,
        arguments,
        grid=(q_seq // q_tile, heads, batch),
        in_specs=[
            _sequence(query, q_tile),
            _sequence(keys),
            _sequence(values),
            _mask_tiles(mask, q_tile=q_tile),
            _SEED,
            _sequence(query, q_tile),
            _numbers(q_tile),
            _numbers(q_tile),
        ],
        out_specs=[_sequence(query, q_tile)],
        out_shape=[query],
    )
    key_gradient, value_gradient = _run(
        _key_value_kernel,
        settings,
        arguments,
        grid=(kv_seq // kv_tile, heads, batch),
        in_specs=[
            _sequence(query),
            _sequence(keys, kv_tile),
            _sequence(values, kv_tile),
            _mask_tiles(mask, kv_tile=kv_tile),
            _SEED,
            _sequence(query),
            _numbers(q_seq, whole=True),
            _numbers(q_seq, whole=True),
        ],
        out_specs=[_sequence(keys, kv_tile), _sequence(values, kv_tile)],
        out_shape=[keys, values],
    )
    return query_gradient, key_gradient, value_gradient, None, None


_attention.defvjp(_forward, _backward)


# Each program of a grid has one tile of a sequence, in one head of one row of the batch. A kernel
# is given references to its parts of the arrays: of the query (q_tile, size) or (q_seq, size).


def _run(
    kernel: Any,
    settings: _Settings,
    arguments: tuple[Array | None, ...],
    *,
    out_shape: Any,
    **how: Any,
) -> Any:
    query, keys, values, mask, *others = arguments
    mask = None if mask is None else mask.astype(jnp.int8)
    return pl.pallas_call(
        functools.partial(kernel, settings),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out_shape],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=settings.interpret,
        name=kernel.__name__.strip("_"),
        **how,
    )(query, keys, values, mask, *others)


def _sequence(x: Array, tile: int | None = None) -> pl.BlockSpec:
    """A tile of `x`, or all of its sequence."""
    size = x.shape[-1]
    if tile is None:
        return pl.BlockSpec((None, x.shape[1], None, size), lambda i, head, row: (row, 0, head, 0))
    return pl.BlockSpec((None, tile, None, size), lambda i, head, row: (row, i, head, 0))


def _numbers(size: int, *, whole: bool = False) -> pl.BlockSpec:
    """One number for each query."""
    return pl.BlockSpec((None, None, size), lambda i, head, row: (row, head, 0 if whole else i))


def _mask_tiles(
    mask: Array | None, *, q_tile: int | None = None, kv_tile: int | None = None
) -> pl.BlockSpec | None:
    """The part of the mask for a tile of queries and all keys, or for all queries and a tile of
    keys.
    """
    if mask is None:
        return None
    rows, heads, q_seq, kv_seq = mask.shape
    q_tile = min(q_tile or q_seq, q_seq)

    def place(i: Any, head: Any, row: Any) -> tuple[Any, ...]:
        in_queries = i if kv_tile is None and q_seq > 1 else 0
        return (
            row if rows > 1 else 0,
            head if heads > 1 else 0,
            in_queries,
            0 if kv_tile is None else i,
        )

    return pl.BlockSpec((None, None, q_tile, kv_tile or kv_seq), place)


_SEED = pl.BlockSpec((2,), lambda i, head, row: (0,))


def _forward_kernel(
    settings: _Settings, query, keys, values, mask, seed, context, log_sums
) -> None:
    q, rows = query[...], _rows(settings, seed)(pl.program_id(0))

    def body(i, carry):
        total, largest, sums = carry
        at = pl.ds(i * settings.kv_tile, settings.kv_tile)
        scores = _scores(settings, q, keys[at, :], None if mask is None else mask[:, at])
        new_largest = jnp.maximum(largest, jnp.max(scores, axis=1))
        correction = jnp.exp2(largest - new_largest)
        exponentials = jnp.exp2(scores - new_largest[:, None])
        sums = sums * correction + jnp.sum(exponentials, axis=1)
        exponentials = jnp.where(_kept(settings, rows, i), exponentials, 0.0)
        v = values[at, :]
        total = total * correction[:, None] + _product(exponentials.astype(v.dtype), v)
        return total, new_largest, sums

    zeros = jnp.zeros((settings.q_tile,), jnp.float32)
    carry = jnp.zeros(q.shape, jnp.float32), zeros + _MASKED, zeros
    total, largest, sums = lax.fori_loop(0, keys.shape[0] // settings.kv_tile, body, carry)
    is_empty = largest <= _MASKED
    factor = jnp.where(is_empty, 0.0, 1 / (sums * (1 - settings.dropout_rate)))
    context[...] = (total * factor[:, None]).astype(context.dtype)
    # With this, exponentials are weights; without any key, zero.
    log_sums[...] = jnp.where(is_empty, -_MASKED, largest + jnp.log2(sums))


def _query_kernel(
    settings: _Settings,
    query,
    keys,
    values,
    mask,
    seed,
    gradient,
    log_sums,
    means,
    query_gradient,
) -> None:
    q, grad, rows = query[...], gradient[...], _rows(settings, seed)(pl.program_id(0))
    log_sum, mean = log_sums[...][:, None], means[...][:, None]

    def body(i, total):
        at = pl.ds(i * settings.kv_tile, settings.kv_tile)
        k = keys[at, :]
        scores = _scores(settings, q, k, None if mask is None else mask[:, at])
        weights = jnp.exp2(scores - log_sum)
        grad_weights = _product(grad, values[at, :].T) / (1 - settings.dropout_rate)
        grad_weights = jnp.where(_kept(settings, rows, i), grad_weights, 0.0)
        grad_scores = weights * (grad_weights - mean)
        return total + _product(grad_scores.astype(k.dtype), k)

    zeros = jnp.zeros(q.shape, jnp.float32)
    total = lax.fori_loop(0, keys.shape[0] // settings.kv_tile, body, zeros)
    query_gradient[...] = (total * settings.scale).astype(query_gradient.dtype)


def _key_value_kernel(
    settings: _Settings,
    query,
    keys,
    values,
    mask,
    seed,
    gradient,
    log_sums,
    means,
    key_gradient,
    value_gradient,
) -> None:
    k, v, tile, rows = keys[...], values[...], pl.program_id(0), _rows(settings, seed)

    def body(i, carry):
        grad_k, grad_v = carry
        at = pl.ds(i * settings.q_tile, settings.q_tile)
        q, grad = query[at, :], gradient[at, :]
        allowed = None
        if mask is not None:
            allowed = mask[0, :][:, None] if mask.shape[0] == 1 else mask[at, :].T
        # (kv_tile, q_tile): the other way round, products would have to turn them first.
        weights = jnp.exp2(_scores(settings, k, q, allowed) - log_sums[at][None, :])
        keep = _kept(settings, rows(i), tile, transposed=True)
        grad_v = grad_v + _product(jnp.where(keep, weights, 0.0).astype(grad.dtype), grad)
        grad_weights = _product(v, grad.T) / (1 - settings.dropout_rate)
        grad_weights = jnp.where(keep, grad_weights, 0.0)
        grad_scores = weights * (grad_weights - means[at][None, :])
        return grad_k + _product(grad_scores.astype(q.dtype), q), grad_v

    zeros = jnp.zeros(k.shape, jnp.float32)
    grad_k, grad_v = lax.fori_loop(0, query.shape[0] // settings.q_tile, body, (zeros, zeros))
    key_gradient[...] = (grad_k * settings.scale).astype(key_gradient.dtype)
    value_gradient[...] = (grad_v / (1 - settings.dropout_rate)).astype(value_gradient.dtype)


def _product(a, b):
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _scores(settings: _Settings, a, b, allowed):
    """The scores of two tiles, in powers of two, which GPUs compute faster than those of e."""
    scores = _product(a, b.T) * (settings.scale * math.log2(math.e))
    return scores if allowed is None else jnp.where(allowed != 0, scores, _MASKED)


def _rows(settings: _Settings, seed):
    """A function that tells what decides over dropout for the queries of a tile: their rows among
    those of scores, in all heads and the whole batch.
    """
    head = pl.program_id(2) * pl.num_programs(1) + pl.program_id(1)

    def rows(tile):
        row = head * settings.q_seq + _range(settings.q_tile, tile)
        return row_words((seed[0], seed[1]), row.astype(jnp.uint32))

    return rows


def _kept(settings: _Settings, rows, tile, *, transposed: bool = False):
    """Which scores dropout keeps, for such rows and a tile of keys."""
    axis = 0 if transposed else 1
    column = jnp.expand_dims(_range(settings.kv_tile, tile).astype(jnp.uint32), 1 - axis)
    first, second = (jnp.expand_dims(words, axis) for words in rows)
    return keeps((first, second), column, settings.dropout_rate)


def _range(size: int, tile):
    """The places in a tile of a sequence."""
    return tile * size + lax.broadcasted_iota(jnp.int32, (size,), 0)
