"""`EncoderDecoderModel` against transformers': numbers, gradients, files, parts."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from generation.references import (
    ENCODERS,
    EOS,
    PAD,
    START,
    eager,
    randomize,
    reference_encoder_decoder as reference_model,
    same_encoder_decoder as same_model,
)
from helpers import TINY, max_difference, run_python, tiny_config
from tolerances import FLOAT32, FLOAT32_GRADIENT, FLOAT64
from transformers.models.encoder_decoder.modeling_encoder_decoder import shift_tokens_right

from eqxbert import (
    BertConfig,
    BertForCausalLM,
    BertModel,
    EncoderDecoderConfig,
    EncoderDecoderModel,
)
from eqxbert.convert import to_state_dict
from eqxbert.outputs import BertModelOutput

RNG = np.random.default_rng(0)
IDS = RNG.integers(2, 29, (3, 6), np.int32)
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 1]], np.int32)
LABELS = RNG.integers(1, 33, (3, 5), np.int32)
LABELS[1, 3:] = LABELS[2, 1] = -100


def call_reference(model: transformers.EncoderDecoderModel, **inputs: Any) -> Any:
    tensors = {
        name: torch.tensor(x).long() if isinstance(x, np.ndarray) else x
        for name, x in inputs.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of another way to compute the loss
        return model(**tensors)


@pytest.fixture(scope="module")
def pair() -> tuple[EncoderDecoderModel, transformers.EncoderDecoderModel]:
    reference = reference_model()
    return same_model(reference), reference


@jax.jit
def call(model: EncoderDecoderModel, inputs: dict[str, Any]) -> Any:
    return model(**inputs)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_loss_logits_and_gradients_of_every_parameter(encoder):
    reference = reference_model(encoder)
    inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    theirs = call_reference(reference, **inputs)
    theirs.loss.backward()
    expected = {
        name: p.grad.numpy() for name, p in reference.named_parameters() if p.grad is not None
    }
    assert ("enc_to_dec_proj.weight" in expected) == (encoder == "of another size")

    def loss_of(model: EncoderDecoderModel) -> tuple[jax.Array, Any]:
        out = model(**inputs)
        return out.loss, out

    (loss, out), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
        same_model(reference)
    )
    assert max_difference(loss, theirs.loss.detach()) < FLOAT32
    assert max_difference(out.logits, theirs.logits.detach()) < FLOAT32
    ours = {name: np.asarray(array) for name, array in to_state_dict(gradient).items()}
    without = {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
    assert ours.keys() - expected.keys() == without
    assert not any(ours[name].any() for name in without)
    for name, array in expected.items():
        # A key's bias shifts all scores of a query alike: it has no gradient but for rounding.
        scale = np.abs(expected[name.replace("self.key.bias", "self.query.bias")]).max()
        assert scale > 0, name
        assert max_difference(ours[name], array) < FLOAT32_GRADIENT * scale, name


def test_every_output_in_float64(pair):
    """With the decoder's own tokens and mask, and a hidden state and weights for everything."""
    reference = reference_model().double()
    rng = np.random.default_rng(1)
    inputs = {
        "input_ids": IDS,
        "attention_mask": MASK,
        "decoder_input_ids": rng.integers(2, 33, (3, 5), np.int32),
        "decoder_attention_mask": np.array([[1] * 5, [1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], np.int32),
        "token_type_ids": rng.integers(0, 2, (3, 6), np.int32),
        "position_ids": rng.integers(0, 17, (3, 6), np.int32),
        "decoder_token_type_ids": rng.integers(0, 2, (3, 5), np.int32),
        "decoder_position_ids": rng.integers(0, 17, (3, 5), np.int32),
    }
    with torch.no_grad():
        theirs = call_reference(
            reference, **inputs, output_hidden_states=True, output_attentions=True
        )
    with jax.enable_x64(True):
        out = same_model(reference, "float64")(
            **inputs, output_hidden_states=True, output_attentions=True
        )
    assert out.loss is None
    assert out.cache is None
    for field in dataclasses.fields(out):
        if field.name in ("loss", "cache"):
            continue
        ours, expected = out[field.name], theirs[field.name]
        if not isinstance(ours, tuple):
            ours, expected = (ours,), (expected,)
        assert len(ours) == len(expected)
        for array, reference_array in zip(ours, expected, strict=True):
            assert max_difference(array, reference_array) < FLOAT64, field.name


def test_the_encoder_is_given_positions_as_positions_and_types_as_types():
    """The Flax models of transformers hand the positions on as token types."""
    reference = reference_model()
    model = same_model(reference)
    positions = np.arange(6, dtype=np.int32)[::-1].copy()  # no types: there are 2 of those
    with torch.no_grad():
        expected = reference.encoder(
            torch.tensor(IDS).long(),
            attention_mask=torch.tensor(MASK),
            position_ids=torch.tensor(positions).long()[None],
        ).last_hidden_state
    out = model.encode(IDS, MASK, position_ids=positions)
    assert max_difference(out.last_hidden_state, expected) < FLOAT32
    explicit = model.encode(IDS, MASK, np.zeros_like(IDS), positions)
    assert np.array_equal(explicit.last_hidden_state, out.last_hidden_state)


def assert_same_arrays(a: Any, b: Any) -> None:
    a, b = to_state_dict(a), to_state_dict(b)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def as_numpy(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy() for name, x in model.state_dict().items()}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("tied", [True, False])
def test_files_from_transformers_and_to_it(tmp_path, encoder, tied):
    reference = reference_model(encoder, tie_word_embeddings=tied)
    reference.save_pretrained(tmp_path / "theirs")
    model = EncoderDecoderModel.from_pretrained(tmp_path / "theirs")
    assert model.config.decoder_start_token_id == START
    assert model.config.pad_token_id == PAD
    assert model.config.eos_token_id == EOS
    assert (model.decoder.lm_head.decoder is None) == tied
    assert (model.enc_to_dec_proj is None) == (encoder != "of another size")
    before, state = as_numpy(reference), to_state_dict(model)
    for name, array in state.items():
        # The one of two biases that transformers computes with.
        read = name if tied else name.replace(".predictions.bias", ".predictions.decoder.bias")
        assert np.array_equal(array, before[read]), name

    model.save_pretrained(tmp_path / "ours")
    loaded, info = transformers.EncoderDecoderModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    after = as_numpy(loaded)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], state[name]) for name in state)
    inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    with torch.no_grad():
        theirs, expected = (call_reference(eager(m), **inputs) for m in (loaded, reference))
    assert torch.equal(theirs.loss, expected.loss)
    assert torch.equal(theirs.logits, expected.logits)

    again = EncoderDecoderModel.from_pretrained(tmp_path / "ours")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert_same_arrays(again, model)


