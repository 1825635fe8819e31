"""BERTs that predict words: pretraining, masked and causal language models."""

from typing import Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..checks import AttentionMask, check_ids, check_labels, check_shape
from ..config import BertConfig
from ..nn import (
    Activation,
    LayerNorm,
    Linear,
    affine,
    cross_entropy,
)
from ..outputs import BertForPreTrainingOutput, CausalLMOutput, DecoderCache, MaskedLMOutput
from .bert import BertModel
from .cache import BatchShape
from .inputs import BertOptions, DecoderOptions, shape_of_tokens
from .next_sentence import next_sentence_loss
from .task import TaskModel, pooled


class LMHead(eqx.Module):
    """A score for every word of the vocabulary: a linear map, activation and normalisation, then
    the product with one vector for each word. These are the word embeddings, unless the head has a
    `decoder` of its own (`tie_word_embeddings=False`).
    """

    dense: Linear
    activation: Activation
    norm: LayerNorm
    decoder: Linear | None
    bias: Float[Array, " vocab"]

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        dense_key, decoder_key = jax.random.split(key)
        hidden, init = config.hidden_size, config.initializer_range
        self.dense = Linear(hidden, hidden, initializer_range=init, key=dense_key)
        self.activation = Activation(config.hidden_act)
        self.norm = LayerNorm(hidden, eps=config.layer_norm_eps)
        self.decoder = None
        if not config.tie_word_embeddings:
            self.decoder = Linear(
                hidden, config.vocab_size, use_bias=False, initializer_range=init, key=decoder_key
            )
        self.bias = jnp.zeros(config.vocab_size, jnp.float32)

    def __call__(
        self, x: Float[Array, "*batch hidden"], words: Float[Array, "vocab hidden"]
    ) -> Float[Array, "*batch vocab"]:
        """**Arguments:**

        - `x`: the encoder's outputs.
        - `words`: the word embeddings.

        **Returns:** the scores in at least float32, in which the product is accumulated: a loss of
        rounded ones would be coarser than need be.
        """
        x = self.norm(self.activation(self.dense(x)))
        table = words if self.decoder is None else self.decoder.weight
        return affine(x, table.astype(x.dtype), self.bias)


