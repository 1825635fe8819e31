"""Checkpoints that do not fit the model: what is said, and what can be drawn anew."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert.checkpoints import as_numpy, assert_same_arrays, torch_bert
from helpers import tiny_config

import eqxbert
from eqxbert.convert import CheckpointError, from_state_dict, to_state_dict

State = dict[str, np.ndarray]

QUERY = "encoder.layer.0.attention.self.query.weight"
NORM = "encoder.layer.1.output.LayerNorm.bias"
WORDS = "embeddings.word_embeddings.weight"


def load(state: Any, config: eqxbert.BertConfig | None = None, **options: Any) -> eqxbert.BertModel:
    return from_state_dict(eqxbert.BertModel, config or tiny_config(), state, **options)


def without(state: State, *names: str) -> State:
    return {name: array for name, array in state.items() if name not in names}


def message_of(state: Any, config: eqxbert.BertConfig | None = None, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(state, config, **options)
    return str(caught.value)


def new_arrays(key: jax.Array, config: eqxbert.BertConfig | None = None) -> dict[str, jax.Array]:
    return to_state_dict(eqxbert.BertModel(config or tiny_config(), key=key))


def test_one_error_lists_all_problems(tiny_state: State) -> None:
    state = without(tiny_state, QUERY, NORM)
    state[WORDS] = np.zeros((40, 12), np.float32)
    state["pooler.dense.bias"] = np.zeros(13, np.float32)
    state["encoder.layer.7.output.dense.bias"] = np.zeros(12, np.float32)
    state["pooler.dense.weight"] = np.zeros((12, 12), np.int8)
    message = message_of(state)
    for part in (
        f"2 missing from the checkpoint:\n  {QUERY}\n  {NORM}\n",
        "2 of another shape:\n",
        f"{WORDS}: (40, 12) in the checkpoint, (33, 12) in the model",
        "pooler.dense.bias: (13,) in the checkpoint, (12,) in the model",
        "pooler.dense.weight: int8",
        "encoder.layer.7.output.dense.bias",
    ):
        assert part in message


def test_an_error_names_the_arrays_as_the_checkpoint_does(tiny_state: State) -> None:
    state = {f"module.bert.{name}": array for name, array in tiny_state.items()}
    state["module.bert.encoder.layer.7.output.dense.bias"] = np.zeros(12, np.float32)
    assert "  module.bert.encoder.layer.7.output.dense.bias\n" in message_of(state)


def test_missing_arrays_are_drawn_and_the_others_left_alone(
    tiny_state: State, key: jax.Array
) -> None:
    model = load(without(tiny_state, QUERY, NORM, WORDS), key=key)
    fresh = new_arrays(key)
    drawn = {name: fresh[name] for name in (QUERY, NORM, WORDS)}
    assert_same_arrays(model, tiny_state | drawn)


def test_drawn_arrays_have_the_dtype_of_the_others(tiny_state: State, key: jax.Array) -> None:
    model = load(without(tiny_state, QUERY), key=key, dtype=jnp.bfloat16)
    assert {a.dtype for a in to_state_dict(model).values()} == {jnp.dtype(jnp.bfloat16)}
    drawn = model.encoder.layers[0].attention.query.weight
    np.testing.assert_array_equal(drawn, new_arrays(key)[QUERY].astype(jnp.bfloat16))


def test_with_a_key_a_whole_checkpoint_changes_nothing(tiny_state: State, key: jax.Array) -> None:
    assert_same_arrays(load(tiny_state, key=key), tiny_state)


def test_a_missing_pooler_is_explained(tiny_state: State, key: jax.Array) -> None:
    state = without(tiny_state, "pooler.dense.weight", "pooler.dense.bias")
    message = message_of(state)
    assert "saved without a pooler" in message
    assert "add_pooling_layer=False" in message
    assert load(state, add_pooling_layer=False).pooler is None
    assert load(state, key=key).pooler is not None


def test_half_a_pooler_is_not_called_a_checkpoint_without_one(tiny_state: State) -> None:
    message = message_of(without(tiny_state, "pooler.dense.bias", NORM))
    assert "saved without a pooler" not in message


def test_a_key_alone_does_not_excuse_another_shape(tiny_state: State, key: jax.Array) -> None:
    state = tiny_state | {QUERY: np.zeros((11, 12), np.float32)}
    assert f"{QUERY}: (11, 12)" in message_of(state, key=key)


def test_ignoring_sizes_needs_a_key(tiny_state: State) -> None:
    state = tiny_state | {QUERY: np.zeros((11, 12), np.float32)}
    assert f"{QUERY}: (11, 12)" in message_of(state, ignore_mismatched_sizes=True)


def test_arrays_of_another_shape_are_drawn_if_wished(tiny_state: State, key: jax.Array) -> None:
    state = tiny_state | {QUERY: np.zeros((11, 12), np.float32)}
    model = load(state, key=key, ignore_mismatched_sizes=True)
    assert_same_arrays(model, tiny_state | {QUERY: new_arrays(key)[QUERY]})


@pytest.mark.parametrize("shape", [(12,), (12, 1), (1, 12), ()])
def test_nothing_is_broadcast_or_reshaped(tiny_state: State, shape: tuple[int, ...]) -> None:
    name = "encoder.layer.0.output.dense.bias" if shape != (12,) else QUERY
    assert f"{name}: {shape} in" in message_of(tiny_state | {name: np.zeros(shape, np.float32)})


def test_a_transposed_matrix_is_of_another_shape(tiny_state: State) -> None:
    name = "encoder.layer.0.output.dense.weight"
    message = message_of(tiny_state | {name: tiny_state[name].T})
    assert f"{name}: (20, 12) in the checkpoint, (12, 20) in the model" in message


def test_layers_beyond_the_configurations_are_an_error_unless_allowed() -> None:
    state = as_numpy(torch_bert(num_hidden_layers=3))
    message = message_of(state)
    extra = [name for name in state if name.startswith("encoder.layer.2.")]
    assert f"{len(extra)} in the checkpoint without a place" in message
    assert all(f"  {name}\n" in message for name in extra)
    assert "ignore_unexpected=True" in message
    expected = without(state, *extra)
    assert_same_arrays(load(state, ignore_unexpected=True), expected)


def test_distances_in_a_model_with_absolute_positions_are_an_error(tiny_state: State) -> None:
    name = "encoder.layer.0.attention.self.distance_embedding.weight"
    state = tiny_state | {name: np.zeros((33, 4), np.float32)}
    message = message_of(state)
    assert name in message
    assert "position_embedding_type" in message


def test_lacking_distances_are_missing(tiny_state: State) -> None:
    message = message_of(tiny_state, tiny_config(position_embedding_type="relative_key"))
    assert "2 missing from the checkpoint" in message
    assert "encoder.layer.1.attention.self.distance_embedding.weight" in message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"),
        (QUERY, f"bert.{QUERY}"),
        (f"bert.{QUERY}", f"module.bert.{QUERY}"),
    ],
)
def test_two_names_for_one_array_are_an_error(tiny_state: State, first: str, second: str) -> None:
    array = tiny_state[first.removeprefix("bert.")]
    state = without(tiny_state, first.removeprefix("bert."))
    message = message_of(state | {first: array, second: array + 1})
    assert repr(first) in message
    assert repr(second) in message


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight",
        "base_model.model.encoder.layer.0.attention.self.query.lora_B.default.weight",
        "base_model.model.embeddings.word_embeddings.lora_embedding_A",
        "base_model.model.pooler.dense.lora_A.weight",
    ],
)
def test_what_lora_adds_to_the_weights_is_not_dropped_in_silence(
    tiny_state: State, name: str
) -> None:
    state = {f"base_model.model.{n}": array for n, array in tiny_state.items()}
    message = message_of(state | {name: np.zeros((2, 12), np.float32)})
    assert f"  {name}\n" in message


def test_a_padded_vocabulary_is_explained(tiny_state: State) -> None:
    state = tiny_state | {WORDS: np.zeros((40, 12), np.float32)}
    message = message_of(state)
    assert "vocabulary has 40 rows" in message
    assert "vocab_size is 33" in message
    assert load(state, tiny_config(vocab_size=40)).embeddings.word.weight.shape == (40, 12)


def test_another_hidden_size_is_not_called_a_padded_vocabulary(tiny_state: State) -> None:
    assert "padded" not in message_of(tiny_state | {WORDS: np.zeros((33, 16), np.float32)})


def test_a_checkpoint_of_something_else_says_what_it_has() -> None:
    message = message_of({"conv1.weight": np.zeros((3, 3), np.float32)})
    assert "None of its names belongs to a BERT. It has conv1.weight." in message
    assert "It has none at all" in message_of({})


def test_saving_needs_arrays_that_agree_with_the_configuration(tiny_state: State) -> None:
    model = load(tiny_state)
    fewer = eqx.tree_at(lambda m: m.encoder.layers, model, model.encoder.layers[:1])
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.1\..*missing from the model"):
        to_state_dict(fewer)
    more = eqx.tree_at(lambda m: m.encoder.layers, model, model.encoder.layers * 2)
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.3\..*has no such array"):
        to_state_dict(more)
    taller = eqx.tree_at(lambda m: m.embeddings.word.weight, model, jnp.zeros((34, 12)))
    with pytest.raises(CheckpointError, match=r"shape \(34, 12\), the configuration says \(33"):
        to_state_dict(taller)
