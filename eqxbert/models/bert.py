"""`BertModel`: embeddings, encoder and pooler, without a head."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..config import BertConfig
from ..nn import Embedding, Linear, split_key
from ..outputs import BertModelOutput
from .embeddings import Embeddings
from .encoder import Encoder
from .inputs import (
    AttentionMask,
    attention_mask_for_scores,
    check_array,
    check_broadcasts,
    check_ids,
    check_shape,
)
from .pretrained import PretrainedModel


class Pooler(eqx.Module):
    """One vector for a sequence: its first token's, through a linear map and tanh."""

    dense: Linear

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        self.dense = Linear(
            config.hidden_size,
            config.hidden_size,
            initializer_range=config.initializer_range,
            key=key,
        )

    def __call__(self, x: Float[Array, "*batch seq hidden"]) -> Float[Array, "*batch hidden"]:
        return jnp.tanh(self.dense(x[..., 0, :]))


class BertModel(PretrainedModel):
    """BERT without a head, transformers' `BertModel`: token ids in, vectors out.

    The model of [Devlin et al., 2019](https://arxiv.org/abs/1810.04805).
    """

    embeddings: Embeddings
    encoder: Encoder
    pooler: Pooler | None
    config: BertConfig = eqx.field(static=True)  # pyright: ignore[reportGeneralTypeIssues]

    def __init__(self, config: BertConfig, *, add_pooling_layer: bool = True, key: PRNGKeyArray):
        """A model with new weights: normally distributed with standard deviation
        `config.initializer_range`, biases and the padding token's embedding zero.

        **Arguments:**

        - `config`: the sizes and the rest.
        - `add_pooling_layer`: whether there is a pooler, for `pooler_output`.
        - `key`: a PRNG key for the weights.

        **Raises:** `ValueError` for an unknown activation or an architecture that is not supported.
        """
        if not isinstance(config, BertConfig):
            raise ValueError(
                f"config must be a BertConfig, got {type(config).__name__}; there are "
                "BertConfig.from_dict and BertConfig.from_pretrained."
            )
        if config.add_cross_attention:
            raise ValueError("add_cross_attention is True, but cross-attention is not supported.")
        embeddings_key, encoder_key, pooler_key = jax.random.split(key, 3)
        self.embeddings = Embeddings(config, key=embeddings_key)
        self.encoder = Encoder(config, key=encoder_key)
        self.pooler = Pooler(config, key=pooler_key) if add_pooling_layer else None
        self.config = config

    @property
    def options(self) -> dict[str, Any]:
        return {"add_pooling_layer": self.pooler is not None}

    def get_input_embeddings(self) -> Embedding:
        return self.embeddings.word

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        attention_mask: AttentionMask = None,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        *,
        head_mask: Float[Array | np.ndarray, "layers heads"] | None = None,
        inputs_embeds: Float[Array | np.ndarray, "*batch seq hidden"] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        key: PRNGKeyArray | None = None,
    ) -> BertModelOutput:
        """**Arguments:**

        - `input_ids`: the ids of the tokens.
        - `attention_mask`: 1 or True for tokens that may be attended to, 0 or False for padding, of
            shape `(*batch, seq)`; or, for each token, those it may attend to, of shape
            `(*batch, seq, seq)`. None means all. A token that may attend to nothing gets a context
            of zeros.
        - `token_type_ids`: 0 for the first part of the input, 1 for the second; all 0 if None.
        - `position_ids`: the position of each token; 0, 1, 2, ... if None.
        - `head_mask`: a factor for the attention weights of each head of each layer, 0 to switch a
            head off. Differentiable. (A head that has been pruned keeps its place here.)
        - `inputs_embeds`: word embeddings, in place of `input_ids`.
        - `output_hidden_states`, `output_attentions`: whether `out.hidden_states` and
            `out.attentions` are returned; as the configuration says if None.
        - `key`: a PRNG key for dropout. Dropout happens if and only if there is one.

        **Raises:** `ValueError` if a shape or dtype is wrong, the sequence is longer than
        `config.max_position_embeddings`, or, outside `jax.jit`, an id is out of range. Inside
        `jax.jit` an id out of range makes its row NaN.
        """
        config = self.config
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_attentions is None:
            output_attentions = config.output_attentions
        embeddings_key, encoder_key = split_key(key, 2)

        words = self._embed_words(input_ids, inputs_embeds)
        batch_seq = words.shape[:-1]
        self._check_positions(batch_seq[-1])
        if token_type_ids is not None:
            check_ids("token_type_ids", token_type_ids, config.type_vocab_size, "type_vocab_size")
            check_shape("token_type_ids", token_type_ids, batch_seq)
        if position_ids is not None:
            limit = config.max_position_embeddings
            check_ids("position_ids", position_ids, limit, "max_position_embeddings")
            check_broadcasts("position_ids", position_ids, batch_seq)
        if head_mask is not None:
            shape = (len(self.encoder.layers), config.num_attention_heads)
            check_array("head_mask", head_mask, np.floating, "floats")
            check_shape("head_mask", head_mask, shape)

        x = self.embeddings(
            words,
            token_type_ids,
            position_ids,
            add_positions=config.position_embedding_type == "absolute",
            key=embeddings_key,
        )
        encoded = self.encoder(
            x,
            attention_mask_for_scores(attention_mask, batch_seq, causal=config.is_decoder),
            head_mask=None if head_mask is None else self._by_layer(jnp.asarray(head_mask)),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            key=encoder_key,
        )
        x = encoded.last_hidden_state
        return BertModelOutput(
            last_hidden_state=x,
            pooler_output=None if self.pooler is None else self.pooler(x),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _embed_words(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None,
        inputs_embeds: Float[Array | np.ndarray, "*batch seq hidden"] | None,
    ) -> Float[Array, "*batch seq hidden"]:
        table = self.embeddings.word.weight
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("Give either input_ids or inputs_embeds; both were given.")
        if inputs_embeds is not None:
            check_array("inputs_embeds", inputs_embeds, np.floating, "floats")
            hidden = self.config.hidden_size
            if inputs_embeds.ndim < 2 or inputs_embeds.shape[-1] != hidden:
                raise ValueError(
                    f"inputs_embeds has shape {tuple(inputs_embeds.shape)}, expected "
                    f"(*batch, seq, {hidden})."
                )
            return jnp.asarray(inputs_embeds, table.dtype)
        if input_ids is None:
            raise ValueError("Give either input_ids or inputs_embeds; neither was given.")
        check_ids("input_ids", input_ids, table.shape[0], "vocab_size")
        if input_ids.ndim == 0:
            raise ValueError("input_ids is a single number, expected shape (*batch, seq).")
        return self.embeddings.word(input_ids)

    def _by_layer(self, head_mask: Float[Array, "layers heads"]) -> tuple[Float[Array, "_"], ...]:
        """The rows of the mask without the heads that have been pruned."""
        return tuple(
            row[np.asarray(self.config.kept_heads(i))] if i in self.config.pruned_heads else row
            for i, row in enumerate(head_mask)
        )

    def _check_positions(self, seq: int) -> None:
        limit = self.config.max_position_embeddings
        if seq > limit:
            raise ValueError(
                f"The sequence has {seq} tokens, but this model has positions for {limit} "
                "(max_position_embeddings). Truncate it or split it into windows."
            )
        if seq == 0:
            raise ValueError("The sequence is empty: input_ids must have at least one token.")
