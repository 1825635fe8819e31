"""Properties of the plan by which texts of any lengths become batches of a few shapes."""

from collections.abc import Callable

import numpy as np
import pytest

from eqxbert.text import plan_batches
from eqxbert.text.batching import Batch, buckets

LENGTHS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "uniform": lambda rng, n, limit: rng.integers(1, limit + 1, n),
    "short": lambda rng, n, limit: np.clip(rng.poisson(12, n) + 2, 1, limit),
    "long tail": lambda rng, n, limit: np.clip(rng.lognormal(3, 1, n).astype(int) + 2, 1, limit),
    "mostly cut off": lambda rng, n, limit: np.clip(rng.normal(limit, limit / 4, n), 2, limit),
    "all alike": lambda rng, n, limit: np.full(n, rng.integers(1, limit + 1)),
    "two kinds": lambda rng, n, limit: rng.choice([1, limit], n),
}


def plan(lengths: list[int], max_length: int, tokens_per_batch: int) -> list[Batch]:
    return list(plan_batches(lengths, max_length=max_length, tokens_per_batch=tokens_per_batch))


def trials(kind: str):
    """Many plans: lengths, the limit, the size of a batch."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        max_length = int(rng.choice([1, 2, 7, 8, 9, 41, 200, 256, 512]))
        lengths = LENGTHS[kind](rng, int(rng.integers(1, 400)), max_length).astype(int).tolist()
        tokens_per_batch = int(rng.choice([1, 50, 256, 1024, 65536]))
        yield lengths, max_length, tokens_per_batch


@pytest.mark.parametrize("kind", LENGTHS)
def test_every_text_is_in_one_batch(kind):
    for lengths, max_length, tokens in trials(kind):
        indices = [i for batch in plan(lengths, max_length, tokens) for i in batch.indices]
        assert sorted(indices) == list(range(len(lengths)))


@pytest.mark.parametrize("kind", LENGTHS)
def test_every_text_fits_its_batch(kind):
    for lengths, max_length, tokens in trials(kind):
        for batch in plan(lengths, max_length, tokens):
            assert 1 <= len(batch.indices) <= batch.rows
            assert all(lengths[i] <= batch.seq for i in batch.indices)
            assert batch.seq in buckets(max_length)


@pytest.mark.parametrize("kind", LENGTHS)
def test_no_batch_is_larger_than_asked_unless_it_is_a_single_text(kind):
    for lengths, max_length, tokens in trials(kind):
        for batch in plan(lengths, max_length, tokens):
            assert batch.rows * batch.seq <= tokens or batch.rows == 1


@pytest.mark.parametrize("kind", LENGTHS)
def test_a_bucket_has_at_most_two_shapes(kind):
    for lengths, max_length, tokens in trials(kind):
        shapes = {(batch.seq, batch.rows) for batch in plan(lengths, max_length, tokens)}
        sequences = [seq for seq, _ in shapes]
        assert max(map(sequences.count, sequences)) <= 2
        for seq, rows in shapes:
            assert rows == max(1, tokens // seq) or rows.bit_count() == 1


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("seed", range(3))
def test_five_thousand_texts_need_few_programs(kind, seed):
    lengths = LENGTHS[kind](np.random.default_rng(seed), 5000, 256).astype(int).tolist()
    shapes = {(batch.rows, batch.seq) for batch in plan(lengths, 256, 1024)}
    assert len(shapes) <= 12


def test_texts_of_similar_lengths_are_together():
    """In random order, batches of texts of up to 256 tokens would be half padding."""
    lengths = np.random.default_rng(0).integers(1, 257, 5000).tolist()
    batches = plan(lengths, 256, 1024)
    computed = sum(batch.rows * batch.seq for batch in batches)
    assert computed < 1.25 * sum(lengths)
    longest = [max(lengths[i] for i in batch.indices) for batch in batches]
    assert longest == sorted(longest)


def test_the_lengths_that_texts_are_padded_to():
    assert buckets(256) == [8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256]
    assert buckets(200) == [8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 200]
    assert buckets(8) == [8]
    assert buckets(5) == [5]
    assert buckets(1) == [1]
    assert buckets(1024)[-3:] == [512, 768, 1024]


@pytest.mark.parametrize("max_length", [17, 100, 333, 512, 1000, 2048])
def test_no_text_is_padded_by_more_than_half_of_its_length(max_length):
    sizes = buckets(max_length)
    assert sizes == sorted(set(sizes))
    for length in range(17, max_length + 1):
        padded = next(size for size in sizes if size >= length)
        assert padded <= 1.5 * length


def test_the_longest_texts_are_padded_to_the_limit_and_no_further():
    batches = plan([200, 193, 3], 200, 1024)
    assert [(batch.indices, batch.seq) for batch in batches] == [((2,), 8), ((1, 0), 200)]


@pytest.mark.parametrize("tokens_per_batch", [0, 1, 255])
def test_texts_longer_than_a_batch_go_one_by_one(tokens_per_batch):
    batches = plan([256, 250, 255], 256, tokens_per_batch)
    assert [(batch.rows, batch.seq) for batch in batches] == [(1, 256)] * 3


def test_a_few_left_over_join_the_next_bucket():
    """One text of 8 tokens among hundreds of 16: not worth a program of its own."""
    batches = plan([8] + [16] * 640, 16, 1024)
    assert {(batch.rows, batch.seq) for batch in batches} == {(64, 16), (1, 16)}
    assert batches[0].indices[0] == 0


def test_no_texts_need_no_batch():
    assert plan([], 256, 1024) == []


def test_what_suits_a_cpu_depends_on_the_length():
    """More tokens at a time in short sequences, whose scores are small."""
    short = list(plan_batches([16] * 128, max_length=256))
    long = list(plan_batches([256] * 4, max_length=256))
    assert {(batch.rows, batch.seq) for batch in short} == {(64, 16)}
    assert {(batch.rows, batch.seq) for batch in long} == {(2, 256)}


def test_several_sequences_of_a_text_count_as_such():
    batches = list(plan_batches([16] * 128, max_length=256, tokens_per_batch=1024, choices=4))
    assert {(batch.rows, batch.seq) for batch in batches} == {(16, 16)}
