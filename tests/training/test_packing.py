"""Several sequences in a row: none is lost, few rows are needed, and none sees another one."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import max_difference, tiny_config
from parity import assert_same_gradients
from tolerances import FLOAT32, FLOAT32_GRADIENT, FLOAT64

import eqxbert
from eqxbert.nn import IGNORED_LABEL, segment_mask, segment_positions
from eqxbert.training.masking import mask_tokens
from eqxbert.training.packing import Packing, pack_sequences, plan_packing

SEQ = 17


def random_lengths(rng: np.random.Generator, seq: int) -> list[int]:
    kind = rng.choice(["any", "short", "long", "alike"])
    low, high = {"any": (1, seq), "short": (1, 1 + seq // 4), "long": (1 + seq // 2, seq)}.get(
        kind, (seq // 3 + 1,) * 2
    )
    return rng.integers(low, high + 1, rng.integers(1, 80)).tolist()


def trials(count: int = 100):
    rng = np.random.default_rng(0)
    for _ in range(count):
        seq = int(rng.choice([1, 2, 7, 32, 100]))
        yield random_lengths(rng, seq), seq


def check_layout(packing: Packing, lengths: list[int]) -> None:
    """Each sequence has a place of its own."""
    taken = np.zeros(packing.shape, int)
    assert packing.lengths.tolist() == lengths
    for row, start, length in zip(packing.rows, packing.starts, lengths, strict=True):
        assert start >= 0
        assert start + length <= packing.shape[1]
        taken[row, start : start + length] += 1
    assert taken.max() == 1
    assert taken.sum() == sum(lengths)
    # Padding comes last.
    assert (np.diff(taken, axis=1) <= 0).all()


def test_each_sequence_has_a_place_of_its_own():
    for lengths, seq in trials():
        packing = plan_packing(lengths, seq=seq)
        check_layout(packing, lengths)
        assert set(packing.rows.tolist()) == set(range(packing.shape[0]))


def test_the_best_row_is_taken():
    """Against all rows tried one by one."""
    for lengths, seq in trials():
        rooms: list[int] = []
        for length in sorted(lengths, reverse=True):
            fitting = [i for i, room in enumerate(rooms) if room >= length]
            if not fitting:
                rooms.append(seq)
                fitting = [len(rooms) - 1]
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        packing = plan_packing(lengths, seq=seq)
        used = np.bincount(packing.rows, packing.lengths)
        assert sorted(seq - used.astype(int)) == sorted(rooms)


def test_few_rows_are_needed():
    """Full rows are cut to pieces and put together again, into few more than they were."""
    rng = np.random.default_rng(0)
    needed, fewest = 0, 0
    for _ in range(100):
        rows = int(rng.integers(1, 60))
        lengths = []
        for _ in range(rows):
            cuts = np.sort(rng.choice(np.arange(1, 100), int(rng.integers(0, 8)), replace=False))
            lengths += np.diff([0, *cuts, 100]).tolist()
        packing = plan_packing(rng.permutation(lengths).tolist(), seq=100)
        assert packing.shape[0] <= 11 / 9 * rows + 1
        needed += packing.shape[0]
        fewest += rows
    assert needed < 1.02 * fewest


def test_a_fixed_number_of_rows():
    sequences = [np.full(length, 7 + length) for length in (3, 5, 2)]
    inputs, packing = pack_sequences(sequences, seq=5, rows=4, pad_id=1)
    assert packing.shape == (4, 5)
    assert inputs["input_ids"][2:].tolist() == [[1] * 5] * 2
    assert not inputs["segment_ids"][2:].any()
    assert pack_sequences(sequences, seq=5, rows=2)[1].shape == (2, 5)


def test_as_literals():
    ids = [np.array([2, 8, 3]), np.array([2, 9, 9, 9, 3]), np.array([2, 3])]
    types = [np.array([0, 0, 1]), np.array([0, 0, 1, 1, 1]), np.array([0, 1])]
    inputs, packing = pack_sequences(ids, types, seq=6, pad_id=1)
    assert {name: array.tolist() for name, array in inputs.items()} == {
        "input_ids": [[2, 9, 9, 9, 3, 1], [2, 8, 3, 2, 3, 1]],
        "token_type_ids": [[0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 1, 0]],
        "segment_ids": [[2, 2, 2, 2, 2, 0], [1, 1, 1, 3, 3, 0]],
    }
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.int32)}
    assert packing.rows.tolist() == [1, 0, 1]
    assert packing.starts.tolist() == [0, 0, 3]
    positions = segment_positions(inputs["segment_ids"])
    assert positions.tolist() == [[0, 1, 2, 3, 4, 0], [0, 1, 2, 0, 1, 0]]
    mask = segment_mask(inputs["segment_ids"])
    assert mask.dtype == bool
    assert mask[1].astype(int).tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    no_types, _ = pack_sequences(ids, seq=6)
    assert not no_types["token_type_ids"].any()


def test_what_is_packed_is_unpacked():
    rng = np.random.default_rng(0)
    for (lengths, seq), dtype in zip(
        trials(), itertools.cycle([np.int64, np.uint16]), strict=False
    ):
        sequences = [rng.integers(0, 1000, length).astype(dtype) for length in lengths]
        inputs, packing = pack_sequences(sequences, seq=seq)
        expected = {
            "input_ids": sequences,
            "segment_ids": [np.full(length, i + 1) for i, length in enumerate(lengths)],
        }
        for name, parts in expected.items():
            unpacked = packing.unpack(inputs[name])
            assert all(np.array_equal(a, b) for a, b in zip(unpacked, parts, strict=True))
            assert inputs[name].sum() == sum(part.sum() for part in parts)
        labels = packing.pack(sequences, fill=IGNORED_LABEL)
        assert np.sum(labels == IGNORED_LABEL) == labels.size - sum(lengths)


def test_positions_and_masks_of_any_number_of_axes():
    segments = np.sort(np.random.default_rng(0).integers(0, 3, (2, 3, 5), np.int32), axis=-1)
    expected = np.array(
        [[[[a == b for b in row] for a in row] for row in rows] for rows in segments]
    )
    assert np.array_equal(segment_mask(segments), expected)
    assert np.array_equal(segment_mask(segments[0, 0]), expected[0, 0])
    before = np.cumsum(np.eye(3, dtype=int)[segments], axis=-2) - 1
    places = np.take_along_axis(before, segments[..., None], axis=-1)[..., 0]
    places[segments == 0] = 0
    assert np.array_equal(segment_positions(segments), places)
    assert np.array_equal(segment_positions(segments[0, 0]), places[0, 0])


# Models


def sequences_of(lengths: list[int], seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 33, length, np.int32) for length in lengths]
    return ids, [np.sort(rng.integers(0, 2, length, np.int32)) for length in lengths]


@jax.jit
def states_alone(model: Any, ids: jax.Array, types: jax.Array) -> jax.Array:
    return model(ids, token_type_ids=types).last_hidden_state


@jax.jit
def packed_states(model: Any, inputs: dict[str, jax.Array]) -> jax.Array:
    return model(**inputs).last_hidden_state


@pytest.mark.parametrize("position_type", ["absolute", "relative_key_query"])
def test_outputs_are_those_of_the_sequences_alone(position_type, key):
    config = tiny_config(position_embedding_type=position_type)
    model = eqxbert.BertModel(config, key=key)
    ids, types = sequences_of([3, 9, 1, 17, 5, 1, 9, 3, 5, 1])
    inputs, packing = pack_sequences(ids, types, seq=SEQ, rows=6)
    assert np.bincount(packing.rows).max() > 2
    with jax.enable_x64(True):
        model = jax.tree.map(lambda x: x.astype(jnp.float64), model)
        states = packing.unpack(packed_states(model, inputs))
        for alone, of_type, state in zip(ids, types, states, strict=True):
            expected = states_alone(model, alone[None], of_type[None])[0]
            assert max_difference(state, expected) < FLOAT64


def test_rows_may_be_longer_than_any_sequence(key):
    """Positions count in each sequence, and so may be more than the model has in a row."""
    model = eqxbert.BertModel(tiny_config(), key=key)
    ids, types = sequences_of([17, 9, 16])
    inputs, packing = pack_sequences(ids, types, seq=3 * SEQ)
    assert packing.shape == (1, 3 * SEQ)
    states = packing.unpack(packed_states(model, inputs))
    for alone, of_type, state in zip(ids, types, states, strict=True):
        expected = states_alone(model, alone[None], of_type[None])[0]
        assert max_difference(state, expected) < FLOAT32


def test_segments_that_make_no_sense(key):
    model = eqxbert.BertForCausalLM(tiny_config(is_decoder=True), key=key)
    ids = np.ones((2, 5), np.int32)
    segments = np.ones((2, 5), np.int32)
    with pytest.raises(ValueError, match="either attention_mask or segment_ids; both were given"):
        model(ids, np.ones((2, 5), bool), segment_ids=segments)
    with pytest.raises(ValueError, match="segment_ids was given with a cache"):
        model(ids, segment_ids=segments, cache=model.init_cache(2, 8))
    long = np.ones((1, 20), np.int32)
    with pytest.raises(ValueError, match=r"there would be 20 in a row, but .* positions for 17"):
        model(long, segment_ids=long)


def test_no_sequence_sees_another(key):
    """To the bit, and by its gradient."""
    model = eqxbert.BertModel(tiny_config(), key=key)
    ids, types = sequences_of([4, 5, 3, 5])
    inputs, packing = pack_sequences(ids, types, seq=SEQ)
    assert packing.shape == (1, SEQ)
    before = packing.unpack(packed_states(model, inputs))
    ids[1] = (ids[1] + 1) % 33
    after = packing.unpack(packed_states(model, pack_sequences(ids, types, seq=SEQ)[0]))
    assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [
        True,
        False,
        True,
        True,
    ]
    assert all(np.isfinite(state).all() for state in after)


def test_losses_and_gradients_are_those_of_the_sequences_alone(key):
    """Against rows of one sequence each."""
    model = eqxbert.BertForMaskedLM(tiny_config(num_hidden_layers=1), key=key)
    ids, types = sequences_of([7, 4, 6, 9, 3])
    packed, packing = pack_sequences(ids, types, seq=SEQ)
    options = {"vocab_size": 33, "mask_id": 4, "special_ids": [2, 3], "rate": 0.4}
    packed |= mask_tokens(packed["input_ids"], seed=0, step=0, all_positions=True, **options)
    apart = Packing(np.arange(5), np.zeros(5, int), packing.lengths, (5, SEQ))
    inputs = {
        "input_ids": apart.pack(packing.unpack(packed["input_ids"])),
        "token_type_ids": apart.pack(types),
        "attention_mask": apart.pack([np.ones_like(sequence) for sequence in ids]),
        "labels": apart.pack(packing.unpack(packed["labels"]), fill=IGNORED_LABEL),
    }
    assert (inputs["labels"] != IGNORED_LABEL).sum() > 5
    loss = jax.jit(jax.value_and_grad(lambda model, inputs: model(**inputs).loss))
    value, gradient = loss(model, packed)
    expected, expected_gradient = loss(model, inputs)
    assert abs(float(value - expected)) < FLOAT32
    assert_same_gradients(gradient, expected_gradient, FLOAT32_GRADIENT)


def test_real_sentences_fill_the_rows(data: Path, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(
        (data / "vocab" / "bert-base-uncased-vocab.txt").read_bytes()
    )
    tokenizer = eqxbert.Tokenizer.from_pretrained(tmp_path)
    text = (data / "text" / "bert-sample.txt").read_text(encoding="utf-8")
    ids, types = tokenizer.encode([line for line in text.splitlines() if line])
    inputs, packing = pack_sequences(ids, types, seq=128)
    check_layout(packing, list(map(len, ids)))
    assert np.mean(inputs["segment_ids"] > 0) > 0.9
    assert packing.shape[0] < len(ids) / 2


# Bad input

IDS = [np.arange(3), np.arange(5)]
PACKED, PACKING = pack_sequences(IDS, seq=6)
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "nothing": (lambda: pack_sequences([], seq=6), "There are no sequences to pack"),
    "too long": (
        lambda: pack_sequences(IDS, seq=4),
        r"Sequence 1 has 5 tokens, expected 1 to 4 \(seq is 4; .*Truncate it or leave it out",
    ),
    "empty": (lambda: plan_packing([3, 0], seq=4), "Sequence 1 has 0 tokens, expected 1 to 4"),
    "too few rows": (
        lambda: pack_sequences(IDS, seq=6, rows=1),
        "2 sequences of 8 tokens need 2 rows of 6, but rows is 1. Give fewer",
    ),
    "seq": (lambda: plan_packing([1], seq=0), "seq must be an integer from 1 .* got 0"),
    "types": (
        lambda: pack_sequences(IDS, [np.arange(3), np.arange(4)], seq=6),
        "Sequence 1 has 5 tokens, but there are 4 values for it",
    ),
    "fewer types": (
        lambda: pack_sequences(IDS, IDS[:1], seq=6),
        "There are values for 1 sequences, but 2 are here",
    ),
    "unpack": (
        lambda: PACKING.unpack(np.zeros((1, 6, 3))),
        r"packed has shape \(1, 6, 3\), expected \(2, 6\) and further axes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
