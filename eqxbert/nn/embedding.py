"""Tables of vectors looked up by id."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .numerics import as_int32


class Embedding(eqx.Module):
    """A table whose row `i` is the vector of id `i`, as `torch.nn.Embedding`."""

    weight: Float[Array, "num_embeddings size"]
    padding_id: int | None = eqx.field(static=True)

    def __init__(
        self,
        num_embeddings: int,
        size: int,
        *,
        initializer_range: float = 0.02,
        padding_id: int | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `num_embeddings`, `size`: rows of the table, and the size of each.
        - `initializer_range`: standard deviation of the normal distribution the table is drawn
            from.
        - `padding_id`: the row that stands for padding, if there is one. It starts at zero, and
            looking it up gives it no gradient.
        - `key`: a PRNG key for the table.
        """
        weight = initializer_range * jax.random.normal(key, (num_embeddings, size), jnp.float32)
        self.weight = weight if padding_id is None else weight.at[padding_id].set(0)
        self.padding_id = padding_id

    def __call__(self, ids: Int[Array | np.ndarray, "*batch"]) -> Float[Array, "*batch size"]:
        """The rows for `ids`. An id outside the table, negative ones included, gives a row of NaN:
        the nearest thing to an error that compiled code has (indexing would silently clamp it to
        the last row).
        """
        ids = as_int32(ids)
        rows = (
            jnp.asarray(self.weight)
            .at[ids]
            .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        )
        if self.padding_id is None:
            return rows
        is_padding = (ids == self.padding_id)[..., None]
        return jnp.where(is_padding, lax.stop_gradient(rows), rows)