def test_half_precision_in_files(tmp_path, pair):
    model, _ = pair
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    half.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    auto = EncoderDecoderModel.from_pretrained(tmp_path, dtype="auto")
    assert_same_arrays(auto, half)
    out = call(auto, {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS})
    assert out.logits.dtype == jnp.bfloat16
    assert np.isfinite(out.loss)


def test_the_encoder_alone(tmp_path, pair):
    model, reference = pair
    model.save_pretrained(tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        encoder = BertModel.from_pretrained(tmp_path / folder)
        assert encoder.config.vocab_size == 29
        assert not encoder.config.is_decoder
        assert_same_arrays(encoder, model.encoder)


def test_decoding_with_a_cache_reads_the_encoder_once(pair):
    model, _ = pair
    decoder_ids = np.random.default_rng(1).integers(2, 33, (3, 5), np.int32)
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    whole = call(model, inputs | {"decoder_input_ids": decoder_ids})
    encoded = model.encode(IDS, MASK)
    from_states = {"encoder_outputs": encoded, "attention_mask": MASK}

    for given in (inputs, from_states):
        spoilt = eqx.tree_at(
            lambda m: m.encoder.embeddings.word.weight, model, replace_fn=lambda x: x * jnp.nan
        )
        first = {"decoder_input_ids": decoder_ids[:, :2], "cache": model.init_cache(3, 6)}
        out = call(model if given is inputs else spoilt, given | first)
        assert max_difference(out.logits, whole.logits[:, :2]) < FLOAT32
        for i in range(2, 5):
            step = {"decoder_input_ids": decoder_ids[:, i : i + 1], "cache": out.cache}
            out = call(spoilt, step)
            assert out.encoder_last_hidden_state is None
            assert max_difference(out.logits[:, 0], whole.logits[:, i]) < FLOAT32


@pytest.mark.parametrize("batch", [(), (3,), (1, 3)])
def test_leading_axes(pair, batch):
    model, _ = pair
    expected = call(model, {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS})

    def some(x: np.ndarray) -> np.ndarray:
        return x.reshape(*batch, x.shape[-1]) if batch else x[0]

    arrays = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    out = call(model, {name: some(x) for name, x in arrays.items()})
    logits = np.asarray(expected.logits)
    shaped = logits.reshape(*batch, *logits.shape[1:]) if batch else logits[0]
    assert max_difference(out.logits, shaped) < FLOAT32


def test_labels_are_the_decoders_tokens_moved_to_the_right(pair):
    model, _ = pair
    shifted = model.shift_right(LABELS)
    expected = shift_tokens_right(torch.tensor(LABELS).long(), PAD, START)
    assert np.array_equal(shifted, expected)
    assert np.array_equal(model.shift_right(jnp.asarray(LABELS[0])), expected[0])

    inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    implicit = call(model, inputs)
    explicit = call(
        model,
        inputs | {"decoder_input_ids": shifted, "decoder_attention_mask": shifted != PAD},
    )
    assert np.array_equal(implicit.loss, explicit.loss)
    assert np.array_equal(implicit.logits, explicit.logits)


def test_dropout_happens_with_a_key_alone(pair, key):
    model, _ = pair
    inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    plain = call(model, inputs)
    first, second, other = (call(model, inputs | {"key": k}) for k in (key, key, jax.random.key(1)))
    assert np.array_equal(first.logits, second.logits)
    assert not np.array_equal(first.logits, plain.logits)
    assert not np.array_equal(first.logits, other.logits)
    states = [out.encoder_last_hidden_state for out in (plain, first)]
    assert not np.array_equal(*states)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of transformers: an encoder, a masked language model, a decoder."""
    root = tmp_path_factory.mktemp("checkpoints")
    kinds = {
        "encoder": (transformers.BertModel, {}),
        "masked": (transformers.BertForMaskedLM, {"cls_token_id": 4}),
        "decoder": (transformers.BertLMHeadModel, {"is_decoder": True, "bos_token_id": 5}),
    }
    for name, (kind, changes) in kinds.items():
        model = kind(transformers.BertConfig(**TINY | changes))
        randomize(model, seed=len(name))
        model.save_pretrained(root / name)
    return {name: root / name for name in kinds}


@pytest.mark.parametrize("decoder", ["masked", "decoder"])
def test_a_model_of_two_checkpoints(folders, decoder, key):
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(
        folders["encoder"], folders[decoder], key=key, eos_token_id=EOS
    )
    reference = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(
        folders["encoder"], folders[decoder]
    )
    before, state = as_numpy(reference), to_state_dict(model)
    tied = {f"decoder.cls.predictions.decoder.{part}" for part in ("weight", "bias")}
    assert before.keys() - state.keys() <= tied
    assert state.keys() <= before.keys()
    different = {name for name in state if not np.array_equal(state[name], before[name])}
    assert different
    assert all(".crossattention." in name for name in different)  # which is drawn
    assert model.config.decoder.is_decoder
    assert model.config.decoder.add_cross_attention
    assert not model.config.encoder.is_decoder
    assert model.config.decoder_start_token_id == {"masked": 4, "decoder": 5}[decoder]
    assert model.config.eos_token_id == EOS
    cross = model.decoder.bert.encoder.layers[0].cross_attention
    assert 0.4 < float(jnp.std(cross.key.weight)) < 0.6
    again = EncoderDecoderModel.from_encoder_decoder_pretrained(
        folders["encoder"], folders[decoder], key=key, eos_token_id=EOS
    )
    assert_same_arrays(again, model)


def test_a_decoders_checkpoint_as_an_encoder_sees_both_sides(folders, key):
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(
        folders["decoder"], folders["decoder"], key=key
    )
    assert not model.encoder.config.is_decoder
    changed = IDS.copy()
    changed[:, -1] += 1
    before, after = model.encode(IDS), model.encode(changed)
    assert not np.array_equal(before.last_hidden_state[:, 0], after.last_hidden_state[:, 0])


def test_a_model_of_two_that_are_there(key):
    encoder = BertModel(tiny_config(), key=jax.random.key(1))
    for kind in (BertModel, BertForCausalLM):
        config = tiny_config(is_decoder=True, hidden_size=6, num_hidden_layers=1)
        decoder = kind(config, key=jax.random.key(2))
        model = EncoderDecoderModel.from_encoder_decoder(
            encoder, decoder, key=key, decoder_start_token_id=START, pad_token_id=9
        )
        assert_same_arrays(model.encoder, encoder)
        state, expected = to_state_dict(model), to_state_dict(decoder)
        for name, array in expected.items():
            path = f"decoder.{name}" if kind is BertForCausalLM else f"decoder.bert.{name}"
            assert "pooler" in name or np.array_equal(state[path], array), name
        assert model.enc_to_dec_proj.weight.shape == (6, 12)
        assert model.config.pad_token_id == model.decoder.config.pad_token_id == 9
    out = call(model, {"input_ids": IDS, "labels": LABELS})
    assert np.isfinite(out.loss)

    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (encoder, decoder))
    model = EncoderDecoderModel.from_encoder_decoder(*half, key=key, decoder_start_token_id=START)
    assert {x.dtype.name for x in jax.tree.leaves(model)} == {"bfloat16"}


def test_a_decoder_that_takes_the_encoders_size_itself(key):
    """With `cross_attention_hidden_size` there is no projection."""
    config = EncoderDecoderConfig(
        encoder=tiny_config(**ENCODERS["of another size"]),
        decoder=tiny_config(num_hidden_layers=1, cross_attention_hidden_size=8),
        decoder_start_token_id=START,
    )
    model = EncoderDecoderModel(config, key=key)
    assert model.enc_to_dec_proj is None
    out = call(model, {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS})
    assert out.encoder_last_hidden_state.shape == (3, 6, 8)
    assert np.isfinite(out.loss)


def test_configurations():
    decoder = tiny_config(bos_token_id=3, cls_token_id=4, eos_token_id=(5, 6), pad_token_id=7)
    config = EncoderDecoderConfig(encoder=tiny_config(), decoder=decoder)
    assert config.decoder.is_decoder
    assert config.decoder.add_cross_attention
    assert config.decoder_start_token_id == 3
    assert config.eos_token_id == (5, 6)
    assert config.pad_token_id == 7
    assert EncoderDecoderConfig.from_dict(config.to_dict()) == config
    assert EncoderDecoderConfig.from_dict(json.loads(config.to_json())) == config
    assert hash(config) == hash(EncoderDecoderConfig.from_dict(config.to_dict()))

    of_cls = config.replace(decoder=tiny_config(cls_token_id=4), decoder_start_token_id=None)
    assert of_cls.decoder_start_token_id == 4
    changed = config.replace(eos_token_id=1, pad_token_id=0)
    assert (changed.decoder.eos_token_id, changed.decoder.pad_token_id) == (1, 0)

    theirs = transformers.EncoderDecoderConfig.from_dict(config.to_dict())
    assert theirs.decoder.add_cross_attention
    assert theirs.decoder_start_token_id == 3
    assert EncoderDecoderConfig.from_dict(theirs.to_dict()).encoder.hidden_size == 12
    assert BertConfig.from_dict(config.to_dict()) == config.encoder

    kept = EncoderDecoderConfig.from_dict(config.to_dict() | {"max_length": 50})
    assert kept.extra == {"max_length": 50}
    assert kept.to_dict()["max_length"] == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', expected 'encoder-decoder'"),
        ({"encoder": None}, "with an encoder and a decoder|NoneType"),
        ({"tie_encoder_decoder": True}, "tie_encoder_decoder is true.*not supported"),
        ({"decoder_start_token_id": 33}, "decoder_start_token_id is 33, .* has 33 tokens"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id is -1"),
        ({"decoder": {"model_type": "gpt2"}}, "model_type is 'gpt2', but eqxbert reads only 'bert"),
        ({"pad_token_id": 40}, r"pad_token_id \(40\) must be an id"),
    ],
)
def test_wrong_configurations(changes, message, tmp_path):
    config = EncoderDecoderConfig(
        encoder=tiny_config(), decoder=tiny_config(), decoder_start_token_id=START
    )
    values = config.to_dict() | changes
    if changes == {"encoder": None}:
        del values["encoder"]
    with pytest.raises(ValueError, match=message):
        EncoderDecoderConfig.from_dict(values)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"config\.json: .*({message})"):
        EncoderDecoderModel.from_pretrained(tmp_path)


def test_sizes_that_contradict_one_another():
    with pytest.raises(ValueError, match=r"cross_attention_hidden_size is 10, .*hidden_size is 12"):
        EncoderDecoderConfig(
            encoder=tiny_config(), decoder=tiny_config(cross_attention_hidden_size=10)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS}, "Give decoder_input_ids, or labels to make them from"),
        ({"labels": LABELS}, "Give either input_ids or inputs_embeds; neither was given"),
        ({"input_ids": IDS, "labels": np.abs(LABELS)}, "labels contains 100, .* -100 for what has"),
        ({"input_ids": IDS + 9, "labels": LABELS}, r"input_ids contains .*vocab_size is 29"),
        ({"input_ids": IDS, "decoder_input_ids": LABELS}, "input_ids contains -100"),
    ],
)
def test_wrong_inputs(pair, arguments, message):
    with pytest.raises(ValueError, match=message):
        pair[0](**arguments)


def test_the_encoders_output_and_its_input(pair):
    model, _ = pair
    encoded = model.encode(IDS, MASK)
    for name in ("input_ids", "token_type_ids", "position_ids"):
        given = {name: np.zeros_like(IDS)}
        with pytest.raises(ValueError, match=f"what the encoder read, so {name} cannot be given"):
            model(attention_mask=MASK, labels=LABELS, encoder_outputs=encoded, **given)


def test_states_in_place_of_the_encoders_output(pair):
    model, _ = pair
    states = BertModelOutput(last_hidden_state=model.encode(IDS, MASK).last_hidden_state)
    inputs = {"attention_mask": MASK, "labels": LABELS}
    of_states = call(model, inputs | {"encoder_outputs": states})
    assert (
        max_difference(of_states.logits, call(model, inputs | {"input_ids": IDS}).logits) < FLOAT32
    )

    # (As users run it: without checks of types.)
    program = """
import eqxbert, jax, numpy as np
config = eqxbert.BertConfig.tiny()
config = eqxbert.EncoderDecoderConfig(encoder=config, decoder=config, decoder_start_token_id=1)
model, ids = eqxbert.EncoderDecoderModel(config, key=jax.random.key(0)), np.ones((2, 3), int)
try:
    model(decoder_input_ids=ids, encoder_outputs=model.encode(ids).last_hidden_state)
except ValueError as error:
    print(error)
"""
    assert "must be a BertModelOutput, which encode returns, got" in run_python(program).stdout


@pytest.mark.parametrize("name", ["decoder_start_token_id", "pad_token_id"])
def test_no_tokens_to_make_the_decoders_from(name, key):
    decoder = tiny_config(pad_token_id=None if name == "pad_token_id" else PAD)
    start = None if name == "decoder_start_token_id" else START
    config = EncoderDecoderConfig(
        encoder=tiny_config(), decoder=decoder, decoder_start_token_id=start
    )
    model = EncoderDecoderModel(config, key=key)
    with pytest.raises(ValueError, match=rf"{name}( is)? None.*both are needed"):
        model(input_ids=IDS, labels=LABELS)


def test_another_decoders_configuration_brings_its_tokens():
    encoder, decoder = tiny_config(), tiny_config(is_decoder=True, eos_token_id=3)
    config = EncoderDecoderConfig(encoder=encoder, decoder=decoder, eos_token_id=5, pad_token_id=1)
    assert (config.decoder.eos_token_id, config.decoder.pad_token_id) == (5, 1)
    changed = config.replace(decoder=config.decoder.replace(eos_token_id=9))
    assert (changed.eos_token_id, changed.decoder.eos_token_id) == (9, 9)
    assert config.replace(eos_token_id=None).eos_token_id is None
    assert config.replace(encoder=encoder).eos_token_id == 5
    assert config.replace(decoder=decoder, eos_token_id=7).eos_token_id == 7


def test_the_first_token_is_read_even_if_it_is_the_padding(key):
    encoder = BertModel(tiny_config(), key=key)
    decoder = BertForCausalLM(tiny_config(is_decoder=True, add_cross_attention=True), key=key)
    model = EncoderDecoderModel.from_encoder_decoder(
        encoder, decoder, decoder_start_token_id=0, pad_token_id=0, key=key
    )
    ids = np.array([[5, 6, 7, 8], [9, 3, 4, 2]], np.int32)
    by_labels = model(ids, labels=ids).logits
    by_tokens = model(ids, decoder_input_ids=model.shift_right(ids)).logits
    assert max_difference(by_labels, by_tokens) < FLOAT32


def test_wrong_parts(key):
    encoder = BertModel(tiny_config(), key=key)
    decoder = BertForCausalLM(tiny_config(is_decoder=True), key=key)
    backwards = BertModel(tiny_config(is_decoder=True), key=key)
    with pytest.raises(ValueError, match="in each other's place"):
        EncoderDecoderModel.from_encoder_decoder(backwards, decoder, key=key)
    for parts in ((encoder, "x"), ("x", decoder)):
        with pytest.raises((ValueError, TypeError), match=r"BERT, got str|: 'x'"):
            EncoderDecoderModel.from_encoder_decoder(*parts, key=key)
    with pytest.raises((ValueError, TypeError), match="EncoderDecoderConfig"):
        EncoderDecoderModel(tiny_config(), key=key)
    for start in (2.0, True, "2", [2]):
        with pytest.raises((ValueError, TypeError), match="decoder_start_token_id"):
            EncoderDecoderConfig(
                encoder=encoder.config, decoder=decoder.config, decoder_start_token_id=start
            )
    with pytest.raises(ValueError, match="extra contains encoder"):
        EncoderDecoderConfig(encoder=encoder.config, decoder=decoder.config, extra={"encoder": 3})


def test_a_used_cache_and_other_input(key):
    encoder = BertModel(tiny_config(), key=key)
    decoder = BertForCausalLM(tiny_config(is_decoder=True, add_cross_attention=True), key=key)
    model = EncoderDecoderModel.from_encoder_decoder(
        encoder, decoder, decoder_start_token_id=1, key=key
    )
    ids = np.array([[5, 6, 7]], np.int32)
    out = model(ids, decoder_input_ids=ids, cache=model.init_cache(1, 9))
    for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
        given = {name: np.ones_like(ids)}
        message = f"cache holds what the encoder read; {name} cannot be given with it"
        with pytest.raises(ValueError, match=message):
            model(decoder_input_ids=ids, cache=out.cache, **given)
    with pytest.raises(ValueError, match="read; attention_mask, encoder_outputs cannot be given"):
        model(None, ids, ids, encoder_outputs=model.encode(ids), cache=out.cache)
