"""Wrong requests: each is refused, before anything is compiled, with a message that helps."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generation.references import Markov
from helpers import run_python, tiny_config

import eqxbert
from eqxbert import (
    BertForCausalLM,
    BertForMaskedLM,
    BertModel,
    EncoderDecoderConfig,
    generate,
    stream,
)

IDS = np.array([[2, 3, 4, 5], [6, 7, 8, 9]], np.int32)
STATES = np.ones((2, 3, 12), np.float32)


@pytest.fixture(scope="module")
def model() -> BertForCausalLM:
    return BertForCausalLM(tiny_config(), key=jax.random.key(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # How many tokens.
        ({"max_new_tokens": None}, "Give either max_new_tokens or max_length"),
        ({"max_length": 9}, "Give either max_new_tokens or max_length"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, which leaves no room for a new token"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": None, "max_length": 4}, "max_length is 4, which .* after 4 of the pro"),
        ({"max_new_tokens": None, "max_length": 0}, "max_length is 0"),
        ({"max_new_tokens": 14}, "prompt of 4 tokens and 14 new ones .* 17 positions"),
        ({"max_new_tokens": None, "max_length": 18}, "of 4 tokens and 14 new ones .* 17 positions"),
        # Tokens.
        ({"eos_token_id": 33}, "eos_token_id contains 33, but the vocabulary has the ids 0 to 32"),
        ({"eos_token_id": -1}, "eos_token_id contains -1"),
        ({"eos_token_id": [1, 40]}, "eos_token_id contains 40"),
        ({"pad_token_id": 33}, "pad_token_id contains 33"),
        ({"suppress_tokens": [1, 33]}, "suppress_tokens contains 33"),
        ({"bad_words": [[1], [2, 33]]}, "bad_words contains 33"),
        ({"bad_words": [[1], []]}, "bad_words contains an empty word"),
        ({"forced_bos_token_id": 33}, "forced_bos_token_id contains 33"),
        ({"forced_eos_token_id": -2}, "forced_eos_token_id contains -2"),
        # Counts.
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"num_return_sequences": 0}, "num_return_sequences must be at least 1, got 0"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2, but num_beams is 1"),
        (
            {"num_beams": 2, "num_return_sequences": 3},
            "num_return_sequences is 3, but num_beams is 2",
        ),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must not be negative, got -1"),
        ({"min_length": -1}, "min_length must not be negative"),
        ({"min_new_tokens": -1}, "min_new_tokens must not be negative"),
        ({"num_beams": 2, "early_stopping": "always"}, 'True, False or "never", got .always'),
        # Sampling.
        ({"do_sample": True}, r"needs a key, such as key=jax.random.key\(0\)"),
        ({"temperature": 0.5}, "temperature only matters for sampling, but do_sample is False"),
        ({"top_k": 3, "top_p": 0.5}, "top_k, top_p only matters for sampling"),
        ({"min_p": 0.5}, "min_p only matters for sampling"),
        ({"typical_p": 0.5}, "typical_p only matters for sampling"),
        ({"repetition_penalty": 0}, "repetition_penalty must be positive, got 0"),
        # What would have no effect.
        ({"key": jax.random.key(0)}, "key only matters for sampling, but do_sample is False"),
        ({"length_penalty": 2.0}, "length_penalty only matters for beams, but num_beams is 1"),
        (
            {"length_penalty": 0, "early_stopping": True},
            "length_penalty, early_stopping only matters for beams",
        ),
        ({"early_stopping": "never"}, "early_stopping only matters for beams"),
        (
            {"decoder_start_token_id": 3},
            "only matters for an EncoderDecoderModel, got a BertForCausalLM",
        ),
        # What there is no room for.
        ({"min_new_tokens": 4}, "min_new_tokens is 4, but max_new_tokens is 3, .* no more than 3"),
        (
            {"min_new_tokens": 4, "max_length": 7, "max_new_tokens": None},
            "min_new_tokens is 4, but max_length is 7, .* no more than 3",
        ),
        (
            {"min_length": 8, "max_length": 7, "max_new_tokens": None},
            "min_length is 8, but max_length is 7",
        ),
        # Nothing left to choose from.
        ({"suppress_tokens": range(33)}, "bad_words forbid all of the 33 tokens. At least one"),
        (
            {"suppress_tokens": range(9), "bad_words": [[token] for token in range(9, 33)]},
            "suppress_tokens and bad_words forbid all of the 33 tokens",
        ),
        (
            {"suppress_tokens": range(32), "eos_token_id": 32, "min_new_tokens": 1},
            "and min_new_tokens at first, forbid all",
        ),
        (
            {"suppress_tokens": [3], "forced_bos_token_id": 3},
            "forced_bos_token_id is 3, which suppress_tokens forbids",
        ),
        (
            {"suppress_tokens": [3, 5, 7], "forced_eos_token_id": [5, 3]},
            r"forced_eos_token_id is \(5, 3\), which suppress_tokens forbids",
        ),
    ],
)
def test_wrong_options(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(model, IDS, **{"max_new_tokens": 3} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be positive, got 0. For the likeliest token"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"top_k": 0}, "top_k must be at least 1, or None for all, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, or None, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"min_p": 0.0}, "min_p must be above 0"),
        ({"typical_p": -0.5}, "typical_p must be above 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, r"sequences \(3\) exceeds num_beams \(2\)"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, r"key has shape \(3,\), .* \(2,\)"),
        ({"key": jax.random.split(jax.random.key(0), (1, 2))}, r"key has shape \(1, 2\), .* \(2,"),
    ],
)
def test_wrong_options_of_sampling(model, arguments, message):
    arguments = {"key": jax.random.key(0), "do_sample": True, "max_new_tokens": 3} | arguments
    with pytest.raises(ValueError, match=message):
        generate(model, IDS, **arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 3},
        {"min_length": 7, "max_length": 7, "max_new_tokens": None},
        {"suppress_tokens": range(32)},
        {"suppress_tokens": range(32), "bad_words": [[32]], "eos_token_id": 32},
        {"suppress_tokens": [3], "forced_eos_token_id": [5, 3]},
        {"num_beams": 2, "length_penalty": 2.0, "early_stopping": True},
    ],
)
def test_what_is_barely_possible(options):
    prompts = np.ones((2, 4), np.int32)
    out = generate(Markov.random(33), prompts, **{"max_new_tokens": 3} | options)
    assert np.all(np.isfinite(out.scores))


def test_options_at_the_end_of_their_ranges(key):
    model = Markov.random(6)
    options = {"top_p": 1.0, "min_p": 1.0, "typical_p": 1.0, "top_k": 99, "temperature": 1e-3}
    prompts = np.array([[3], [2]], np.int32)
    drawn = generate(model, prompts, max_new_tokens=4, do_sample=True, key=key, **options)
    likeliest = generate(model, prompts, max_new_tokens=4)
    assert np.array_equal(drawn.sequences, likeliest.sequences)


@pytest.mark.parametrize(
    ("batch", "keys", "message"),
    [
        ((), (1,), r"key has shape \(1,\), expected \(\)\."),
        ((2, 3), (6,), r"key has shape \(6,\), expected \(\) or one for each row, \(2, 3\)"),
    ],
)
def test_keys_of_another_batch(model, batch, keys, message):
    prompts, key = np.ones((*batch, 4), np.int32), jax.random.split(jax.random.key(0), keys)
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, max_new_tokens=3, do_sample=True, key=key)


def with_hole(*rows: int) -> np.ndarray:
    mask = np.ones((2, 2, 2), np.int32)
    mask[rows] = 0
    return mask


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (IDS[:, :0], None, r"input_ids has shape \(2, 0\): the prompt is empty.*bos_token_id"),
        (IDS + 30, None, "input_ids contains 33, but valid ids are 0 to 32"),
        (IDS - 9, None, "input_ids contains -7"),
        (IDS, np.array([[1, 1, 1, 1], [0, 0, 0, 0]]), r"0 throughout in row \(1,\)"),
        (IDS.reshape(2, 2, 2), with_hole(1, 0), r"0 throughout in row \(1, 0\)"),
        (IDS[0], np.zeros(4, bool), r"0 throughout in row \(\)"),
        (IDS, np.ones((2, 3), bool), r"attention_mask has shape \(2, 3\), expected \(2, 4\)"),
        (IDS, np.ones((2, 4, 4), bool), r"attention_mask has shape \(2, 4, 4\)"),
        (IDS, np.full((2, 4), 2), "attention_mask contains 2"),
    ],
)
def test_wrong_prompts(model, ids, mask, message):
    with pytest.raises(ValueError, match=message):
        generate(model, ids, mask, max_new_tokens=3)


def test_unknown_options_are_named(model):
    with pytest.raises(TypeError, match="num_beam"):
        generate(model, IDS, max_new_tokens=3, num_beam=2)
    with pytest.raises(TypeError, match="maximum"):
        generate(model, IDS, maximum=3)


def test_padding_does_not_count_as_a_position(model):
    mask = np.array([[0, 0, 1, 1], [0, 0, 0, 1]])
    assert generate(model, IDS, mask, max_new_tokens=15).sequences.shape == (2, 19)
    with pytest.raises(ValueError, match="prompt of 2 tokens and 16 new ones"):
        generate(model, IDS, mask, max_new_tokens=16)


@pytest.fixture(scope="module")
def attending() -> BertForCausalLM:
    config = tiny_config(is_decoder=True, add_cross_attention=True)
    return BertForCausalLM(config, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"attends to an encoder \(add_cross_attention\): give encoder_hidden_states"),
        ({"encoder_attention_mask": np.ones((2, 3), bool)}, "encoder_hidden_states"),
        ({"encoder_hidden_states": STATES[..., :5]}, r"encoder_hidden_states has shape .* 12\)"),
        (
            {"encoder_hidden_states": STATES, "encoder_attention_mask": np.ones((2, 4), bool)},
            r"encoder_attention_mask has shape \(2, 4\), expected \(2, 3\)",
        ),
        (
            {"encoder_hidden_states": STATES, "encoder_attention_mask": np.full((2, 3), 7)},
            "encoder_attention_mask contains 7",
        ),
    ],
)
def test_encoder_states(attending, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(attending, IDS, max_new_tokens=3, **arguments)


def test_encoder_states_of_a_model_that_has_no_use_for_them(model):
    with pytest.raises(ValueError, match="this model has no cross-attention"):
        generate(model, IDS, max_new_tokens=3, encoder_hidden_states=STATES)
    with pytest.raises(ValueError, match="encoder_attention_mask was given without"):
        generate(model, IDS, max_new_tokens=3, encoder_attention_mask=np.ones((2, 3), bool))


@pytest.fixture(scope="module")
def translator() -> eqxbert.EncoderDecoderModel:
    config = EncoderDecoderConfig(
        encoder=tiny_config(vocab_size=20, max_position_embeddings=9),
        decoder=tiny_config(),
        decoder_start_token_id=2,
    )
    return eqxbert.EncoderDecoderModel(config, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("ids", "arguments", "message"),
    [
        (IDS, {"encoder_hidden_states": STATES}, "has an encoder; encoder_hidden_states cannot"),
        (IDS, {"encoder_attention_mask": np.ones((2, 4), bool)}, "encoder_attention_mask"),
        (IDS + 12, {}, r"input_ids contains 20, but valid ids are 0 to 19"),
        (
            np.ones((2, 10), np.int32),
            {},
            "input has 10 tokens, but the encoder has positions for 9",
        ),
        (IDS, {"max_new_tokens": 17}, "prompt of 1 tokens and 17 new ones .* 17 positions"),
        (IDS, {"max_new_tokens": None, "max_length": 1}, "max_length is 1"),
        (IDS, {"eos_token_id": 33}, "eos_token_id contains 33"),
        (IDS, {"decoder_start_token_id": 33}, "decoder_start_token_id contains 33"),
    ],
)
def test_encoder_decoders(translator, ids, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(translator, ids, **{"max_new_tokens": 3} | arguments)


def test_no_token_to_start_with(translator):
    config = translator.config.replace(decoder_start_token_id=None)
    with pytest.raises(ValueError, match=r"decoder_start_token_id is None. Set it"):
        generate(translator.with_config(config), IDS, max_new_tokens=3)


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_models_that_are_no_decoders(kind, key):
    """Such a model is named, and what takes its place."""
    wrong: Any = kind(tiny_config(), key=key)
    with pytest.raises((TypeError, ValueError), match=rf"{kind.__name__}.*BertForCausalLM"):
        generate(wrong, IDS, max_new_tokens=3)


@pytest.mark.parametrize("kind", [BertForCausalLM, eqxbert.EncoderDecoderModel, BertModel])
def test_a_class_in_place_of_a_model(kind):
    message = rf"model is the class {kind.__name__}, expected .*{kind.__name__}.from_pretrained"
    with pytest.raises(ValueError, match=message):
        generate(kind, IDS, max_new_tokens=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("num_beams", "min_length")
            for value in ("4", 2.5, True, None)
        ),
        *(
            (name, value)
            for name in ("top_k", "pad_token_id", "decoder_start_token_id")
            for value in ("4", 2.5, True)
        ),
        *(("temperature", value) for value in ("1", float("nan"), float("inf"), True, None)),
        *(("length_penalty", value) for value in ("1", float("nan"), None)),
        *(("top_p", value) for value in ("0.5", float("nan"), jnp.array(0.5))),
        ("do_sample", "no"),
        ("early_stopping", 1),
        ("early_stopping", "yes"),
        ("eos_token_id", [3.5]),
        ("eos_token_id", "3"),
        ("eos_token_id", True),
        ("suppress_tokens", 5),
        ("suppress_tokens", [1.0]),
        ("suppress_tokens", None),
        ("bad_words", [1, 2]),
        ("bad_words", None),
        ("processors", lambda ids, logits, step: logits),
        ("processors", [3]),
        ("forced_eos_token_id", [1.5]),
        ("max_new_tokens", "3"),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", True),
        ("max_new_tokens", jnp.array(2)),
    ],
)
def test_wrong_types_are_told_by_name(name, value):
    """(Where types are checked anyway, by that.)"""
    options = {"max_new_tokens": 2, name: value}
    with pytest.raises((ValueError, TypeError), match=name):
        generate(Markov.random(9), np.ones((2, 3), np.int32), **options)


def test_numbers_of_numpy():
    """(As users run it: without checks of types.)"""
    program = """
