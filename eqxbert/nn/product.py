"""The product that nearly all of BERT's time goes to."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from .numerics import accumulation_dtype, align_trailing

# For so few rows, XLA on CPU is faster (by a third, for the weights of BERT) if the weights are the
# left operand. The numbers are those of rows that it has fast code for: others take up to a third
# longer than the next of these.
_FEW_ROWS = (2, 3, 4, 8, 16, 20, 24, 32)


def affine(
    x: Float[Array, "*batch in_size"],
    weight: Float[Array, "out_size in_size"],
    bias: Float[Array, " out_size"],
) -> Float[Array, "*batch out_size"]:
    """`x @ weight.T + bias`, accumulated and returned in at least float32."""
    rows = math.prod(x.shape[:-1])
    dtype = accumulation_dtype(x)
    is_half = dtype != x.dtype or dtype != weight.dtype
    # `rows` is no number in a program for any batch (`jax.export`).
    if is_half or not (isinstance(rows, int) and _FEW_ROWS[0] <= rows <= _FEW_ROWS[-1]):
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
    if accumulation_dtype(x) == x.dtype == weight.dtype:
        return _contract(x, weight, 1)
    return _half_product(x, weight)


def _contract(
    x: Float[Array, "*batch size"], matrix: Float[Array, "rows columns"], axis: int
) -> Float[Array, "*batch other_size"]:
    """The product over the last axis of `x` and one of the matrix."""
    axes = (((x.ndim - 1,), (axis,)), ((), ()))
    return lax.dot_general(x, matrix, axes, preferred_element_type=accumulation_dtype(x))


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
    """XLA on CPU has fast products in half precision for operands in the order of their axes alone,
    and would leave these as they are.
    """
    if jax.default_backend() != "cpu":
        return matrix.T
    return with_layout_constraint(matrix.T, Layout((0, 1)))


_half_product.defvjp(_forward, _backward)
