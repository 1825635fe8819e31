"""Generation by encoder-decoders, against transformers."""

from typing import Any

import jax
import numpy as np
import pytest
from generation.references import (
    ENCODERS,
    EOS,
    START,
    count_compilations,
    our_tokens,
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


def test_forced_first_and_last_tokens():
    """As multilingual models need them."""
    reference = reference_encoder_decoder(seed=3)
    options = {"forced_bos_token_id": 7, "forced_eos_token_id": EOS, "max_new_tokens": 5}
    expected, _ = their_tokens(reference, IDS, MASK, **options)
    out = generate(same_encoder_decoder(reference), IDS, MASK, **options)
    assert our_tokens(out, 1) == expected
    assert {(row[0], row[-1]) for row in expected} == {(7, EOS)}


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
