"""The product that nearly all of BERT's time goes to."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, DTypeLike, Float

from .numerics import accumulation_dtype, align_trailing
from .platform import platform

# For so few rows, XLA on CPU is faster (by a third, for the weights of BERT) if the weights are the
# left operand. The numbers are those of rows that it has fast code for: others take up to a third
# longer than the next of these.
_FEW_ROWS = (2, 3, 4, 8, 16, 20, 24, 32)

# XLA on CPU adds one term after the other (up to 2,048), so that errors grow with the root of their
# number. Sums in parts of so many err about as much as those of the libraries that PyTorch uses.
_TERMS_OF_PART = 192


def rounded_affine(
    x: Float[Array, "*batch in_size"],
    weight: Float[Array, "out_size in_size"],
    bias: Float[Array, " out_size"] | None,
) -> Float[Array, "*batch out_size"]:
    """`x @ weight.T + bias`, accumulated in at least float32 and returned in the dtype of `x`."""
    if x.dtype == weight.dtype != accumulation_dtype(x) and platform() == "gpu":
        return _half_affine(x, weight, bias)
    return affine(x, weight, bias).astype(x.dtype)


def affine(
    x: Float[Array, "*batch in_size"],
    weight: Float[Array, "out_size in_size"],
    bias: Float[Array, " out_size"] | None,
) -> Float[Array, "*batch out_size"]:
    """`x @ weight.T + bias`, accumulated and returned in at least float32."""
    if bias is None:
        return linear_product(x, weight)
    rows = math.prod(x.shape[:-1])
    dtype = accumulation_dtype(x)
    is_half = dtype != x.dtype or dtype != weight.dtype
    # `rows` is no number in a program for any batch (`jax.export`).
    are_few = isinstance(rows, int) and _FEW_ROWS[0] <= rows <= _FEW_ROWS[-1]
    if is_half or not are_few or _sums_in_parts(x):
        y = linear_product(x, weight)
        return y + align_trailing(bias.astype(dtype), y)
    filled = next(number for number in _FEW_ROWS if number >= rows)
    x_rows = jnp.pad(jnp.reshape(x, (rows, x.shape[-1])), ((0, filled - rows), (0, 0)))
    columns = _contract(weight, x_rows, 1)
    # The bias in between keeps XLA from turning the product round again.
    y = (columns + bias.astype(dtype)[:, None])[:, :rows].T
    return jnp.reshape(y, (*x.shape[:-1], weight.shape[0]))


def linear_product(
    x: Float[Array, "*batch in_size"], weight: Float[Array, "out_size in_size"]
) -> Float[Array, "*batch out_size"]:
    """`x @ weight.T`, accumulated and returned in at least float32.

    In half precision, gradients are products in half precision too, accumulated alike and rounded
    once. (Left to itself, JAX takes them in float32, which is several times slower.) They have no
    derivatives forward, as by `jax.jvp`, then.
    """
    if accumulation_dtype(x) != x.dtype or x.dtype != weight.dtype:
        return _half_product(x, weight)
    return _product_in_parts(x, weight) if _sums_in_parts(x) else _contract(x, weight, 1)


def _sums_in_parts(x: Float[Array, "*batch in_size"]) -> bool:
    """Whether a product with `x` is to be as exact as float32 allows, where XLA's is not."""
    config: Any = jax.config
    is_highest = config.jax_default_matmul_precision in ("highest", "float32")
    is_long = x.shape[-1] > _TERMS_OF_PART
    return is_highest and is_long and x.dtype == jnp.float32 and platform() == "cpu"


@jax.custom_jvp
def _product_in_parts(
    x: Float[Array, "*batch in_size"], weight: Float[Array, "out_size in_size"]
) -> Float[Array, "*batch out_size"]:
    """`x @ weight.T`, as the sum of products over `_TERMS_OF_PART` of the last axes at a time."""

    def product(start: Any, terms: int) -> Float[Array, "*batch out_size"]:
        x_part = lax.dynamic_slice_in_dim(x, start, terms, axis=-1)
        weight_part = lax.dynamic_slice_in_dim(weight, start, terms, axis=-1)
        return _contract(x_part, weight_part, 1)

    # A loop, since all parts of all weights would be copied before anything else is done otherwise.
    # It has derivatives of its own, usual products: it would keep something of each part for them.
    parts, rest = divmod(x.shape[-1], _TERMS_OF_PART)
    y = product(parts * _TERMS_OF_PART, rest)
    return lax.fori_loop(
        0, parts, lambda part, y: y + product(part * _TERMS_OF_PART, _TERMS_OF_PART), y
    )


