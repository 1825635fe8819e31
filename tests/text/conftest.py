"""Tiny folders in the layouts of transformers and sentence-transformers, with random weights."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from text.tiny import HIDDEN, POSITIONS, VOCABULARY, write_vocabulary

SaveSentenceModel = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a cased vocabulary and nothing of sentence-transformers'."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=POSITIONS,
        initializer_range=0.5,
    )
    folder = tmp_path_factory.mktemp("tiny") / "bert"
    transformers.BertModel(config).save_pretrained(folder)
    return write_vocabulary(folder, config={"do_lower_case": False})


@pytest.fixture(scope="session")
def save_sentence_model(
    tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> SaveSentenceModel:
    """Has sentence-transformers write a folder: the tiny BERT, a pooling and what follows it."""

    def save(
        *head: torch.nn.Module,
        pooling_mode: str | Sequence[str] = "mean",
        include_prompt: bool = True,
        max_seq_length: int | None = None,
        do_lower_case: bool = False,
        **options: Any,
    ) -> Path:
        transformer = Transformer(
            str(tiny_bert), max_seq_length=max_seq_length, do_lower_case=do_lower_case
        )
        pooling = Pooling(HIDDEN, pooling_mode=pooling_mode, include_prompt=include_prompt)
        folder = tmp_path_factory.mktemp("sentence-model")
        model = SentenceTransformer(
            modules=[transformer, pooling, *head], device="cpu", local_files_only=True, **options
        )
        model.save(str(folder), create_model_card=False)
        return folder

    return save


@pytest.fixture(scope="session")
def sentence_model(save_sentence_model: SaveSentenceModel) -> Path:
    """The plainest folder. Not to be changed."""
    return save_sentence_model()


@pytest.fixture
def copy(sentence_model: Path, tmp_path: Path) -> Path:
    """A folder of its own, to be changed."""
    return shutil.copytree(sentence_model, tmp_path / "copy")
