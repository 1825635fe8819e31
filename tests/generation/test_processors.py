"""What changes the scores of tokens, against transformers: each on its own, and in generation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from generation.references import (
    EOS,
    Markov,
    our_tokens,
    random_prompts,
    reference_decoder,
    same_decoder,
    their_tokens,
)
from helpers import max_difference
from tolerances import FLOAT32

from eqxbert import generate
from eqxbert.generation import processors as p

VOCAB, ROWS, SEQ = 7, 6, 9


def random_text(seed: int = 0, vocab: int = VOCAB) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, vocab, (ROWS, SEQ), np.int32),
        rng.normal(size=(ROWS, vocab)).astype(np.float32),
    )


def in_slots(ids: np.ndarray, before: int = 0, after: int = 3) -> jax.Array:
    """Tokens as processors see them: with padding before, and slots to be filled after them."""
    return jnp.pad(jnp.asarray(ids), ((0, 0), (before, after)), constant_values=-1)


PAIRS = {
    "repetition_penalty": (
        p.repetition_penalty(1.7),
        transformers.RepetitionPenaltyLogitsProcessor(1.7),
    ),
    "repetition_reward": (
        p.repetition_penalty(0.6),
        transformers.RepetitionPenaltyLogitsProcessor(0.6),
    ),
    **{
        f"no_repeat_ngram {n}": (
            p.no_repeat_ngram(n),
            transformers.NoRepeatNGramLogitsProcessor(n),
        )
        for n in (1, 2, 3, SEQ, SEQ + 1, SEQ + 9)
    },
    "forbid_words": (
        p.forbid_words([[2], [0, 3], [1, 3], [1, 4, 5], [0, 6], [2, 6], [6, 1, 2, 3, 4]]),
        transformers.NoBadWordsLogitsProcessor(
            [[2], [0, 3], [1, 3], [1, 4, 5], [0, 6], [2, 6], [6, 1, 2, 3, 4]]
        ),
    ),
    "minimum_length": (
        p.minimum_length(SEQ + 1, (1, 4)),
        transformers.MinLengthLogitsProcessor(SEQ + 1, [1, 4]),
    ),
    "minimum_length that is reached": (
        p.minimum_length(SEQ, (1, 4)),
        transformers.MinLengthLogitsProcessor(SEQ, [1, 4]),
    ),
    "suppress": (p.suppress((0, 5)), transformers.SuppressTokensLogitsProcessor([0, 5])),
    "force_first": (p.force_first(3), transformers.ForcedBOSTokenLogitsProcessor(3)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_transformers(name, seed):
    ours, theirs = PAIRS[name]
    ids, logits = random_text(seed, vocab=4 if "ngram" in name else VOCAB)
    step = jnp.asarray(0)
    for seq in (SEQ, 5, 1):
        expected = theirs(torch.tensor(ids[:, :seq]).long(), torch.tensor(logits).clone())
        for before, after in ((0, 3), (4, 0)):
            processed = ours(in_slots(ids[:, :seq], before, after), jnp.asarray(logits), step)
            assert same_scores(processed, expected), (seq, before)


def same_scores(ours: Any, theirs: Any) -> bool:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    is_finite = np.isfinite(theirs)
    return np.array_equal(np.isfinite(ours), is_finite) and (
        max_difference(ours[is_finite], theirs[is_finite]) < FLOAT32
    )


def test_padding_is_no_token():
    """It neither repeats nor is repeated, nor does it count."""
    _, logits = random_text()
    logits = jnp.asarray(logits[:2])
    ids = jnp.asarray([[-1, -1, -1, 2, 3, -1, -1], [5, 2, 3, 2, 3, -1, -1]])
    step = jnp.asarray(0)

    def forbidden(processor: p.Processor) -> list[list[int]]:
        processed = np.asarray(processor(ids, logits, step))
        return [np.flatnonzero(np.isneginf(row)).tolist() for row in processed]

    assert forbidden(p.no_repeat_ngram(1)) == [[2, 3], [2, 3, 5]]
    assert forbidden(p.no_repeat_ngram(2)) == [[], [2]]
    assert forbidden(p.no_repeat_ngram(3)) == [[], [2]]
    assert forbidden(p.no_repeat_ngram(4)) == [[], []]
    assert forbidden(p.minimum_length(3, [1])) == [[1], []]
    assert forbidden(p.forbid_words([[5, 2, 3, 2, 3, 0], [2, 3, 4]])) == [[4], [0, 4]]
    assert forbidden(p.minimum_new_tokens(1, [1, 0])) == [[0, 1], [0, 1]]
    changed = np.asarray(p.repetition_penalty(2.0)(ids, logits, step)) != np.asarray(logits)
    assert [np.flatnonzero(row).tolist() for row in changed] == [[2, 3], [2, 3, 5]]


def test_the_first_and_the_last_token():
    ids, logits = in_slots(np.array([[4], [2]])), jnp.zeros((2, 5))
    for step in range(4):
        last = np.asarray(p.force_last([3], jnp.asarray(3))(ids, logits, jnp.asarray(step)))
        assert np.isfinite(last).sum(axis=1).tolist() == ([1, 1] if step == 2 else [5, 5])
        assert last[0, 3] == 0
        new = np.asarray(p.minimum_new_tokens(2, [1])(ids, logits, jnp.asarray(step)))
        assert np.isneginf(new).sum() == (2 if step < 2 else 0)
    step = jnp.asarray(0)
    first = np.asarray(p.force_first(3)(ids, logits, step))
    assert np.flatnonzero(np.isfinite(first[0])).tolist() == [3]
    assert np.isfinite(p.force_first(3)(in_slots(np.ones((2, 2), int)), logits, step)).all()


COMBINATIONS = [
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_length": 8},
    {"no_repeat_ngram_size": 3, "suppress_tokens": [16, 13], "forced_eos_token_id": EOS},
    {"min_new_tokens": 6, "bad_words": [[16, 13], [20], [14, 16, 23]]},
    {"bad_words": [[EOS], [16, 13]]},
    {"forced_bos_token_id": 9, "repetition_penalty": 0.7, "num_beams": 3},
    {
        "min_length": 7,
        "repetition_penalty": 1.5,
        "bad_words": [[16, 13], [20], [14, 16, 23]],
        "num_beams": 3,
        "num_return_sequences": 3,
    },
    {
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 5,
        "suppress_tokens": [16],
        "forced_eos_token_id": 5,
        "num_beams": 2,
    },
]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    reference = reference_decoder(5, likely=20, num_hidden_layers=1)
    return same_decoder(reference), reference


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_generation_equals_transformers(pair, options):
    model, reference = pair
    prompts = random_prompts(8, 1 if "forced_bos_token_id" in options else 3)
    options = {"max_new_tokens": 10, "eos_token_id": EOS} | options
    expected, scores = their_tokens(reference, prompts, **options)
    out = generate(model, prompts, **options)
    assert our_tokens(out, prompts.shape[1]) == expected
    if scores is not None:
        assert max_difference(np.asarray(out.scores).reshape(-1), scores) < FLOAT32

    # The options matter.
    kept = ("max_new_tokens", "num_beams", "num_return_sequences")
    plain, _ = their_tokens(reference, prompts, **{k: options[k] for k in kept if k in options})
    assert expected != plain


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_generation_of_a_trained_model_equals_transformers(trained, options):
    """Whose tokens are far from ties: it counts."""
    model, reference = trained
    prompts = np.arange(8, 16, dtype=np.int32)[:, None]
    options = {"max_new_tokens": 10, "eos_token_id": EOS} | options
    expected, _ = their_tokens(reference, prompts, **options)
    assert our_tokens(generate(model, prompts, **options), 1) == expected


class TestCasesOfTransformers:
    """Those of its own tests of logits processors."""

    def scores(self, ids: list[list[int]], vocab: int = 20) -> jax.Array:
        return jnp.full((len(ids), vocab), 1 / vocab)

    def test_repetition_penalty(self):
        ids = jnp.array([[0, 1], [5, 0]], jnp.int32)
        scores = self.scores([[], []]).at[0, 0].set(-1 / 20).at[1, 5].set(4 / 20)
        found = p.repetition_penalty(2.0)(ids, scores, jnp.asarray(0))
        expected = np.full((2, 20), 1 / 20)
        expected[0, [0, 1]] = -1 / 20 * 2, 1 / 20 / 2
        expected[1, [0, 5]] = 1 / 20 / 2, 4 / 20 / 2
        assert max_difference(found, expected) < FLOAT32

    @pytest.mark.parametrize(
        ("size", "forbidden"),
        [
            (2, [[False, True, True], [True, False, False]]),
            (3, [[False, False, False], [True, False, False]]),
        ],
    )
    def test_no_repeat_ngram(self, size, forbidden):
        ids = jnp.array([[1, 1, 2, 1], [0, 1, 0, 1]], jnp.int32)
        found = p.no_repeat_ngram(size)(ids, self.scores([[], []], 3), jnp.asarray(0))
        assert np.isneginf(found).tolist() == forbidden

    def test_bad_words(self):
        ids = jnp.array([[0, 1, 3, 1], [0, 1, 0, 1]], jnp.int32)
        words = [[1], [1, 0], [0, 1, 2], [1, 3, 1, 3]]
        found = p.forbid_words(words)(ids, self.scores([[], []], 5), jnp.asarray(0))
        assert np.isneginf(found).tolist() == [
            [True, True, False, True, False],
            [True, True, True, False, False],
        ]

    @pytest.mark.parametrize(("tokens", "is_forbidden"), [(5, True), (15, False)])
    def test_minimum_length(self, tokens, is_forbidden):
        ids = jnp.ones((4, tokens), jnp.int32)
        found = p.minimum_length(10, (0,))(ids, self.scores([[]] * 4), jnp.asarray(0))
        assert np.isneginf(found)[:, 0].tolist() == [is_forbidden] * 4
        assert not np.isinf(found)[:, 1:].any()

    @pytest.mark.parametrize(("new", "is_forbidden"), [(2, True), (3, False)])
    def test_minimum_new_tokens(self, new, is_forbidden):
        ids = jnp.ones((4, 5 + new), jnp.int32)
        found = p.minimum_new_tokens(3, (0,))(ids, self.scores([[]] * 4), jnp.asarray(new))
        assert np.isneginf(found)[:, 0].tolist() == [is_forbidden] * 4

    @pytest.mark.parametrize(("tokens", "is_forced"), [(1, True), (4, False)])
    def test_forced_first_token(self, tokens, is_forced):
        ids = jnp.ones((4, tokens), jnp.int32)
        found = p.force_first(7)(ids, self.scores([[]] * 4), jnp.asarray(0))
        assert np.isneginf(np.delete(found, 7, axis=1)).all() == is_forced
        assert np.isfinite(found)[:, 7].all()

    @pytest.mark.parametrize(("step", "is_forced"), [(4, True), (3, False)])
    def test_forced_last_token(self, step, is_forced):
        ids = jnp.ones((4, 4), jnp.int32)
        found = p.force_last((0,), jnp.asarray(5))(ids, self.scores([[]] * 4), jnp.asarray(step))
        assert np.isneginf(found)[:, 1:].all() == is_forced
        assert np.isfinite(found)[:, 0].all()


def test_generation_heeds_each_option():
    """In a chain that would always go on from 2 to 3 to 4 to 2, or else end, or else go to 5."""
    table = np.full((6, 6), -9.0)
    table[2, 3] = table[3, 4] = table[4, 2] = table[5, 2] = 3
    table[:, EOS] = 2
    table[:, 5] = 1
    model = Markov.of(table)

    def tokens(prompt: list[int], **options: Any) -> list[int]:
        out = generate(
            model, np.array(prompt, np.int32), max_new_tokens=6, eos_token_id=EOS, **options
        )
        return our_tokens(out, len(prompt))[0]

    assert tokens([2]) == [3, 4, 2, 3, 4, 2]
    assert tokens([2], forced_eos_token_id=EOS) == [3, 4, 2, 3, 4, EOS]
    assert tokens([2], forced_bos_token_id=5) == [5, 2, 3, 4, 2, 3]
    assert tokens([2, 3], forced_bos_token_id=5) == [4, 2, 3, 4, 2, 3]
    assert tokens([2], suppress_tokens=[4]) == [3, EOS]
    assert tokens([2], bad_words=[[3, 4], [EOS]]) == [3, EOS]
    assert tokens([2], bad_words=[[3, 4]], suppress_tokens=[EOS]) == [3, 5, 2, 3, 5, 2]
    assert tokens([2], bad_words=[[3, 4], [EOS]], min_length=4) == [3, 5, 2, 3, EOS]
    assert tokens([2], suppress_tokens=[4], min_length=3) == [3, 5, 2, 3, EOS]
    assert tokens([2], suppress_tokens=[4], min_new_tokens=2) == [3, 5, 2, 3, EOS]
    assert tokens([2], no_repeat_ngram_size=3) == [3, 4, 2, 3, EOS]
    assert tokens([2], no_repeat_ngram_size=1) == [3, 4, EOS]
    assert tokens([2], repetition_penalty=9.0) == [3, 4, EOS]


def test_a_processor_of_your_own():
    """It sees the tokens so far, and how many of them are new; it comes after the others."""
    model = Markov.random(6, eos_token_id=EOS)

    def next_number(ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        filled = jnp.sum(ids >= 0, axis=-1) - 2  # the prompt has 2 tokens
        wanted = (jnp.max(ids, axis=-1) + 1 + step - filled)[:, None]
        return jnp.where(jnp.arange(6)[None, :] == wanted, 0.0, -jnp.inf)

    prompts = np.array([[0, 2], [3, 1]], np.int32)
    out = generate(
        model, prompts, max_new_tokens=2, processors=[next_number], suppress_tokens=[3, 4, 5]
    )
    assert our_tokens(out, 2) == [[3, 4], [4, 5]]
    assert np.array_equal(out.scores, [0, 0])


def test_processors_see_the_beams():
    """With beams, log-probabilities, and as many rows as there are beams."""
    model, seen = Markov.random(6), []

    def look(ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        jax.debug.callback(lambda *x: seen.append(x), ids, logits, step, ordered=True)
        return logits

    options = {"max_new_tokens": 3, "num_beams": 2, "num_return_sequences": 2}
    out = generate(model, np.array([[4, 3], [2, 2]], np.int32), processors=[look], **options)
    jax.effects_barrier()
    assert [int(step) for *_, step in seen] == [0, 1, 2]
    for ids, logits, step in seen:
        assert ids.shape[0] == logits.shape[0] == 4
        assert max_difference(np.exp(logits).sum(-1), np.ones(4)) < FLOAT32
        tokens = [row[row >= 0].tolist() for row in np.asarray(ids)]
        assert [len(row) for row in tokens] == [2 + int(step)] * 4
        assert [row[:2] for row in tokens] == [[4, 3], [4, 3], [2, 2], [2, 2]]
    best = {tuple(row[:-1]) for beams in out.sequences.tolist() for row in beams}
    assert best <= {tuple(row) for row in tokens}
