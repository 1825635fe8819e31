"""Losses of the models with a head, against transformers' and against their definitions."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import max_difference, tiny_config
from parity import (
    CHOICES,
    LABELS,
    WITH_HEADS,
    as_torch,
    assert_same_gradients,
    labelled_inputs,
    random_inputs,
    reference_model,
    same_model,
    without_labels,
)
from tolerances import ERROR_RATIO, FLOAT32, FLOAT32_GRADIENT

import eqxbert
from eqxbert import (
    NSP_IS_NEXT,
    NSP_IS_RANDOM,
    BertForCausalLM,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)
from eqxbert.nn import IGNORED_LABEL

SEQ = 7


def loss_and_gradient(model: Any, inputs: dict[str, np.ndarray]) -> tuple[jax.Array, Any]:
    return jax.jit(jax.value_and_grad(lambda model: model(**inputs).loss))(model)


def log_probabilities(scores: Any) -> np.ndarray:
    """In float64."""
    return np.asarray(torch.tensor(np.asarray(scores)).double().log_softmax(-1))


@pytest.fixture(scope="module", params=WITH_HEADS, ids=lambda model_class: model_class.__name__)
def model(request: pytest.FixtureRequest) -> Any:
    return same_model(reference_model(request.param))


def test_a_batch_without_labels_has_a_loss_of_zero_and_zero_gradients(model):
    """transformers' losses are NaN there."""
    inputs = labelled_inputs(type(model))
    missing = SEQ if isinstance(model, BertForQuestionAnswering) else IGNORED_LABEL
    inputs |= {name: np.full_like(inputs[name], missing) for name in LABELS if name in inputs}
    loss, gradient = loss_and_gradient(model, inputs)
    assert float(loss) == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


