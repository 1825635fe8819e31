"""What the models return: modules with named, typed fields."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .nn import KVCache, extend_slots


class ModelOutput(eqx.Module):
    """A result with named fields, those not asked for being None.

    Fields are read by name (`out.pooler_output`, `out["pooler_output"]`) or, as in transformers, by
    their place among those that are not None (`out[0]`, `out[:2]`).
    """

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order."""
        values = (getattr(self, name) for name in type(self).__dataclass_fields__)
        return tuple(value for value in values if value is not None)

    def keys(self) -> tuple[str, ...]:
        """The names of the fields that are not None, in order."""
        names = type(self).__dataclass_fields__
        return tuple(name for name in names if getattr(self, name) is not None)

    def __iter__(self):
        """Over the values, as of a tuple: `states, pooled = model(ids)`."""
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: str) -> bool:
        """Whether a field was asked for."""
        return name in self.keys()

    def __getitem__(self, index: int | slice | str):
        if not isinstance(index, str):
            return self.to_tuple()[index]
        if index in type(self).__dataclass_fields__:
            return getattr(self, index)
        raise KeyError(f"{index!r}; the fields are {', '.join(type(self).__dataclass_fields__)}")


class DecoderCache(eqx.Module):
    """What a decoder keeps of the tokens it has seen, in a fixed number of slots.

    A call fills the next `seq` slots of every row, those of padding included: these are not
    `valid`, and nothing attends to them. So rows of any lengths, padded on either side, decode as
    if each were alone.

    - `layers`: keys and values of each layer.
    - `valid`: which slots hold tokens that may be attended to.
    - `positions`: the position of the token in each slot.
    - `length`: how many slots are filled.
    - `cross`: keys and values of an encoder's output in each layer, once they have been computed.
    - `cross_mask`: which of these may be attended to, if not all.
    """

    layers: tuple[KVCache, ...]
    valid: Bool[Array, "*batch slots"]
    positions: Int[Array, "*batch slots"]
    length: Int[Array, ""]
    cross: tuple[KVCache, ...] | None = None
    cross_mask: Bool[Array, "*batch encoder_seq"] | None = None

    def extend(self, count: int | np.integer) -> "DecoderCache":
        """With room for `count` more tokens in each row.

        **Raises:** `ValueError` if `count` is negative, or no integer.
        """
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise ValueError(f"count must be an integer, the number of tokens, got {count!r}.")
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}: a cache cannot shrink.")
        count = int(count)
        return DecoderCache(
            layers=tuple(layer.extend(count) for layer in self.layers),
            valid=extend_slots(self.valid, count, axis=-1),
            positions=extend_slots(self.positions, count, axis=-1),
            length=self.length,
            cross=self.cross,
            cross_mask=self.cross_mask,
        )


class EncoderOutput(ModelOutput):
    """What the stack of layers returns.

    - `hidden_states`: the input of the first layer and the output of each.
    - `attentions`, `cross_attentions`: each layer's attention weights, as they were applied.
    - `cache`: each layer's, with the new keys and values.
    """

    last_hidden_state: Float[Array, "*batch tokens hidden"]
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch _heads seq kv_seq"], ...] | None = None
    cross_attentions: tuple[Float[Array, "*batch _heads seq encoder_seq"], ...] | None = None
    cache: tuple[KVCache, ...] | None = None


class BertModelOutput(ModelOutput):
    """What `BertModel` returns.

    - `last_hidden_state`: one vector for each token, or for each of the positions asked for.
    - `pooler_output`: one vector for each sequence, if the model has a pooler.
    - `hidden_states`: the embeddings and the output of each layer, if asked for.
    - `cache`: with the new tokens, if there was one.
    - `attentions`, `cross_attentions`: each layer's attention weights, as they were applied, if
        asked for.
    """

    last_hidden_state: Float[Array, "*batch tokens hidden"]
    pooler_output: Float[Array, "*batch hidden"] | None = None
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    cache: DecoderCache | None = None
    attentions: tuple[Float[Array, "*batch _heads seq kv_seq"], ...] | None = None
    cross_attentions: tuple[Float[Array, "*batch _heads seq encoder_seq"], ...] | None = None