import numpy as np
from eqxbert.generation.options import GenerationOptions
options = GenerationOptions(num_beams=np.int32(2), eos_token_id=np.int64(3), top_p=np.float32(0.5))
assert options == GenerationOptions(num_beams=2, eos_token_id=[3], top_p=0.5), options
"""
    assert run_python(program).returncode == 0


@pytest.mark.parametrize("key", [3, "a", np.zeros(2, np.int32), np.zeros(2)])
def test_what_is_no_key(key):
    with pytest.raises((ValueError, TypeError), match="key"):
        generate(
            Markov.random(9), np.ones((2, 3), np.int32), max_new_tokens=2, do_sample=True, key=key
        )


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad], ids=["jit", "vmap", "grad"])
def test_it_cannot_be_called_in_what_is_compiled(transform):
    model = Markov.random(9)
    prompts = np.ones((2, 3), np.int32)

    def over_table(table: jax.Array) -> jax.Array:
        changed = eqx.tree_at(lambda model: model.table, model, table)
        return generate(changed, prompts, max_new_tokens=2).scores.sum()

    argument = jnp.zeros((2, 9, 9)) if transform is jax.vmap else jnp.zeros((9, 9))
    with pytest.raises(ValueError, match=r"Call it outside of jax\.jit"):
        transform(over_table)(argument)
    with pytest.raises(ValueError, match=r"Call it outside of jax\.jit"):
        jax.jit(lambda ids: stream(model, ids, max_new_tokens=2))(prompts)


@pytest.mark.parametrize("shape", [(0, 5), (0, 2, 5)])
def test_a_batch_without_rows(shape):
    with pytest.raises(ValueError, match="the batch has no rows"):
        generate(Markov.random(9), np.ones(shape, np.int32), max_new_tokens=2)


@pytest.mark.parametrize("returned", [lambda logits: logits[:, :3], lambda logits: None])
def test_a_processor_that_returns_something_else(returned):
    with pytest.raises(ValueError, match=r"The processor .* returned"):
        generate(
            Markov.random(9),
            np.ones((2, 3), np.int32),
            max_new_tokens=2,
            processors=[lambda ids, logits, step: returned(logits)],
        )


@pytest.mark.parametrize("shape", [(3, 2, 5, 12), (6, 5, 12), (5, 12), (2, 3, 0, 12), (12,)])
def test_encoder_states_of_another_batch(attending, shape):
    with pytest.raises((ValueError, TypeError), match="encoder_hidden_states"):
        generate(
            attending,
            np.ones((2, 3, 4), np.int32),
            max_new_tokens=2,
            encoder_hidden_states=np.zeros(shape, np.float32),
        )