def test_no_labels_no_loss(model):
    assert model(**without_labels(labelled_inputs(type(model)))).loss is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_it_is_computed_in_float32(model, dtype):
    """Its error, against float64 with the same weights and seen over many rows, is no larger than
    PyTorch's in the same dtype.
    """
    reference = reference_model(type(model)).to(getattr(torch, dtype))
    half = same_model(reference, dtype)
    inputs = labelled_inputs(type(model), (32,))
    out = jax.eval_shape(lambda: half(**inputs, output_hidden_states=True))
    assert out.loss.dtype == jnp.float32
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(out) if leaf.ndim)

    def losses(reference: torch.nn.Module) -> np.ndarray:
        rows = [{k: x[i : i + 1] for k, x in inputs.items()} for i in range(32)]
        with torch.no_grad():
            return np.array([reference(**as_torch(row)).loss.item() for row in rows])

    ours = jax.jit(jax.vmap(lambda row: half(**row).loss))(inputs)
    theirs, exact = losses(reference), losses(reference.double())

    def rms_error(found: Any) -> float:
        return float(np.sqrt(np.mean((np.asarray(found, np.float64) - exact) ** 2)))

    assert rms_error(ours) <= ERROR_RATIO * rms_error(theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_loss_of_words_is_that_of_scores_that_were_not_rounded(dtype):
    """Those that are returned have the model's dtype."""
    model = same_model(reference_model(BertForMaskedLM), dtype)
    inputs = labelled_inputs(BertForMaskedLM)
    out = model(**inputs, output_hidden_states=True)
    scores = model.lm_head(out.hidden_states[-1], model.bert.embeddings.word.weight)
    assert scores.dtype == jnp.float32
    assert out.logits.dtype == dtype
    counts = inputs["labels"] != IGNORED_LABEL
    labels = inputs["labels"][counts]
    expected = -log_probabilities(scores)[counts][range(len(labels)), labels].mean()
    assert abs(float(out.loss) - expected) < FLOAT32


class TestSequenceClassification:
    @pytest.mark.parametrize(
        ("num_labels", "problem_type", "shape", "dtype"),
        [
            (1, None, (2,), "float32"),
            (1, None, (2, 1), "float32"),
            (1, "regression", (2,), "float32"),
            (1, "regression", (2, 1), "float32"),
            (4, "regression", (2, 4), "float32"),
            (4, None, (2,), "int32"),
            (4, None, (2,), "int64"),
            (4, "single_label_classification", (2,), "int32"),
            (4, None, (2, 4), "float32"),
            (4, "multi_label_classification", (2, 4), "float32"),
            (1, "multi_label_classification", (2, 1), "float32"),
        ],
    )
    def test_of_each_problem_type_is_transformers(self, num_labels, problem_type, shape, dtype):
        changes = {"num_labels": num_labels, "problem_type": problem_type}
        reference = reference_model(BertForSequenceClassification, **changes)
        model = same_model(reference)
        assert model.config.problem_type == problem_type
        limit = num_labels if dtype.startswith("int") else 1  # of classes, or of probabilities
        labels = limit * np.random.default_rng(0).random(shape)
        inputs = random_inputs() | {"labels": labels.astype(dtype)}
        expected = reference(**as_torch(inputs)).loss
        expected.backward()
        loss, gradient = loss_and_gradient(model, inputs)
        assert abs(float(loss) - expected.item()) < FLOAT32
        assert_same_gradients(gradient, reference, FLOAT32_GRADIENT)

    def test_the_problem_type_is_inferred_at_each_call(self):
        """transformers writes what it infers from the first labels to its configuration, and then
        fails with others.
        """
        reference = reference_model(BertForSequenceClassification, num_labels=4)
        model = same_model(reference)
        inputs = random_inputs()
        logits = np.asarray(model(**inputs).logits, np.float64)
        classes = np.array([3, 0], np.int32)
        answers = np.random.default_rng(0).random((2, 4)).astype(np.float32)
        single = -log_probabilities(logits)[range(2), classes].mean()
        several = np.mean(np.log1p(np.exp(logits)) - logits * answers)
        for _ in range(2):
            assert abs(float(model(**inputs, labels=classes).loss) - single) < FLOAT32
            assert abs(float(model(**inputs, labels=answers).loss) - several) < FLOAT32
        assert model.config.problem_type is None

    def test_answers_may_be_booleans(self):
        model = same_model(reference_model(BertForSequenceClassification, num_labels=4))
        answers = np.random.default_rng(0).random((2, 4)) < 0.5
        inputs = random_inputs()
        expected = model(**inputs, labels=answers.astype(np.float32)).loss
        assert model(**inputs, labels=answers).loss == expected

    @pytest.mark.parametrize("wrong", [-0.5, 1.5, np.nan])
    def test_answers_that_are_no_probabilities(self, wrong):
        model = same_model(reference_model(BertForSequenceClassification, num_labels=4))
        answers = np.zeros((2, 4), np.float32)
        answers[1, 2] = wrong
        with pytest.raises(ValueError, match=f"labels contains {wrong}; .* from 0 to 1"):
            model(**random_inputs(), labels=answers)

    def test_scores_may_be_integers(self):
        model = same_model(reference_model(BertForSequenceClassification, num_labels=1))
        inputs = random_inputs()
        stars = np.array([5, 1], np.int32)
        expected = model(**inputs, labels=stars.astype(np.float32)).loss
        assert model(**inputs, labels=stars).loss == expected

    def test_a_sequence_without_a_label_does_not_count(self):
        model = same_model(reference_model(BertForSequenceClassification))
        out = model(**random_inputs(), labels=np.array([1, IGNORED_LABEL]))
        assert abs(float(out.loss) + log_probabilities(out.logits)[0, 1]) < FLOAT32


class TestQuestionAnswering:
    @pytest.mark.parametrize(
        ("start", "end"),
        [([0, 6], [3, 6]), ([-1, 2], [-100, 5]), ([SEQ, 2], [3, 100]), ([2**30, 2], [5, -(2**30)])],
    )
    def test_positions_outside_of_the_sequence_are_treated_as_in_transformers(self, start, end):
        reference = reference_model(BertForQuestionAnswering)
        positions = {"start_positions": start, "end_positions": end}
        inputs = random_inputs() | {k: np.array(x, np.int32) for k, x in positions.items()}
        expected = reference(**as_torch(inputs)).loss
        expected.backward()
        loss, gradient = loss_and_gradient(same_model(reference), inputs)
        assert abs(float(loss) - expected.item()) < FLOAT32
        assert_same_gradients(gradient, reference, FLOAT32_GRADIENT)

    def test_beyond_the_end_is_ignored_and_negative_is_the_first(self):
        model = same_model(reference_model(BertForQuestionAnswering))
        inputs = random_inputs()
        out = model(
            **inputs, start_positions=np.array([SEQ, -5]), end_positions=np.array([SEQ, SEQ + 1])
        )
        start = -log_probabilities(out.start_logits)[1, 0]
        assert abs(float(out.loss) - start / 2) < FLOAT32

    @pytest.mark.parametrize("dtype", [np.int8, np.int64])
    def test_every_kind_of_integer(self, dtype, key):
        """The sequence is longer than an int8 can say."""
        config = tiny_config(num_hidden_layers=1, max_position_embeddings=200)
        model = BertForQuestionAnswering(config, key=key)
        ids = random_inputs((1,), seq=200)["input_ids"]
        start, end = np.array([9], np.int32), np.array([90], np.int32)

        @eqx.filter_jit
        def loss(start: np.ndarray, end: np.ndarray) -> jax.Array:
            return model(ids, start_positions=start, end_positions=end).loss

        assert float(loss(start.astype(dtype), end.astype(dtype))) == float(loss(start, end)) > 0


class TestNextSentence:
    def test_which_label_means_what(self):
        """As in Google's code: 0 where the second sentence is the next one."""
        assert (NSP_IS_NEXT, NSP_IS_RANDOM) == (0, 1)
        model = same_model(reference_model(BertForNextSentencePrediction))
        for label in (NSP_IS_NEXT, NSP_IS_RANDOM):
            out = model(**random_inputs(), labels=np.array([label, label]))
            assert abs(float(out.loss) + log_probabilities(out.logits)[:, label].mean()) < FLOAT32

    def test_a_pair_without_a_label_does_not_count(self):
        model = same_model(reference_model(BertForNextSentencePrediction))
        inputs = random_inputs()
        out = model(**inputs, labels=np.array([IGNORED_LABEL, NSP_IS_RANDOM]))
        expected = -log_probabilities(out.logits)[1, NSP_IS_RANDOM]
        assert abs(float(out.loss) - expected) < FLOAT32


class TestCausalLanguageModel:
    def test_each_token_is_predicted_from_those_before_it(self):
        model = same_model(reference_model(BertForCausalLM))
        inputs = random_inputs()
        ids = inputs["input_ids"]
        out = model(**inputs, labels=ids)
        scores = np.take_along_axis(log_probabilities(out.logits)[:, :-1], ids[:, 1:, None], -1)
        assert abs(float(out.loss) + scores.mean()) < FLOAT32

    def test_the_first_token_is_not_predicted(self):
        model = same_model(reference_model(BertForCausalLM))
        inputs = labelled_inputs(BertForCausalLM)
        other = inputs["labels"].copy()
        other[:, 0] = (other[:, 0] + 200) % 33
        assert model(**inputs).loss == model(**inputs | {"labels": other}).loss

    def test_one_token_predicts_none(self):
        model = same_model(reference_model(BertForCausalLM))
        ids = np.array([[5], [6]])
        assert float(eqx.filter_jit(model)(ids, labels=ids).loss) == 0


class TestPreTraining:
    def test_the_losses_of_both_heads_are_added(self):
        """With labels of one kind alone there is the loss of these; transformers has none there."""
        model = same_model(reference_model(BertForPreTraining))
        inputs = labelled_inputs(BertForPreTraining)
        words, is_next = (
            model(**{k: x for k, x in inputs.items() if k != other}).loss
            for other in ("next_sentence_label", "labels")
        )
        out = model(**inputs)
        assert abs(float(out.loss - (words + is_next))) < FLOAT32

        labels, label = inputs["labels"], inputs["next_sentence_label"]
        counts = labels != IGNORED_LABEL
        scores = log_probabilities(out.prediction_logits)[counts]
        assert abs(float(words) + scores[range(len(scores)), labels[counts]].mean()) < FLOAT32
        scores = log_probabilities(out.seq_relationship_logits)
        assert abs(float(is_next) + scores[range(2), label].mean()) < FLOAT32

    def test_the_words_are_those_of_a_masked_language_model(self):
        """With the same weights: the loss of one head has no gradient in the other."""
        model = same_model(reference_model(BertForPreTraining))
        inputs = labelled_inputs(BertForPreTraining)
        del inputs["next_sentence_label"]
        loss, gradient = loss_and_gradient(model, inputs)
        masked = eqxbert.convert.from_state_dict(
            BertForMaskedLM, model.config, eqxbert.convert.to_state_dict(model)
        )
        assert abs(float(loss - masked(**inputs).loss)) < FLOAT32
        for part in (gradient.nsp_head, gradient.bert.pooler):
            assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(part))


