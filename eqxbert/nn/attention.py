"""Scaled dot-product attention ([Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)): the
mathematics as pure functions, and the module that wires them to weights.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from .cache import KVCache
from .dropout import dropout
from .embedding import Embedding
from .fused_attention import fused_attention
from .linear import Linear
from .numerics import accumulation_dtype, align_trailing
from .platform import platform


def dot_product_attention(
    query: Float[Array, "*batch q_seq heads head_size"],
    keys: Float[Array, "*batch kv_seq heads head_size"],
    values: Float[Array, "*batch kv_seq heads head_size"],
    mask: Bool[Array, "..."] | None = None,
    *,
    bias: Float[Array, "..."] | None = None,
    head_mask: Float[Array, " heads"] | None = None,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
    return_weights: bool = False,
) -> tuple[
    Float[Array, "*batch q_seq heads head_size"],
    Float[Array, "*batch heads q_seq kv_seq"] | None,
]:
    """Each query's mean of the values, weighted by `softmax(query · keys / sqrt(head_size) + bias)`
    over the keys it may attend to.

    Scores and softmax are computed in at least float32.

    **Arguments:**

    - `query`, `keys`, `values`: what asks, what is compared with, and what is averaged.
    - `mask`: True where a query may attend to a key; broadcastable to `(*batch, heads, q_seq,
        kv_seq)`. None means everywhere. A query that may attend to nothing gets zeros, with zero
        gradients.
    - `bias`: added to the scaled scores; broadcastable like `mask`.
    - `head_mask`: a factor for each head's weights, applied after dropout.
    - `dropout_rate`, `key`: dropout on the weights, each element on its own; none without a key.
    - `return_weights`: whether the weights, as they were applied, are returned too.

    **Returns:** the context of each query, and the weights or None.

    **Raises:** `ValueError` if `mask` is not boolean.
    """
    # With the heads in front, a product is one matrix product for each head. XLA on CPU is up to
    # twice as fast with this copy as with strided operands.
    query, keys, values = (jnp.swapaxes(x, -2, -3) for x in (query, keys, values))
    context, weights = _attend(
        query,
        keys,
        values,
        mask,
        bias=bias,
        head_mask=head_mask,
        dropout_rate=dropout_rate,
        key=key,
        return_weights=return_weights,
    )
    return jnp.swapaxes(context, -2, -3), weights


def _attend(
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
) -> tuple[
    Float[Array, "*batch heads q_seq head_size"], Float[Array, "*batch heads q_seq kv_seq"] | None
]:
    """`dot_product_attention` with the heads in front."""
    if mask is not None and mask.dtype != bool:
        raise ValueError(f"mask must be boolean (True: may attend), got {mask.dtype}.")
    context = fused_attention(
        query,
        keys,
        values,
        mask,
        bias=bias,
        head_mask=head_mask,
        dropout_rate=dropout_rate,
        key=key,
        return_weights=return_weights,
    )
    if context is not None:
        return context, None
    head_factor = None if head_mask is None else head_mask[:, None, None]
    shape, kv_seq = query.shape, keys.shape[-2]
    if merges := platform() == "cpu" and accumulation_dtype(query) != query.dtype:
        # Products in half precision are fast there over a single axis of matrices alone.
        mask, bias, head_factor = (
            None if x is None else _merged(x, query) for x in (mask, bias, head_factor)
        )
        query, keys, values = (_merged(x, query) for x in (query, keys, values))
    context, weights = _softmax_attention(
        query,
        keys,
        values,
        mask,
        bias=bias,
        head_factor=head_factor,
        dropout_rate=dropout_rate,
        key=key,
        return_weights=return_weights,
    )
    if merges:
        context = jnp.reshape(context, shape)
        weights = None if weights is None else jnp.reshape(weights, (*shape[:-1], kv_seq))
    return context, weights


def _merged(
    x: Shaped[Array, "..."], to: Shaped[Array, "*matrices _ _"]
) -> Shaped[Array, "merged rows columns"]:
    """As many matrices as `to` has along several axes, or the same for some, along one."""
    *axes, _, _ = to.shape
    x = align_trailing(x, to)
    x = jnp.broadcast_to(x, (*axes, *x.shape[-2:]))
    return jnp.reshape(x, (math.prod(axes), *x.shape[-2:]))


def _softmax_attention(
    query: Float[Array, "*matrices q_seq head_size"],
    keys: Float[Array, "*matrices kv_seq head_size"],
    values: Float[Array, "*matrices kv_seq head_size"],
    mask: Bool[Array, "..."] | None,
    *,
    bias: Float[Array, "..."] | None,
    head_factor: Float[Array, "..."] | None,
    dropout_rate: float,
    key: PRNGKeyArray | None,
    return_weights: bool,
) -> tuple[
    Float[Array, "*matrices q_seq head_size"], Float[Array, "*matrices q_seq kv_seq"] | None
]:
    """`dot_product_attention` by its formula, for all rows and heads alike."""
    dtype = accumulation_dtype(query)
    scale = query.shape[-1] ** -0.5
    # There is less of the query to scale than of the scores; but in half precision, unless the
    # scale is a power of two, that would round it once more.
    scales_query = dtype == query.dtype or math.frexp(scale)[0] == 0.5
    if scales_query:
        query = query * scale
    scores = jnp.einsum("...qd,...kd->...qk", query, keys, preferred_element_type=dtype)
    if not scales_query:
        scores = scores * _own(jnp.asarray(scale, dtype), query)  # (*matrices, q_seq, kv_seq)
    if bias is not None:
        scores = scores + align_trailing(bias.astype(dtype), scores)
    if mask is not None:
        # Added, not selected, which XLA on CPU does several times faster. No sum can overflow: next
        # to the least float32, any score is less than a rounding error.
        mask = align_trailing(mask, scores)
        mask = _own(mask, query) if mask.shape[-2] == 1 else mask
        scores = scores + jnp.where(mask, 0, jnp.finfo(dtype).min)

    # The softmax's division is put off until after the product with the values, where there is far
    # less to divide.
    # Where nothing may be attended to, exponentials shall be zero. (A choice by the mask, or one
    # more operation here, would keep XLA on CPU from computing all of it at once, in the cache.)
    least = jnp.finfo(dtype).min / 2 if mask is not None else -jnp.inf
    least = jnp.asarray(least, dtype)
    fixed = lax.stop_gradient(scores)
    largest = jnp.expand_dims(lax.reduce(fixed, least, lax.max, (scores.ndim - 1,)), -1)
    exponentials = jnp.exp(scores - largest)
    sums = jnp.sum(exponentials, axis=-1, keepdims=True)  # (*matrices, q_seq, 1)
    if mask is not None:
        sums = jnp.maximum(sums, 0.5)  # elsewhere, they are at least 1
    factor = 1 / sums
    if head_factor is not None:
        factor = factor * align_trailing(head_factor.astype(dtype), factor)
    exponentials = dropout(exponentials, dropout_rate, key)

    context = factor * jnp.einsum(
        "...qk,...kd->...qd",
        exponentials.astype(values.dtype),
        values,
        preferred_element_type=dtype,
    )
    weights = (exponentials * factor).astype(query.dtype) if return_weights else None
    return context.astype(query.dtype), weights


def _own(
    x: Shaped[Array, "..."], query: Float[Array, "*matrices q_seq head_size"]
) -> Shaped[Array, "..."]:
    """The same small array, but for XLA on CPU one of this attention's own: it looks at a query.

    XLA sees what is the same in all layers, and computes it once, in the size of the scores: for
    512 tokens and 12 heads 12 MB, which each layer then reads. What is a layer's own is read in the
    size that it has.
    """
    if platform() != "cpu" or query.shape[-2] == 1:
        return x
    first = query[..., :1, :1]
    never = (first == first) & (first != first)
    return jnp.where(never, jnp.zeros_like(x), x)


def relative_position_scores(
    query: Float[Array, "*batch heads q_seq head_size"],
    keys: Float[Array, "*batch heads kv_seq head_size"],
    table: Float[Array, "distances head_size"],
    position_type: str,
    *,
    positions: tuple[Int[Array, "*batch q_seq"], Int[Array, "*batch kv_seq"]] | None = None,
) -> Float[Array, "*batch heads q_seq kv_seq"]:
    """What relative positions add to the scores, before these are scaled: the product of each query
    with an embedding of its distance to each key ([Shaw et al., 2018](https://arxiv.org/abs/1803.02155)),
    and with "relative_key_query" that of each key as well
    ([Huang et al., 2020](https://arxiv.org/abs/2009.13658)).

    **Arguments:**

    - `query`, `keys`: with the heads in front.
    - `table`: row `i` embeds the distance `i - (distances - 1) / 2`, query minus key position.
    - `position_type`: "relative_key" or "relative_key_query".
    - `positions`: those of the queries and of the keys. If None, the keys are in the order of their
        positions, and the queries are the last of these.

    **Raises:** `ValueError` if the table is too short for the keys.
    """
    q_seq, kv_seq = query.shape[-2], keys.shape[-2]
    zero_distance = table.shape[0] // 2
    if positions is None:
        if kv_seq > zero_distance + 1:
            raise ValueError(
                f"There are {kv_seq} positions, but relative positions are embedded for "
                f"{zero_distance + 1}."
            )
        every = jnp.arange(kv_seq)
        distances, axes = every[kv_seq - q_seq :, None] - every[None, :], "qkd"
    else:
        distances, axes = positions[0][..., :, None] - positions[1][..., None, :], "...qkd"
    embedded = table[distances + zero_distance].astype(query.dtype)
    dtype = accumulation_dtype(query)
    scores = jnp.einsum(f"...hqd,{axes}->...hqk", query, embedded, preferred_element_type=dtype)
    if position_type == "relative_key_query":
        scores = scores + jnp.einsum(
            f"...hkd,{axes}->...hqk", keys, embedded, preferred_element_type=dtype
        )
    return scores


class Attention(eqx.Module):
    """Multi-head attention: projections to query, keys and values, attention in each head, and a
    projection back.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    distance: Embedding | None
    num_heads: int = eqx.field(static=True)
    dropout_rate: float = eqx.field(static=True)
    position_type: str = eqx.field(static=True)

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        head_size: int | None = None,
        key_value_size: int | None = None,
        dropout_rate: float = 0.0,
        position_type: str = "absolute",
        max_positions: int | None = None,
        initializer_range: float = 0.02,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `hidden_size`: the size of input and output.
        - `num_heads`: the number of heads.
        - `head_size`: the size of each; `hidden_size // num_heads` if None, without a remainder.
        - `key_value_size`: the size of what is attended to; `hidden_size` if None.
        - `dropout_rate`: the probability with which an attention weight is dropped in training.
        - `position_type`: "absolute" if positions are embedded in the input. With "relative_key"
            the scores also see an embedding of the distance between query and key, from the query's
            side; with "relative_key_query" from both sides ([Huang et al.,
            2020](https://arxiv.org/abs/2009.13658)).
        - `max_positions`: the longest sequence, needed for the relative types.
        - `initializer_range`: standard deviation of the initial weights.
        - `key`: a PRNG key for the weights.

        **Raises:** `ValueError` if `num_heads` does not divide `hidden_size`, for an unknown
        `position_type`, and for a relative one without `max_positions`.
        """
        if head_size is None and hidden_size % num_heads != 0:
            raise ValueError(
                f"hidden_size ({hidden_size}) must be a multiple of num_heads ({num_heads}); the "
                f"remainder is {hidden_size % num_heads}."
            )
        if position_type not in ("absolute", "relative_key", "relative_key_query"):
            raise ValueError(
                f"Unknown position type {position_type!r}. Known are: absolute, relative_key, "
                "relative_key_query."
            )
        query_key, key_key, value_key, output_key, distance_key = jax.random.split(key, 5)
        head_size = head_size or hidden_size // num_heads
        inner_size, init = num_heads * head_size, initializer_range
        attended_size = key_value_size or hidden_size
        self.query = Linear(hidden_size, inner_size, initializer_range=init, key=query_key)
        self.key = Linear(attended_size, inner_size, initializer_range=init, key=key_key)
        self.value = Linear(attended_size, inner_size, initializer_range=init, key=value_key)
        self.output = Linear(inner_size, hidden_size, initializer_range=init, key=output_key)
        if position_type == "absolute":
            self.distance = None
        elif max_positions is None:
            raise ValueError(
                f"position_type {position_type!r} needs max_positions, the longest sequence."
            )
        else:
            self.distance = Embedding(
                2 * max_positions - 1,
                head_size,
                initializer_range=initializer_range,
                key=distance_key,
            )
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.position_type = position_type

    def project(self, x: Float[Array, "*batch kv_seq hidden"]) -> KVCache:
        """The keys and values of what is to be attended to."""
        return KVCache(self._split_heads(self.key(x)), self._split_heads(self.value(x)))

    def __call__(
        self,
        x: Float[Array, "*batch q_seq hidden"],
        attended: KVCache | None = None,
        mask: Bool[Array, "..."] | None = None,
        *,
        positions: tuple[Int[Array, "*batch q_seq"], Int[Array, "*batch kv_seq"]] | None = None,
        head_mask: Float[Array, " heads"] | None = None,
        return_weights: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[
        Float[Array, "*batch q_seq hidden"], Float[Array, "*batch heads q_seq kv_seq"] | None
    ]:
        """**Arguments:**

        - `x`: what attends.
        - `attended`: what is attended to, as `project` gives it; `x` itself if None.
        - `mask`: True where a query may attend to a key; broadcastable to `(*batch, heads, q_seq,
            kv_seq)`.
        - `positions`: for the relative types, those of the queries and of the keys, if the queries
            are not the last of the keys.
        - `head_mask`: a factor for each head.
        - `return_weights`: whether the attention weights are returned too.
        - `key`: a PRNG key for dropout; without one there is none.

        **Returns:** the output, and the weights or None.
        """
        attended = self.project(x) if attended is None else attended
        query = self._split_heads(self.query(x))
        context, weights = _attend(
            query,
            attended.keys,
            attended.values,
            mask,
            bias=self._position_bias(query, attended.keys, positions),
            head_mask=head_mask,
            dropout_rate=self.dropout_rate,
            key=key,
            return_weights=return_weights,
        )
        context = jnp.swapaxes(context, -2, -3)
        *batch_seq, heads, head_size = context.shape
        return self.output(jnp.reshape(context, (*batch_seq, heads * head_size))), weights

    def _split_heads(
        self, x: Float[Array, "*batch seq inner"]
    ) -> Float[Array, "*batch heads seq head_size"]:
        by_head = jnp.reshape(x, (*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads))
        return jnp.swapaxes(by_head, -2, -3)

    def _position_bias(
        self,
        query: Float[Array, "*batch heads q_seq head_size"],
        keys: Float[Array, "*batch heads kv_seq head_size"],
        positions: tuple[Int[Array, "*batch q_seq"], Int[Array, "*batch kv_seq"]] | None,
    ) -> Float[Array, "*batch heads q_seq kv_seq"] | None:
        if self.distance is None:
            return None
        scores = relative_position_scores(
            query, keys, self.distance.weight, self.position_type, positions=positions
        )
        return scores * query.shape[-1] ** -0.5
