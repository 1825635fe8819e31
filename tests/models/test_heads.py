"""The models with a head against transformers' PyTorch classes: every output and gradient; and what
they do beyond their numbers.
"""

import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from helpers import TINY, max_difference, tiny_config
from parity import (
    CHOICES,
    HEADS,
    LANGUAGE_MODELS,
    LAYERS,
    WITH_HEADS,
    as_torch,
    assert_same_gradients,
    assert_same_outputs,
    labelled_inputs,
    reference_model,
    same_model,
    scale_heads,
    without_labels,
)
from tolerances import FLOAT32, FLOAT32_GRADIENT, FLOAT64

import eqxbert

CONFIGURATIONS = [
    {},
    {"num_hidden_layers": 1, "num_attention_heads": 1, "type_vocab_size": 1},
    {"num_hidden_layers": 4, "num_attention_heads": 12, "layer_norm_eps": 1e-5},
    {"hidden_act": "gelu_new", "type_vocab_size": 16, "layer_norm_eps": 0.1},
    {"hidden_act": "prelu"},
    {"hidden_act": "xielu"},
]
OF_LANGUAGE_MODELS = [
    {"tie_word_embeddings": False},
    {"vocab_size": 7, "max_position_embeddings": 7, "pad_token_id": None},
]
CLASSIFIERS = (eqxbert.BertForSequenceClassification, eqxbert.BertForTokenClassification)
OF_CLASSIFIERS = [{"num_labels": 1}, {"num_labels": 5}]
CASES = [
    *(
        (model_class, changes)
        for model_class in WITH_HEADS
        for changes in CONFIGURATIONS
        # Sizes that its BERT shares with the others' are not compiled for one more axis.
        if model_class is not eqxbert.BertForMultipleChoice or "num_hidden_layers" not in changes
    ),
    *((model_class, changes) for model_class in LANGUAGE_MODELS for changes in OF_LANGUAGE_MODELS),
    *((model_class, changes) for model_class in CLASSIFIERS for changes in OF_CLASSIFIERS),
    (eqxbert.BertForMaskedLM, {"is_decoder": True}),
]
CASES_IN_FLOAT64 = [
    *((model_class, {}) for model_class in WITH_HEADS),
    (eqxbert.BertForPreTraining, {"tie_word_embeddings": False, "hidden_act": "prelu"}),
    (eqxbert.BertForMaskedLM, {"hidden_act": "xielu"}),
    (eqxbert.BertForSequenceClassification, {"num_labels": 1}),
]
ALL = {"output_hidden_states": True, "output_attentions": True}


def inputs_for(model_class: type, changes: dict, dtype: str = "float32") -> dict[str, np.ndarray]:
    sizes = {k: v for k, v in changes.items() if k in TINY or k == "num_labels"}
    inputs = labelled_inputs(model_class, **sizes)
    return {k: x.astype(dtype) if x.dtype == np.float32 else x for k, x in inputs.items()}


def named(part: object) -> str | None:
    """For a case's name: changes as they are, classes by theirs."""
    return str(part) if isinstance(part, dict) else None


@pytest.mark.parametrize(("model_class", "changes"), CASES, ids=named)
def test_every_output_and_gradient_equals_the_references(model_class, changes):
    compare_with_the_reference(model_class, changes, "float32")


@pytest.mark.parametrize(("model_class", "changes"), CASES_IN_FLOAT64, ids=named)
def test_in_float64_they_agree_to_the_last_digits(model_class, changes):
    with jax.enable_x64(True):
        compare_with_the_reference(model_class, changes, "float64")


