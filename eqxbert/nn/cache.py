"""Keys and values of attention, kept for the queries to come."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int


class KVCache(eqx.Module):
    """The keys and values that an attention has computed, in slots. The heads stand in front, as
    the products want them, so that nothing is copied when they are used.
    """

    keys: Float[Array, "*batch heads slots head_size"]
    values: Float[Array, "*batch heads slots head_size"]

    @classmethod
    def empty(
        cls, batch: tuple[int, ...], slots: int, heads: int, head_size: int, dtype: DTypeLike
    ) -> "KVCache":
        """All slots zero."""
        zeros = jnp.zeros((*batch, heads, slots, head_size), dtype)
        return cls(zeros, zeros)

    def write(self, new: "KVCache", start: Int[Array, ""]) -> "KVCache":
        """With those of `new` in the slots from `start` on. (Not checked: where too few are left,
        they are moved back.)
        """
        return KVCache(
            write_slots(self.keys, new.keys, start, axis=-2),
            write_slots(self.values, new.values, start, axis=-2),
        )

    def extend(self, count: int) -> "KVCache":
        """With `count` more slots, which are zero."""
        return KVCache(
            extend_slots(self.keys, count, axis=-2), extend_slots(self.values, count, axis=-2)
        )


def write_slots(slots: Array, new: Array, start: Int[Array, ""], *, axis: int) -> Array:
    """`slots` with those of `new` from `start` on, along one axis; the others are equal."""
    return lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), start, axis % slots.ndim)


def extend_slots(slots: Array, count: int, *, axis: int) -> Array:
    """`slots` with `count` more of them, which are zero, along one axis."""
    padding = [(0, 0)] * slots.ndim
    padding[axis] = (0, count)
    return jnp.pad(slots, padding)