class BertForPreTraining(TaskModel):
    """The model that BERT is pretrained as, transformers' class of that name: it predicts masked
    words, and whether the second sentence followed the first
    ([Devlin et al., 2019](https://arxiv.org/abs/1810.04805)).
    """

    bert: BertModel
    lm_head: LMHead
    nsp_head: Linear

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        """A model with new weights, drawn as `BertModel`'s."""
        bert_key, lm_key, nsp_key = jax.random.split(key, 3)
        self.bert = BertModel(config, key=bert_key)
        self.lm_head = LMHead(config, key=lm_key)
        self.nsp_head = Linear(
            config.hidden_size, 2, initializer_range=config.initializer_range, key=nsp_key
        )

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        attention_mask: AttentionMask = None,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        *,
        labels: Int[Array | np.ndarray, "*batch tokens"] | None = None,
        next_sentence_label: Int[Array | np.ndarray, "*batch"] | None = None,
        masked_positions: Int[Array | np.ndarray, "*batch slots"] | None = None,
        key: PRNGKeyArray | None = None,
        **options: Unpack[BertOptions],
    ) -> BertForPreTrainingOutput:
        """**Arguments**, besides those of `BertModel`:

        - `labels`, `masked_positions`: as in `BertForMaskedLM`.
        - `next_sentence_label`: `NSP_IS_NEXT` (0) if the second sentence followed the first,
            `NSP_IS_RANDOM` (1) if not.

        **Returns:** with labels of either kind a `loss`, the sum of both if both are given.

        **Raises:** as `BertModel`; and `ValueError` if labels have the wrong shape or dtype or,
        outside `jax.jit`, are out of range. Inside, such a label makes the loss NaN.
        """
        _check_masked_positions(masked_positions, input_ids, options.get("inputs_embeds"))
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            output_positions=masked_positions,
            key=key,
            **options,
        )
        logits = self.lm_head(out.last_hidden_state, self.bert.embeddings.word.weight)
        is_next = self.nsp_head(pooled(out))
        losses = []
        if labels is not None:
            losses.append(_word_loss(logits, labels))
        if next_sentence_label is not None:
            losses.append(next_sentence_loss("next_sentence_label", is_next, next_sentence_label))
        return BertForPreTrainingOutput(
            loss=sum(losses[1:], start=losses[0]) if losses else None,
            prediction_logits=logits.astype(is_next.dtype),
            seq_relationship_logits=is_next,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class BertForMaskedLM(TaskModel):
    """A BERT that predicts masked words, transformers' class of that name."""

    bert: BertModel
    lm_head: LMHead

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        """A model with new weights, drawn as `BertModel`'s."""
        bert_key, lm_key = jax.random.split(key)
        self.bert = BertModel(config, add_pooling_layer=False, key=bert_key)
        self.lm_head = LMHead(config, key=lm_key)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        attention_mask: AttentionMask = None,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        *,
        labels: Int[Array | np.ndarray, "*batch tokens"] | None = None,
        masked_positions: Int[Array | np.ndarray, "*batch slots"] | None = None,
        key: PRNGKeyArray | None = None,
        **options: Unpack[BertOptions],
    ) -> MaskedLMOutput:
        """**Arguments**, besides those of `BertModel`:

        - `labels`: the word at each token, or -100 where none is to be predicted.
        - `masked_positions`: the positions whose words are to be predicted, for a fraction of the
            cost: `out.logits` and `labels` are then for these alone, of shape `(*batch, slots)`.
            Rows with fewer masked words than slots fill them with any position (0, say), labelled
            -100.

        **Returns:** with `labels`, a `loss` as well: the mean over all that have one.

        **Raises:** as `BertModel`; and `ValueError` if labels or masked positions have the wrong
        shape or dtype or, outside `jax.jit`, are out of range. Inside, they make the loss NaN.
        """
        _check_masked_positions(masked_positions, input_ids, options.get("inputs_embeds"))
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            output_positions=masked_positions,
            key=key,
            **options,
        )
        logits = self.lm_head(out.last_hidden_state, self.bert.embeddings.word.weight)
        return MaskedLMOutput(
            loss=None if labels is None else _word_loss(logits, labels),
            logits=logits.astype(out.last_hidden_state.dtype),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class BertForCausalLM(TaskModel):
    """A BERT that predicts the next word, transformers' `BertLMHeadModel`.

    It always is a decoder: `config.is_decoder`, without which tokens would see those they are to
    predict, is set if it is not.
    """

    bert: BertModel
    lm_head: LMHead

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        """A model with new weights, drawn as `BertModel`'s."""
        bert_key, lm_key = jax.random.split(key)
        if not config.is_decoder:
            config = config.replace(is_decoder=True)
        self.bert = BertModel(config, add_pooling_layer=False, key=bert_key)
        self.lm_head = LMHead(config, key=lm_key)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        attention_mask: AttentionMask = None,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        *,
        labels: Int[Array | np.ndarray, "*batch seq"] | None = None,
        logits_to_keep: int = 0,
        key: PRNGKeyArray | None = None,
        **options: Unpack[DecoderOptions],
    ) -> CausalLMOutput:
        """**Arguments**, besides those of `BertModel`:

        - `labels`: the word at each token, usually `input_ids`, with -100 for padding. Each is
            predicted from the tokens before it; the first one is not.
        - `logits_to_keep`: the number of last tokens for which scores are computed; 0 for all.

        **Returns:** with `labels`, a `loss` as well: the mean over all that have one.

        **Raises:** as `BertModel`; and `ValueError` if labels have the wrong shape or dtype or,
        outside `jax.jit`, are out of range. Inside, they make the loss NaN.
        """
        if logits_to_keep < 0:
            raise ValueError(f"logits_to_keep must not be negative, got {logits_to_keep}.")
        if labels is not None and logits_to_keep:
            raise ValueError("A loss needs all logits: give labels or logits_to_keep, not both.")
        out = self.bert(input_ids, attention_mask, token_type_ids, position_ids, key=key, **options)
        states = out.last_hidden_state[..., -logits_to_keep:, :]
        logits = self.lm_head(states, self.bert.embeddings.word.weight)
        loss = None
        if labels is not None:
            _check_words(logits, labels)
            loss = cross_entropy(logits[..., :-1, :], labels[..., 1:])
        return CausalLMOutput(
            loss=loss,
            logits=logits.astype(out.last_hidden_state.dtype),
            cache=out.cache,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            cross_attentions=out.cross_attentions,
        )

    def init_cache(self, batch: BatchShape, max_length: int | np.integer) -> DecoderCache:
        """As `BertModel.init_cache`."""
        return self.bert.init_cache(batch, max_length)


def _check_masked_positions(
    positions: Int[Array | np.ndarray, "*batch slots"] | None,
    input_ids: Int[Array | np.ndarray, "*batch seq"] | None,
    inputs_embeds: Float[Array | np.ndarray, "*batch seq hidden"] | None,
) -> None:
    """By the name that they have here, where the words have a shape to hold them against."""
    shape = shape_of_tokens(input_ids, inputs_embeds)
    if positions is None or not shape:
        return
    check_ids("masked_positions", positions, shape[-1], "the sequence's length")
    slots = positions.shape[-1] if positions.ndim else 0
    check_shape("masked_positions", positions, (*shape[:-1], slots))


def _word_loss(
    logits: Float[Array, "*batch tokens vocab"], labels: Int[Array | np.ndarray, "*batch tokens"]
) -> Float[Array, ""]:
    _check_words(logits, labels)
    return cross_entropy(logits, labels)


def _check_words(logits: Float[Array, "*batch tokens vocab"], labels: object) -> None:
    check_labels("labels", labels, logits.shape[-1], "vocab_size", logits.shape[:-1])
