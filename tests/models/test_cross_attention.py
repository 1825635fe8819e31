"""Attention to an encoder's output, against transformers' PyTorch classes: outputs, gradients."""

import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from generation.references import reference_decoder, same_decoder
from helpers import TINY, max_difference, run_python, tiny_config
from parity import as_torch, random_inputs, reference_model, same_model
from tolerances import FLOAT32, FLOAT32_GRADIENT, FLOAT64

from eqxbert import BertForCausalLM, BertModel
from eqxbert.convert import to_state_dict
from eqxbert.outputs import DecoderCache

ENCODER_SEQ = 5
CROSS = {"is_decoder": True, "add_cross_attention": True}
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(2, ENCODER_SEQ, 12)).astype(np.float32)
ENCODER_MASK = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0]], np.int32)
OUTPUTS = {"output_hidden_states": True, "output_attentions": True}


@jax.jit
def call(model: BertModel | BertForCausalLM, inputs: dict[str, Any]) -> Any:
    return model(**inputs, **OUTPUTS)


def assert_same_outputs(ours: Any, theirs: Any, names: tuple[str, ...], tolerance: float) -> None:
    for name in names:
        found, expected = ours[name], theirs[name]
        if not isinstance(found, tuple):
            found, expected = (found,), (expected,)
        assert len(found) == len(expected)
        for i, (array, reference) in enumerate(zip(found, expected, strict=True)):
            assert max_difference(array, reference.detach()) < tolerance, (name, i)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mask", [ENCODER_MASK, ENCODER_MASK.astype(bool), None])
def test_outputs_equal_the_references(dtype, mask):
    reference = reference_model(**CROSS).to(getattr(torch, dtype))
    inputs = random_inputs() | {"encoder_hidden_states": STATES.astype(dtype)}
    if mask is not None:
        inputs["encoder_attention_mask"] = mask
    with torch.no_grad():
        expected = reference(**as_torch(inputs), **OUTPUTS)
    with jax.enable_x64(dtype == "float64"):
        ours = call(same_model(reference, dtype), inputs)
    names = ("last_hidden_state", "pooler_output", *OUTPUT_TUPLES)
    assert_same_outputs(ours, expected, names, FLOAT64 if dtype == "float64" else FLOAT32)


OUTPUT_TUPLES = ("hidden_states", "attentions", "cross_attentions")


def test_without_encoder_states_there_is_no_cross_attention():
    reference = reference_model(**CROSS)
    inputs = random_inputs()
    with torch.no_grad():
        expected = reference(**as_torch(inputs)).last_hidden_state
    ours = call(same_model(reference), inputs)
    assert ours.cross_attentions is None
    assert max_difference(ours.last_hidden_state, expected) < FLOAT32


def test_loss_and_gradients_of_every_parameter_and_of_the_encoder_states():
    reference = reference_decoder(add_cross_attention=True)
    inputs = random_inputs()
    labels = np.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)
    states = torch.tensor(STATES, requires_grad=True)
    theirs = reference(
        **as_torch(inputs),
        labels=torch.tensor(labels).long(),
        encoder_hidden_states=states,
        encoder_attention_mask=torch.tensor(ENCODER_MASK),
    )
    theirs.loss.backward()
    expected = {name: p.grad.numpy() for name, p in reference.named_parameters()}

    def loss_of(both: tuple[BertForCausalLM, Any]) -> tuple[jax.Array, jax.Array]:
        model, states = both
        out = model(
            **inputs,
            labels=labels,
            encoder_hidden_states=states,
            encoder_attention_mask=ENCODER_MASK,
        )
        return out.loss, out.logits

    function = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, logits), gradients = function((same_decoder(reference), jnp.asarray(STATES)))
    assert max_difference(loss, theirs.loss.detach()) < FLOAT32
    assert max_difference(logits, theirs.logits.detach()) < FLOAT32
    ours = {name: np.asarray(array) for name, array in to_state_dict(gradients[0]).items()}
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        # A key's bias shifts all scores of a query alike: it has no gradient but for rounding.
        scale = np.abs(expected[name.replace("self.key.bias", "self.query.bias")]).max()
        assert scale > 0, name
        assert max_difference(ours[name], array) < FLOAT32_GRADIENT * scale, name
    of_states = states.grad.numpy()
    difference = max_difference(gradients[1], of_states)
    assert difference < FLOAT32_GRADIENT * np.abs(of_states).max()


