"""The options in a checkpoint's files, against what transformers does by them."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation.references import (
    EOS,
    PAD,
    START,
    our_tokens,
    random_prompts,
    reference_decoder,
    reference_encoder_decoder,
    same_decoder,
    same_encoder_decoder,
    up_to_end,
)

from eqxbert import generate
from eqxbert.generation import GenerationOptions

ENDS = [EOS, 3]


def written(folder: Path, **values: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_generation_equals_transformers(tmp_path, is_encoder_decoder):
    """Neither is told more than what transformers has written into the folder."""
    if is_encoder_decoder:
        reference = reference_encoder_decoder(seed=5)
        model, start = same_encoder_decoder(reference), 1
        reference.generation_config.decoder_start_token_id = 9
    else:
        reference = reference_decoder(5, likely=20, num_hidden_layers=1)
        model, start = same_decoder(reference), 3
    reference.generation_config.update(
        eos_token_id=ENDS,
        pad_token_id=31,
        num_beams=3,
        num_return_sequences=2,
        length_penalty=2.0,
        early_stopping=True,
        bad_words_ids=[[16, 13], [20]],
        repetition_penalty=1.3,
    )
    reference.save_pretrained(tmp_path)
    prompts = random_prompts(6, 3) % 29
    with torch.no_grad():
        expected = reference.generate(torch.tensor(prompts).long(), max_new_tokens=8).numpy()
    options = GenerationOptions.from_pretrained(tmp_path)
    out = generate(model, prompts, max_new_tokens=8, **vars(options))
    assert our_tokens(out, start) == [up_to_end(row[start:].tolist(), ENDS) for row in expected]
    assert np.array_equal(np.asarray(out.sequences).reshape(12, -1), expected)
    assert len(set(np.asarray(out.lengths).flat)) > 1  # so there is padding
    if is_encoder_decoder:
        assert np.all(expected[:, 0] == 9)

    # The options matter.
    plain = generate(model, prompts, max_new_tokens=8, num_beams=3, num_return_sequences=2)
    assert our_tokens(plain, start) != our_tokens(out, start)


def test_every_field_that_a_file_may_have(tmp_path):
    values = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "no_repeat_ngram_size": 3,
        "min_length": 2,
        "min_new_tokens": 1,
        "suppress_tokens": [4],
        "forced_bos_token_id": 5,
        "forced_eos_token_id": [6],
        "decoder_start_token_id": START,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
    }
    assert GenerationOptions.from_pretrained(written(tmp_path, **values)) == GenerationOptions(
        **values
    )
    nothing = dict.fromkeys(values)
    assert GenerationOptions.from_pretrained(written(tmp_path, **nothing)) == GenerationOptions()


def test_fields_to_change_and_what_is_left_out(tmp_path, caplog):
    folder = written(
        tmp_path,
        num_beams=4,
        max_length=20,
        guidance_scale=2.0,
        cache_config=None,
        early_stopping=True,
    )
    with caplog.at_level(logging.INFO, logger="eqxbert"):
        options = GenerationOptions.from_pretrained(folder.parent, subfolder=folder.name)
    assert options == GenerationOptions(num_beams=4, early_stopping=True)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().endswith(
        "generation_config.json: without guidance_scale, max_length"
    )
    changed = GenerationOptions.from_pretrained(folder, num_beams=2, early_stopping=False)
    assert changed == GenerationOptions(num_beams=2)


def test_files_that_are_missing_or_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no generation_config\.json"):
        GenerationOptions.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"num_beam: neither a field .* subfolder"):
        GenerationOptions.from_pretrained(written(tmp_path), num_beam=3)
    with pytest.raises(ValueError, match=r"generation_config\.json: early_stopping must be"):
        GenerationOptions.from_pretrained(written(tmp_path, early_stopping="sometimes"))
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match="not an object"):
        GenerationOptions.from_pretrained(tmp_path)
