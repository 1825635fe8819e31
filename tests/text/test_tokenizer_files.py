"""Folders that hold a tokenizer: what is read from them, and what is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from text.tiny import SPECIAL, VOCABULARY, edit_json, write_vocabulary

import eqxbert

TEXTS = [
    "The cat sat, hello WORLD!",
    "Crème brûlée İ ß cafe\u0301",
    "我爱北京, mixed漢字text",
    "[MASK] [NEW] x[NEW]y, [new] <mask> don't-split don't-splitting",
    "👩\u200d👧 a\x00b\u200b",
    "x" * 101,
    "",
]


def assert_same_ids(folder: Path, texts: list[str] = TEXTS) -> None:
    ours = eqxbert.Tokenizer.from_pretrained(folder)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    expected = reference(texts)["input_ids"]
    assert [row.tolist() for row in ours.encode(texts)[0]] == expected
    assert ours.vocab_size == len(reference)
    assert ours.pad_id == reference.pad_token_id
    assert ours.mask_id == reference.mask_token_id


@pytest.fixture(scope="module")
def real_vocabulary(minilm: Path) -> list[str]:
    return (minilm / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]


def added_token(content: str, **changes: Any) -> dict[str, Any]:
    options = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
    return {"content": content, **options, **changes}


SETTINGS = {
    "nothing": {},
    "cased": {"do_lower_case": False},
    "lower case, accents kept": {"strip_accents": False},
    "lower case, accents stripped": {"strip_accents": True},
    "lower case decides about accents": {"strip_accents": None},
    "cased, accents stripped": {"do_lower_case": False, "strip_accents": True},
    "chinese characters not apart": {"tokenize_chinese_chars": False},
    "never split": {"never_split": ["don't-split"]},
    "special tokens as objects": {
        "mask_token": {"__type": "AddedToken", **added_token("[MASK]", lstrip=True)}
    },
    "a special token more": {
        "added_tokens_decoder": {"30522": added_token("[NEW]", special=True)},
    },
    "words more": {
        "added_tokens_decoder": {
            "30523": added_token("[NEW]", normalized=True),
            "30522": added_token("don't-split", single_word=True),
        }
    },
    "special tokens described": {
        "added_tokens_decoder": {
            str(i): added_token(token, special=True)
            for i, token in zip((0, 100, 101, 102, 103), SPECIAL, strict=True)
        },
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_vocabulary_with_settings_equals_transformers(tmp_path, real_vocabulary, name):
    assert_same_ids(write_vocabulary(tmp_path, real_vocabulary, SETTINGS[name]))


def test_a_vocabulary_alone_is_enough(tmp_path, real_vocabulary):
    write_vocabulary(tmp_path, real_vocabulary)
    (tmp_path / "tokenizer_config.json").unlink()
    assert_same_ids(tmp_path)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends_of_a_vocabulary(tmp_path, newline):
    write_vocabulary(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(newline.join(VOCABULARY).encode())
    assert_same_ids(tmp_path, ["the cat sat", "Hello"])


@pytest.mark.parametrize("character", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\u00a0"])
def test_only_a_newline_ends_a_line_of_a_vocabulary(tmp_path, character):
    """Python's `splitlines` splits at these too, and moves every id after them."""
    tokens = [*SPECIAL, character, *VOCABULARY[len(SPECIAL) :]]
    assert_same_ids(write_vocabulary(tmp_path, tokens), ["the cat sat", "Hello"])


def test_an_empty_line_of_a_vocabulary_has_an_id(tmp_path):
    tokens = [*SPECIAL, "", *VOCABULARY[len(SPECIAL) :]]
    assert_same_ids(write_vocabulary(tmp_path, tokens), ["the cat sat"])