@pytest.fixture(scope="module")
def model() -> BertModel:
    return same_model(reference_model(**CROSS))


def cross_inputs(**changes: Any) -> dict[str, Any]:
    cross = {"encoder_hidden_states": STATES, "encoder_attention_mask": ENCODER_MASK}
    return random_inputs() | cross | changes


def test_head_mask_scales_cross_attention_too(model):
    head_mask = np.array([[0.5, 1, 1], [1, 0, 0.25]], np.float32)
    inputs = cross_inputs()
    full, masked = call(model, inputs), call(model, inputs | {"head_mask": head_mask})
    scaled = full.cross_attentions[0] * head_mask[0][None, :, None, None]
    # In the first layer the queries differ, since its self-attention is scaled as well.
    assert max_difference(masked.cross_attentions[0].sum(-1), scaled.sum(-1)) < FLOAT32
    assert not masked.cross_attentions[1][:, 1].any()
    assert masked.cross_attentions[1][:, 2].any()


def test_padding_of_the_encoder_changes_nothing(model):
    expected = call(model, cross_inputs()).last_hidden_state
    padding = ((0, 0), (0, 3))
    longer = cross_inputs(
        encoder_hidden_states=np.pad(STATES, (*padding, (0, 0)), constant_values=9),
        encoder_attention_mask=np.pad(ENCODER_MASK, padding),
    )
    assert max_difference(call(model, longer).last_hidden_state, expected) < FLOAT32


def test_an_encoder_row_that_is_all_padding(model):
    mask = ENCODER_MASK.copy()
    mask[1] = 0

    def total(states: jax.Array) -> tuple[jax.Array, Any]:
        out = model(
            **cross_inputs(encoder_hidden_states=states, encoder_attention_mask=mask),
            output_attentions=True,
        )
        return jnp.sum(out.last_hidden_state**2), out

    gradient, out = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(STATES))
    assert np.isfinite(out.last_hidden_state).all()
    assert not any(weights[1].any() for weights in out.cross_attentions)
    assert gradient[0].any()
    assert not gradient[1].any()
    expected = call(model, cross_inputs()).last_hidden_state
    assert max_difference(out.last_hidden_state[0], expected[0]) < FLOAT32


def without_cross_projections(model: BertForCausalLM) -> BertForCausalLM:
    """The model, unable to compute keys and values of an encoder's output: they would be NaN."""

    def spoilt(model: BertForCausalLM) -> list[jax.Array]:
        modules = [layer.cross_attention for layer in model.bert.encoder.layers]
        return [part.weight for module in modules for part in (module.key, module.value)]

    return eqx.tree_at(spoilt, model, replace_fn=lambda x: jnp.full_like(x, jnp.nan))


def test_keys_and_values_of_the_encoder_are_computed_once():
    """The Flax models of transformers compute them anew for every token."""
    model = same_decoder(reference_decoder(add_cross_attention=True))
    spoilt = without_cross_projections(model)
    ids = random_inputs()["input_ids"]
    cross = {"encoder_hidden_states": STATES, "encoder_attention_mask": ENCODER_MASK}
    whole = call(model, {"input_ids": ids, **cross})
    assert np.isnan(call(spoilt, {"input_ids": ids, **cross}).logits).all()

    out = call(model, {"input_ids": ids[:, :3], "cache": model.init_cache(2, 8), **cross})
    for i in range(3, 7):
        assert isinstance(out.cache, DecoderCache)
        out = call(spoilt, {"input_ids": ids[:, i : i + 1], "cache": out.cache})
        assert max_difference(out.logits[:, 0], whole.logits[:, i]) < FLOAT32
        for ours, expected in zip(out.cross_attentions, whole.cross_attentions, strict=True):
            assert max_difference(ours[..., 0, :], expected[..., i, :]) < FLOAT32


