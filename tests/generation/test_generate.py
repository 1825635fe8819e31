"""Greedy generation against transformers, token for token; and what `generate` returns."""

import dataclasses
import math
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from generation.references import (
    EOS,
    PAD,
    Markov,
    compiled_programs,
    count_compilations,
    log_probabilities,
    our_tokens,
    padded,
    random_prompts,
    reference_decoder,
    same_decoder,
    their_tokens,
)
from helpers import max_difference, tiny_config
from tolerances import FLOAT32

from eqxbert import BertForCausalLM, generate, stream
from eqxbert.generation.generate import _run
from eqxbert.generation.options import GenerationOptions
from eqxbert.generation.request import make_request

# Random models, in each of which some token is likely to come up sooner or later.
SEEDS = {5: 3, 1: 11}


def random_pair(seed: int = 5, **changes: Any) -> tuple[BertForCausalLM, Any]:
    reference = reference_decoder(seed, likely=SEEDS.get(seed), **changes)
    return same_decoder(reference), reference


@pytest.fixture(scope="module")
def pair() -> tuple[BertForCausalLM, Any]:
    return random_pair()


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_equals_transformers_with_random_models(seed):
    model, reference = random_pair(seed)
    prompts = random_prompts(32, 4)
    expected, _ = their_tokens(reference, prompts, max_new_tokens=10)
    out = generate(model, prompts, max_new_tokens=10, eos_token_id=EOS)
    assert our_tokens(out, 4) == expected
    assert len(set(map(len, expected))) > 3  # they end in many places
    assert np.array_equal(out.sequences[:, :4], prompts)


def test_greedy_equals_transformers_with_a_trained_model(trained):
    model, reference = trained
    prompts = np.arange(8, 20, dtype=np.int32)[:, None]
    expected, _ = their_tokens(reference, prompts, max_new_tokens=15)
    out = generate(model, prompts, max_new_tokens=15, eos_token_id=EOS)
    assert our_tokens(out, 1) == expected
    counts = [[*range(start + 1, 21), EOS] for start in range(8, 20)]
    assert sum(ours == count for ours, count in zip(expected, counts, strict=True)) > 6


@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_rows_of_any_length_are_continued_as_if_each_were_alone(pair, side):
    model, reference = pair
    rows = [random_prompts(1, n, seed=n)[0].tolist() for n in (6, 1, 3, 5, 2, 4)]
    alone = [their_tokens(reference, np.array([row]), max_new_tokens=10)[0][0] for row in rows]
    ids, mask = padded(rows, side)
    out = generate(model, ids, mask, max_new_tokens=10, eos_token_id=EOS)
    assert our_tokens(out, ids.shape[1]) == alone
    assert np.array_equal(out.sequences[:, : ids.shape[1]], ids)
    if side == "left":
        assert their_tokens(reference, ids, mask, max_new_tokens=10)[0] == alone


def test_a_row_alone_and_in_a_batch(pair):
    model, _ = pair
    prompts = random_prompts(8, 4)
    options = {"max_new_tokens": 10, "eos_token_id": EOS}
    together = generate(model, prompts, **options)
    alone = generate(model, prompts[2], **options)
    assert alone.sequences.ndim == 1
    assert our_tokens(alone, 4) == our_tokens(together, 4)[2:3]
    assert max_difference(alone.scores, together.scores[2]) < FLOAT32
    assert len(alone.sequences) == 4 + int(alone.lengths)  # no longer than needed

    by_two = generate(model, prompts.reshape(2, 4, 4), **options)
    assert np.array_equal(by_two.sequences, together.sequences.reshape(2, 4, -1))
    assert np.array_equal(by_two.lengths, together.lengths.reshape(2, 4))
    assert np.array_equal(by_two.scores, together.scores.reshape(2, 4))


@pytest.mark.parametrize("prompt", [1, 7, 8, 9, 16])
def test_prompts_on_either_side_of_a_buckets_end(prompt):
    model, reference = random_pair(max_position_embeddings=20, num_hidden_layers=1)
    prompts = random_prompts(2, prompt)
    out = generate(model, prompts, max_new_tokens=3)
    assert our_tokens(out, prompt) == their_tokens(reference, prompts, max_new_tokens=3)[0]