@_product_in_parts.defjvp
def _product_in_parts_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Float[Array, "*batch out_size"], Float[Array, "*batch out_size"]]:
    (x, weight), (x_tangent, weight_tangent) = primals, tangents
    tangent = _contract(x_tangent, weight, 1) + _contract(x, weight_tangent, 1)
    return _product_in_parts(x, weight), tangent


def _contract(
    x: Float[Array, "*batch size"],
    matrix: Float[Array, "rows columns"],
    axis: int,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch other_size"]:
    """The product over the last axis of `x` and one of the matrix; in at least float32, or in
    `dtype`.
    """
    axes = (((x.ndim - 1,), (axis,)), ((), ()))
    dtype = accumulation_dtype(x) if dtype is None else dtype
    return lax.dot_general(x, matrix, axes, preferred_element_type=dtype)


@jax.custom_vjp
def _half_product(
    x: Float[Array, "*batch in_size"], weight: Float[Array, "out_size in_size"]
) -> Float[Array, "*batch out_size"]:
    return _contract(x, weight, 1)


def _forward(
    x: Float[Array, "*batch in_size"], weight: Float[Array, "out_size in_size"]
) -> tuple[Float[Array, "*batch out_size"], tuple[Array, Array]]:
    return _contract(x, weight, 1), (x, weight)


def _backward(
    residuals: tuple[Array, Array], gradient: Float[Array, "*batch out_size"]
) -> tuple[Float[Array, "*batch in_size"], Float[Array, "out_size in_size"]]:
    x, weight = residuals
    gradient = gradient.astype(x.dtype)
    x_gradient = _contract(gradient, weight, 0).astype(x.dtype)
    rows = jnp.reshape(x, (-1, x.shape[-1]))
    gradient_rows = jnp.reshape(gradient, (-1, gradient.shape[-1]))
    weight_gradient = _contract(_transposed(gradient_rows), rows, 0)
    return x_gradient, weight_gradient.astype(weight.dtype)


def _transposed(matrix: Float[Array, "rows columns"]) -> Float[Array, "columns rows"]:
    """The transpose. On CPU in memory as well: XLA has fast products in half precision only for
    operands in the order of their axes, and would not copy this one by itself.
    """
    if platform() != "cpu":
        return matrix.T
    return with_layout_constraint(matrix.T, Layout((0, 1)))


_half_product.defvjp(_forward, _backward)


# GPUs accumulate products of half precision in float32, add a bias to that, and round once. Asked
# for results in float32, they would write twice as much, and round in a second pass over it.


@jax.custom_vjp
def _half_affine(
    x: Float[Array, "*batch in_size"],
    weight: Float[Array, "out_size in_size"],
    bias: Float[Array, " out_size"] | None,
) -> Float[Array, "*batch out_size"]:
    y = _contract(x, weight, 1, x.dtype)
    return y if bias is None else y + align_trailing(bias.astype(y.dtype), y)


def _affine_forward(
    x: Float[Array, "*batch in_size"],
    weight: Float[Array, "out_size in_size"],
    bias: Float[Array, " out_size"] | None,
) -> tuple[Float[Array, "*batch out_size"], tuple[Array, Array, Array | None]]:
    return _half_affine(x, weight, bias), (x, weight, bias)


def _affine_backward(
    residuals: tuple[Array, Array, Array | None], gradient: Float[Array, "*batch out_size"]
) -> tuple[Array, Array, Array | None]:
    x, weight, bias = residuals
    # As it is, rounded: XLA would rather write what it was before, which takes twice the memory.
    gradient = lax.optimization_barrier(gradient)
    rows = jnp.reshape(x, (-1, x.shape[-1]))
    gradient_rows = jnp.reshape(gradient, (-1, gradient.shape[-1]))
    bias_gradient = None
    if bias is not None:
        sums = jnp.sum(gradient_rows.astype(accumulation_dtype(x)), axis=0)
        bias_gradient = sums.astype(bias.dtype)
    return (
        _contract(gradient, weight, 0, x.dtype),
        _contract(gradient_rows.T, rows, 0, weight.dtype),
        bias_gradient,
    )


_half_affine.defvjp(_affine_forward, _affine_backward)