def compare_with_the_reference(model_class: type, changes: dict, dtype: str) -> None:
    """Uncompiled: so the tests share what is compiled for each operation."""
    reference = reference_model(model_class, **changes).to(getattr(torch, dtype))
    inputs = inputs_for(model_class, changes, dtype)
    expected = reference(**as_torch(inputs), **ALL)
    if model_class is eqxbert.BertForCausalLM:  # transformers rounds the logits to float32
        following = as_torch(inputs)["labels"][:, 1:]
        expected.loss = torch.nn.functional.cross_entropy(expected.logits[:, :-1].mT, following)
    expected.loss.backward()

    def loss(model):
        out = model(**inputs, **ALL)
        return out.loss, out

    gradient, ours = jax.grad(loss, has_aux=True)(same_model(reference, dtype))
    is_double = dtype == "float64"
    assert_same_outputs(ours, expected, FLOAT64 if is_double else FLOAT32)
    assert_same_gradients(gradient, reference, FLOAT64 if is_double else FLOAT32_GRADIENT)


@pytest.fixture(scope="module", params=WITH_HEADS, ids=lambda model_class: model_class.__name__)
def reference(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    return reference_model(request.param)


@pytest.fixture(scope="module")
def model(reference: transformers.PreTrainedModel) -> eqxbert.models.PretrainedModel:
    return same_model(reference)


class TestResults:
    """Against those of transformers with return_dict=False, which are tuples."""

    @pytest.mark.parametrize("options", [{}, ALL], ids=["plain", "all"])
    @pytest.mark.parametrize("labelled", [True, False])
    def test_as_tuples(self, reference, model, labelled, options):
        """Of the inputs, ids alone are given here."""
        inputs = labelled_inputs(type(model))
        optional = ("attention_mask", "token_type_ids", "position_ids")
        inputs = {name: array for name, array in inputs.items() if name not in optional}
        inputs = inputs if labelled else without_labels(inputs)
        with torch.no_grad():
            expected = reference(**as_torch(inputs), **options, return_dict=False)
        expected = [x for x in expected if x != ()]  # the cross-attentions, of which there are none
        ours = model(**inputs, **options)
        assert len(ours) == len(expected)
        for i, theirs in enumerate(expected):
            assert ours[i] is ours.to_tuple()[i]
            if isinstance(theirs, tuple):
                pairs = zip(ours[i], theirs, strict=True)
            else:
                pairs = [(ours[i], theirs)]
            for found, array in pairs:
                assert max_difference(found, array.numpy().reshape(found.shape)) < FLOAT32

    def test_by_name(self, model):
        ours = model(**labelled_inputs(type(model)), output_attentions=True)
        assert ours["loss"] is ours.loss is ours[0]
        assert ours["attentions"] is ours.attentions is ours[-1]
        assert ours["hidden_states"] is None
        assert "hidden_states" not in ours
        assert tuple(ours.keys()) == tuple(name for name in vars(ours) if name in ours)
        with pytest.raises(KeyError, match=r"'last_hidden_state'; the fields are loss, .*logits"):
            ours["last_hidden_state"]


class TestArgumentsForTheBert:
    def test_head_mask_counts_by_fractions(self, reference, model):
        """transformers 4's Flax classes rounded it to integers."""
        head_mask = np.random.default_rng(0).random((LAYERS, HEADS)).astype(np.float32)
        inputs = labelled_inputs(type(model))
        scaled = reference_model(type(model))
        scale_heads(scaled.bert, head_mask)
        with torch.no_grad():
            expected = scaled(**as_torch(inputs))
        ours = model(**inputs, head_mask=head_mask)
        assert_same_outputs(ours, expected, FLOAT32)
        assert abs(float(ours.loss) - float(model(**inputs).loss)) > 1e-3

    def test_embeddings_in_place_of_ids(self, reference, model):
        """transformers 4's Flax class for multiple choice read the shape of the ids anyway."""
        inputs = labelled_inputs(type(model))
        table = np.asarray(model.get_input_embeddings().weight)
        inputs["inputs_embeds"] = table[inputs.pop("input_ids")]
        with torch.no_grad():
            expected = reference(**as_torch(inputs), **ALL)
        assert_same_outputs(model(**inputs, **ALL), expected, FLOAT32)


@pytest.fixture(scope="module")
def shallow(model: eqxbert.models.PretrainedModel) -> eqxbert.models.PretrainedModel:
    """With one layer, since compiling takes its time."""
    return same_model(reference_model(type(model), num_hidden_layers=1))


class TestAsFunctions:
    def test_every_leaf_is_an_array(self, shallow):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(shallow))

    def test_plain_and_filtered_transformations_agree(self, shallow):
        inputs = labelled_inputs(type(shallow))

        def loss(model: eqx.Module, inputs: dict) -> jax.Array:
            return model(**inputs).loss

        expected, filtered = eqx.filter_value_and_grad(loss)(shallow, inputs)
        compiled, plain = jax.jit(jax.value_and_grad(loss))(shallow, inputs)
        assert abs(float(compiled - expected)) < FLOAT32
        assert_same_gradients(plain, filtered, FLOAT32_GRADIENT)

    def test_a_vmap_over_rows_is_the_reference_of_each(self, reference, model):
        """Their losses too, which are means over the labels of a row."""
        inputs = labelled_inputs(type(model))
        out = jax.vmap(lambda row: model(**row, **ALL))(jax.tree.map(jnp.asarray, inputs))
        for i in range(2):
            with torch.no_grad():
                row = {name: array[i : i + 1] for name, array in inputs.items()}
                expected = reference(**as_torch(row), **ALL)
            found = jax.tree.map(lambda x, i=i: x[i : i + 1] if x.ndim > 1 else x[i], out)
            assert_same_outputs(found, expected, FLOAT32)

    def test_several_leading_axes_are_as_one(self, reference, model):
        inputs = labelled_inputs(type(model), (2, 3))
        rows = {name: array.reshape(-1, *array.shape[2:]) for name, array in inputs.items()}
        with torch.no_grad():
            expected = reference(**as_torch(rows), **ALL)
        out = model(**inputs, **ALL)
        merged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]) if x.ndim else x, out)
        assert_same_outputs(merged, expected, FLOAT32)


