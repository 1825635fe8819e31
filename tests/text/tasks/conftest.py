"""A tokenizer with a tiny vocabulary, and MiniLM's."""

from pathlib import Path

import pytest
import transformers
from text.tiny import write_vocabulary

import eqxbert


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> eqxbert.Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return eqxbert.Tokenizer.from_pretrained(
        write_vocabulary(folder, config={"do_lower_case": False})
    )


@pytest.fixture(scope="session")
def real_tokenizer(minilm: Path) -> eqxbert.Tokenizer:
    return eqxbert.Tokenizer.from_pretrained(minilm)


@pytest.fixture(scope="session")
def reference(minilm: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(minilm)
