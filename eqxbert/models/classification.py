"""BERTs that choose: among classes for a sequence or a token, among answers, among positions."""

from collections.abc import Mapping, Sequence
from typing import Unpack

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from ..checks import AttentionMask, check_array, check_labels, check_shape
from ..config import BertConfig
from ..nn import (
    IGNORED_LABEL,
    Linear,
    as_int32,
    binary_cross_entropy,
    cross_entropy,
    mean_squared_error,
    split_key,
)
from ..outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from .bert import BertModel
from .inputs import BertOptions, shape_of_tokens
from .surgery import with_labels
from .task import NO_POSITIONS, TaskModel, head_dropout, pooled


class BertForSequenceClassification(TaskModel):
    """A BERT that classifies sequences, or gives them a score, transformers' class of that name."""

    bert: BertModel
    classifier: Linear

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        """A model with new weights, drawn as `BertModel`'s, for `config.num_labels` labels."""
        bert_key, head_key = jax.random.split(key)
        self.bert = BertModel(config, key=bert_key)
        self.classifier = _classifier(config, config.num_labels, key=head_key)

    def with_labels(
        self, labels: int | Sequence[str] | Mapping[int, str], *, key: PRNGKeyArray
    ) -> "BertForSequenceClassification":
        """The model with a new, untrained classifier for other labels.

        **Arguments:**

        - `labels`: their number, or their names.
        - `key`: a PRNG key for the classifier.

        **Raises:** `ValueError` if there are no labels, or two have the same name.
        """
        return with_labels(self, labels, key=key)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        attention_mask: AttentionMask = None,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        *,
        labels: Shaped[Array | np.ndarray, "..."] | None = None,
        key: PRNGKeyArray | None = None,
        **options: Unpack[BertOptions],
    ) -> SequenceClassifierOutput:
        """**Arguments**, besides those of `BertModel`:

        - `labels`: what they are follows from `config.problem_type`. With
            "single_label_classification", the class of each sequence, of shape `*batch`, or -100.
            With "multi_label_classification", for each class the probability that it holds, of
            shape `(*batch, num_labels)`. With "regression", the scores, of that shape too, or of
            shape `*batch` if there is one. If it is None, one label means regression, integers
            single-label and floats multi-label classification.

        **Returns:** with `labels`, a `loss` as well.

        **Raises:** as `BertModel`; and `ValueError` if labels have the wrong shape or dtype or,
        outside `jax.jit`, are out of range. Inside, they make the loss NaN.
        """
        bert_key, head_key = split_key(key, 2)
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            output_positions=NO_POSITIONS,
            key=bert_key,
            **options,
        )
        logits = self.classifier(head_dropout(pooled(out), self.config, head_key))
        return SequenceClassifierOutput(
            loss=None if labels is None else _sequence_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class BertForMultipleChoice(TaskModel):
    """A BERT that chooses among answers to a question, transformers' class of that name.

    Each answer comes as a sequence of its own, usually the question and the answer.
    """

    bert: BertModel
    classifier: Linear

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        """A model with new weights, drawn as `BertModel`'s."""
        bert_key, head_key = jax.random.split(key)
        self.bert = BertModel(config, key=bert_key)
        self.classifier = _classifier(config, 1, key=head_key)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch choices seq"] | None = None,
        attention_mask: AttentionMask = None,
        token_type_ids: Int[Array | np.ndarray, "*batch choices seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch #choices seq"] | None = None,
        *,
        labels: Int[Array | np.ndarray, "*batch"] | None = None,
        key: PRNGKeyArray | None = None,
        **options: Unpack[BertOptions],
    ) -> MultipleChoiceModelOutput:
        """**Arguments**, besides those of `BertModel`, where the choices are one more leading axis:

        - `labels`: which choice is right, or -100 where it is not known.

        **Returns:** with `labels`, a `loss` as well.

        **Raises:** as `BertModel`; and `ValueError` if labels have the wrong shape or dtype or,
        outside `jax.jit`, are out of range. Inside, they make the loss NaN.
        """
        bert_key, head_key = split_key(key, 2)
        out = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            output_positions=NO_POSITIONS,
            key=bert_key,
            **options,
        )
        shape = shape_of_tokens(input_ids, options.get("inputs_embeds"))
        if len(shape) < 2:
            raise ValueError(
                "input_ids (or inputs_embeds) has no axis for the choices; expected input_ids of "
                f"shape (*batch, choices, seq), got {shape}."
            )
        logits = self.classifier(head_dropout(pooled(out), self.config, head_key))[..., 0]
        loss = None
        if labels is not None:
            *batch, choices = logits.shape
            check_labels("labels", labels, choices, "the number of choices", tuple(batch))
            loss = cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )


