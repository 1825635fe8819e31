"""What generation starts from, in shapes that few programs serve."""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..outputs import CausalLMOutput, DecoderCache


@runtime_checkable
class Decoder(Protocol):
    """What generation asks of a model: `BertForCausalLM` has it."""

    def init_cache(self, batch: tuple[int, ...], max_length: int) -> DecoderCache: ...

    def __call__(self, input_ids: Any, **options: Any) -> CausalLMOutput: ...


class Prompt(eqx.Module):
    """The tokens that are there before generation.

    - `ids`, `valid`: the tokens, and which of them are no padding.
    - `limit`: how many new tokens there may be.
    - `slots`: for how many tokens, padding included, there is room.
    - `encoder_hidden_states`, `encoder_attention_mask`: what the decoder attends to, if it does.
    """

    ids: Int[Array, "batch seq"]
    valid: Bool[Array, "batch seq"]
    limit: Int[Array, ""]
    slots: int = eqx.field(static=True)
    encoder_hidden_states: Float[Array, "batch encoder_seq encoder_hidden"] | None = None
    encoder_attention_mask: Bool[Array, "batch encoder_seq"] | None = None

    def read(
        self, decoder: Decoder, *, side_by_side: int = 1
    ) -> tuple[Float[Array, "batch vocab"], DecoderCache, Int[Array, "batch slots"]]:
        """Runs the decoder over the prompt.

        **Arguments:**

        - `side_by_side`: how many continuations of each row the cache has room for.

        **Returns:** the scores of the next token, the cache, and the tokens in their slots, where
        padding and what is not filled yet are -1.
        """
        # Padding goes to the front, so that every row's last token is in the last slot.
        order = jnp.argsort(self.valid, axis=-1, stable=True)
        ids = jnp.take_along_axis(self.ids, order, axis=-1)
        valid = jnp.take_along_axis(self.valid, order, axis=-1)
        batch, seq = ids.shape
        options: dict[str, Any] = {"attention_mask": valid, "logits_to_keep": 1}
        if self.encoder_hidden_states is not None:
            options["encoder_hidden_states"] = self.encoder_hidden_states
            options["encoder_attention_mask"] = self.encoder_attention_mask
        new_slots = self.slots - seq
        # A single row goes without its axis: an axis of size 1 keeps XLA on CPU from updating the
        # cache in place.
        rows = () if batch == 1 else (batch,)
        # Slots for what is to come are added when the prompt has been read, so that it does not
        # attend to them.
        logits, cache = read_tokens(decoder, ids, decoder.init_cache(rows, seq), **options)
        cache = cache.extend(side_by_side * new_slots)
        unfilled = jnp.full((batch, new_slots), -1, jnp.int32)
        filled = jnp.where(valid, ids, -1).astype(jnp.int32)
        return logits[:, -1], cache, jnp.concatenate([filled, unfilled], axis=-1)


def read_tokens(
    decoder: Decoder, ids: Int[Array, "batch seq"], cache: DecoderCache, **options: Any
) -> tuple[Float[Array, "batch kept vocab"], DecoderCache]:
    """Runs the decoder over new tokens.

    **Returns:** the scores, in float32, of the tokens that follow them, and the cache.
    """
    is_single_row = cache.valid.ndim == 1
    if is_single_row:
        ids, options = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, (ids, options))
    out = decoder(ids, cache=cache, **options)
    assert out.cache is not None
    logits = out.logits.astype(jnp.float32)
    return (logits[None] if is_single_row else logits), out.cache


def bucket(length: int) -> int:
    """The least of a few lengths that is not below `length`: programs are compiled for these."""
    for size in (8, 16, 32, 64):
        if length <= size:
            return size
    return -(-length // 64) * 64


def longest_below_bucket(length: int) -> int:
    """The largest length that is in the bucket before that of `length`."""
    sizes = [0, 8, 16, 32, 64]
    size = bucket(length)
    return sizes[sizes.index(size) - 1] if size in sizes else size - 64
