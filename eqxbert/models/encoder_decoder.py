"""An encoder that reads and a decoder that writes."""

from os import PathLike
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from ..checks import AttentionMask, check_array, check_labels
from ..convert.matching import named_arrays, without_prefix
from ..convert.state_dict import with_arrays
from ..encoder_decoder_config import EncoderDecoderConfig
from ..nn import IGNORED_LABEL, Linear, cross_entropy, split_key
from ..outputs import BertModelOutput, DecoderCache, Seq2SeqLMOutput
from .bert import BertModel
from .cache import BatchShape
from .language_modeling import BertForCausalLM
from .pretrained import PretrainedModel


class EncoderDecoderModel(PretrainedModel):
    """A BERT that reads and one that writes, attending to what was read: transformers'
    `EncoderDecoderModel` of two BERTs ([Rothe et al., 2020](https://arxiv.org/abs/1907.12461)).
    """

    config_class: ClassVar[type[EncoderDecoderConfig]] = EncoderDecoderConfig

    encoder: BertModel
    decoder: BertForCausalLM
    enc_to_dec_proj: Linear | None
    config: EncoderDecoderConfig = eqx.field(static=True)

    def __init__(self, config: EncoderDecoderConfig, *, key: PRNGKeyArray):
        """A model with new weights, drawn as `BertModel`'s. Where the two have different hidden
        sizes (and the decoder no `cross_attention_hidden_size`), there is a projection between.
        """
        if not isinstance(config, EncoderDecoderConfig):
            raise ValueError(
                f"config must be an EncoderDecoderConfig, got {type(config).__name__}."
            )
        encoder_key, decoder_key, projection_key = jax.random.split(key, 3)
        self.encoder = BertModel(config.encoder, key=encoder_key)
        self.decoder = BertForCausalLM(config.decoder, key=decoder_key)
        self.enc_to_dec_proj = None
        sizes = config.encoder.hidden_size, config.decoder.hidden_size
        if sizes[0] != sizes[1] and config.decoder.cross_attention_hidden_size is None:
            self.enc_to_dec_proj = Linear(
                *sizes, initializer_range=config.encoder.initializer_range, key=projection_key
            )
        self.config = config

    @classmethod
    def from_encoder_decoder(
        cls,
        encoder: BertModel,
        decoder: BertModel | BertForCausalLM,
        *,
        key: PRNGKeyArray,
        **fields: Any,
    ) -> "EncoderDecoderModel":
        """A model of two that are there. What they lack is drawn anew: cross-attention, and a
        language model's head if the decoder has none.

        **Arguments:**

        - `encoder`, `decoder`: the parts. The encoder must not be a decoder (`is_decoder`).
        - `key`: a PRNG key for what is new.
        - `fields`: of `EncoderDecoderConfig`, such as `decoder_start_token_id`.
        """
        for name, part in {"encoder": encoder, "decoder": decoder}.items():
            if not isinstance(part, BertModel | BertForCausalLM):
                raise ValueError(f"{name} must be a BERT, got {type(part).__name__}.")
        if encoder.config.is_decoder:
            raise ValueError(
                "The encoder is a decoder (is_decoder is True): its tokens would not see those "
                "that follow. Are encoder and decoder in each other's place? If it is meant as an "
                "encoder: encoder.with_config(encoder.config.replace(is_decoder=False, "
                "add_cross_attention=False))."
            )
        config = EncoderDecoderConfig(encoder=encoder.config, decoder=decoder.config, **fields)
        new = cls(config, key=key)
        parts = {"encoder.": encoder, "decoder.": decoder}
        dtype = decoder.get_input_embeddings().weight.dtype
        arrays = {n: x.astype(dtype) for n, x in without_prefix(named_arrays(new)).items()}
        for prefix, part in parts.items():
            found = without_prefix(named_arrays(part))
            arrays |= {prefix + n: x for n, x in found.items() if prefix + n in arrays}
        return with_arrays(new, config, arrays)

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder: str | PathLike[str],
        decoder: str | PathLike[str],
        *,
        key: PRNGKeyArray,
        **fields: Any,
    ) -> "EncoderDecoderModel":
        """A model of two checkpoints, which may be the same. Arguments as in
        `from_encoder_decoder`; for checkpoints in need of other options, load them first.
        """
        encoder_key, decoder_key, new_key = jax.random.split(key, 3)
        return cls.from_encoder_decoder(
            BertModel.from_pretrained(
                encoder, is_decoder=False, add_cross_attention=False, key=encoder_key
            ),
            BertForCausalLM.from_pretrained(
                decoder, is_decoder=True, add_cross_attention=True, key=decoder_key
            ),
            key=new_key,
            **fields,
        )

    def encode(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        attention_mask: AttentionMask = None,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        **options: Any,
    ) -> BertModelOutput:
        """What the decoder attends to (`out.last_hidden_state`), in the size that it expects.
        Arguments and errors are those of `BertModel`.
        """
        out = self.encoder(input_ids, attention_mask, token_type_ids, position_ids, **options)
        if self.enc_to_dec_proj is None:
            return out
        states = self.enc_to_dec_proj(out.last_hidden_state)
        return eqx.tree_at(lambda out: out.last_hidden_state, out, states)

    def init_cache(self, batch: BatchShape, max_length: int | np.integer) -> DecoderCache:
        """As `BertModel.init_cache`, of the decoder."""
        return self.decoder.init_cache(batch, max_length)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        attention_mask: AttentionMask = None,
        decoder_input_ids: Int[Array | np.ndarray, "*batch decoder_seq"] | None = None,
        decoder_attention_mask: AttentionMask = None,
        *,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        decoder_token_type_ids: Int[Array | np.ndarray, "*batch decoder_seq"] | None = None,
        decoder_position_ids: Int[Array | np.ndarray, "*#batch decoder_seq"] | None = None,
        encoder_outputs: BertModelOutput | None = None,
        cache: DecoderCache | None = None,
        labels: Int[Array | np.ndarray, "*batch decoder_seq"] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Seq2SeqLMOutput:
        """**Arguments:**

        - `input_ids`, `attention_mask`, `token_type_ids`, `position_ids`: of the encoder, as in
            `BertModel`.
        - `decoder_input_ids`, and the others with that prefix: of the decoder. If there are none,
            the decoder's tokens are the labels, moved one to the right, after
            `decoder_start_token_id`, and those of padding are masked.
        - `encoder_outputs`: what `encode` returned, in place of the encoder's input; with its
            `attention_mask`.
        - `cache`: the decoder's; once it has seen the encoder's output, nothing of the encoder's is
            to be given again.
        - `labels`: the word that each of the decoder's tokens is to predict, -100 where there is
            none.
        - `output_hidden_states`, `output_attentions`: what else is returned.
        - `key`: a PRNG key for dropout; without one there is none.

        **Returns:** with `labels`, a `loss` as well: the mean over all that have one.

        **Raises:** as `BertModel`, and `ValueError` if the decoder has nothing to read.
        """
        encoder_key, decoder_key = split_key(key, 2)
        has_read = cache is not None and cache.cross is not None
        of_encoder = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "encoder_outputs": encoder_outputs,
        }
        given = [name for name, value in of_encoder.items() if value is not None]
        if has_read and given:
            raise ValueError(
                f"The cache holds what the encoder read; {', '.join(given)} cannot be given with "
                "it. Begin with a new cache for another input."
            )
        if encoder_outputs is not None:
            if not isinstance(encoder_outputs, BertModelOutput):
                raise ValueError(
                    "encoder_outputs must be a BertModelOutput, which encode returns, got "
                    f"{type(encoder_outputs).__name__}. For states of another origin: "
                    "BertModelOutput(last_hidden_state=states)."
                )
            needless = [name for name in given if name not in ("attention_mask", "encoder_outputs")]
            if needless:
                raise ValueError(
                    f"encoder_outputs is what the encoder read, so {', '.join(needless)} cannot be "
                    "given with it. Leave out the one or the other."
                )
        if encoder_outputs is None and not has_read:
            encoder_outputs = self.encode(
                input_ids,
                attention_mask,
                token_type_ids,
                position_ids,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                key=encoder_key,
            )
        if labels is not None:
            check_array("labels", labels, np.integer, "integers")
            vocab = self.config.decoder.vocab_size
            check_labels("labels", labels, vocab, "vocab_size", labels.shape)
            if labels.ndim == 0:
                raise ValueError("labels is a single number, expected shape (*batch, seq).")
        if labels is not None and decoder_input_ids is None:
            decoder_input_ids = self.shift_right(labels)
            if decoder_attention_mask is None:
                # The start is none, even if it is the same token.
                is_token = decoder_input_ids != self.config.pad_token_id
                decoder_attention_mask = is_token.at[..., 0].set(True)
        if decoder_input_ids is None:
            raise ValueError("Give decoder_input_ids, or labels to make them from.")
        out = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            decoder_token_type_ids,
            decoder_position_ids,
            encoder_hidden_states=None
            if encoder_outputs is None
            else encoder_outputs.last_hidden_state,
            encoder_attention_mask=None if encoder_outputs is None else attention_mask,
            cache=cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            key=decoder_key,
        )
        loss = None
        if labels is not None:
            *tokens, vocab = out.logits.shape
            check_labels("labels", labels, vocab, "vocab_size", tuple(tokens))
            loss = cross_entropy(out.logits, labels)
        encoded = encoder_outputs
        return Seq2SeqLMOutput(
            loss=loss,
            logits=out.logits,
            cache=out.cache,
            decoder_hidden_states=out.hidden_states,
            decoder_attentions=out.attentions,
            cross_attentions=out.cross_attentions,
            encoder_last_hidden_state=None if encoded is None else encoded.last_hidden_state,
            encoder_hidden_states=None if encoded is None else encoded.hidden_states,
            encoder_attentions=None if encoded is None else encoded.attentions,
        )

    def shift_right(
        self, labels: Int[Array | np.ndarray, "*batch seq"]
    ) -> Int[Array, "*batch seq"]:
        """The decoder's tokens for labels: `decoder_start_token_id`, then the labels but for the
        last, with padding for -100.

        **Raises:** `ValueError` if the configuration has no such tokens.
        """
        check_array("labels", labels, np.integer, "integers")
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise ValueError(
                f"decoder_start_token_id is {start} and pad_token_id {pad}; both are needed to "
                "make the decoder's tokens of labels. Set them in the configuration."
            )
        labels = jnp.asarray(labels)
        first = jnp.full((*labels.shape[:-1], 1), start, labels.dtype)
        tokens = jnp.concatenate([first, labels[..., :-1]], axis=-1)
        return jnp.where(tokens == IGNORED_LABEL, pad, tokens)
