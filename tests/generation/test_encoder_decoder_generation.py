"""Generation by encoder-decoders, against transformers."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from generation.references import (
    ENCODERS,
    EOS,
    START,
    count_compilations,
    our_tokens,
    padded,
    reference_encoder_decoder,
    same_encoder_decoder,
    their_tokens,
)
from helpers import max_difference, tiny_config
from tolerances import FLOAT32

from eqxbert import EncoderDecoderConfig, EncoderDecoderModel, generate, stream

IDS = np.random.default_rng(0).integers(2, 29, (3, 6), np.int32)
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 1]], np.int32)


@pytest.mark.parametrize(("encoder", "end"), [*zip(ENCODERS, (3, 10), strict=True)])
def test_generation_equals_transformers(encoder, end):
    """Greedily and with beams, from inputs with padding anywhere."""
    reference = reference_encoder_decoder(encoder, seed=5)
    model = same_encoder_decoder(reference)
    rng = np.random.default_rng(1)
    ids = rng.integers(2, 29, (8, 6), np.int32)
    mask = rng.integers(0, 2, (8, 6), np.int32)
    mask[:, 3] = 1
    beams = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0, "min_length": 5}
    for options in ({}, beams):
        options = {"max_new_tokens": 10, "eos_token_id": end} | options
        expected, scores = their_tokens(reference, ids, mask, **options)
        assert len(set(map(tuple, expected))) > 2
        out = generate(model, ids, mask, **options)
        assert our_tokens(out, 1) == expected
        assert np.all(np.asarray(out.sequences)[..., 0] == START)
        if scores is not None:
            assert max_difference(np.asarray(out.scores).reshape(-1), scores) < FLOAT32

    # The last one with other axes and alone, and in as many tokens with the first one.
    by_two = generate(model, ids.reshape(2, 4, 6), mask.reshape(2, 4, 6), **options)
    assert np.array_equal(by_two.sequences, out.sequences.reshape(2, 4, 3, -1))
    del options["max_new_tokens"]
    of_length = generate(model, ids, mask, max_length=11, **options)
    assert np.array_equal(of_length.sequences, out.sequences)


@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")
def test_generation_of_a_trained_model_equals_transformers():
    """One that has learnt to repeat what it reads."""
    reference = reference_encoder_decoder(seed=5)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=5e-3)
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = torch.tensor(rng.integers(8, 14, (32, 3)))
        labels = torch.cat([ids, torch.full((32, 1), EOS)], dim=1)
        reference(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model = same_encoder_decoder(reference)
    ids = rng.integers(8, 14, (8, 3), np.int32)
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        options = {"max_new_tokens": 6, "eos_token_id": EOS} | options
        expected, _ = their_tokens(reference, ids, np.ones_like(ids), **options)
        assert our_tokens(generate(model, ids, **options), 1) == expected
    repeated = [[*row.tolist(), EOS] for row in ids]
    assert sum(a == b for a, b in zip(expected[::2], repeated, strict=True)) > 5


def test_forced_first_and_last_tokens():
    """As multilingual models need them."""
    reference = reference_encoder_decoder(seed=3)
    options = {"forced_bos_token_id": 7, "forced_eos_token_id": EOS, "max_new_tokens": 5}
    expected, _ = their_tokens(reference, IDS, MASK, **options)
    out = generate(same_encoder_decoder(reference), IDS, MASK, **options)
    assert our_tokens(out, 1) == expected
    assert {(row[0], row[-1]) for row in expected} == {(7, EOS)}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_row_alone_and_in_a_batch(encoder, options):
    """It is generated without its axis, so not by the same program as several."""
    model = same_encoder_decoder(reference_encoder_decoder(encoder, seed=5))
    options = options | {"max_new_tokens": 6, "eos_token_id": 3}
    together = generate(model, IDS, MASK, **options)
    for row in (0, 1, 2, slice(2, 3)):
        alone = generate(model, IDS[row], MASK[row], **options)
        of_row = jax.tree.map(lambda x, row=row: x[row], together)
        assert our_tokens(alone, 1) == our_tokens(of_row, 1)
        assert max_difference(alone.scores, of_row.scores) < FLOAT32


def test_the_encoders_positions_count_padding_before():
    """As in transformers; so only at the end it makes no difference."""
    reference = reference_encoder_decoder(seed=5)
    model = same_encoder_decoder(reference)
    rows = [[5, 6, 7, 8], [9], [20, 17, 2]]
    alone = [
        np.asarray(model.encode(np.array(row, np.int32)).last_hidden_state)[-1] for row in rows
    ]
    options = {"max_new_tokens": 6, "eos_token_id": 3}
    scores = {}
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        states = np.asarray(model.encode(ids, mask).last_hidden_state)
        last = states[np.arange(3), -1 if side == "left" else mask.sum(-1) - 1]
        is_same = [max_difference(*pair) < FLOAT32 for pair in zip(last, alone, strict=True)]
        assert is_same == ([True, False, False] if side == "left" else [True] * 3)
        out = generate(model, ids, mask, **options)
        assert our_tokens(out, 1) == their_tokens(reference, ids, mask, **options)[0]
        scores[side] = np.asarray(out.scores)
    each = [generate(model, np.array(row, np.int32), **options).scores for row in rows]
    assert max_difference(scores["right"], each) < FLOAT32
    assert max_difference(scores["left"], each) > FLOAT32


def test_another_token_to_start_with():
    reference = reference_encoder_decoder(seed=5)
    model = same_encoder_decoder(reference)
    options = {"max_new_tokens": 6, "eos_token_id": 3, "decoder_start_token_id": 9}
    out = generate(model, IDS, MASK, **options)
    assert our_tokens(out, 1) == their_tokens(reference, IDS, MASK, **options)[0]
    assert np.all(out.sequences[:, 0] == 9)
    without = model.with_config(model.config.replace(decoder_start_token_id=None))
    assert without.config.decoder_start_token_id is None
    assert np.array_equal(generate(without, IDS, MASK, **options).sequences, out.sequences)


class Counted(EncoderDecoderModel):
    """Counts how often it encodes."""

    def encode(self, *arguments: Any, **options: Any) -> Any:
        jax.debug.callback(lambda: ENCODED.append(1), ordered=True)
        return super().encode(*arguments, **options)


ENCODED: list[int] = []


def test_generation_encodes_once_and_compiles_one_program_for_a_bucket(key):
    config = EncoderDecoderConfig(
        encoder=tiny_config(num_hidden_layers=1),
        decoder=tiny_config(num_hidden_layers=1),
        decoder_start_token_id=START,
    )
    model = Counted(config, key=key)
    options: dict[str, Any] = {"max_new_tokens": 6}
    for more in ({}, {"do_sample": True, "num_return_sequences": 2, "key": key}):
        ENCODED.clear()
        out = generate(model, IDS, MASK, **options, **more)
        jax.effects_barrier()
        assert len(ENCODED) == 1
        assert out.sequences.shape[:-1] == ((3, 2) if "num_return_sequences" in more else (3,))
    for seq in (3, 8):
        ids = np.full((3, seq), seq, np.int32)
        assert count_compilations(lambda ids=ids: generate(model, ids, **options)) == 0

    expected = generate(model, IDS, MASK, **options)
    ENCODED.clear()
    steps = list(stream(model, IDS, MASK, **options))
    jax.effects_barrier()
    assert len(ENCODED) == 1
    assert np.array_equal(np.stack(steps, axis=-1), expected.sequences[:, 1:])
