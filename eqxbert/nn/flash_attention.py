"""Attention on a GPU with masks and dropout, without its scores ever being written to memory
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
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .dropout import Words, keeps, key_words, row_words

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
    interpret: bool


def flash_attention(
    query: Float[Array, "batch q_seq heads head_size"],
    keys: Float[Array, "batch kv_seq heads head_size"],
    values: Float[Array, "batch kv_seq heads head_size"],
    mask: Bool[Array, "#batch #heads #q_seq kv_seq"] | None = None,
    *,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
    interpret: bool = False,
) -> Float[Array, "batch q_seq heads head_size"]:
    """`dot_product_attention` for NVIDIA GPUs.

    **Arguments:** as there, with one axis for the batch; and

    - `mask`: with all four axes, and all keys.
    - `dropout_rate`: less than 1.
    - `interpret`: whether JAX interprets the kernels, to try them without a GPU.
    """
    (batch, q_seq, heads, head_size), kv_seq = query.shape, keys.shape[1]
    words = None
    if key is not None and dropout_rate > 0:
        row = lax.iota(jnp.uint32, batch * heads * q_seq).reshape(batch, heads, q_seq)
        words = row_words(key_words(key), row)
    settings = _Settings(
        scale=head_size**-0.5,
        dropout_rate=0.0 if words is None else dropout_rate,
        q_tile=_tile(q_seq),
        kv_tile=_tile(kv_seq),
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
    words = jax.tree.map(lambda word: jnp.pad(word, ((0, 0), (0, 0), (0, missing_q))), words)
    context: Array = _attention(settings, query, keys, values, mask, words)
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
    words: Words | None,
) -> Float[Array, "batch q_seq heads size"]:
    return _forward(settings, query, keys, values, mask, words)[0]


def _forward(
    settings: _Settings,
    query: Array,
    keys: Array,
    values: Array,
    mask: Array | None,
    words: Words | None,
) -> tuple[Array, Any]:
    batch, q_seq, heads, _ = query.shape
    tile = settings.q_tile
    context, log_sums = _run(
        _forward_kernel,
        settings,
        (query, keys, values, mask, words),
        grid=(q_seq // tile, heads, batch),
        in_specs=[
            _sequence(query, tile),
            _sequence(keys),
            _sequence(values),
            _mask_tiles(mask, q_tile=tile),
            _word_tiles(words, tile),
        ],
        out_specs=[_sequence(query, tile), _numbers(tile)],
        out_shape=[query, jax.ShapeDtypeStruct((batch, heads, q_seq), jnp.float32)],
    )
    return context, (query, keys, values, mask, words, context, log_sums)


def _backward(settings: _Settings, residuals: Any, gradient: Array) -> tuple[Any, ...]:
    query, keys, values, mask, words, context, log_sums = residuals
    gradient = gradient.astype(query.dtype)
    batch, q_seq, heads, _ = query.shape
    kv_seq = keys.shape[1]
    q_tile, kv_tile = settings.q_tile, settings.kv_tile
    # The means of the weights' gradients, by the weights: what a softmax's derivative subtracts.
    means = jnp.einsum("bqhd,bqhd->bhq", gradient, context, preferred_element_type=jnp.float32)
    arguments = (query, keys, values, mask, words, gradient, log_sums, means)
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
            _word_tiles(words, q_tile),
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
            _word_tiles(words, q_seq, whole=True),
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
    arguments: tuple[Any, ...],
    *,
    out_shape: Any,
    **how: Any,
) -> Any:
    query, keys, values, mask, *others = arguments  # for None, kernels are given None
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


def _word_tiles(
    words: Words | None, size: int, *, whole: bool = False
) -> tuple[pl.BlockSpec, pl.BlockSpec] | None:
    return None if words is None else (_numbers(size, whole=whole), _numbers(size, whole=whole))


def _forward_kernel(
    settings: _Settings, query, keys, values, mask, words, context, log_sums
) -> None:
    q, row_words = query[...], _loaded(words, ...)

    def body(i, carry):
        total, largest, sums = carry
        at = pl.ds(i * settings.kv_tile, settings.kv_tile)
        scores = _scores(settings, q, keys[at, :], None if mask is None else mask[:, at])
        new_largest = jnp.maximum(largest, jnp.max(scores, axis=1))
        correction = jnp.exp2(largest - new_largest)
        exponentials = jnp.exp2(scores - new_largest[:, None])
        sums = sums * correction + jnp.sum(exponentials, axis=1)
        exponentials = _if_kept(_kept(settings, row_words, i), exponentials)
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
    words,
    gradient,
    log_sums,
    means,
    query_gradient,
) -> None:
    q, grad, row_words = query[...], gradient[...], _loaded(words, ...)
    log_sum, mean = log_sums[...][:, None], means[...][:, None]

    def body(i, total):
        at = pl.ds(i * settings.kv_tile, settings.kv_tile)
        k = keys[at, :]
        scores = _scores(settings, q, k, None if mask is None else mask[:, at])
        weights = jnp.exp2(scores - log_sum)
        grad_weights = _product(grad, values[at, :].T) / (1 - settings.dropout_rate)
        grad_weights = _if_kept(_kept(settings, row_words, i), grad_weights)
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
    words,
    gradient,
    log_sums,
    means,
    key_gradient,
    value_gradient,
) -> None:
    k, v, tile = keys[...], values[...], pl.program_id(0)

    def body(i, carry):
        grad_k, grad_v = carry
        at = pl.ds(i * settings.q_tile, settings.q_tile)
        q, grad = query[at, :], gradient[at, :]
        allowed = None
        if mask is not None:
            allowed = mask[0, :][:, None] if mask.shape[0] == 1 else mask[at, :].T
        # (kv_tile, q_tile): the other way round, products would have to turn them first.
        weights = jnp.exp2(_scores(settings, k, q, allowed) - log_sums[at][None, :])
        kept = _kept(settings, _loaded(words, at), tile, transposed=True)
        grad_v = grad_v + _product(_if_kept(kept, weights).astype(grad.dtype), grad)
        grad_weights = _if_kept(kept, _product(v, grad.T) / (1 - settings.dropout_rate))
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


def _loaded(words, at):
    return None if words is None else tuple(word[at] for word in words)


def _kept(settings: _Settings, row_words, tile, *, transposed: bool = False):
    """Which scores dropout keeps, for queries with such words and a tile of keys; None for all."""
    if row_words is None:
        return None
    axis = 0 if transposed else 1
    column = jnp.expand_dims(_range(settings.kv_tile, tile).astype(jnp.uint32), 1 - axis)
    first, second = (jnp.expand_dims(word, axis) for word in row_words)
    return keeps((first, second), column, settings.dropout_rate)


def _if_kept(kept, x):
    return x if kept is None else jnp.where(kept, x, 0.0)


def _range(size: int, tile):
    """The places in a tile of a sequence."""
    return tile * size + lax.broadcasted_iota(jnp.int32, (size,), 0)
