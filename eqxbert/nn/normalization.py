"""Layer normalisation ([Ba et al., 2016](https://arxiv.org/abs/1607.06450))."""

import equinox as eqx
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
        y = x.astype(accumulation_dtype(x))
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
        y = y * lax.rsqrt(variance + self.eps)
        weight, bias = (align_trailing(p.astype(y.dtype), y) for p in (self.weight, self.bias))
        return (y * weight + bias).astype(x.dtype)
