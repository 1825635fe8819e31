"""`BertModel`: embeddings, encoder and pooler, without a head."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..checks import (
    AttentionMask,
    check_array,
    check_broadcasts,
    check_ids,
    check_mask,
    check_shape,
)
from ..config import BertConfig
from ..nn import (
    Embedding,
    KVCache,
    Linear,
    Size,
    as_int32,
    key_mask,
    pair_mask,
    segment_mask,
    segment_positions,
    split_key,
)
from ..outputs import BertModelOutput, DecoderCache
from .cache import (
    BatchShape,
    advance,
    attended_slots,
    check_cache,
    check_is_decoder,
    counted_positions,
    empty_cache,
    is_overflowing,
    poison,
)
from .embeddings import Embeddings
from .encoder import Encoder
from .inputs import (
    attention_mask_for_scores,
    check_counted_positions,
    check_length,
    check_positions,
    check_segments,
)
from .one_bert import OneBertModel


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


class BertModel(OneBertModel):
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
                f"config must be an eqxbert.BertConfig, got {type(config).__module__}."
                f"{type(config).__name__}; there are BertConfig.from_pretrained and, for "
                "transformers' `config.to_dict()`, BertConfig.from_dict."
            )
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
        segment_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        encoder_hidden_states: Float[Array | np.ndarray, "*batch encoder_seq encoder_hidden"]
        | None = None,
        encoder_attention_mask: AttentionMask = None,
        cache: DecoderCache | None = None,
        output_positions: Int[Array | np.ndarray, "... slots"] | None = None,
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
        - `segment_ids`: in place of `attention_mask`, for rows of several sequences, one after the
            other: a number for each sequence, and 0 for padding. Each attends to itself alone, and
            its positions begin at 0, so that its outputs are as if it were alone (those for whole
            rows, such as `pooler_output`, are of the first). Rows may then be longer than
            `config.max_position_embeddings`, unless positions are relative.
            `eqxbert.training.pack_sequences` makes such rows.
        - `encoder_hidden_states`: an encoder's output, for a model with cross-attention
            (`config.add_cross_attention`). Without it, cross-attention is left out, unless the
            cache has the keys and values of an earlier call.
        - `encoder_attention_mask`: which of the encoder's tokens may be attended to, of shape
            `(*batch, encoder_seq)`.
        - `cache`: of a decoder (`init_cache`, or an earlier call's `out.cache`). The tokens follow
            those in it; `attention_mask` is for the new ones alone, of shape `(*batch, seq)`, or
            says for each of them which slots it may attend to, `(*batch, seq, slots)`: so several
            continuations can stand side by side. `position_ids` count on from those before,
            padding left out; with slots, they are the number of those attended to before.
        - `output_positions`: the positions that `out.last_hidden_state` shall be of, if not of all:
            of shape `(*batch, slots)`, or one that is broadcast to it. The last layer is then
            computed for these alone (and the first token, if there is a pooler), unless hidden
            states or attentions are asked for; with relative positions, all of it but attention.
        - `output_hidden_states`, `output_attentions`: whether `out.hidden_states` and
            `out.attentions` are returned; as the configuration says if None.
        - `key`: a PRNG key for dropout. Dropout happens if and only if there is one.

        **Raises:** `ValueError` if a shape or dtype is wrong, the sequence is longer than
        `config.max_position_embeddings`, or, outside `jax.jit`, an id is out of range or the cache
        overflows. Inside `jax.jit`, an id out of range makes its row NaN, a position of
        `output_positions` its vector; slots or positions that do not suffice for a cache make all
        of them NaN.
        """
        config = self.config
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if output_attentions is None:
            output_attentions = config.output_attentions
        embeddings_key, encoder_key = split_key(key, 2)

        words = self._embed_words(input_ids, inputs_embeds)
        batch_seq = words.shape[:-1]
        # Tokens side by side share their positions, and those are checked when they are counted.
        is_by_slot = cache is not None and getattr(attention_mask, "ndim", 0) > len(batch_seq)
        is_shared = is_by_slot or segment_ids is not None
        check_length(batch_seq[-1], config, are_side_by_side=is_shared)
        if segment_ids is not None:
            check_segments(segment_ids, attention_mask, cache, batch_seq)
            attention_mask = segment_mask(segment_ids)
            if position_ids is None:
                position_ids = segment_positions(segment_ids)
                check_counted_positions(position_ids, config)
        if token_type_ids is not None:
            check_ids("token_type_ids", token_type_ids, config.type_vocab_size, "type_vocab_size")
            check_shape("token_type_ids", token_type_ids, batch_seq)
        if position_ids is not None:
            check_positions(position_ids, config, batch_seq)
        if head_mask is not None:
            shape = (len(self.encoder.layers), config.num_attention_heads)
            check_array("head_mask", head_mask, np.floating, "floats")
            check_shape("head_mask", head_mask, shape)
            head_mask = jnp.asarray(head_mask)
        if cache is not None:
            check_cache(cache, config, self.embeddings.dtype, batch_seq)
        cross, cross_mask = self._cross(
            encoder_hidden_states, encoder_attention_mask, cache, batch_seq[:-1]
        )

        layer_caches = None
        if cache is None:
            mask = attention_mask_for_scores(attention_mask, batch_seq, causal=config.is_decoder)
        else:
            by_slot = (*batch_seq, cache.valid.shape[-1])
            may_attend = check_mask("attention_mask", attention_mask, batch_seq, by_slot)
            may_attend = jnp.ones(batch_seq, bool) if may_attend is None else may_attend
            valid, attended = attended_slots(cache, may_attend)
            counted = counted_positions(attended)
            if position_ids is None:
                position_ids = counted
                check_counted_positions(counted, config)
            if config.position_embedding_type != "absolute":
                position_ids = counted  # those that are given play no part
            words = poison(words, self._is_overflowing(cache, position_ids))
            positions = jnp.broadcast_to(position_ids, batch_seq)
            cache, place = advance(cache, valid, positions)
            mask = pair_mask(attended)
            layer_caches = (cache.layers, place)

        if output_positions is not None:
            output_positions = self._output_positions(output_positions, batch_seq)
        x = self.embeddings(
            words,
            token_type_ids,
            position_ids,
            add_positions=config.position_embedding_type == "absolute",
            key=embeddings_key,
        )
        encoded = self.encoder(
            x,
            mask,
            cache=layer_caches,
            cross=cross,
            cross_mask=None if cross_mask is None else key_mask(cross_mask),
            head_mask=head_mask,
            output_positions=output_positions,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            key=encoder_key,
        )
        if cache is not None:
            cache = eqx.tree_at(
                lambda c: (c.layers, c.cross, c.cross_mask),
                cache,
                (encoded.cache, cross, cross_mask),
                is_leaf=lambda x: x is None,
            )
        x = encoded.last_hidden_state
        pooled = None if self.pooler is None else self.pooler(x)
        if output_positions is not None and self.pooler is not None:
            x = x[..., 1:, :]
        return BertModelOutput(
            last_hidden_state=x,
            pooler_output=pooled,
            hidden_states=encoded.hidden_states,
            cache=cache,
            attentions=encoded.attentions,
            cross_attentions=encoded.cross_attentions,
        )

    def init_cache(self, batch: BatchShape, max_length: int | np.integer) -> DecoderCache:
        """An empty cache for decoding: `model(ids, cache=cache)` returns it, filled, as
        `out.cache`.

        **Arguments:**

        - `batch`: the shape of the leading axes.
        - `max_length`: the number of tokens for which there is room in each row, padding included.

        **Raises:** `ValueError` if the model is no decoder, or a size is not positive.
        """
        check_is_decoder(self.config)
        sizes = tuple(batch) if isinstance(batch, Sequence) else (batch,)
        for size in (*sizes, max_length):
            if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
                raise ValueError(
                    "Sizes of a cache must be positive integers, got batch "
                    f"{sizes}, max_length {max_length!r}."
                )
        shape = tuple(map(int, sizes))
        return empty_cache(self.config, shape, int(max_length), self.embeddings.dtype)

    def _is_overflowing(
        self, cache: DecoderCache, position_ids: Int[Array | np.ndarray, "*#batch seq"]
    ) -> Bool[Array, ""]:
        """Whether, in a compiled program, slots or positions turn out to be too few."""
        is_beyond = jnp.any(jnp.asarray(position_ids) >= self.config.max_position_embeddings)
        return is_overflowing(cache, position_ids.shape[-1]) | is_beyond

    def _cross(
        self,
        states: Float[Array | np.ndarray, "*batch encoder_seq encoder_hidden"] | None,
        mask: AttentionMask,
        cache: DecoderCache | None,
        batch: tuple[Size, ...],
    ) -> tuple[tuple[KVCache, ...] | None, Bool[Array, "*batch encoder_seq"] | None]:
        """Keys and values of the encoder's output for each layer, computed or from the cache, and
        which may be attended to.
        """
        if states is None:
            if mask is not None:
                raise ValueError("encoder_attention_mask was given without encoder_hidden_states.")
            return (None, None) if cache is None else (cache.cross, cache.cross_mask)
        if not self.config.add_cross_attention:
            raise ValueError(
                "encoder_hidden_states was given, but this model has no cross-attention. Set "
                "is_decoder=True and add_cross_attention=True."
            )
        check_array("encoder_hidden_states", states, np.floating, "floats")
        hidden = self.config.cross_attention_hidden_size or self.config.hidden_size
        *states_batch, seq, size = (0, 0, *states.shape)[-max(states.ndim, 2) :]
        if (tuple(states_batch), size) != (batch, hidden) or seq == 0:
            raise ValueError(
                f"encoder_hidden_states has shape {tuple(states.shape)}, expected "
                f"({', '.join(map(str, (*batch, 'encoder_seq', hidden)))}) with at least one token."
            )
        cross_mask = check_mask("encoder_attention_mask", mask, states.shape[:-1])
        states = jnp.asarray(states, self.embeddings.dtype)
        return self.encoder.project_cross(states), cross_mask

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

    def _output_positions(
        self, positions: Int[Array | np.ndarray, "... slots"], batch_seq: tuple[Size, ...]
    ) -> Int[Array, "*batch states"]:
        """Those for all rows, with the first token's before them where the pooler needs it."""
        *batch, seq = batch_seq
        check_ids("output_positions", positions, seq, "the sequence's length")
        if positions.ndim == 0:
            raise ValueError("output_positions is a single number, expected shape (*batch, slots).")
        slots = positions.shape[-1]
        check_broadcasts("output_positions", positions, (*batch, slots))
        positions = jnp.broadcast_to(as_int32(positions), (*batch, slots))
        if self.pooler is None:
            return positions
        return jnp.pad(positions, [(0, 0)] * len(batch) + [(1, 0)])
