"""Which tokens are drawn from, against transformers; and that they are drawn as often as they are
to be.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from generation.references import (
    EOS,
    Markov,
    our_tokens,
    padded,
    random_prompts,
    reference_decoder,
    same_decoder,
)
from helpers import max_difference
from tolerances import FLOAT32

from eqxbert import generate
from eqxbert.generation import GenerationOptions, sampling

VOCAB, DRAWS = 8, 4000

NARROWING = {
    **{
        f"top_k {k}, {keep}": (
            lambda x, k=k, keep=keep: sampling.keep_top_k(x, k, keep=keep),
            transformers.TopKLogitsWarper(k, min_tokens_to_keep=keep),
        )
        for k, keep in ((1, 1), (5, 1), (2, 4), (50, 1), (99, 1))
    },
    **{
        f"top_p {p}, {keep}": (
            lambda x, p=p, keep=keep: sampling.keep_top_p(x, p, keep=keep),
            transformers.TopPLogitsWarper(p, min_tokens_to_keep=keep),
        )
        for p, keep in ((0.01, 1), (0.01, 3), (0.5, 1), (0.5, 9), (0.9, 1), (0.999, 1))
    },
    **{
        f"min_p {p}, {keep}": (
            lambda x, p=p, keep=keep: sampling.keep_min_p(x, p, keep=keep),
            transformers.MinPLogitsWarper(p, min_tokens_to_keep=keep),
        )
        for p, keep in ((0.001, 1), (0.1, 1), (0.5, 1), (0.9, 4), (1.0, 1))
    },
    **{
        f"typical_p {p}, {keep}": (
            lambda x, p=p, keep=keep: sampling.keep_typical(x, p, keep=keep),
            transformers.TypicalLogitsWarper(p, min_tokens_to_keep=keep),
        )
        for p, keep in ((0.01, 1), (0.2, 1), (0.2, 5), (0.5, 1), (0.95, 1))
    },
    "temperature": (
        lambda x: sampling.apply_temperature(x, 0.6),
        transformers.TemperatureLogitsWarper(0.6),
    ),
}


@pytest.mark.parametrize("name", NARROWING)
def test_narrowing_equals_transformers(name):
    ours, theirs = NARROWING[name]
    rng = np.random.default_rng(0)
    for scale in (0.1, 1, 5, 30):
        logits = (scale * rng.normal(size=(40, 50))).astype(np.float32)
        logits[::4, ::3] = -np.inf  # what processors have forbidden
        expected = theirs(None, torch.tensor(logits)).numpy()
        narrowed = np.asarray(ours(jnp.asarray(logits)))
        assert np.array_equal(np.isfinite(narrowed), np.isfinite(expected))
        kept = np.isfinite(expected)
        assert max_difference(narrowed[kept] / scale, expected[kept] / scale) < FLOAT32


def kept(logits: Any) -> list[list[int]]:
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in np.asarray(logits)]


def test_cases_of_transformers_own_tests():
    """Distributions, and what is left of them."""

    def of(*rows: list[float]) -> jax.Array:
        return jnp.log(jnp.asarray(rows, jnp.float32))

    ramp = jnp.tile(jnp.arange(10.0)[None, :] - 5, (2, 1))
    steep = ramp * jnp.asarray([[1.0], [100.0]])
    assert kept(sampling.keep_top_k(ramp, 3)) == [[7, 8, 9]] * 2
    assert kept(sampling.keep_top_k(jnp.zeros((1, 5)), 1)) == [[0, 1, 2, 3, 4]]  # all are equal
    assert kept(sampling.keep_top_k(ramp[:1, :5], 1, keep=5)) == [[0, 1, 2, 3, 4]]

    two = of([0.3, 0.1, 0.1, 0.5], [0.15, 0.3, 0.3, 0.25])
    assert kept(sampling.keep_top_p(two, 0.8)) == [[0, 3], [1, 2, 3]]
    assert kept(sampling.keep_top_p(steep, 0.9, keep=2)) == [[7, 8, 9], [8, 9]]

    three = of([0.9, 0.0274, 0.047, 0.0274], [0.15, 0.3, 0.3, 0.25], [0.97, 0.01, 0.01, 0.01])
    assert kept(sampling.keep_min_p(three, 0.1)) == [[0], [0, 1, 2, 3], [0]]

    flat = of([0.97, 0.01, 0.01, 0.01], [0.4, 0.2, 0.2, 0.2])
    assert kept(sampling.keep_typical(flat, 0.5)) == [[0], [1, 2, 3]]

    p = jax.nn.softmax(sampling.apply_temperature(two, 0.5), axis=-1)
    assert p[0, 3] > 0.5
    assert p[0, 1] < 0.1
    assert jax.nn.softmax(sampling.apply_temperature(two, 1.3), axis=-1)[0, 3] < 0.5


@pytest.mark.parametrize(("beams", "ends", "keep"), [(1, None, 1), (2, EOS, 2), (2, [0, 1], 3)])
def test_the_order_of_options_is_that_of_transformers(beams, ends, keep):
    chosen = {"temperature": 1.7, "top_k": 20, "top_p": 0.7, "min_p": 0.1, "typical_p": 0.8}
    options = GenerationOptions(do_sample=True, num_beams=beams, eos_token_id=ends, **chosen)
    config = Markov.random(50).config
    theirs = transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(1.4),
            transformers.TemperatureLogitsWarper(1.7),
            transformers.TopKLogitsWarper(20, min_tokens_to_keep=keep),
            transformers.TopPLogitsWarper(0.7, min_tokens_to_keep=keep),
            transformers.MinPLogitsWarper(0.1, min_tokens_to_keep=keep),
            transformers.TypicalLogitsWarper(0.8, min_tokens_to_keep=keep),
        ]
    )
    rng = np.random.default_rng(0)
    logits = 4 * rng.normal(size=(40, 50)).astype(np.float32)
    logits[0, 7] += 40  # all but one are beyond the pale
    ids = rng.integers(0, 50, (40, 6), np.int32)
    expected = theirs(torch.tensor(ids).long(), torch.tensor(logits))
    settled = GenerationOptions(
        do_sample=True, num_beams=beams, eos_token_id=ends, repetition_penalty=1.4, **chosen
    ).settled(config)
    ours = settled.process(jnp.asarray(ids), jnp.asarray(logits), jnp.asarray(0), jnp.asarray(9))
    assert options != settled
    assert kept(ours) == kept(expected)
    assert len(kept(ours)[0]) == keep
    finite = np.isfinite(expected.numpy())
    assert max_difference(np.asarray(ours)[finite], expected.numpy()[finite]) < 10 * FLOAT32


def test_beams_without_an_end_keep_two_tokens_to_go_on_with():
    options = GenerationOptions(do_sample=True, num_beams=2, top_k=1)
    logits = jnp.asarray([[3.0, 2.0, 1.0, 0.0]])
    settled = options.settled(Markov.random(4).config)
    step = jnp.asarray(0)
    assert kept(settled.process(jnp.zeros((1, 2), jnp.int32), logits, step, step)) == [[0, 1]]


def chi_square(counts: Any, probabilities: Any) -> float:
    """How likely counts as different as these are; what has probability 0 must not occur."""
    counts, probabilities = np.ravel(counts), np.ravel(probabilities)
    possible = probabilities > 0
    assert not counts[~possible].any()
    expected = counts.sum() * probabilities[possible]
    return scipy.stats.chisquare(counts[possible], expected / probabilities.sum()).pvalue


WARPERS = {
    "{}": [],
    "temperature": [transformers.TemperatureLogitsWarper(0.6)],
    "top_k": [transformers.TopKLogitsWarper(3)],
    "top_p": [transformers.TopPLogitsWarper(0.8)],
    "min_p": [transformers.MinPLogitsWarper(0.2)],
    "typical_p": [transformers.TypicalLogitsWarper(0.7)],
    "all": [transformers.TemperatureLogitsWarper(2.0), transformers.TopPLogitsWarper(0.9)],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "{}": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.2},
    "typical_p": {"typical_p": 0.7},
    "all": {"top_p": 0.9, "temperature": 2.0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_drawn_as_often_as_they_are_likely(name, key):
    model = Markov.random(VOCAB, scale=1.5)
    prompts = np.full((DRAWS, 1), 3, np.int32)
    out = generate(model, prompts, max_new_tokens=1, do_sample=True, key=key, **OPTIONS[name])
    scores = torch.tensor(np.asarray(model.table)[[3]])
    for warper in WARPERS[name]:
        scores = warper(None, scores)
    p = torch.softmax(scores, dim=-1)[0].double().numpy()
    tokens = np.asarray(out.sequences)[:, 1]
    assert chi_square(np.bincount(tokens, minlength=VOCAB), p) > 0.01
    assert max_difference(out.scores, np.log(p[tokens])) < FLOAT32


def test_tokens_one_after_the_other_are_drawn_independently(key):
    """Pairs of them, and the lengths after which they end, are as likely as they are to be."""
    model = Markov.random(5, scale=0.7)
    p = np.exp([model.log_probabilities(last) for last in range(5)])
    out = generate(
        model,
        np.full((DRAWS, 1), 3, np.int32),
        max_new_tokens=6,
        do_sample=True,
        key=key,
        eos_token_id=EOS,
    )
    first, second = np.asarray(out.sequences)[:, 1:3].T
    going_on = first != EOS
    counts = np.zeros((5, 5))
    np.add.at(counts, (first[going_on], second[going_on]), 1)
    of_pairs = p[3][:, None] * p
    of_pairs[EOS] = 0
    assert chi_square(counts, of_pairs) > 0.01

    state, of_lengths = np.eye(5)[3], []
    for _ in range(5):
        state = state @ p
        of_lengths.append(state[EOS])
        state[EOS] = 0
    of_lengths.append(1 - sum(of_lengths))
    assert chi_square(np.bincount(out.lengths, minlength=7)[1:], np.array(of_lengths)) > 0.01


SAMPLING = {"max_new_tokens": 6, "do_sample": True}


def test_keys(key):
    model = Markov.random(VOCAB)
    prompts = random_prompts(16, 2) % VOCAB
    out = generate(model, prompts, key=key, **SAMPLING)
    again = generate(model, prompts, key=key, **SAMPLING)
    assert jax.tree.all(jax.tree.map(np.array_equal, out, again))
    raw = generate(model, prompts, key=jax.random.key_data(key), **SAMPLING)
    assert np.array_equal(raw.sequences, out.sequences)
    other = generate(model, prompts, key=jax.random.key(1), **SAMPLING)
    assert not np.array_equal(other.sequences, out.sequences)
    same = generate(model, np.tile(prompts[:1], (16, 1)), key=key, **SAMPLING)
    assert len(np.unique(same.sequences, axis=0)) > 12  # each row has a key of its own


def test_a_row_depends_on_its_own_key_alone():
    model = same_decoder(reference_decoder(5))
    keys = jax.random.split(jax.random.key(0), 6)
    prompts = random_prompts(6, 3)
    out = generate(model, prompts, key=keys, **SAMPLING)
    order = np.array([4, 2, 0, 1, 5, 3])
    moved = generate(model, prompts[order], key=keys[order], **SAMPLING)
    assert np.array_equal(moved.sequences, out.sequences[order])
    for row in (slice(4, 5), 4):
        alone = generate(model, prompts[row], key=keys[row], **SAMPLING)
        assert our_tokens(alone, 3) == our_tokens(out, 3)[4:5]
        assert max_difference(alone.scores, out.scores[row]) < FLOAT32
    by_two = generate(model, prompts.reshape(2, 3, 3), key=keys.reshape(2, 3), **SAMPLING)
    assert np.array_equal(by_two.sequences, out.sequences.reshape(2, 3, -1))
    raw = jax.random.key_data(keys.reshape(2, 3))
    of_raw = generate(model, prompts.reshape(2, 3, 3), key=raw, **SAMPLING)
    assert np.array_equal(of_raw.sequences, by_two.sequences)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2}], ids=str)
def test_what_is_drawn_does_not_depend_on_where_the_padding_is(options):
    model = same_decoder(reference_decoder(5, num_hidden_layers=1))
    keys = jax.random.split(jax.random.key(0), 4)
    rows = [[5, 6, 7, 8], [9], [20, 17, 2], [4, 4]]
    left, right, between = (
        generate(model, *padded(rows, side), key=keys, **SAMPLING, **options)
        for side in ("left", "right", "between")
    )
    assert our_tokens(left, 4) == our_tokens(right, 4) == our_tokens(between, 6)
    assert max_difference(left.scores, right.scores) < FLOAT32
    for row, (ids, key) in enumerate(zip(rows, keys, strict=True)):
        alone = generate(model, np.array(ids, np.int32), key=key, **SAMPLING, **options)
        of_row = jax.tree.map(lambda x, row=row: x[row], left)
        assert our_tokens(alone, len(ids)) == our_tokens(of_row, 4)


def test_several_samples_for_each_prompt(key):
    model = Markov.random(VOCAB)
    prompts = np.arange(2, 8, dtype=np.int32).reshape(2, 3, 1)
    options = SAMPLING | {"num_return_sequences": 500, "max_new_tokens": 1}
    out = generate(model, prompts, key=key, **options)
    assert out.sequences.shape == (2, 3, 500, 2)
    assert out.scores.shape == out.lengths.shape == (2, 3, 500)
    for index in np.ndindex(2, 3):
        last = int(prompts[index][0])
        assert np.all(out.sequences[index][:, 0] == last)
        counts = np.bincount(out.sequences[index][:, 1], minlength=VOCAB)
        assert chi_square(counts, np.exp(model.log_probabilities(last))) > 0.001
    keys = jax.random.split(key, 6)
    by_row = generate(model, prompts.reshape(6, 1), key=keys, **options)
    alone = generate(model, prompts.reshape(6, 1)[4:5], key=keys[4:5], **options)
    assert np.array_equal(alone.sequences[0], by_row.sequences[4])


def test_scores_are_those_of_the_distribution_that_is_drawn_from(key):
    model = Markov.random(VOCAB)
    out = generate(model, random_prompts(9, 1) % VOCAB, key=key, top_k=2, **SAMPLING)
    for row, score in zip(out.sequences.tolist(), out.scores.tolist(), strict=True):
        expected = 0.0
        for last, token in itertools.pairwise(row):
            p = np.exp(model.log_probabilities(last))
            best = np.sort(p)[-2:]
            assert p[token] in best
            expected += np.log(p[token] / best.sum())
        assert abs(score - expected) < FLOAT32