def test_a_prompt_whose_bucket_has_more_tokens_than_there_are_positions():
    model, reference = random_pair(max_position_embeddings=20, num_hidden_layers=1)
    prompts = random_prompts(2, 17)
    out = generate(model, prompts, max_new_tokens=3)
    assert our_tokens(out, 17) == their_tokens(reference, prompts, max_new_tokens=3)[0]


def test_more_padding_than_positions(pair):
    model, _ = pair
    prompts = random_prompts(8, 4)
    wide = np.pad(prompts, ((0, 0), (20, 0)))
    mask = np.pad(np.ones_like(prompts), ((0, 0), (20, 0)))
    options = {"max_new_tokens": 10, "eos_token_id": EOS}
    out = generate(model, wide, mask, **options)
    assert our_tokens(out, 24) == our_tokens(generate(model, prompts, **options), 4)


def test_max_length_counts_the_prompt(pair):
    model, reference = pair
    prompts = random_prompts(8, 4)
    new = generate(model, prompts, max_new_tokens=10, eos_token_id=EOS)
    out = generate(model, prompts, max_length=14, eos_token_id=EOS)
    assert np.array_equal(out.sequences, new.sequences)
    assert our_tokens(out, 4) == their_tokens(reference, prompts, max_length=14)[0]


def test_lengths_scores_and_padding(pair):
    model, _ = pair
    prompts = random_prompts(8, 4)
    out = generate(model, prompts, max_new_tokens=10, eos_token_id=EOS)
    assert len(set(out.lengths.tolist())) > 3
    rows = zip(out.sequences.tolist(), out.lengths.tolist(), out.scores.tolist(), strict=True)
    for row, length, score in rows:
        end = 4 + length
        assert row[end:] == [PAD] * (len(row) - end)
        assert EOS not in row[4 : end - 1]
        assert row[end - 1] == EOS or length == 10
        expected = log_probabilities(model, row[:end], 4).sum()
        assert abs(score - expected) < FLOAT32 * length
    assert out.sequences.shape[1] == 4 + max(out.lengths.tolist())
    assert out.sequences.dtype == out.lengths.dtype == jnp.int32


def test_several_ends(pair):
    model, reference = pair
    prompts = random_prompts(8, 4)
    free, _ = their_tokens(reference, prompts, max_new_tokens=10)
    other = int(np.bincount([token for row in free for token in row[2:] if token != EOS]).argmax())
    ends = [other, EOS]
    expected, _ = their_tokens(reference, prompts, max_new_tokens=10, eos_token_id=ends)
    assert {row[-1] for row in expected} >= set(ends)
    out = generate(model, prompts, max_new_tokens=10, eos_token_id=ends)
    assert our_tokens(out, 4) == expected


@pytest.mark.parametrize(
    ("config", "options", "padding"),
    [
        ({"eos_token_id": 4, "pad_token_id": 5}, {}, 5),
        ({"eos_token_id": (3, 4), "pad_token_id": 5}, {"eos_token_id": 4, "pad_token_id": 1}, 1),
        ({"eos_token_id": (4, 3), "pad_token_id": None}, {"eos_token_id": [4]}, 4),
        ({"eos_token_id": 4, "pad_token_id": None}, {}, 4),
    ],
)
def test_the_end_and_the_padding_of_the_configuration(config, options, padding):
    table = np.zeros((6, 6))
    table[2, 3] = table[3, 4] = 9
    model = Markov.of(table, **config)
    out = generate(model, np.array([[2], [3]], np.int32), max_new_tokens=5, **options)
    assert out.sequences.tolist() == [[2, 3, 4], [3, 4, padding]]
    assert out.lengths.tolist() == [2, 1]


def test_without_an_end_there_are_as_many_tokens_as_there_may_be():
    model = Markov.random(6, pad_token_id=None)
    out = generate(model, np.array([[2], [3]], np.int32), max_new_tokens=5)
    assert out.lengths.tolist() == [5, 5]


