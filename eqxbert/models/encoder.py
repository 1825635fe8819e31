"""The stack of Transformer layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..config import BertConfig
from ..nn import Activation, Attention, LayerNorm, Linear, dropout, split_key
from ..outputs import EncoderOutput


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
    """Self-attention and a feed-forward network, each added to its input and then normalised
    (post-norm, as in [Devlin et al., 2019](https://arxiv.org/abs/1810.04805)).
    """

    attention: Attention
    attention_norm: LayerNorm
    feed_forward: FeedForward
    feed_forward_norm: LayerNorm
    dropout_rate: float = eqx.field(static=True)
    chunk_size: int = eqx.field(static=True)

    def __init__(self, config: BertConfig, *, num_heads: int | None = None, key: PRNGKeyArray):
        """`num_heads` is smaller than the configuration's where heads have been pruned."""
        attention_key, feed_forward_key = jax.random.split(key)
        self.attention = Attention(
            config.hidden_size,
            config.num_attention_heads if num_heads is None else num_heads,
            head_size=config.head_size,
            dropout_rate=config.attention_probs_dropout_prob,
            position_type=config.position_embedding_type,
            max_positions=config.max_position_embeddings,
            initializer_range=config.initializer_range,
            key=attention_key,
        )
        self.attention_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config, key=feed_forward_key)
        self.feed_forward_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_rate = config.hidden_dropout_prob
        self.chunk_size = config.chunk_size_feed_forward

    def __call__(
        self,
        x: Float[Array, "*batch seq hidden"],
        mask: Bool[Array, "..."] | None = None,
        *,
        head_mask: Float[Array, " heads"] | None = None,
        return_weights: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq hidden"], Float[Array, "*batch heads seq seq"] | None]:
        """**Arguments:**

        - `x`: one vector for each position.
        - `mask`: True where a query may attend to a key; broadcastable to
            `(*batch, heads, seq, seq)`.
        - `head_mask`: a factor for each head.
        - `return_weights`: whether the attention weights are returned too.
        - `key`: a PRNG key for dropout; without one there is none.
        """
        weights_key, attention_key, feed_forward_key = split_key(key, 3)
        y, weights = self.attention(
            x, mask, head_mask=head_mask, return_weights=return_weights, key=weights_key
        )
        x = self.attention_norm(x + dropout(y, self.dropout_rate, attention_key))
        y = self._feed_forward(x)
        x = self.feed_forward_norm(x + dropout(y, self.dropout_rate, feed_forward_key))
        return x, weights

    def _feed_forward(
        self, x: Float[Array, "*batch seq hidden"]
    ) -> Float[Array, "*batch seq hidden"]:
        """The feed-forward network over `chunk_size` positions at a time, so that no more of its
        wide intermediate result exists at once; over all of them if it is 0.
        """
        seq = x.shape[-2]
        if self.chunk_size == 0 or self.chunk_size >= seq:
            return self.feed_forward(x)
        starts = range(0, seq, self.chunk_size)
        chunks = [self.feed_forward(x[..., i : i + self.chunk_size, :]) for i in starts]
        return jnp.concatenate(chunks, axis=-2)


class Encoder(eqx.Module):
    """The layers, one after the other."""

    layers: tuple[EncoderLayer, ...]

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        keys = jax.random.split(key, config.num_hidden_layers)
        self.layers = tuple(
            EncoderLayer(config, num_heads=len(config.kept_heads(i)), key=key)
            for i, key in enumerate(keys)
        )

    def __call__(
        self,
        x: Float[Array, "*batch seq hidden"],
        mask: Bool[Array, "..."] | None = None,
        *,
        head_mask: tuple[Float[Array, "_"], ...] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> EncoderOutput:
        """**Arguments:**

        - `x`: the embeddings.
        - `mask`: True where a query may attend to a key; broadcastable to
            `(*batch, heads, seq, seq)`.
        - `head_mask`: for each layer, a factor for each of its heads.
        - `output_hidden_states`, `output_attentions`: what else is returned.
        - `key`: a PRNG key for dropout; without one there is none.
        """
        hidden_states, attentions = [x], []
        for i, (layer, layer_key) in enumerate(
            zip(self.layers, split_key(key, len(self.layers)), strict=True)
        ):
            x, weights = layer(
                x,
                mask,
                head_mask=None if head_mask is None else head_mask[i],
                return_weights=output_attentions,
                key=layer_key,
            )
            hidden_states.append(x)
            attentions.append(weights)
        return EncoderOutput(
            last_hidden_state=x,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
