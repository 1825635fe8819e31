"""Tokens as they come are those of the whole."""

import math
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generation.references import (
    EOS,
    PAD,
    Markov,
    count_compilations,
    padded,
    random_prompts,
    reference_decoder,
    same_decoder,
)
from helpers import tiny_config

from eqxbert import BertForCausalLM, generate, stream
from eqxbert.generation import GenerationOptions
from eqxbert.generation.generate import _advance, _start
from eqxbert.generation.request import make_request

ROWS = [[5, 6, 7, 8], [9], [20, 17, 2], [4, 4], [30, 2], [12, 31, 6]]


def together(steps: list[np.ndarray]) -> np.ndarray:
    """The tokens of all steps, as the last axis."""
    return np.stack(steps, axis=-1)


def test_tokens_are_those_of_generate():
    model = same_decoder(reference_decoder(5, likely=3))
    ids, mask = padded(ROWS, "left")
    options = {"max_new_tokens": 10, "eos_token_id": EOS}
    expected = generate(model, ids, mask, **options)
    steps = list(stream(model, ids, mask, **options))
    assert all(isinstance(step, np.ndarray) and step.shape == (6,) for step in steps)
    assert len(set(expected.lengths.tolist())) > 2  # some end before others, which yield padding
    assert np.array_equal(together(steps), expected.sequences[:, 4:])


@pytest.mark.parametrize("options", [{"do_sample": True, "temperature": 2.0}, {"min_length": 6}])
@pytest.mark.parametrize("batch", [(), (6,), (2, 3)])
def test_batches_and_options(options, batch, key):
    model = Markov.random(8, pad_token_id=7)
    prompts = np.resize(random_prompts(6, 3) % 8, (*batch, 3))
    if "do_sample" in options:
        options = options | {"key": key}
    options |= {"max_length": 12, "eos_token_id": EOS, "repetition_penalty": 1.1}
    expected = generate(model, prompts, **options)
    steps = list(stream(model, prompts, **options))
    assert all(step.shape == batch for step in steps)
    assert np.array_equal(together(steps), expected.sequences[..., 3:])


def test_it_ends_when_all_rows_have_ended():
    table = np.zeros((6, 6))
    table[2, 3] = table[3, 4] = table[4, EOS] = 9
    model = Markov.of(table)
    prompts = np.array([[2], [3]], np.int32)
    steps = list(stream(model, prompts, max_new_tokens=50, eos_token_id=EOS))
    assert together(steps).tolist() == [[3, 4, EOS], [4, EOS, PAD]]


def test_tokens_come_one_by_one_and_stay_as_they_are():
    """The next one is computed when it is asked for."""
    model, seen = Markov.random(6), []

    def look(ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        jax.debug.callback(lambda step: seen.append(int(step)), step, ordered=True)
        return logits

    tokens = stream(model, np.array([[2, 3]], np.int32), max_new_tokens=5, processors=[look])
    got: list[Any] = []
    for i in range(5):
        got.append((next(tokens), i))
        jax.effects_barrier()
        assert seen == list(range(i + 1))
    assert next(tokens, None) is None
    expected = generate(model, np.array([[2, 3]], np.int32), max_new_tokens=5)
    assert [int(token[0]) for token, _ in got] == expected.sequences[0, 2:].tolist()


def test_two_programs_serve_all_prompts_of_a_bucket():
    model = Markov.random(6)

    def run(length: int, seed: int) -> None:
        prompts = random_prompts(3, length, seed) % 6
        assert len(list(stream(model, prompts, max_new_tokens=4))) == 4

    assert count_compilations(lambda: run(5, 0)) == 2
    for length in (5, 1, 8):
        assert count_compilations(lambda length=length: run(length, length)) == 0
    assert count_compilations(lambda: run(9, 0)) == 2


def test_beams_cannot_be_streamed(key):
    model, prompts = Markov.random(6), np.array([[2, 3]], np.int32)
    for options in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True, "key": key}):
        with pytest.raises(ValueError, match=r"num_beams and num_return_sequences must be 1"):
            stream(model, prompts, max_new_tokens=3, **options)


def test_wrong_arguments_are_refused_at_once():
    model, prompts = Markov.random(6), np.array([[2, 3]], np.int32)
    with pytest.raises(ValueError, match="input_ids contains 6"):
        stream(model, prompts + 3, max_new_tokens=3)
    with pytest.raises(TypeError, match="num_beam"):
        stream(model, prompts, max_new_tokens=3, num_beam=2)


@pytest.mark.optimized
@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_writes_into_the_cache_it_is_given(rows):
    """The program's output is its input's memory; there is no copy of as much as one layer's keys,
    and no room for one.
    """
    config = tiny_config(
        is_decoder=True, hidden_size=64, num_attention_heads=4, max_position_embeddings=3000
    )
    model = BertForCausalLM(config, key=jax.random.key(0))
    request, *_ = make_request(
        model,
        random_prompts(rows, 4),
        None,
        2500,
        None,
        None,
        None,
        None,
        GenerationOptions(),
    )
    state = _start(model, request)
    program = _advance.lower(model, state).compile().compiled
    memory, keys = program.memory_analysis(), state.cache.layers[0].keys
    assert memory.alias_size_in_bytes >= 2 * 2 * keys.nbytes  # keys and values of two layers
    assert memory.temp_size_in_bytes < keys.nbytes
    copies = re.findall(r"= f32\[([\d,]+)\]\S* copy\(", program.as_text())
    assert all(math.prod(map(int, shape.split(","))) < keys.size for shape in copies)


class Shift(eqx.Module):
    """A processor that is a module."""

    amount: jax.Array

    def __call__(self, ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        return logits + self.amount[None]


def test_a_processor_with_arrays():
    prompts = np.array([[2], [3]], np.int32)
    options = {"max_new_tokens": 4, "processors": [Shift(jnp.arange(6.0))]}
    tokens = np.stack(list(stream(Markov.random(6), prompts, **options)), axis=-1)
    out = generate(Markov.random(6), prompts, **options)
    assert np.array_equal(tokens, out.sequences[:, 1:])
