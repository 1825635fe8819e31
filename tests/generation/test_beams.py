"""Beam search against transformers', token for token and score for score, and against a search
through everything.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from generation.references import (
    EOS,
    Markov,
    log_probabilities,
    our_tokens,
    padded,
    random_prompts,
    reference_decoder,
    same_decoder,
    their_tokens,
)
from helpers import max_difference
from tolerances import FLOAT32

from eqxbert import BertForCausalLM, generate

ROWS, PROMPT, NEW = 8, 2, 12
COUNTS = np.array([[start, start + 1] for start in range(9, 9 + ROWS)], np.int32)


@pytest.fixture(scope="module")
def pairs(trained) -> dict[str, tuple[BertForCausalLM, Any, np.ndarray]]:
    """Models here and in transformers, and prompts for them."""
    reference = reference_decoder(5, likely=20, num_hidden_layers=1)
    random = same_decoder(reference).with_config(trained[0].config)  # one program serves both
    return {
        "random": (random, reference, random_prompts(ROWS, PROMPT)),
        "trained": (*trained, COUNTS),
    }


def assert_same_beams(pair: tuple, prompts: np.ndarray, **options: Any) -> list[list[int]]:
    model, reference = pair[:2]
    options = {"max_new_tokens": NEW, "eos_token_id": EOS} | options
    expected, scores = their_tokens(reference, prompts, **options)
    assert scores is not None
    out = generate(model, prompts, **options)
    assert our_tokens(out, prompts.shape[-1]) == expected
    ours = np.asarray(out.scores).reshape(-1)
    assert max_difference(ours / np.abs(scores), np.sign(scores)) < FLOAT32
    return expected


GRID = [
    {"num_beams": 2},
    {"num_beams": 3, "early_stopping": True, "num_return_sequences": 3},
    {"num_beams": 3, "early_stopping": "never", "num_return_sequences": 2},
    {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never", "num_return_sequences": 3},
    {"num_beams": 3, "length_penalty": 2.0, "num_return_sequences": 3},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never", "num_return_sequences": 3},
    {"num_beams": 4, "length_penalty": -1.0, "num_return_sequences": 4},
    {"num_beams": 4, "length_penalty": -0.5, "early_stopping": "never", "num_return_sequences": 2},
    {"num_beams": 4, "length_penalty": 3.0, "early_stopping": True, "num_return_sequences": 4},
]


@pytest.mark.parametrize("options", GRID, ids=str)
def test_beams_equal_transformers(pairs, options):
    lengths = set()
    for model, reference, prompts in pairs.values():
        expected = assert_same_beams((model, reference), prompts, **options)
        lengths |= set(map(len, expected))
    assert len(lengths) > 2  # they end in several places


def test_two_layers_and_several_ends():
    reference = reference_decoder(1)
    model = same_decoder(reference)
    prompts = random_prompts(4, 5)
    free, _ = their_tokens(reference, prompts, max_new_tokens=NEW)
    counts = np.bincount([token for row in free for token in row[4:]])
    ends = np.argsort(counts)[-2:].tolist()
    options = {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": ends}
    expected = assert_same_beams((model, reference), prompts, **options)
    assert {row[-1] for row in expected} == set(ends)


def test_without_an_end(pairs):
    """A model whose configuration has none."""
    expected = assert_same_beams(pairs["random"], COUNTS, num_beams=2, eos_token_id=None)
    assert {len(row) for row in expected} == {NEW}


@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_rows_of_any_length_are_continued_as_if_each_were_alone(pairs, side):
    model, reference, _ = pairs["trained"]
    rows = [[8, 9, 10, 11], [12], [16, 17], [9, 11, 12]]
    options = {"max_new_tokens": 12, "num_beams": 3, "num_return_sequences": 3}
    expected = [
        tokens for row in rows for tokens in their_tokens(reference, np.array([row]), **options)[0]
    ]
    ids, mask = padded(rows, side)
    out = generate(model, ids, mask, eos_token_id=EOS, **options)
    assert out.sequences.shape[:2] == (4, 3)
    assert our_tokens(out, ids.shape[1]) == expected


def test_scores_are_those_of_the_sequences(pairs):
    model, _, prompts = pairs["random"]
    options = {"num_beams": 3, "length_penalty": 2.0, "num_return_sequences": 3}
    out = generate(model, prompts, max_new_tokens=NEW, eos_token_id=EOS, **options)
    assert np.all(np.diff(out.scores, axis=1) <= 0)
    for index in np.ndindex(out.lengths.shape):
        length = int(out.lengths[index])
        tokens = out.sequences[index][: PROMPT + length].tolist()
        expected = log_probabilities(model, tokens, PROMPT).sum() / length**2
        assert abs(float(out.scores[index]) - expected) < FLOAT32


def test_axes_of_the_batch(pairs):
    model, _, prompts = pairs["random"]
    options = {"num_beams": 3, "length_penalty": 2.0, "num_return_sequences": 3}
    options |= {"max_new_tokens": NEW, "eos_token_id": EOS}
    flat = generate(model, prompts, **options)
    out = generate(model, prompts.reshape(2, 4, PROMPT), **options)
    assert out.scores.shape == out.lengths.shape == out.sequences.shape[:-1] == (2, 4, 3)
    assert np.array_equal(out.sequences, flat.sequences.reshape(2, 4, 3, -1))
    assert np.array_equal(out.lengths, flat.lengths.reshape(2, 4, 3))
    alone = generate(model, prompts[5], **options)
    assert alone.sequences.shape[:-1] == alone.scores.shape == (3,)
    assert our_tokens(alone, PROMPT) == our_tokens(flat, PROMPT)[15:18]
    assert max_difference(alone.scores, flat.scores[5]) < FLOAT32


def every_sequence(model: Markov, prompt: int, limit: int) -> list[tuple[float, list[int]]]:
    """All sequences of new tokens up to an end or the limit, with their log-probabilities."""
    found = []
    others = [token for token in range(model.config.vocab_size) if token != EOS]
    for length in range(1, limit + 1):
        for before in itertools.product(others, repeat=length - 1):
            for final in range(model.config.vocab_size) if length == limit else [EOS]:
                tokens = [*before, final]
                pairs = itertools.pairwise([prompt, *tokens])
                total = sum(model.log_probabilities(a)[b] for a, b in pairs)
                found.append((float(total), tokens))
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
def test_with_as_many_beams_as_sequences_the_best_are_found(length_penalty):
    model, limit = Markov.random(5), 4
    every = every_sequence(model, prompt=3, limit=limit)
    assert abs(sum(np.exp(total) for total, _ in every) - 1) < FLOAT32
    best = sorted((total / len(t) ** length_penalty for total, t in every), reverse=True)
    out = generate(
        model,
        np.array([3], np.int32),
        max_new_tokens=limit,
        eos_token_id=EOS,
        num_beams=4**3 * 5,
        num_return_sequences=10,
        length_penalty=length_penalty,
        early_stopping="never",
    )
    assert max_difference(out.scores, best[:10]) < FLOAT32
    found = our_tokens(out, 1)
    assert len(set(map(tuple, found))) == 10
    totals = {tuple(tokens): total for total, tokens in every}
    scores = [totals[tuple(tokens)] / len(tokens) ** length_penalty for tokens in found]
    assert max_difference(out.scores, scores) < FLOAT32


def test_there_is_something_to_go_on_with_when_all_the_best_have_ended():
    """Here, the best candidates of two beams are the two ends after each."""
    p = np.array([0.4, 0.4, 0.01, 0.09, 0.09, 0.01])
    out = generate(
        Markov.of(np.log(np.tile(p, (6, 1)))),
        np.array([3], np.int32),
        max_new_tokens=3,
        eos_token_id=[0, 1],
        num_beams=2,
        num_return_sequences=2,
        length_penalty=3.0,
        early_stopping="never",
    )
    assert out.lengths.tolist() == [3, 3]
    best = np.log(0.09 * 0.09 * 0.4) / 3**3
    assert max_difference(out.scores, [best, best]) < FLOAT32


@pytest.mark.parametrize(("early_stopping", "steps"), [(True, 2), (False, 5), ("never", 9)])
def test_when_a_search_ends(early_stopping, steps):
    """Two have ended after two steps. By their present lengths, those that go on are worse than the
    best two only after five; and at full length they might still be better.
    """
    p = np.array([[0.1, 0.5, 0.4], [0.3, 0.4, 0.3], [0.8, 0.15, 0.05]])
    seen = []

    def look(ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        jax.debug.callback(lambda step: seen.append(int(step)), step, ordered=True)
        return logits

    generate(
        Markov.of(np.log(p)),
        np.array([0], np.int32),
        max_new_tokens=9,
        eos_token_id=EOS,
        num_beams=2,
        early_stopping=early_stopping,
        processors=[look],
    )
    jax.effects_barrier()
    assert seen == list(range(steps))


def test_one_beam_is_greedy_search(pairs):
    model, _, prompts = pairs["random"]
    options = {"max_new_tokens": NEW, "eos_token_id": EOS}
    one = generate(model, prompts, num_beams=1, **options)
    assert our_tokens(one, PROMPT) == our_tokens(generate(model, prompts, **options), PROMPT)


SAMPLING = {"num_beams": 3, "num_return_sequences": 3, "do_sample": True, "temperature": 0.7}
SAMPLING |= {"max_new_tokens": NEW, "eos_token_id": EOS}


def test_beams_that_are_drawn(pairs, key):
    model, _, prompts = pairs["random"]
    out = generate(model, prompts, key=key, **SAMPLING)
    again = generate(model, prompts, key=key, **SAMPLING)
    assert jax.tree.all(jax.tree.map(np.array_equal, out, again))
    other = generate(model, prompts, key=jax.random.key(1), **SAMPLING)
    assert our_tokens(other, PROMPT) != our_tokens(out, PROMPT)
    assert np.all(np.diff(out.scores, axis=1) <= 0)
    for index in np.ndindex(out.lengths.shape):
        length = int(out.lengths[index])
        tokens = out.sequences[index][: PROMPT + length].tolist()
        expected = log_probabilities(model, tokens, PROMPT).sum() / 0.7 / length
        assert abs(float(out.scores[index]) - expected) < FLOAT32
    assert all(len(set(map(tuple, beams))) == 3 for beams in out.sequences.tolist())


def test_drawn_beams_of_a_row_depend_on_its_own_key_alone(pairs, key):
    model, _, prompts = pairs["random"]
    keys = jax.random.split(key, ROWS)
    out = generate(model, prompts, key=keys, **SAMPLING)
    order = np.arange(ROWS)[::-1]
    moved = generate(model, prompts[order], key=keys[order], **SAMPLING)
    assert np.array_equal(moved.sequences, out.sequences[order])
    assert max_difference(moved.scores, out.scores[order]) < FLOAT32


def test_the_first_beams_that_are_drawn(key):
    """Two tokens drawn without replacement, of which either may come first."""
    model, rows = Markov.random(4), 4000
    out = generate(
        model,
        np.full((rows, 1), 3, np.int32),
        max_new_tokens=1,
        num_beams=2,
        num_return_sequences=2,
        do_sample=True,
        key=key,
    )
    drawn = np.sort(np.asarray(out.sequences)[:, :, 1], axis=1)
    p = np.exp(model.log_probabilities(3))
    outcomes = list(itertools.combinations(range(4), 2))
    expected = [p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])) for i, j in outcomes]
    counts = [np.sum(np.all(drawn == pair, axis=1)) for pair in outcomes]
    assert sum(counts) == rows
    assert scipy.stats.chisquare(counts, rows * np.array(expected)).pvalue > 0.01


def test_beams_are_drawn_anew_for_every_token(key):
    """Where all tokens are equally likely, one seldom follows itself."""
    out = generate(
        Markov.of(np.zeros((50, 50))),
        np.zeros((40, 1), np.int32),
        max_new_tokens=6,
        num_beams=2,
        do_sample=True,
        key=key,
    )
    tokens = np.asarray(out.sequences)[:, 1:]
    assert np.mean(tokens[:, 1:] == tokens[:, :-1]) < 0.1


def test_more_ends_than_there_are_tokens_to_go_on_with():
    prompts = np.zeros((2, 1), np.int32)
    for ends in (range(4), range(3)):
        out = generate(
            Markov.random(4), prompts, max_new_tokens=3, num_beams=2, eos_token_id=list(ends)
        )
        assert out.sequences.shape[0] == 2
        assert np.all(out.lengths >= 1)


def test_more_beams_than_positions():
    """All beams of a row are read side by side, but each for itself."""
    reference = reference_decoder(5, likely=20, num_hidden_layers=1)  # it has 17 positions
    prompts = random_prompts(3, PROMPT)
    assert_same_beams((same_decoder(reference), reference), prompts, num_beams=18)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0, -1.0])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_fewer_sequences_than_beams(early_stopping, length_penalty):
    """There are two: the end, and 2 before it. The first token may be 3 as well, but nothing may
    follow it.
    """

    def forbid(ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        is_possible = jnp.asarray([False, True, True, True])[None, :] & (step == 0)
        is_possible |= jnp.asarray([False, True, False, False])[None, :] & (step == 1)
        after_3 = jnp.any(ids == 3, axis=-1)[:, None]
        return jnp.where(is_possible & ~after_3, logits, -jnp.inf)

    model = Markov.random(4)
    out = generate(
        model,
        np.array([[0], [2]], np.int32),
        max_new_tokens=7,
        eos_token_id=EOS,
        num_beams=5,
        num_return_sequences=4,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        processors=[forbid],
    )
    for row, prompt in enumerate((0, 2)):
        first = model.log_probabilities(prompt)
        totals = {
            (EOS,): first[EOS],
            (2, EOS): (first[2] + model.log_probabilities(2)[EOS]) / 2**length_penalty,
        }
        best = sorted(totals, key=lambda tokens: -totals[tokens])
        assert out.lengths[row].tolist() == [*map(len, best), 0, 0]
        assert [tuple(tokens) for tokens in our_tokens(out, 1)[4 * row :][:2]] == best
        expected = [totals[tokens] for tokens in best]
        assert max_difference(out.scores[row, :2], expected) < FLOAT32
        assert np.all(np.isneginf(out.scores[row, 2:]))


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.parametrize("forbidden", [-jnp.inf, -1e9])
def test_beams_without_a_token_to_go_on_with(do_sample, forbidden, key):
    seen = []

    def forbid(ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        jax.debug.callback(lambda step: seen.append(int(step)), step, ordered=True)
        return jnp.full_like(logits, forbidden)

    out = generate(
        Markov.random(6),
        np.array([3], np.int32),
        max_new_tokens=50,
        num_beams=2,
        num_return_sequences=2,
        do_sample=do_sample,
        key=key if do_sample else None,
        processors=[forbid],
    )
    jax.effects_barrier()
    assert seen == [0]
    assert out.sequences.tolist() == [[3], [3]]
    assert out.lengths.tolist() == [0, 0]
    assert np.all(np.isneginf(out.scores))