def test_an_end_in_the_prompt_ends_nothing(pair):
    model, reference = pair
    prompts = random_prompts(8, 4)
    prompts[:, -1] = EOS
    out = generate(model, prompts, max_new_tokens=10, eos_token_id=EOS)
    assert our_tokens(out, 4) == their_tokens(reference, prompts, max_new_tokens=10)[0]


def test_a_decoder_that_attends_to_an_encoder():
    model, reference = random_pair(add_cross_attention=True)
    prompts = random_prompts(8, 4)
    rng = np.random.default_rng(0)
    states = rng.normal(size=(8, 5, 12)).astype(np.float32)
    mask = rng.integers(0, 2, (8, 5), np.int32)
    mask[:, 0] = 1
    expected, _ = their_tokens(
        reference,
        prompts,
        max_new_tokens=10,
        encoder_hidden_states=torch.tensor(states),
        encoder_attention_mask=torch.tensor(mask),
        use_cache=False,  # with a cache, transformers fails
    )
    assert len({tuple(row) for row in expected}) > 4
    for mask_of_a_kind in (mask.astype(bool), mask):
        out = generate(
            model,
            prompts,
            max_new_tokens=10,
            eos_token_id=EOS,
            encoder_hidden_states=states,
            encoder_attention_mask=mask_of_a_kind,
        )
        assert our_tokens(out, 4) == expected


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_a_single_row_that_attends_to_an_encoder(options):
    """It is generated without its axis, so not by the same program as several."""
    model, _ = random_pair(add_cross_attention=True)
    prompts, rng = random_prompts(4, 4), np.random.default_rng(0)
    states = rng.normal(size=(4, 5, 12)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]], bool)
    options = options | {"max_new_tokens": 10, "eos_token_id": EOS}
    together = generate(
        model, prompts, encoder_hidden_states=states, encoder_attention_mask=mask, **options
    )
    for row in (slice(1, 2), 1):
        alone = generate(
            model,
            prompts[row],
            encoder_hidden_states=states[row],
            encoder_attention_mask=mask[row],
            **options,
        )
        of_row = jax.tree.map(lambda x, row=row: x[row], together)
        assert our_tokens(alone, 4) == our_tokens(of_row, 4)
        assert max_difference(alone.scores, of_row.scores) < FLOAT32


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(dtype):
    reference = reference_decoder(5, num_hidden_layers=1)
    prompts = random_prompts(2, 4)
    with jax.enable_x64(dtype == "float64"):
        model = same_decoder(reference, dtype)
        out = generate(model, prompts, max_new_tokens=4, eos_token_id=EOS)
        assert out.sequences.dtype == jnp.int32
        assert out.scores.dtype == jnp.float32
    if dtype == "float64":
        assert our_tokens(out, 4) == their_tokens(reference, prompts, max_new_tokens=4)[0]


@pytest.mark.optimized
def test_optimized_programs_agree(pair):
    model, reference = pair
    prompts = random_prompts(3, 5)
    options = {"max_new_tokens": 6, "num_beams": 2}
    out = generate(model, prompts, **options, eos_token_id=EOS)
    assert our_tokens(out, 5) == their_tokens(reference, prompts, **options)[0]


def test_the_result_is_a_tree_of_arrays():
    out = generate(Markov.random(6), np.array([[2], [3]], np.int32), max_new_tokens=5)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(out))
    assert [f.name for f in dataclasses.fields(out)] == ["sequences", "lengths", "scores"]


