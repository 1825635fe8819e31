"""Layer normalisation ([Ba et al., 2016](https://arxiv.org/abs/1607.06450))."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .numerics import accumulation_dtype, align_trailing


class LayerNorm(eqx.Module):
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts, as
    `torch.nn.LayerNorm`.

    Statistics are taken in at least float32: BERT's `eps` of 1e-12 is zero in float16. The variance
    is the mean of the squared deviations (two passes), as PyTorch computes it; `E[x²] - E[x]²`
    loses half the digits.
    """

    weight: Float[Array, " size"]
    bias: Float[Array, " size"]
    eps: float = eqx.field(static=True)

    def __init__(self, size: int, *, eps: float):
        """**Arguments:**

        - `size`: the size of the axis that is normalised.
        - `eps`: what is added to the variance. It has no default: 1e-12 in BERT, 1e-5 nearly
            everywhere else, and the wrong one is a silent error.
        """
        self.weight = jnp.ones(size, jnp.float32)
        self.bias = jnp.zeros(size, jnp.float32)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        y = _standardized(x.astype(accumulation_dtype(x)), self.eps)
        weight, bias = (align_trailing(p.astype(y.dtype), y) for p in (self.weight, self.bias))
        return (y * weight + bias).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _standardized(x: Float[Array, "*batch size"], eps: float) -> Float[Array, "*batch size"]:
    """The last axis with mean 0 and variance 1."""
    return _standardized_and_factor(x, eps)[0]


def _standardized_and_factor(
    x: Float[Array, "*batch size"], eps: float
) -> tuple[Float[Array, "*batch size"], Float[Array, "*batch 1"]]:
    y = x - jnp.mean(x, axis=-1, keepdims=True)
    factor = lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return y * factor, factor


# For gradients, the result is kept, and a number for each row; their two means are taken side by
# side. (In what JAX would make of the above, one waits for the other.)
@_standardized.defjvp
def _standardized_jvp(
    eps: float,
    primals: tuple[Float[Array, "*batch size"]],
    tangents: tuple[Float[Array, "*batch size"]],
) -> tuple[Float[Array, "*batch size"], Float[Array, "*batch size"]]:
    (x,), (tangent,) = primals, tangents
    y, factor = _standardized_and_factor(x, eps)
    scaled = tangent * factor
    along = jnp.mean(scaled * y, axis=-1, keepdims=True)
    return y, scaled - jnp.mean(scaled, axis=-1, keepdims=True) - y * along