def logits_of(out: eqxbert.outputs.ModelOutput) -> jax.Array:
    """The first of the logits."""
    return next(out[name] for name in out.keys() if name.endswith("logits"))  # noqa: SIM118


class TestDropout:
    def test_happens_only_with_a_key_and_is_determined_by_it(self, model, key):
        inputs = without_labels(labelled_inputs(type(model)))
        calm, again, first, same, other = (
            logits_of(model(**inputs, key=k)) for k in (None, None, key, key, jax.random.key(1))
        )
        assert np.array_equal(calm, again)
        assert np.array_equal(first, same)
        assert max_difference(first, calm) > 0.01
        assert max_difference(first, other) > 0.01

    @pytest.mark.parametrize(
        ("hidden", "classifier", "all_dropped"),
        [(0.0, 1.0, True), (1.0, None, True), (1.0, 0.0, False), (0.0, None, False)],
    )
    @pytest.mark.parametrize("model_class", [*CLASSIFIERS, eqxbert.BertForMultipleChoice])
    def test_before_a_classifier(self, model_class, hidden, classifier, all_dropped, key):
        """Its rate is `classifier_dropout`, even if that is 0, and `hidden_dropout_prob` if it is
        None. (transformers 4's Flax class for multiple choice took the latter always.)
        """
        model = same_model(
            reference_model(
                model_class,
                hidden_dropout_prob=hidden,
                attention_probs_dropout_prob=0.0,
                classifier_dropout=classifier,
            )
        )
        logits = model(**labelled_inputs(model_class), key=key).logits
        bias = np.asarray(model.classifier.bias)
        if model_class is eqxbert.BertForMultipleChoice:
            bias = np.repeat(bias, CHOICES)
        assert (max_difference(logits, np.broadcast_to(bias, logits.shape)) == 0) == all_dropped

    @pytest.mark.parametrize("model_class", CLASSIFIERS)
    def test_before_a_classifier_is_elementwise_and_keeps_the_mean(self, model_class, key):
        """Seen through a classifier that hands on its input."""
        size = TINY["hidden_size"]
        model = same_model(
            reference_model(
                model_class,
                num_labels=size,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                classifier_dropout=0.25,
            )
        )
        identity = (jnp.eye(size), jnp.zeros(size))
        model = eqx.tree_at(lambda m: (m.classifier.weight, m.classifier.bias), model, identity)
        inputs = without_labels(labelled_inputs(model_class, (64,)))
        calm, dropped = (np.asarray(model(**inputs, key=k).logits) for k in (None, key))
        kept = dropped != 0
        assert abs(kept.mean() - 0.75) < 0.05
        assert max_difference(dropped[kept], calm[kept] / 0.75) < FLOAT32
        assert len(np.unique(kept.reshape(-1, size), axis=0)) > 32

    @pytest.mark.parametrize(
        "model_class",
        [
            *LANGUAGE_MODELS,
            eqxbert.BertForNextSentencePrediction,
            eqxbert.BertForQuestionAnswering,
        ],
    )
    def test_other_heads_have_none(self, model_class, key):
        model = same_model(
            reference_model(
                model_class,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                classifier_dropout=1.0,
            )
        )
        inputs = without_labels(labelled_inputs(model_class))
        jax.tree.map(np.testing.assert_array_equal, model(**inputs, key=key), model(**inputs))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_class", WITH_HEADS)
