"""The stack of Transformer layers."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from ..config import BertConfig
from ..nn import Activation, Attention, KVCache, LayerNorm, Linear, dropout, split_key
from ..outputs import EncoderOutput
from .micro_batches import in_parts, number_of_parts


class CachePlace(NamedTuple):
    """Where in a cache the keys and values of new tokens go.

    - `start`: the slot of the first.
    - `positions`: the positions of the new tokens, and those of all slots.
    """

    start: Int[Array, ""]
    positions: tuple[Int[Array, "*batch seq"], Int[Array, "*batch slots"]]


class LayerOutput(NamedTuple):
    """What a layer returns: its output, the weights of its attentions if asked for, and the cache
    with the new keys and values if there was one.
    """

    output: Float[Array, "*batch tokens hidden"]
    weights: Float[Array, "*batch heads tokens kv_seq"] | None
    cross_weights: Float[Array, "*batch heads tokens encoder_seq"] | None
    cache: KVCache | None


class FeedForward(eqx.Module):
    """Two linear maps with an activation between them, at each position on its own."""

    intermediate: Linear
    output: Linear
    activation: Activation

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        intermediate_key, output_key = jax.random.split(key)
        hidden, intermediate = config.hidden_size, config.intermediate_size
        init = config.initializer_range
        self.intermediate = Linear(
            hidden, intermediate, initializer_range=init, key=intermediate_key
        )
        self.output = Linear(intermediate, hidden, initializer_range=init, key=output_key)
        self.activation = Activation(config.hidden_act)

    def __call__(self, x: Float[Array, "*batch hidden"]) -> Float[Array, "*batch hidden"]:
        return self.output(self.activation(self.intermediate(x)))


class EncoderLayer(eqx.Module):
    """Self-attention, in decoders with an encoder cross-attention, and a feed-forward network, each
    added to its input and then normalised (post-norm, as in [Devlin et al.,
    2019](https://arxiv.org/abs/1810.04805)).
    """

    attention: Attention
    attention_norm: LayerNorm
    cross_attention: Attention | None
    cross_attention_norm: LayerNorm | None
    feed_forward: FeedForward
    feed_forward_norm: LayerNorm
    dropout_rate: float = eqx.field(static=True)
    chunk_size: int = eqx.field(static=True)
    # Those that have not been pruned, by their numbers before any were.
    heads: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, config: BertConfig, layer: int = 0, *, key: PRNGKeyArray):
        """`layer` is the layer's number, which says what heads it has."""
        attention_key, cross_key, feed_forward_key = jax.random.split(key, 3)
        self.heads = config.kept_heads(layer)
        self.attention = Attention(
            config.hidden_size,
            len(self.heads),
            head_size=config.head_size,
            dropout_rate=config.attention_probs_dropout_prob,
            position_type=config.position_embedding_type,
            max_positions=config.max_position_embeddings,
            initializer_range=config.initializer_range,
            key=attention_key,
        )
        self.attention_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = self.cross_attention_norm = None
        if config.add_cross_attention:
            self.cross_attention = Attention(
                config.hidden_size,
                config.num_attention_heads,
                key_value_size=config.cross_attention_hidden_size,
                dropout_rate=config.attention_probs_dropout_prob,
                initializer_range=config.initializer_range,
                key=cross_key,
            )
            self.cross_attention_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config, key=feed_forward_key)
        self.feed_forward_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_rate = config.hidden_dropout_prob
        self.chunk_size = config.chunk_size_feed_forward

    def __call__(
        self,
        x: Float[Array, "*batch seq hidden"],
        mask: Bool[Array, "..."] | None = None,
        *,
        cache: tuple[KVCache, CachePlace] | None = None,
        cross: KVCache | None = None,
        cross_mask: Bool[Array, "..."] | None = None,
        head_mask: Float[Array, " heads"] | None = None,
        output_positions: Int[Array, "*batch slots"] | None = None,
        return_weights: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> LayerOutput:
        """**Arguments:**

        - `x`: one vector for each position.
        - `mask`: True where a query may attend to a key; broadcastable to
            `(*batch, heads, seq, kv_seq)`, where the keys are those of `x`, or all slots of the
            cache.
        - `cache`: keys and values of what came before, and where those of `x` go.
        - `cross`: keys and values of an encoder's output (`cross_attention.project`).
        - `cross_mask`: which of these may be attended to.
        - `head_mask`: a factor for each head, pruned ones included.
        - `output_positions`: the positions in `x` that an output is computed for; all if None.
        - `return_weights`: whether the attention weights are returned too.
        - `key`: a PRNG key for dropout; without one there is none.
        """
        weights_key, attention_key, cross_weights_key, cross_key, feed_forward_key = split_key(
            key, 5
        )
        attended, positions = self.attention.project(x), None
        if cache is not None:
            slots, place = cache
            attended = slots.write(attended, place.start)
            positions = place.positions
        is_relative = self.attention.distance is not None
        if output_positions is not None and not is_relative:
            mask = None if mask is None else _queries_at(mask, output_positions)
            x, positions = _states_at(x, output_positions), None  # which play no part
        kept_head_mask = head_mask
        if head_mask is not None and len(self.heads) < head_mask.shape[0]:
            kept_head_mask = head_mask[np.asarray(self.heads)]
        y, weights = self.attention(
            x,
            attended,
            mask,
            positions=positions,
            head_mask=kept_head_mask,
            return_weights=return_weights,
            key=weights_key,
        )
        if output_positions is not None and is_relative:
            # Not before: each row would need distances of its own, as vectors.
            weights = None if weights is None else _queries_at(weights, output_positions)
            x, y = _states_at(x, output_positions), _states_at(y, output_positions)
        x = self.attention_norm(x + dropout(y, self.dropout_rate, attention_key))
        cross_weights = None
        if cross is not None:
            assert self.cross_attention is not None
            assert self.cross_attention_norm is not None
            y, cross_weights = self.cross_attention(
                x,
                cross,
                cross_mask,
                head_mask=head_mask,
                return_weights=return_weights,
                key=cross_weights_key,
            )
            x = self.cross_attention_norm(x + dropout(y, self.dropout_rate, cross_key))
        y = self._feed_forward(x)
        x = self.feed_forward_norm(x + dropout(y, self.dropout_rate, feed_forward_key))
        return LayerOutput(x, weights, cross_weights, None if cache is None else attended)

    def _feed_forward(
        self, x: Float[Array, "*batch seq hidden"]
    ) -> Float[Array, "*batch seq hidden"]:
        """The feed-forward network over `chunk_size` positions at a time, so that no more of its
        wide intermediate result exists at once; over all of them if it is 0.
        """
        seq = x.shape[-2]
        is_known = isinstance(seq, int)  # not so in programs for any length (jax.export)
        if self.chunk_size == 0 or not is_known or self.chunk_size >= seq:
            return self.feed_forward(x)
        starts = range(0, seq, self.chunk_size)
        chunks = [self.feed_forward(x[..., i : i + self.chunk_size, :]) for i in starts]
        return jnp.concatenate(chunks, axis=-2)


class Encoder(eqx.Module):
    """The layers, one after the other."""

    layers: tuple[EncoderLayer, ...]

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        keys = jax.random.split(key, config.num_hidden_layers)
        self.layers = tuple(EncoderLayer(config, i, key=key) for i, key in enumerate(keys))

    def project_cross(
        self, states: Float[Array, "*batch kv_seq encoder_hidden"]
    ) -> tuple[KVCache, ...]:
        """For each layer, the keys and values of an encoder's output."""
        modules = [layer.cross_attention for layer in self.layers]
        return tuple(module.project(states) for module in modules if module is not None)

    def __call__(
        self,
        x: Float[Array, "*batch seq hidden"],
        mask: Bool[Array, "..."] | None = None,
        *,
        cache: tuple[tuple[KVCache, ...], CachePlace] | None = None,
        cross: tuple[KVCache, ...] | None = None,
        cross_mask: Bool[Array, "..."] | None = None,
        head_mask: Float[Array, "layers heads"] | None = None,
        output_positions: Int[Array, "*batch slots"] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> EncoderOutput:
        """**Arguments:** as in `EncoderLayer`, with one cache, `cross` and row of `head_mask` for
        each layer; and

        - `x`: the embeddings.
        - `output_positions`: the positions that `last_hidden_state` is of; all if None. The last
            layer is computed for these alone, unless something else of it is asked for; with
            relative positions, all of it but attention.
        - `output_hidden_states`, `output_attentions`: what else is returned.
        """
        run = functools.partial(
            self._run,
            cache=cache,
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            key=key,
        )
        parts = number_of_parts(x) if cache is None and key is None else 1
        if parts == 1:
            return run(x, mask, cross, cross_mask, output_positions)
        batch = x.shape[:-2]
        mask, cross_mask = (
            None if m is None else jnp.broadcast_to(m, (*batch, *m.shape[-3:]))
            for m in (mask, cross_mask)
        )
        arguments = (x, mask, cross, cross_mask, output_positions)
        return in_parts(lambda part: run(*part), arguments, parts, len(batch))

    def _run(
        self,
        x: Float[Array, "*batch seq hidden"],
        mask: Bool[Array, "..."] | None,
        cross: tuple[KVCache, ...] | None,
        cross_mask: Bool[Array, "..."] | None,
        output_positions: Int[Array, "*batch slots"] | None,
        *,
        cache: tuple[tuple[KVCache, ...], CachePlace] | None,
        head_mask: Float[Array, "layers heads"] | None,
        output_hidden_states: bool,
        output_attentions: bool,
        key: PRNGKeyArray | None,
    ) -> EncoderOutput:
        """One layer after the other."""
        states, outputs = [x], []
        last = len(self.layers) - 1
        is_full = output_positions is None or output_hidden_states or output_attentions
        for i, (layer, layer_key) in enumerate(
            zip(self.layers, split_key(key, len(self.layers)), strict=True)
        ):
            out = _call(
                layer,
                states[-1],
                mask,
                cache=None if cache is None else (cache[0][i], cache[1]),
                cross=None if cross is None else cross[i],
                cross_mask=cross_mask,
                head_mask=None if head_mask is None else head_mask[i],
                output_positions=None if is_full or i < last else output_positions,
                return_weights=output_attentions,
                key=layer_key,
            )
            states.append(out.output)
            outputs.append(out)
        x = states[-1]
        if is_full and output_positions is not None:
            x = _states_at(x, output_positions)
        return EncoderOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=_all(out.weights for out in outputs),
            cross_attentions=_all(out.cross_weights for out in outputs),
            cache=_all(out.cache for out in outputs),
        )


@eqx.filter_jit
def _call(layer: Callable[..., LayerOutput], *arguments: Any, **options: Any) -> LayerOutput:
    """What the layer returns. JAX traces and lowers it once for all layers alike."""
    return layer(*arguments, **options)


def _states_at(
    x: Float[Array, "*batch seq hidden"], positions: Int[Array, "*batch slots"]
) -> Float[Array, "*batch slots hidden"]:
    """The vectors at some positions; NaN for a position that there is not."""
    # Negative ones would count from the end.
    index = jnp.where(positions < 0, x.shape[-2], positions)[..., None]
    return jnp.take_along_axis(x, index, axis=-2, mode="fill", fill_value=jnp.nan)


def _queries_at(
    x: Shaped[Array, "..."], positions: Int[Array, "*batch slots"]
) -> Shaped[Array, "..."]:
    """A mask or weights, of queries and keys, for the queries at some positions."""
    x = jnp.reshape(x, (1,) * (positions.ndim + 2 - x.ndim) + x.shape)
    if x.shape[-2] == 1:
        return x
    return jnp.take_along_axis(x, positions[..., None, :, None], axis=-2, mode="clip")


def _all(values: Iterable[Any]) -> tuple[Any, ...] | None:
    """The values of all layers, or None if there are none."""
    values = tuple(values)
    return None if any(value is None for value in values) else values