# A label out of range for each class: what is changed, to what, and what is said of it.
OUT_OF_RANGE = [
    (BertForPreTraining, "labels", 33, r"labels contains 33, .* 0 to 32 \(vocab_size is 33\)"),
    (BertForPreTraining, "next_sentence_label", 2, r"next_sentence_label contains 2, .* 0 to 1 "),
    (BertForMaskedLM, "labels", 33, r"labels contains 33, .* 0 to 32 \(vocab_size is 33\)"),
    (BertForMaskedLM, "labels", -1, r"labels contains -1, .* and -100 for what has no label. 1 of"),
    (BertForCausalLM, "labels", -101, r"labels contains -101, .* 0 to 32 \(vocab_size is 33\)"),
    (BertForNextSentencePrediction, "labels", 2, r"labels contains 2, .* 0 to 1 \(the number of"),
    (BertForNextSentencePrediction, "labels", -1, "labels contains -1, .* 1 of 2 labels are out"),
    (BertForSequenceClassification, "labels", 2, r"labels contains 2, .* \(num_labels is 2\)"),
    (BertForSequenceClassification, "labels", -1, "labels contains -1, .* 0 to 1"),
    (eqxbert.BertForMultipleChoice, "labels", CHOICES, r"\(the number of choices is 3\)"),
    (eqxbert.BertForTokenClassification, "labels", 2, r"labels contains 2, .*num_labels is 2"),
    (eqxbert.BertForTokenClassification, "labels", -2, "labels contains -2"),
]


@pytest.mark.parametrize(("model_class", "name", "value", "message"), OUT_OF_RANGE)
def test_labels_out_of_range(model_class, name, value, message):
    model = same_model(reference_model(model_class, num_hidden_layers=1))
    inputs = labelled_inputs(model_class)
    wrong = inputs[name].copy()
    wrong.flat[-1] = value
    for array in (wrong, jnp.asarray(wrong)):
        with pytest.raises(ValueError, match=message):
            model(**inputs | {name: array})

    # Compiled code cannot raise. There the loss is NaN, and the scores are what they are.
    loss, logits = eqx.filter_jit(lambda m, i: m(**i)[:2])(model, inputs | {name: wrong})
    assert np.isnan(loss)
    assert max_difference(logits, model(**without_labels(inputs))[0]) < FLOAT32
