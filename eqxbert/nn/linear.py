"""Affine maps with weights stored as PyTorch stores them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .product import rounded_affine


class Linear(eqx.Module):
    """`y = x @ weight.T + bias` on the last axis of `x`, as `torch.nn.Linear`.

    The product accumulates in at least float32 whatever the parameters' dtype (on CPU this is also
    what makes bfloat16 fast), and the result comes back in the dtype of `x`. Under
    `jax.default_matmul_precision("highest")`, long sums are cut into parts on a CPU, which errs
    less and takes longer.
    """

    weight: Float[Array, "out_size in_size"]
    bias: Float[Array, " out_size"] | None

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        use_bias: bool = True,
        initializer_range: float = 0.02,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_size`, `out_size`: the sizes of the last axis of input and output.
        - `use_bias`: whether there is a bias; it starts at zero.
        - `initializer_range`: standard deviation of the normal distribution the weight is drawn
            from.
        - `key`: a PRNG key for the weight.
        """
        self.weight = initializer_range * jax.random.normal(key, (out_size, in_size), jnp.float32)
        self.bias = jnp.zeros(out_size, jnp.float32) if use_bias else None

    def __call__(self, x: Float[Array, "*batch in_size"]) -> Float[Array, "*batch out_size"]:
        return rounded_affine(x, self.weight, self.bias)