def test_one_program_for_a_bucket_of_prompts():
    """Other texts, other lengths of the same bucket and other shapes of as many rows compile
    nothing; another batch size, bucket, number of tokens or option compiles one program.
    """
    model = Markov.random(9)

    def compilations(shape: tuple[int, ...], seed: int = 0, **options: Any) -> int:
        prompts = np.random.default_rng(seed).integers(2, 9, shape, np.int32)
        options = {"max_new_tokens": 5} | options
        return count_compilations(lambda: generate(model, prompts, **options))

    assert compilations((6, 4)) == 1
    assert compilations((6, 4), seed=1) == 0
    for shape in ((6, 1), (6, 8), (2, 3, 4), (3, 2, 7)):
        assert compilations(shape) == 0, shape
    assert compilations((6, 9)) == 1
    assert compilations((6, 16)) == 0
    assert compilations((5, 4)) == 1
    assert compilations((6, 4), max_new_tokens=6) == 1
    assert compilations((6, 4), eos_token_id=EOS) == 1
    assert compilations((6, 4), eos_token_id=[EOS], seed=2) == 0
    assert compilations((6, 4), num_beams=2) == 1
    assert compilations((6, 7), num_beams=2, seed=2) == 0
    for key in range(2):
        sampling = {"do_sample": True, "key": jax.random.key(key)}
        assert compilations((6, 4 + key), **sampling) == (1 if key == 0 else 0)

    # With max_length there may be more new tokens after shorter prompts; one program serves all.
    assert compilations((6, 8), max_new_tokens=None, max_length=20) == 1
    for length in (1, 5, 7):
        assert compilations((6, length), max_new_tokens=None, max_length=20) == 0

    # It counts the padding, hence there is another program for prompts of so much of it; without
    # it, padding makes no difference.
    mask = np.arange(16)[None, :] < np.array([1, 2, 3, 4, 5, 6])[:, None]
    for width, new in ((9, 1), (12, 0), (16, 0)):
        of_width = {"attention_mask": mask[:, :width]}
        assert compilations((6, width), max_new_tokens=None, max_length=20, **of_width) == new
        assert compilations((6, width), **of_width) == 0


def whole(*arguments: Any, **options: Any) -> None:
    generate(*arguments, **options)


def streamed(*arguments: Any, **options: Any) -> None:
    for _ in stream(*arguments, **options):
        pass


@pytest.mark.parametrize(
    ("rows", "call", "options"),
    [
        (14, whole, {}),
        (13, whole, {"num_beams": 2}),
        (12, whole, {"do_sample": True}),
        (11, streamed, {}),
    ],
)
@pytest.mark.parametrize("attends", [False, True])
def test_another_prompt_compiles_nothing_at_all(rows, call, options, attends):
    """Nor do masks, of whatever kind they are. (Each time with another number of rows, for which
    nothing has been compiled yet.)
    """
    rows += 10 * attends
    model, rng = Markov.random(9), np.random.default_rng(0)
    kinds = (np.bool, np.bool, np.int32, np.int64, jnp.bool, jnp.int32)
    for number, (seq, kind) in enumerate(zip((4, 6, 1, 8, 7, 5), kinds, strict=True)):
        convert = jnp.asarray if kind in (jnp.bool, jnp.int32) else np.asarray
        ids, mask = random_prompts(rows, seq, number) % 9, rng.integers(0, 2, (rows, seq))
        mask[:, 0] = mask[0] = 1
        given = options | {"attention_mask": convert(mask, kind)}
        if options.get("do_sample"):
            given["key"] = jax.random.key(number)
        if attends:
            given["encoder_hidden_states"] = rng.normal(size=(rows, 3, 5)).astype(np.float32)
            given["encoder_attention_mask"] = convert(rng.integers(0, 2, (rows, 3)), kind)
        names = compiled_programs(lambda p=ids, g=given: call(model, p, max_new_tokens=5, **g))
        assert bool(names) == (number == 0), (kind, names)


