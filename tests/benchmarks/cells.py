"""What is measured: one cell for each combination of work, model, dtype and size."""

import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from environments import UnavailableError

DTYPES = ("float32", "bfloat16")
SHAPES = ((1, 16), (8, 128), (32, 128), (8, 512))  # batch x tokens, all tokens real
TRAIN_SHAPE = (16, 128)
COMPILED = ("minilm-mlm", "minilm-mlm-12", "minilm-mlm-24")  # of 6, 12 and 24 layers
# On a GPU, in bfloat16: 32,768 tokens at a time.
GPU_MODELS = ("bert-base-mlm", "bert-large-mlm")
GPU_SHAPES = ((256, 128), (64, 512))
SENTENCE = "A man is playing a guitar on the street."


@dataclass(frozen=True)
class Cell:
    kind: str
    model: str
    dtype: str
    size: str
    shape: tuple[int, int] = (0, 0)
    texts: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "/".join((self.kind, self.model, self.dtype, self.size))

    @property
    def sequences(self) -> int:
        return len(self.texts) or self.shape[0]


def forward_cells(shapes: tuple[tuple[int, int], ...]) -> list[Cell]:
    return [
        Cell("forward", model, dtype, f"{batch}x{seq}", shape=(batch, seq))
        for model in ("minilm", "bert-base")
        for dtype in DTYPES
        for batch, seq in shapes
    ]


def train_cells() -> list[Cell]:
    batch, seq = TRAIN_SHAPE
    return [
        Cell("train", "minilm-mlm", dtype, f"{batch}x{seq}", shape=TRAIN_SHAPE) for dtype in DTYPES
    ]


def compile_cells() -> list[Cell]:
    return [
        Cell(kind, model, "float32", "x".join(map(str, TRAIN_SHAPE)), TRAIN_SHAPE)
        for model in COMPILED
        for kind in ("compile_forward", "compile_train")
    ]


def gpu_cells(models: tuple[str, ...], shapes: tuple[tuple[int, int], ...]) -> list[Cell]:
    """Forward passes (of the encoders alone) and steps."""
    return [
        Cell(kind, model, "bfloat16", f"{batch}x{seq}", shape=(batch, seq))
        for kind in ("forward", "train")
        for model in models
        for batch, seq in shapes
    ]


def encode_cells(sentences: int | None, abstracts: int) -> list[Cell]:
    """**Arguments:** how many texts to take of either collection; None for all.

    **Raises:** `UnavailableError` where the texts are not on this machine.
    """
    data = _data_folder()
    return _encode_cells(
        {
            "sts-b": _sts_b_sentences(data)[:sentences],
            "scifact": _scifact_abstracts(data)[:abstracts],
        }
    )


def latency_cells() -> list[Cell]:
    """One short sentence at a time."""
    return _encode_cells({"sentence": [SENTENCE]})


def _encode_cells(collections: dict[str, list[str]]) -> list[Cell]:
    return [
        Cell("encode", "minilm", dtype, name, texts=texts)
        for name, texts in collections.items()
        for dtype in DTYPES
    ]


def _data_folder() -> Path:
    name = os.environ.get("EQXBERT_DATA")
    if not name:
        raise UnavailableError("EQXBERT_DATA is not set: it names the folder with the texts")
    if not Path(name).is_dir():
        raise UnavailableError(f"EQXBERT_DATA names {name}, which is not a folder")
    return Path(name)


def _sts_b_sentences(data: Path) -> list[str]:
    """Both sentences of every pair: short texts, 14 tokens on average."""
    rows = (line.split("\t") for line in _lines(data / "sts-benchmark" / "sts-dev.csv"))
    return [sentence for row in rows for sentence in row[5:7]]


def _scifact_abstracts(data: Path) -> list[str]:
    """Title and text of scientific papers in a fixed random order: 240 tokens on average."""
    papers = [json.loads(line) for line in _lines(data / "scifact-corpus" / "corpus.jsonl")]
    random.Random(0).shuffle(papers)
    return [f"{paper['title']} {paper['text']}" for paper in papers]


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file]
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error.strerror}") from error