class BertForTokenClassification(TaskModel):
    """A BERT that classifies each token, transformers' class of that name."""

    bert: BertModel
    classifier: Linear

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        """A model with new weights, drawn as `BertModel`'s, for `config.num_labels` labels."""
        bert_key, head_key = jax.random.split(key)
        self.bert = BertModel(config, add_pooling_layer=False, key=bert_key)
        self.classifier = _classifier(config, config.num_labels, key=head_key)

    def with_labels(
        self, labels: int | Sequence[str] | Mapping[int, str], *, key: PRNGKeyArray
    ) -> "BertForTokenClassification":
        """The model with a new, untrained classifier for other labels.

        **Arguments:**

        - `labels`: their number, or their names.
        - `key`: a PRNG key for the classifier.

        **Raises:** `ValueError` if there are no labels, or two have the same name.
        """
        return with_labels(self, labels, key=key)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        attention_mask: AttentionMask = None,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        *,
        labels: Int[Array | np.ndarray, "*batch seq"] | None = None,
        key: PRNGKeyArray | None = None,
        **options: Unpack[BertOptions],
    ) -> TokenClassifierOutput:
        """**Arguments**, besides those of `BertModel`:

        - `labels`: the class of each token, or -100 where there is none, as for padding.

        **Returns:** with `labels`, a `loss` as well.

        **Raises:** as `BertModel`; and `ValueError` if labels have the wrong shape or dtype or,
        outside `jax.jit`, are out of range. Inside, they make the loss NaN.
        """
        bert_key, head_key = split_key(key, 2)
        out = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, key=bert_key, **options
        )
        logits = self.classifier(head_dropout(out.last_hidden_state, self.config, head_key))
        loss = None
        if labels is not None:
            *tokens, classes = logits.shape
            check_labels("labels", labels, classes, "num_labels", tuple(tokens))
            loss = cross_entropy(logits, labels)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )


class BertForQuestionAnswering(TaskModel):
    """A BERT that finds the span of a text that answers a question, transformers' class of that
    name.

    It always has two labels, start and end: `config.num_labels` is set to 2 if it is not.
    """

    bert: BertModel
    qa_outputs: Linear

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        """A model with new weights, drawn as `BertModel`'s."""
        bert_key, head_key = jax.random.split(key)
        if config.num_labels != 2:
            config = config.replace(num_labels=2)
        self.bert = BertModel(config, add_pooling_layer=False, key=bert_key)
        self.qa_outputs = _classifier(config, 2, key=head_key)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        attention_mask: AttentionMask = None,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        *,
        start_positions: Int[Array | np.ndarray, "*batch"] | None = None,
        end_positions: Int[Array | np.ndarray, "*batch"] | None = None,
        key: PRNGKeyArray | None = None,
        **options: Unpack[BertOptions],
    ) -> QuestionAnsweringModelOutput:
        """**Arguments**, besides those of `BertModel`:

        - `start_positions`, `end_positions`: the first and the last token of each answer. As in
            transformers, one beyond the end of the sequence, cut off by truncation, does not count,
            and a negative one means 0.

        **Returns:** with both positions a `loss` as well, the mean of the two.

        **Raises:** as `BertModel`; and `ValueError` if the positions have the wrong shape or dtype,
        or one of them is missing.
        """
        out = self.bert(input_ids, attention_mask, token_type_ids, position_ids, key=key, **options)
        logits = self.qa_outputs(out.last_hidden_state)
        start_logits, end_logits = logits[..., 0], logits[..., 1]
        if (start_positions is None) != (end_positions is None):
            given = "end_positions" if start_positions is None else "start_positions"
            raise ValueError(f"Only {given} was given; give both positions for a loss.")
        loss = None
        if start_positions is not None and end_positions is not None:
            start_loss = _position_loss("start_positions", start_logits, start_positions)
            end_loss = _position_loss("end_positions", end_logits, end_positions)
            loss = (start_loss + end_loss) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


def _classifier(config: BertConfig, classes: int, *, key: PRNGKeyArray) -> Linear:
    return Linear(config.hidden_size, classes, initializer_range=config.initializer_range, key=key)


def is_regression(config: BertConfig) -> bool:
    """Whether a model for sequences predicts numbers, not classes."""
    return config.problem_type == "regression" or (
        config.problem_type is None and config.num_labels == 1
    )


def _sequence_loss(
    logits: Float[Array, "*batch classes"],
    labels: Shaped[Array | np.ndarray, "..."],
    config: BertConfig,
) -> Float[Array, ""]:
    *batch, classes = logits.shape
    if not (hasattr(labels, "dtype") and labels.dtype == bool):
        check_array("labels", labels, (np.floating, np.integer), "numbers")
    if is_regression(config):
        shapes = [tuple(batch), logits.shape] if classes == 1 else [logits.shape]
        check_shape("labels", labels, *shapes)
        return mean_squared_error(logits, jnp.reshape(labels, logits.shape))
    are_classes = config.problem_type == "single_label_classification" or (
        config.problem_type is None and jnp.issubdtype(labels.dtype, np.integer)
    )
    if are_classes:
        check_labels("labels", labels, classes, "num_labels", tuple(batch))
        return cross_entropy(logits, labels)
    check_shape("labels", labels, logits.shape)
    if not isinstance(labels, jax.core.Tracer):
        values = np.asarray(labels).astype(np.float64)
        wrong = values[~((values >= 0) & (values <= 1))]
        if wrong.size:
            raise ValueError(
                f"labels contains {wrong.flat[0]}; for multi-label classification each must be the "
                "probability that a class holds, from 0 to 1."
            )
    return binary_cross_entropy(logits, labels)


def _position_loss(
    name: str, logits: Float[Array, "*batch seq"], positions: Int[Array | np.ndarray, "*batch"]
) -> Float[Array, ""]:
    *batch, seq = logits.shape
    check_array(name, positions, np.integer, "integers")
    check_shape(name, positions, tuple(batch))
    clamped = jnp.clip(as_int32(positions), 0, seq)
    return cross_entropy(logits, jnp.where(clamped == seq, IGNORED_LABEL, clamped))
