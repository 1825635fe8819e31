"""Surgery: other vocabularies, fewer heads, other labels."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from convert.checkpoints import arrays_in, assert_same_arrays
from helpers import max_difference, tiny_config
from parity import LANGUAGE_MODELS, WITH_HEADS, reference_class
from safetensors.numpy import save_file
from tolerances import FLOAT32, FLOAT64

import eqxbert
from eqxbert.convert import to_state_dict

CLASSES = (eqxbert.BertModel, *WITH_HEADS)
CLASSIFIERS = (eqxbert.BertForSequenceClassification, eqxbert.BertForTokenClassification)
WORDS = "embeddings.word_embeddings.weight"
VOCAB = 33

every_class = pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)


def random_model(model_class: Any, dtype: Any = jnp.float32, **changes: Any) -> Any:
    """A tiny model in which no two arrays are equal, biases and norms included."""
    model = model_class(tiny_config(**changes), key=jax.random.key(0))
    leaves, structure = jax.tree.flatten(model)
    rng = np.random.default_rng(0)
    new = [jnp.asarray(rng.normal(size=leaf.shape, scale=0.4), dtype) for leaf in leaves]
    return jax.tree.unflatten(structure, new)


def ids_below(limit: int, model_class: Any = None) -> np.ndarray:
    shape = (2, 3, 7) if model_class is eqxbert.BertForMultipleChoice else (2, 7)
    return np.random.default_rng(1).integers(0, limit, shape, np.int32)


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    """The arrays by name, without the prefix that a model with a head has."""
    state = to_state_dict(model)
    return {name.removeprefix("bert."): np.asarray(array) for name, array in state.items()}


def has_rows_for_words(name: str) -> bool:
    return name == WORDS or name in (
        "cls.predictions.bias",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    )


# Vocabularies


@every_class
@pytest.mark.parametrize("size", [40, 20, VOCAB])
def test_a_vocabulary_of_another_size(model_class, size):
    model = random_model(model_class)
    resized = model.resize_token_embeddings(size)
    assert type(resized) is model_class
    assert (resized.config.vocab_size, model.config.vocab_size) == (size, VOCAB)
    assert resized.config == model.config.replace(vocab_size=size)
    assert resized.get_input_embeddings().weight.shape == (size, 12)

    before, after = arrays_of(model), arrays_of(resized)
    assert after.keys() == before.keys()
    for name, array in before.items():
        if not has_rows_for_words(name):
            assert np.array_equal(after[name], array), name
            continue
        kept = min(size, VOCAB)
        assert after[name].shape == (size, *array.shape[1:])
        assert np.array_equal(after[name][:kept], array[:kept]), name
        mean = array.astype(np.float64).mean(axis=0)
        for row in after[name][kept:]:
            assert max_difference(row, mean) < 1e-6, name

    ids = ids_below(min(size, VOCAB), model_class)
    for old, new in zip(jax.tree.leaves(model(ids)), jax.tree.leaves(resized(ids)), strict=True):
        kept = min(old.shape[-1], new.shape[-1])
        assert max_difference(new[..., :kept], old[..., :kept]) < FLOAT32


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS, ids=lambda c: c.__name__)
def test_a_decoder_of_its_own_is_resized_with_the_embeddings(model_class):
    model = random_model(model_class, tie_word_embeddings=False)
    before, after = arrays_of(model), arrays_of(model.resize_token_embeddings(40))
    for name in filter(has_rows_for_words, before):
        assert np.array_equal(after[name][:VOCAB], before[name]), name
        assert max_difference(after[name][VOCAB:], [before[name].mean(axis=0)] * 7) < 1e-6, name
    assert not np.array_equal(after[WORDS], after["cls.predictions.decoder.weight"])


@pytest.mark.parametrize(
    ("size", "multiple", "expected"),
    [(33, 8, 40), (40, 8, 40), (41, 64, 64), (20, 16, 32), (1, 8, 8), (35, 1, 35), (35, None, 35)],
)
def test_a_size_is_rounded_up_to_a_multiple(size, multiple, expected):
    model = random_model(eqxbert.BertForMaskedLM)
    resized = model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
    assert resized.config.vocab_size == expected
    assert resized(ids_below(8)).logits.shape == (2, 7, expected)


@pytest.mark.parametrize("size", [0, -3])
def test_a_vocabulary_has_words(size):
    with pytest.raises(ValueError, match=f"vocab_size must be a positive integer, got {size}"):
        random_model(eqxbert.BertModel).resize_token_embeddings(size)


@pytest.mark.parametrize("multiple", [0, -8])
def test_a_multiple_is_positive(multiple):
    with pytest.raises(ValueError, match=f"pad_to_multiple_of.*{multiple}"):
        random_model(eqxbert.BertModel).resize_token_embeddings(40, pad_to_multiple_of=multiple)


def test_the_padding_token_stays_in_the_vocabulary():
    model = random_model(eqxbert.BertModel, pad_token_id=30)
    assert model.resize_token_embeddings(31).config.pad_token_id == 30
    with pytest.raises(ValueError, match=r"pad_token_id \(30\).*vocab_size \(30\)"):
        model.resize_token_embeddings(30)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_mean_is_accurate_in_half_precision(dtype):
    """2,000 words, the mean of whose embeddings would be coarse were it accumulated in `dtype`."""
    model = random_model(eqxbert.BertModel, dtype, vocab_size=2000)
    rows = np.asarray(model.resize_token_embeddings(2001).embeddings.word.weight)
    assert rows.dtype == dtype
    expected = rows[:2000].astype(np.float64).mean(axis=0).astype(dtype)
    unit = float(jnp.finfo(dtype).eps)
    error = np.abs(rows[2000].astype(np.float64) - expected.astype(np.float64))
    assert np.all(error <= unit * np.abs(expected.astype(np.float64)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [40, 20])
@pytest.mark.parametrize(
    "model_class",
    [*LANGUAGE_MODELS, eqxbert.BertForTokenClassification],
    ids=lambda c: c.__name__,
)
def test_a_resized_model_is_saved_and_loaded_here_and_by_transformers(
    tmp_path: Path, model_class, size, tied
):
    model = random_model(model_class, tie_word_embeddings=tied).resize_token_embeddings(size)
    model.save_pretrained(tmp_path)
    assert_same_arrays(model_class.from_pretrained(tmp_path), model)
    theirs = reference_class(model_class)
    reference, info = theirs.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert reference.config.vocab_size == size
    ids = ids_below(size)
    with torch.no_grad():
        expected = reference.eval()(torch.tensor(ids).long())[0]
    assert max_difference(jax.tree.leaves(model(ids))[0], expected) < FLOAT32


# Heads


def masked(heads: dict[int, list[int]]) -> np.ndarray:
    """The head mask that switches these heads off."""
    mask = np.ones((2, 3))
    for layer, numbers in heads.items():
        mask[layer, numbers] = 0
    return mask


def kept(array: np.ndarray, name: str, heads: dict[int, list[int]]) -> np.ndarray:
    """What is left of an array when heads of 4 rows, or columns, each have been taken out."""
    for layer, numbers in heads.items():
        rows = [4 * head + i for head in numbers for i in range(4)]
        attention = f"encoder.layer.{layer}.attention."
        if name.startswith(tuple(f"{attention}self.{part}." for part in ("query", "key", "value"))):
            return np.delete(array, rows, axis=0)
        if name == f"{attention}output.dense.weight":
            return np.delete(array, rows, axis=1)
    return array


HEADS = [{0: [1]}, {1: [0, 2]}, {0: [0], 1: [2]}, {0: [2, 1], 1: [1]}]
POSITION_TYPES = ["absolute", "relative_key", "relative_key_query"]


@pytest.mark.parametrize(
    ("heads", "position_type"),
    [
        *((heads, "absolute") for heads in HEADS),
        *((HEADS[-1], kind) for kind in POSITION_TYPES[1:]),
    ],
    ids=str,
)
def test_pruned_heads_are_as_if_switched_off(heads, position_type):
    """In outputs and gradients."""
    ids = ids_below(VOCAB)
    attention_mask = np.ones(ids.shape, np.int32)
    attention_mask[1, 4:] = 0

    def scalar(model: eqxbert.BertModel, **options: Any) -> tuple[jax.Array, Any]:
        out = model(ids, attention_mask, output_hidden_states=True, **options)
        return jnp.sum(jnp.sin(out.last_hidden_state)) + jnp.sum(out.pooler_output), out

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(scalar, has_aux=True))
        model = random_model(eqxbert.BertModel, jnp.float64, position_embedding_type=position_type)
        pruned = model.prune_heads(heads)
        expected_gradient, expected = gradient(model, head_mask=masked(heads))
        found_gradient, found = gradient(pruned)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert max_difference(ours, theirs) < FLOAT64

        arrays, gradients = arrays_of(pruned), arrays_of(found_gradient)
        expected_gradients = arrays_of(expected_gradient)
        for name, array in arrays_of(model).items():
            assert np.array_equal(arrays[name], kept(array, name, heads)), name
            reference = kept(expected_gradients[name], name, heads)
            size = max(1, np.abs(reference).max())
            assert max_difference(gradients[name], reference) < FLOAT64 * size, name


@every_class
def test_heads_of_every_class_can_be_pruned(model_class):
    model = random_model(model_class)
    pruned = model.prune_heads({0: [0], 1: [1, 2]})
    assert type(pruned) is model_class
    assert pruned.config.pruned_heads == {0: (0,), 1: (1, 2)}
    assert model.config.pruned_heads == {}
    ids = ids_below(VOCAB, model_class)
    mask = masked({0: [0], 1: [1, 2]}).astype(np.float32)
    for found, expected in zip(
        jax.tree.leaves(pruned(ids)), jax.tree.leaves(model(ids, head_mask=mask)), strict=True
    ):
        assert max_difference(found, expected) < FLOAT32


def test_heads_keep_their_numbers_when_others_have_been_pruned():
    model = random_model(eqxbert.BertModel)
    at_once = model.prune_heads({0: [0, 1], 1: [2]})
    for steps in (
        [{0: [0]}, {0: [1], 1: [2]}],
        [{0: [1]}, {1: [2]}, {0: [0]}],
        [{0: [0, 1]}, {0: [1], 1: [2]}],  # one of them for the second time
    ):
        pruned = model
        for heads in steps:
            pruned = pruned.prune_heads(heads)
        assert pruned.config == at_once.config
        assert_same_arrays(pruned, at_once)


def test_a_head_mask_counts_the_pruned_heads_too():
    model = random_model(eqxbert.BertModel)
    ids = ids_below(VOCAB)
    mask = np.random.default_rng(2).random((2, 3)).astype(np.float32)
    for heads in HEADS:
        found = model.prune_heads(heads)(ids, head_mask=mask, output_attentions=True)
        both = mask * masked(heads).astype(np.float32)
        expected = model(ids, head_mask=both, output_attentions=True)
        assert max_difference(found.last_hidden_state, expected.last_hidden_state) < FLOAT32
        for layer in range(2):
            left = [head for head in range(3) if head not in heads.get(layer, [])]
            weights = np.asarray(expected.attentions[layer])[:, left]
            assert max_difference(found.attentions[layer], weights) < FLOAT32


def test_the_gradient_of_a_head_mask_is_zero_for_pruned_heads():
    pruned = random_model(eqxbert.BertModel).prune_heads({0: [1], 1: [0, 2]})

    def scalar(mask: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(pruned(ids_below(VOCAB), head_mask=mask).last_hidden_state))

    gradient = np.asarray(jax.jit(jax.grad(scalar))(jnp.ones((2, 3))))
    assert np.array_equal(gradient == 0, masked({0: [1], 1: [0, 2]}) == 0)


def test_pruning_nothing_changes_nothing():
    model = random_model(eqxbert.BertModel)
    for heads in ({}, {0: []}, {0: (), 1: iter([])}):
        pruned = model.prune_heads(heads)
        assert pruned.config == model.config
        assert_same_arrays(pruned, model)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({2: [0]}, "names layer 2; there are 2, from 0"),
        ({-1: [0]}, "names layer -1; there are 2, from 0"),
        ({0: [3]}, r"names heads \(3,\) of layer 0; there are 3, from 0"),
        ({1: [-1]}, r"names heads \(-1,\) of layer 1; there are 3, from 0"),
        ({1: [0, 1, 2]}, "takes every head out of layer 1; at least one must stay"),
    ],
)
def test_heads_that_cannot_be_pruned(heads, message):
    with pytest.raises(ValueError, match=message):
        random_model(eqxbert.BertModel).prune_heads(heads)


def test_the_last_head_of_a_layer_stays():
    model = random_model(eqxbert.BertModel).prune_heads({0: [0, 2]})
    with pytest.raises(ValueError, match="takes every head out of layer 0"):
        model.prune_heads({0: [1]})


@pytest.mark.parametrize("position_type", POSITION_TYPES)
def test_a_pruned_model_is_saved_and_loaded(tmp_path: Path, position_type):
    model = random_model(
        eqxbert.BertForSequenceClassification, position_embedding_type=position_type
    ).prune_heads({0: [0], 1: [1, 2]})
    model.save_pretrained(tmp_path)
    loaded = eqxbert.BertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.pruned_heads == {0: (0,), 1: (1, 2)}
    assert jax.tree.structure(loaded) == jax.tree.structure(model)
    assert_same_arrays(loaded, model)
    again = loaded.prune_heads({0: [2]})
    assert again.config.pruned_heads == {0: (0, 2), 1: (1, 2)}
    again.save_pretrained(tmp_path)
    loaded = eqxbert.BertForSequenceClassification.from_pretrained(tmp_path)
    assert_same_arrays(loaded, again)


# Made by tests/goldens/make_pruned_heads.py.
GOLDENS = Path(__file__).parents[1] / "goldens" / "pruned_heads.npz"


@pytest.mark.parametrize("position_type", ["absolute", "relative_key_query"])
def test_a_model_that_transformers_has_pruned(tmp_path: Path, position_type):
    """transformers 4 saved it, and computed its outputs and gradients. Heads 0 and 2 are gone from
    the first layer, head 1 from the second.
    """
    with np.load(GOLDENS) as file:
        prefix = f"{position_type}/"
        golden = {k.removeprefix(prefix): file[k] for k in file if k.startswith(prefix)}
    state = {k.removeprefix("state/"): v for k, v in golden.items() if k.startswith("state/")}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(str(golden["config.json"]), encoding="utf-8")

    def scalar(model: eqxbert.BertForTokenClassification) -> tuple[jax.Array, Any]:
        out = model(golden["input_ids"], golden["attention_mask"], output_attentions=True)
        return jnp.sum(out.logits * golden["weight"]), out

    with jax.enable_x64(True):
        model = eqxbert.BertForTokenClassification.from_pretrained(tmp_path, dtype=jnp.float64)
        assert model.config.pruned_heads == {0: (0, 2), 1: (1,)}
        gradient, out = eqx.filter_grad(scalar, has_aux=True)(model)
        assert max_difference(out.logits, golden["logits"]) < FLOAT64
        for layer, weights in enumerate(out.attentions):
            assert max_difference(weights, golden[f"attention_{layer}"]) < FLOAT64
        gradients = to_state_dict(gradient)
        for name in [name for name in golden if name.startswith("gradient/")]:
            reference = golden[name]
            difference = max_difference(gradients[name.removeprefix("gradient/")], reference)
            assert difference < FLOAT64 * max(1, np.abs(reference).max()), name

    model = eqxbert.BertForTokenClassification.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "again")
    assert_same_arrays(arrays_in(tmp_path / "again"), state)
    config = eqxbert.BertConfig.from_pretrained(tmp_path / "again")
    assert config.to_dict()["pruned_heads"] == {"0": [0, 2], "1": [1]}


# Labels


@pytest.mark.parametrize("model_class", CLASSIFIERS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (4, ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")),
        (1, ("LABEL_0",)),
        (["no", "maybe", "yes"], ("no", "maybe", "yes")),
        (("O", "B-PER", "I-PER"), ("O", "B-PER", "I-PER")),
        ({1: "yes", 0: "no"}, ("no", "yes")),
    ],
    ids=str,
)
def test_another_classifier(model_class, labels, names, key):
    model = random_model(model_class, num_labels=2)
    other = model.with_labels(labels, key=key)
    assert type(other) is model_class
    assert other.config == model.config.replace(id2label=dict(enumerate(names)))
    assert other.config.num_labels == len(names)
    assert other.config.label2id == {name: i for i, name in enumerate(names)}
    before, after = arrays_of(model), arrays_of(other)
    assert after.keys() == before.keys()
    for name, array in before.items():
        if not name.startswith("classifier."):
            assert np.array_equal(after[name], array), name
    weight, bias = after["classifier.weight"], after["classifier.bias"]
    assert (weight.shape, bias.shape) == ((len(names), 12), (len(names),))
    assert not np.any(bias)
    assert 0.2 < weight.std() < 0.8, "drawn with initializer_range, 0.5"
    assert other(ids_below(VOCAB)).logits.shape[-1] == len(names)


def test_a_classifier_is_drawn_from_its_key():
    model = random_model(eqxbert.BertForSequenceClassification)
    one, same, other = (model.with_labels(3, key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert_same_arrays(one, same)
    assert not np.array_equal(one.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_new_classifier_has_the_dtype_of_the_old(dtype, key):
    model = random_model(eqxbert.BertForTokenClassification, dtype).with_labels(5, key=key)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(dtype)}


def test_a_model_with_other_labels_is_saved_and_loaded(tmp_path: Path, key):
    model = random_model(eqxbert.BertForSequenceClassification, problem_type="regression")
    model = model.with_labels(["no", "maybe", "yes"], key=key)
    model.save_pretrained(tmp_path)
    loaded = eqxbert.BertForSequenceClassification.from_pretrained(tmp_path)
    assert_same_arrays(loaded, model)
    assert loaded.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    reference, info = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert reference.config.id2label == {0: "no", 1: "maybe", 2: "yes"}


@pytest.mark.parametrize("labels", [0, -1, [], {}, {1: "a", 2: "b"}, "yes"], ids=str)
def test_labels_that_cannot_be(labels, key):
    with pytest.raises(ValueError, match="label"):
        random_model(eqxbert.BertForSequenceClassification).with_labels(labels, key=key)


# All of it


@every_class
def test_the_input_embeddings_are_those_of_the_words(model_class):
    model = random_model(model_class)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, eqxbert.nn.Embedding)
    assert np.array_equal(embeddings.weight, arrays_of(model)[WORDS])


@pytest.mark.parametrize("model_class", [CLASSES[1], *CLASSIFIERS], ids=lambda c: c.__name__)
def test_models_are_compiled_after_surgery(model_class, key):
    model = random_model(model_class).resize_token_embeddings(40).prune_heads({1: [0, 2]})
    if model_class in CLASSIFIERS:
        model = model.with_labels(4, key=key)
    ids = ids_below(40)
    found = eqx.filter_jit(lambda model, ids: model(ids))(model, ids)
    for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(model(ids)), strict=True):
        assert max_difference(ours, expected) < FLOAT32


def test_surgery_can_be_compiled(key):
    model = random_model(eqxbert.BertForSequenceClassification)

    def operate(model: Any, key: jax.Array) -> Any:
        model = model.resize_token_embeddings(40).prune_heads({0: [1]})
        return model.with_labels(4, key=key)

    compiled, expected = eqx.filter_jit(operate)(model, key), operate(model, key)
    assert compiled.config == expected.config
    for name, array in arrays_of(expected).items():
        assert max_difference(arrays_of(compiled)[name], array) < 1e-6, name