def test_weights_of_heads_start_as_the_configuration_says(model_class, tied, key):
    """With its `initializer_range`, within four standard errors, and with biases of zero."""
    config = tiny_config(
        hidden_size=120, num_labels=50, initializer_range=0.2, tie_word_embeddings=tied
    )
    arrays = eqxbert.convert.to_state_dict(model_class(config, key=key))
    head = {name: np.asarray(x) for name, x in arrays.items() if not name.startswith("bert.")}
    assert any(name.endswith("weight") for name in head)
    for name, array in head.items():
        if name.endswith("LayerNorm.weight"):
            assert np.all(array == 1), name
        elif name.endswith("bias"):
            assert np.all(array == 0), name
        else:
            assert abs(array.std() / 0.2 - 1) < 4 / math.sqrt(2 * array.size), name
            assert abs(array.mean() / 0.2) < 4 / math.sqrt(array.size), name
    drawn = [float(array[-1, -1]) for name, array in arrays.items() if array.ndim == 2]
    assert len(set(drawn)) == len(drawn)


class TestConfiguration:
    def test_question_answering_has_two_labels_whatever_it_says(self, key, tmp_path):
        """transformers 4's Flax class, and transformers' PyTorch class, fail with any other."""
        config = tiny_config(num_labels=3)
        model = eqxbert.BertForQuestionAnswering(config, key=key)
        inputs = labelled_inputs(eqxbert.BertForQuestionAnswering)
        out = model(**inputs)
        assert out.start_logits.shape == out.end_logits.shape == (2, 7)
        assert config.num_labels == 3
        model.save_pretrained(tmp_path)
        assert len(json.loads((tmp_path / "config.json").read_text())["id2label"]) == 2
        reference = transformers.BertForQuestionAnswering.from_pretrained(tmp_path)
        with torch.no_grad():
            assert_same_outputs(out, reference(**as_torch(inputs)), FLOAT32)

    def test_causal_language_models_see_no_later_token_whatever_it_says(self, key):
        config = tiny_config(is_decoder=False)
        model = eqxbert.BertForCausalLM(config, key=key)
        assert model.config.is_decoder
        assert not config.is_decoder
        ids = labelled_inputs(eqxbert.BertForCausalLM)["input_ids"]
        expected = model(ids).logits
        for position in range(7):
            changed = ids.copy()
            changed[:, position] = (ids[:, position] + 1) % TINY["vocab_size"]
            logits = model(changed).logits
            assert np.array_equal(logits[:, :position], expected[:, :position])
            assert np.all(np.any(logits[:, position:] != expected[:, position:], axis=-1))

    @pytest.mark.parametrize("model_class", CLASSIFIERS)
    @pytest.mark.parametrize("num_labels", [1, 2, 9])
    def test_classifiers_have_as_many_classes_as_it_says(self, model_class, num_labels, key):
        model = model_class(tiny_config(num_labels=num_labels), key=key)
        inputs = without_labels(labelled_inputs(model_class))
        assert model(**inputs).logits.shape[-1] == num_labels
