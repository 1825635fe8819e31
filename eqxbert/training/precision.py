"""Mixed precision: parameters in float32, most of the computing in half of it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PyTree

from ..nn import Embedding


def for_compute(model: PyTree, dtype: DTypeLike | None) -> PyTree:
    """The model with parameters in the dtype that is computed in; as it is if that is None.

    Embeddings stay as they are. A row that many tokens look up gets the sum of their gradients,
    which in half precision would lose the small ones.
    """
    if dtype is None:
        return model

    def cast(node: Any) -> Any:
        if isinstance(node, Embedding) or not eqx.is_inexact_array(node):
            return node
        return node.astype(dtype)

    return jax.tree.map(cast, model, is_leaf=lambda node: isinstance(node, Embedding))


class LossScale(eqx.Module):
    """What a loss in float16 is multiplied by, so that small gradients do not vanish ([Micikevicius
    et al., 2018](https://arxiv.org/abs/1710.03740)). It doubles after 2,000 steps with finite
    gradients, and halves after one without.

    - `value`: the factor.
    - `finite_steps`: the number of steps since it changed.
    """

    value: Float[Array, ""]
    finite_steps: Int[Array, ""]

    @classmethod
    def create(cls) -> "LossScale":
        """With the factor that is usual to begin with, 2^15."""
        return cls(jnp.asarray(2.0**15, jnp.float32), jnp.zeros((), jnp.int32))

    def adjust(self, is_finite: Bool[Array, ""]) -> "LossScale":
        """After a step whose gradients were finite or were not."""
        steps = jnp.where(is_finite, self.finite_steps + 1, 0)
        grows = steps == 2000
        value = jnp.where(is_finite, self.value, jnp.maximum(self.value / 2, 1.0))
        return LossScale(
            # Not beyond what float32 can tell from infinity when it multiplies a loss.
            jnp.where(grows, jnp.minimum(2 * value, 2.0**30), value),
            jnp.where(grows, 0, steps),
        )