@pytest.mark.optimized
@pytest.mark.parametrize(("rows", "beams"), [(1, 1), (3, 1), (1, 4), (3, 4)])
def test_there_is_one_cache_and_no_second_copy_of_it(rows, beams):
    """What a program's memory grows by with each new token: two vectors for each layer and beam,
    and little else; and no operation of its loop copies or makes as much as one cache's keys.
    """
    config = tiny_config(
        is_decoder=True,
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=3,
        max_position_embeddings=3000,
    )
    model = BertForCausalLM(config, key=jax.random.key(0))

    def compiled(new_tokens: int) -> Any:
        prompts = random_prompts(rows, 4)
        options = GenerationOptions(num_beams=beams)
        request, *_ = make_request(
            model, prompts, None, new_tokens, None, None, None, None, options
        )
        return _run.lower(model, request).compile().compiled

    short, long = compiled(500), compiled(2500)
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (short, long)]
    of_a_token = rows * beams * 3 * 2 * 64 * 4
    growth = (sizes[1] - sizes[0]) / 2000
    assert of_a_token <= growth < 1.25 * of_a_token

    keys_of_a_layer = rows * (8 + beams * 2500) * 64
    copies = re.findall(r"= f32\[([\d,]+)\]\S* copy\(", _while_bodies(long.as_text()))
    assert all(math.prod(map(int, shape.split(","))) < keys_of_a_layer for shape in copies)


def _while_bodies(program: str) -> str:
    """The text of the loops of a compiled program."""
    names = re.findall(r"while\(.*?body=%([\w.-]+)", program)
    assert names
    bodies = [re.search(rf"^%{re.escape(name)} .*?^}}", program, re.M | re.S) for name in names]
    return "\n".join(body.group() for body in bodies if body)


def test_processors_are_told_apart_by_identity():
    model, traces = Markov.random(9), []

    def processor(ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        traces.append(ids.shape)
        return logits

    for seed in range(3):
        prompts = random_prompts(2, 3, seed) % 9
        generate(model, prompts, max_new_tokens=5, processors=[processor])
    assert traces == [(2, 13), (2, 13)]  # for the first token, and for the others


class Shift(eqx.Module):
    """A processor that is a module, of which there can be several with other arrays."""

    amount: jax.Array

    def __call__(self, ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        return logits + self.amount[None]

    def back(self, ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        return logits - self.amount[None]


def test_modules_as_processors():
    """They are not compared by their arrays; and their methods are told apart by what they are of,
    though they are made anew whenever they are asked for.
    """
    model, prompts = Markov.random(9), random_prompts(2, 3) % 9
    shifts = [Shift(jnp.zeros(9).at[token].set(amount)) for token, amount in ((4, 99), (6, 99))]

    def tokens(processor: Any) -> set[int]:
        out = generate(model, prompts, max_new_tokens=5, processors=[processor])
        return set(np.asarray(out.sequences)[:, 3:].flat)

    assert [tokens(shift) for shift in shifts] == [{4}, {6}]
    away = [tokens(shift.back) for shift in shifts]
    assert 4 not in away[0]
    assert 6 not in away[1]
    for shift, without in zip(shifts, away, strict=True):
        assert count_compilations(lambda shift=shift: tokens(shift)) == 0
        assert count_compilations(lambda shift=shift: tokens(shift.back)) == 0
        assert tokens(shift.back) == without
    assert GenerationOptions(processors=[shifts[0]]) != GenerationOptions(processors=[shifts[1]])


def test_scores_where_all_tokens_are_forbidden():
    """Minus infinity in these rows alone, and NaN in none."""

    def forbid(ids: jax.Array, logits: jax.Array, step: jax.Array) -> jax.Array:
        is_first_row = jnp.arange(2)[:, None] == 0
        return jnp.where(is_first_row & (step == 1), -jnp.inf, logits)

    prompts = np.array([[2], [3]], np.int32)
    out = generate(Markov.random(9), prompts, max_new_tokens=3, processors=[forbid])
    assert np.isneginf(out.scores[0])
    assert np.isfinite(out.scores[1])


def test_weights_are_not_compiled_into_a_program():
    """Another model of the same configuration runs at once."""
    options = {"max_new_tokens": 5}
    prompts = random_prompts(4, 3) % 9
    first = generate(Markov.random(9, seed=1), prompts, **options)
    assert count_compilations(lambda: generate(Markov.random(9, seed=2), prompts, **options)) == 0
    second = generate(Markov.random(9, seed=2), prompts, **options)
    assert not np.array_equal(first.sequences, second.sequences)
