"""A folder read by this library and by sentence-transformers: both must give the same vectors."""

from pathlib import Path

import numpy as np
from helpers import max_difference
from sentence_transformers import SentenceTransformer
from text.tiny import HIDDEN
from tolerances import FLOAT32

import eqxbert

# Of up to 8 tokens, or cut off at the limit: so each model compiles only two programs.
TEXTS = ["the cat sat", "", "The SAT", "x y z " * 40, "un[MASK]ed", "The query"]


def read_by_the_original(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def assert_same_vectors(folder: Path, size: int = HIDDEN, **options) -> np.ndarray:
    ours = eqxbert.SentenceEncoder.from_pretrained(folder).encode(TEXTS, **options)
    expected = read_by_the_original(folder).encode(TEXTS, **options)
    assert ours.shape == (len(TEXTS), size)
    assert max_difference(ours, expected) <= FLOAT32
    return ours
