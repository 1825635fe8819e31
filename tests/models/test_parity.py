"""`BertModel` against transformers' PyTorch class: every output, every gradient."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from helpers import max_difference
from parity import (
    HEADS,
    LAYERS,
    as_torch,
    assert_same_gradients,
    assert_same_outputs,
    random_inputs,
    reference_model,
    same_model,
    scale_heads,
)
from tolerances import FLOAT32, FLOAT32_GRADIENT, FLOAT64

CONFIGURATIONS = [
    {},
    {"num_hidden_layers": 1, "num_attention_heads": 1},
    {"num_hidden_layers": 4, "num_attention_heads": 12},
    {"type_vocab_size": 1},
    {"type_vocab_size": 16},
    {"layer_norm_eps": 1e-5},
    {"layer_norm_eps": 0.1},
    {"add_pooling_layer": False},
    {"chunk_size_feed_forward": 7},
    {"is_decoder": True},
    {"vocab_size": 7, "max_position_embeddings": 7, "pad_token_id": None},
    *({"hidden_act": name} for name in transformers.activations.ACT2CLS if name != "gelu"),
]


@pytest.mark.parametrize("changes", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_output_equals_the_references(changes, dtype):
    reference = reference_model(**changes).to(getattr(torch, dtype))
    options = {"output_hidden_states": True, "output_attentions": True}
    inputs = random_inputs(**{k: v for k, v in changes.items() if k in SIZES})
    with torch.no_grad():
        expected = reference(**as_torch(inputs), **options)
    with jax.enable_x64(dtype == "float64"):
        ours = same_model(reference, dtype)(**inputs, **options)
        assert_same_outputs(ours, expected, FLOAT64 if dtype == "float64" else FLOAT32)


SIZES = ("vocab_size", "type_vocab_size", "max_position_embeddings")


@pytest.mark.parametrize("kind", ["2-D", "3-D", "bool", "none"])
def test_kinds_of_masks(kind):
    reference = reference_model()
    inputs = random_inputs()
    if kind == "3-D":
        mask = np.random.default_rng(1).random((2, 7, 7)) < 0.6
        mask[:, range(7), range(7)] = True
        inputs["attention_mask"] = mask.astype(np.int32)
    if kind == "bool":
        inputs["attention_mask"] = inputs["attention_mask"].astype(bool)
    if kind == "none":
        del inputs["attention_mask"]
    theirs = as_torch(inputs)
    if kind == "3-D":
        forbidden = torch.finfo(torch.float32).min  # transformers takes it as it is, and adds it
        theirs["attention_mask"] = (1 - theirs["attention_mask"][:, None].float()) * forbidden
    with torch.no_grad():
        expected = reference(**theirs)
    ours = same_model(reference)(**inputs)
    assert max_difference(ours.last_hidden_state, expected.last_hidden_state) < FLOAT32


def test_only_the_ids_are_needed():
    reference = reference_model()
    ids = random_inputs()["input_ids"]
    with torch.no_grad():
        expected = reference(torch.tensor(ids).long())
    ours = same_model(reference)(ids)
    assert max_difference(ours.last_hidden_state, expected.last_hidden_state) < FLOAT32
    assert max_difference(ours.pooler_output, expected.pooler_output) < FLOAT32


def test_embeddings_in_place_of_ids():
    reference = reference_model()
    inputs = random_inputs()
    ours = same_model(reference)
    expected = ours(**inputs).last_hidden_state
    embeds = np.asarray(ours.embeddings.word.weight)[inputs.pop("input_ids")]
    assert np.array_equal(ours(**inputs, inputs_embeds=embeds).last_hidden_state, expected)


def test_positions_may_be_shared_by_the_batch():
    model = same_model(reference_model())
    inputs = random_inputs()
    shared = inputs["position_ids"][0]
    inputs["position_ids"] = np.stack([shared, shared])
    expected = model(**inputs).last_hidden_state
    assert np.array_equal(model(**inputs | {"position_ids": shared}).last_hidden_state, expected)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_chunked_feed_forward_changes_no_number(chunk):
    reference = reference_model()
    inputs = random_inputs()
    expected = same_model(reference)(**inputs).last_hidden_state
    reference.config.chunk_size_feed_forward = chunk
    chunked = same_model(reference)(**inputs).last_hidden_state
    assert max_difference(chunked, expected) < FLOAT32


def test_head_mask_scales_each_head_of_each_layer():
    reference = reference_model()
    head_mask = np.random.default_rng(0).random((LAYERS, HEADS)).astype(np.float32)
    head_mask[0, 1] = 0
    inputs = random_inputs()
    ours = same_model(reference)(**inputs, head_mask=head_mask, output_attentions=True)
    unmasked = same_model(reference)(**inputs, output_attentions=True)
    scale_heads(reference, head_mask)
    with torch.no_grad():
        expected = reference(**as_torch(inputs))
    assert max_difference(ours.last_hidden_state, expected.last_hidden_state) < FLOAT32
    assert ours.attentions is not None
    assert unmasked.attentions is not None
    scaled = unmasked.attentions[0] * head_mask[None, 0, :, None, None]
    assert max_difference(ours.attentions[0], scaled) < FLOAT32


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "prelu"},
        {"hidden_act": "xielu"},
        {"num_hidden_layers": 4},
        {"is_decoder": True},
    ],
)
def test_gradients_of_every_parameter_equal_the_references(changes):
    reference = reference_model(**changes)
    inputs = random_inputs()
    rng = np.random.default_rng(1)
    tokens_weight = rng.normal(size=(2, 7, 12)).astype(np.float32)
    pooled_weight = rng.normal(size=(2, 12)).astype(np.float32)

    out = reference(**as_torch(inputs))
    scalar = (out.last_hidden_state * torch.tensor(tokens_weight)).sum()
    (scalar + (out.pooler_output * torch.tensor(pooled_weight)).sum()).backward()

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        out = model(**inputs)
        pooled = jnp.sum(out.pooler_output * pooled_weight)
        return jnp.sum(out.last_hidden_state * tokens_weight) + pooled

    assert_same_gradients(gradient(same_model(reference)), reference, FLOAT32_GRADIENT)
