"""What `from_state_dict` accepts, and the dtypes it gives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from convert.checkpoints import as_numpy, assert_same_arrays, torch_bert
from helpers import tiny_config

import eqxbert
from eqxbert.convert import CheckpointError, from_state_dict, to_state_dict
from eqxbert.convert.containers import LazyTensor

State = dict[str, np.ndarray]


def load(state: Any, **options: Any) -> eqxbert.BertModel:
    return from_state_dict(eqxbert.BertModel, tiny_config(), state, **options)


def prefixed(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def legacy(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


def nvidia(name: str) -> str:
    renamed = name.replace("intermediate.dense", "intermediate.dense_act")
    return "bert." + renamed.replace("pooler.dense", "pooler.dense_act")


def encoder_of_two(name: str) -> str:
    return "encoder." + name


@pytest.mark.parametrize(
    "rename",
    [
        *map(prefixed, ["bert.", "module.", "module.bert.", "_orig_mod.", "model."]),
        *map(prefixed, ["0.auto_model.", "0.model.", "base_model.model."]),
        legacy,
        nvidia,
        encoder_of_two,
        lambda name: "module.bert." + legacy(name),
    ],
)
def test_every_spelling_gives_the_same_model(
    tiny_state: State, rename: Callable[[str], str]
) -> None:
    model = load({rename(name): array for name, array in tiny_state.items()})
    assert_same_arrays(model, tiny_state)


def test_the_arrays_go_where_their_names_say(tiny_state: State) -> None:
    model = load(tiny_state)
    layer = model.encoder.layers[1]
    assert model.pooler is not None
    for name, array in {
        "embeddings.token_type_embeddings.weight": model.embeddings.token_type.weight,
        "encoder.layer.1.attention.self.key.bias": layer.attention.key.bias,
        "encoder.layer.1.attention.self.value.weight": layer.attention.value.weight,
        "encoder.layer.1.attention.output.LayerNorm.bias": layer.attention_norm.bias,
        "encoder.layer.1.output.LayerNorm.weight": layer.feed_forward_norm.weight,
        "encoder.layer.1.output.dense.weight": layer.feed_forward.output.weight,
        "pooler.dense.weight": model.pooler.dense.weight,
    }.items():
        np.testing.assert_array_equal(array, tiny_state[name])


def test_a_torch_state_dict_is_taken_as_it_is(tiny_state: State) -> None:
    model = load(torch_bert().state_dict())
    assert_same_arrays(model, tiny_state)


def test_changing_the_torch_model_afterwards_does_not_change_ours(tiny_state: State) -> None:
    source = torch_bert()
    model = load(source.state_dict())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.zero_()
    assert_same_arrays(model, tiny_state)


def test_parameters_that_require_a_gradient_are_taken(tiny_state: State) -> None:
    model = load(dict(torch_bert().named_parameters()))
    assert_same_arrays(model, tiny_state)


def test_what_comes_out_goes_in_again(tiny_state: State) -> None:
    model = load(to_state_dict(load(tiny_state)))
    assert_same_arrays(model, tiny_state)


def test_the_encoder_of_an_encoder_decoder_is_loaded(tiny_state: State) -> None:
    decoder = torch_bert(
        transformers.BertLMHeadModel, seed=1, is_decoder=True, add_cross_attention=True
    )
    both = transformers.EncoderDecoderModel(encoder=torch_bert(), decoder=decoder)
    assert_same_arrays(load(as_numpy(both)), tiny_state)


@pytest.mark.parametrize(
    "model_class", ["BertForPreTraining", "BertForTokenClassification", "BertForQuestionAnswering"]
)
def test_a_head_in_the_checkpoint_does_no_harm(model_class: str) -> None:
    source = torch_bert(getattr(transformers, model_class))
    options = {"add_pooling_layer": source.bert.pooler is not None}
    assert_same_arrays(load(source.state_dict(), **options), as_numpy(source.bert))


@pytest.mark.parametrize("name", ["embeddings.position_ids", "embeddings.token_type_ids"])
def test_buffers_are_ignored(tiny_state: State, name: str) -> None:
    state = tiny_state | {name: np.arange(17)[None]}
    assert_same_arrays(load(state), tiny_state)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_arrays_become_float32_unless_told_otherwise(tiny_state: State, stored: Any) -> None:
    state = {name: array.astype(stored) for name, array in tiny_state.items()}
    assert_same_arrays(load(state), {n: a.astype(np.float32) for n, a in state.items()})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, "bfloat16"])
def test_arrays_become_the_dtype_asked_for(tiny_state: State, dtype: Any) -> None:
    expected = {name: array.astype(jnp.dtype(dtype)) for name, array in tiny_state.items()}
    assert_same_arrays(load(tiny_state, dtype=dtype), expected)


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_auto_keeps_the_dtype_of_the_checkpoint(tiny_state: State, stored: Any) -> None:
    state = {name: array.astype(stored) for name, array in tiny_state.items()}
    assert_same_arrays(load(state, dtype="auto"), state)


def test_auto_keeps_torchs_bfloat16(tiny_state: State) -> None:
    model = load(torch_bert().to(torch.bfloat16).state_dict(), dtype="auto")
    assert_same_arrays(model, {n: a.astype(ml_dtypes.bfloat16) for n, a in tiny_state.items()})


def test_auto_takes_the_wider_dtype_of_a_mixed_checkpoint(tiny_state: State) -> None:
    state = {
        name: array if "LayerNorm" in name else array.astype(ml_dtypes.bfloat16)
        for name, array in tiny_state.items()
    }
    expected = {name: array.astype(np.float32) for name, array in state.items()}
    assert_same_arrays(load(state, dtype="auto"), expected)


def test_a_checkpoint_of_something_else_is_no_reason_to_draw_all_anew(key: jax.Array) -> None:
    state = {"weird.weight": np.zeros(3, np.float32)}
    with pytest.raises(CheckpointError, match="None of its names belongs to a BERT"):
        from_state_dict(eqxbert.BertModel, tiny_config(), state, key=key)


def test_nan_and_infinity_are_named(tmp_path, caplog) -> None:
    model = eqxbert.BertModel(tiny_config(), key=jax.random.key(0))
    state = {name: np.array(array) for name, array in to_state_dict(model).items()}
    state["pooler.dense.bias"][3] = np.nan
    state["pooler.dense.weight"][0, 0] = 1e30  # infinity in float16
    for dtype, names in (
        ("float32", ["bias"]),
        ("float16", ["weight", "bias"]),
        ("bfloat16", ["bias"]),
    ):
        caplog.clear()
        from_state_dict(eqxbert.BertModel, tiny_config(), state, dtype=dtype)
        expected = ", ".join(f"pooler.dense.{name}" for name in names)
        assert f"NaN or infinity in {expected}, as {dtype}." in caplog.text


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, "int8"])
def test_a_dtype_that_is_not_floating_point_is_an_error(tiny_state: State, dtype: Any) -> None:
    with pytest.raises(
        ValueError, match="dtype must be one of bfloat16, float16, float32, float64"
    ):
        load(tiny_state, dtype=dtype)


def test_float64_is_given_where_jax_has_it(tiny_state: State) -> None:
    with jax.enable_x64(True):
        model = load(tiny_state, dtype=jnp.float64)
        expected = {name: array.astype(np.float64) for name, array in tiny_state.items()}
        assert_same_arrays(model, expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_quantised_weights_are_an_error_that_names_them(tiny_state: State, dtype: Any) -> None:
    name = "encoder.layer.0.output.dense.weight"
    state = tiny_state | {name: tiny_state[name].astype(dtype)}
    with pytest.raises(CheckpointError, match=f"{name}: {np.dtype(dtype)}[^$]*Quantised"):
        load(state)


def test_arrays_that_are_not_used_are_not_read(tiny_state: State) -> None:
    def read() -> np.ndarray:
        raise AssertionError("read")

    head = {"cls.predictions.decoder.weight": LazyTensor((33, 12), "float32", read)}
    assert_same_arrays(load(tiny_state | head), tiny_state)
    with pytest.raises(AssertionError, match="read"):
        load(tiny_state | {"pooler.dense.bias": LazyTensor((12,), "float32", read)})


def test_nothing_is_read_from_a_checkpoint_that_does_not_fit(tiny_state: State) -> None:
    def read() -> np.ndarray:
        raise AssertionError("read")

    state = {n: LazyTensor(a.shape, "float32", read) for n, a in tiny_state.items()}
    del state["pooler.dense.bias"]
    with pytest.raises(CheckpointError, match="1 missing"):
        load(state)
