"""Folders whose tokenizer cannot be read: the error names the file and what is wrong with it."""

import pytest
from text.tiny import write_vocabulary

import eqxbert


def test_a_vocabulary_without_special_tokens_is_an_error(tmp_path):
    write_vocabulary(tmp_path, ["the", "cat", "[PAD]"])
    with pytest.raises(ValueError, match=r"\(3 tokens\) lacks the special tokens \[CLS\], \[SEP\]"):
        eqxbert.Tokenizer.from_pretrained(tmp_path)


def test_a_vocabulary_that_is_not_text_is_an_error(tmp_path):
    write_vocabulary(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"vocab\.txt is not"):
        eqxbert.Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("contents", ["", "{", "[]", '{"model": {"type": "nonsense"}}'])
def test_a_damaged_tokenizer_json_is_an_error(tmp_path, contents):
    write_vocabulary(tmp_path)  # which must not be taken in its place
    (tmp_path / "tokenizer.json").write_text(contents)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a valid tokenizer"):
        eqxbert.Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [("", "is not valid JSON"), (b"\xff\xfe{}", "is not valid JSON"), ("[1]", "holds a JSON list")],
)
def test_a_damaged_tokenizer_config_is_an_error(tmp_path, contents, message):
    write_vocabulary(tmp_path)
    raw = contents if isinstance(contents, bytes) else contents.encode()
    (tmp_path / "tokenizer_config.json").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json {message}"):
        eqxbert.Tokenizer.from_pretrained(tmp_path)


def test_a_folder_without_tokenizer_is_an_error_that_says_what_is_there(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        FileNotFoundError, match=r"has no vocab\.txt, nor tokenizer\.json.*It has model\.safetens"
    ):
        eqxbert.Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        eqxbert.Tokenizer.from_pretrained(tmp_path / "elsewhere")