def test_other_encoder_states_take_the_place_of_those_in_the_cache(model):
    ids = random_inputs()["input_ids"]
    first = {"input_ids": ids[:, :6], "cache": model.init_cache(2, 8)}
    cross = {"encoder_hidden_states": STATES}
    masked = call(model, first | cross | {"encoder_attention_mask": ENCODER_MASK}).cache
    unmasked = call(model, first | cross).cache
    assert unmasked.cross_mask is None
    ours, expected = (
        call(model, {"input_ids": ids[:, 6:], "cache": cache, **cross}).cross_attentions[0]
        for cache in (masked, unmasked)
    )
    assert max_difference(ours, expected) < FLOAT32  # the first layer has seen only the states
    assert np.all(ours > 0)


def test_states_of_another_size_than_the_decoders(key):
    model = BertModel(tiny_config(**CROSS, cross_attention_hidden_size=10), key=key)
    state = to_state_dict(model)
    assert state["encoder.layer.0.crossattention.self.key.weight"].shape == (12, 10)
    assert state["encoder.layer.0.crossattention.self.query.weight"].shape == (12, 12)
    out = call(model, cross_inputs(encoder_hidden_states=STATES[..., :10]))
    assert out.last_hidden_state.shape == (2, 7, 12)
    with pytest.raises(ValueError, match=r"shape \(2, 5, 12\), expected \(2, encoder_seq, 10\)"):
        model(**cross_inputs())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_hidden_states": None}, "encoder_attention_mask was given without encoder_hidd"),
        ({"encoder_hidden_states": STATES[..., :7]}, r"\(2, 5, 7\), expected \(2, encoder_seq, 12"),
        ({"encoder_attention_mask": ENCODER_MASK[:, :4]}, r"shape \(2, 4\), expected \(2, 5\)"),
        ({"encoder_attention_mask": 2 * ENCODER_MASK}, r"encoder_attention_mask contains 2"),
    ],
)
def test_wrong_arguments(model, changes, message):
    with pytest.raises(ValueError, match=message):
        model(**cross_inputs(**changes))


def test_a_model_without_cross_attention(key):
    for config in (tiny_config(), tiny_config(is_decoder=True)):
        with pytest.raises(ValueError, match=r"no cross-attention. Set is_decoder=True and add_cr"):
            BertModel(config, key=key)(**cross_inputs())
    with pytest.raises(ValueError, match="add_cross_attention is True but is_decoder is False"):
        tiny_config(add_cross_attention=True)


UNTYPED = [
    ("states[:1]", "encoder_hidden_states has shape (1, 5, 12), expected (2, encoder_seq, 12)"),
    ("states[0, 0]", "encoder_hidden_states has shape (12,), expected (2, encoder_seq, 12)"),
    ("states.astype(int)", "encoder_hidden_states must hold floats, got an array of int64"),
    ("states.tolist()", "encoder_hidden_states must be an array of floats, got list"),
    ("states, encoder_attention_mask=states[..., 0]", "encoder_attention_mask must be boolean"),
]


def test_wrong_types_without_type_checking():
    """These break the annotations too. What is tested is the message where nobody checks them."""
    calls = ",\n".join(f"lambda: model(ids, encoder_hidden_states={a})" for a, _ in UNTYPED)
    result = run_python(f"""
import json, jax, numpy as np, eqxbert
ids, states = np.zeros((2, 5), np.int32), np.ones((2, 5, 12), np.float32)
config = eqxbert.BertConfig(**{TINY | CROSS})
model = eqxbert.BertModel(config, key=jax.random.key(0))
messages = []
for call in [{calls}]:
    try:
        call()
    except ValueError as error:
        messages.append(str(error))
    else:
        messages.append("no error")
print(json.dumps(messages))
""")
    assert result.returncode == 0, result.stderr
    for (arguments, expected), message in zip(UNTYPED, json.loads(result.stdout), strict=True):
        assert expected in message, arguments