CUSTOM = {
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
WITH_CUSTOM = [*CUSTOM.values(), *VOCABULARY[len(SPECIAL) :]]


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_special_tokens_with_other_names(tmp_path, file):
    """transformers 4 wrote them to a file of their own."""
    write_vocabulary(tmp_path, WITH_CUSTOM)
    (tmp_path / file).write_text(json.dumps(CUSTOM))
    assert_same_ids(tmp_path, ["the <mask> sat </s> [MASK] é", ""])


def test_tokens_added_in_a_file_of_their_own(tmp_path, real_vocabulary):
    write_vocabulary(tmp_path, real_vocabulary)
    (tmp_path / "added_tokens.json").write_text('{"[NEW]": 30522}')
    assert_same_ids(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_lower_case": False},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
        {"added_tokens_decoder": {"30522": added_token("[NEW]", special=True)}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_tokenizer_config_is_heard_beside_tokenizer_json(tmp_path, minilm, changes):
    """The two can disagree, for example after a change by hand. transformers follows the former."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(minilm / name, tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", **changes)
    assert_same_ids(tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(9, 9), (9.0, 9), (512, 512), (None, None), (int(1e30), None), (1e30, None), ("x", None)],
)
def test_model_max_length(tmp_path, value, expected):
    write_vocabulary(tmp_path, config={"model_max_length": value})
    tokenizer = eqxbert.Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.max_length == expected
    assert isinstance(tokenizer.max_length, int | None)
    length = len(tokenizer("the cat " * 400)["input_ids"])
    assert length == (802 if expected is None else expected)


def test_truncation_and_padding_in_tokenizer_json_do_not_count(tmp_path, minilm):
    """MiniLM's asks for 128 tokens, always, as a trace of how it was trained."""
    settings = json.loads((minilm / "tokenizer.json").read_text(encoding="utf-8"))
    assert settings["truncation"]["max_length"] == 128
    assert settings["padding"] is not None
    tokenizer = eqxbert.Tokenizer.from_pretrained(minilm)
    ids, _ = tokenizer.encode(["a " * 200, "a"])
    assert [len(row) for row in ids] == [202, 3]


@pytest.mark.parametrize("max_length", [None, 7])
@pytest.mark.parametrize("settings", ["cased", "lower case, accents kept", "words more"])
def test_a_written_tokenizer_reads_back(tmp_path, real_vocabulary, settings, max_length):
    config = SETTINGS[settings] | {"model_max_length": max_length}
    tokenizer = eqxbert.Tokenizer.from_pretrained(
        write_vocabulary(tmp_path / "before", real_vocabulary, config)
    )
    expected = tokenizer(TEXTS, TEXTS[::-1])
    written = tmp_path / "after"
    written.mkdir()
    tokenizer.write(written)
    again = eqxbert.Tokenizer.from_pretrained(written)
    assert again.max_length == tokenizer.max_length
    for name, array in again(TEXTS, TEXTS[::-1]).items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("settings", ["cased", "lower case, accents kept", "words more"])
def test_transformers_reads_a_written_tokenizer(tmp_path, real_vocabulary, settings):
    """Token types included, which are easily lost: a model takes their absence for zeros."""
    tokenizer = eqxbert.Tokenizer.from_pretrained(
        write_vocabulary(tmp_path / "before", real_vocabulary, SETTINGS[settings])
    )
    written = tmp_path / "after"
    written.mkdir()
    tokenizer.write(written)
    shutil.copy(tmp_path / "before" / "config.json", written)
    reference = transformers.AutoTokenizer.from_pretrained(written)
    assert reference.pad_token_id == tokenizer.pad_id
    assert reference.mask_token_id == tokenizer.mask_id
    ours = tokenizer(TEXTS, TEXTS[::-1])
    expected = reference(TEXTS, TEXTS[::-1], padding=True, return_tensors="np")
    assert ours.keys() == expected.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_custom_special_tokens_are_written(tmp_path):
    tokenizer = eqxbert.Tokenizer.from_pretrained(
        write_vocabulary(tmp_path / "before", WITH_CUSTOM, CUSTOM)
    )
    written = tmp_path / "after"
    written.mkdir()
    tokenizer.write(written)
    assert eqxbert.Tokenizer.from_pretrained(written).special_tokens == CUSTOM
    shutil.copy(tmp_path / "before" / "config.json", written)
    assert_same_ids(written, ["the <mask> sat"])


def test_writing_does_not_write_the_limit_of_an_earlier_call(tmp_path, minilm):
    tokenizer = eqxbert.Tokenizer.from_pretrained(minilm)
    tokenizer("some text", max_length=4)
    tokenizer.write(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["truncation"] is None
