"""A tiny vocabulary, and files for it."""

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HIDDEN = 12
POSITIONS = 41
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "The", "cat", "sat", "hello", "world", "query", "##ing", "##ed", "un"]
VOCABULARY = [
    *SPECIAL,
    *string.ascii_letters,
    *(f"##{letter}" for letter in string.ascii_letters),
    *string.punctuation,
    *string.digits,
    *WORDS,
]


def write_vocabulary(
    folder: Path, tokens: Sequence[str] = VOCABULARY, config: Mapping[str, Any] | None = None
) -> Path:
    """A folder as the first checkpoints were: a vocabulary, and what there is to say about it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    values = {"tokenizer_class": "BertTokenizer"} | dict(config or {})
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    if not (folder / "config.json").exists():  # transformers looks for the kind of model in it
        (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(values), encoding="utf-8")