class BertForPreTrainingOutput(ModelOutput):
    """What `BertForPreTraining` returns: for each token (or masked position) the words, and whether
    the second part of the input followed the first.
    """

    loss: Float[Array, ""] | None = eqx.field(default=None, kw_only=True)
    prediction_logits: Float[Array, "*batch tokens vocab"]
    seq_relationship_logits: Float[Array, "*batch 2"]
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch _heads seq seq"], ...] | None = None


class MaskedLMOutput(ModelOutput):
    """What `BertForMaskedLM` returns: the words, for each token or masked position."""

    loss: Float[Array, ""] | None = eqx.field(default=None, kw_only=True)
    logits: Float[Array, "*batch tokens vocab"]
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch _heads seq seq"], ...] | None = None


class CausalLMOutput(ModelOutput):
    """What `BertForCausalLM` returns: for each token, the word that follows it.

    - `cache`: with the new tokens, if there was one.
    """

    loss: Float[Array, ""] | None = eqx.field(default=None, kw_only=True)
    logits: Float[Array, "*batch tokens vocab"]
    cache: DecoderCache | None = None
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch _heads seq kv_seq"], ...] | None = None
    cross_attentions: tuple[Float[Array, "*batch _heads seq encoder_seq"], ...] | None = None


class Seq2SeqLMOutput(ModelOutput):
    """What `EncoderDecoderModel` returns: for each token of the decoder, the word that follows it.

    - `encoder_last_hidden_state`: what the decoder attended to.
    """

    loss: Float[Array, ""] | None = eqx.field(default=None, kw_only=True)
    logits: Float[Array, "*batch tokens vocab"]
    cache: DecoderCache | None = None
    decoder_hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    decoder_attentions: tuple[Float[Array, "*batch _heads seq kv_seq"], ...] | None = None
    cross_attentions: tuple[Float[Array, "*batch _heads seq encoder_seq"], ...] | None = None
    encoder_last_hidden_state: Float[Array, "*batch encoder_seq encoder_hidden"] | None = None
    encoder_hidden_states: tuple[Float[Array, "*batch encoder_seq encoder_hidden"], ...] | None = (
        None
    )
    encoder_attentions: tuple[Float[Array, "*batch _heads encoder_seq encoder_seq"], ...] | None = (
        None
    )


class NextSentencePredictorOutput(ModelOutput):
    """What `BertForNextSentencePrediction` returns: whether the second part of the input followed
    the first.
    """

    loss: Float[Array, ""] | None = eqx.field(default=None, kw_only=True)
    logits: Float[Array, "*batch 2"]
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch _heads seq seq"], ...] | None = None


class SequenceClassifierOutput(ModelOutput):
    """What `BertForSequenceClassification` returns: the classes of each sequence."""

    loss: Float[Array, ""] | None = eqx.field(default=None, kw_only=True)
    logits: Float[Array, "*batch labels"]
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch _heads seq seq"], ...] | None = None


class MultipleChoiceModelOutput(ModelOutput):
    """What `BertForMultipleChoice` returns: the choices of each question."""

    loss: Float[Array, ""] | None = eqx.field(default=None, kw_only=True)
    logits: Float[Array, "*batch choices"]
    hidden_states: tuple[Float[Array, "*batch choices seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch choices _heads seq seq"], ...] | None = None


class TokenClassifierOutput(ModelOutput):
    """What `BertForTokenClassification` returns: the classes of each token."""

    loss: Float[Array, ""] | None = eqx.field(default=None, kw_only=True)
    logits: Float[Array, "*batch seq labels"]
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch _heads seq seq"], ...] | None = None


class QuestionAnsweringModelOutput(ModelOutput):
    """What `BertForQuestionAnswering` returns: where the answer starts, and where it ends."""

    loss: Float[Array, ""] | None = eqx.field(default=None, kw_only=True)
    start_logits: Float[Array, "*batch seq"]
    end_logits: Float[Array, "*batch seq"]
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch _heads seq seq"], ...] | None = None
