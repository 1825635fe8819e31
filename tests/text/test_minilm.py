"""all-MiniLM-L6-v2 on every sentence of STS-B's development set, against sentence-transformers."""

import csv
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import max_difference
from sentence_transformers import SentenceTransformer
from tolerances import SENTENCE_VECTORS

import eqxbert

pytestmark = pytest.mark.optimized

HARDER = [
    "",
    " \n",
    "x" * 101,
    "我爱北京天安门 👩\u200d👧 naïve\x00",
    "a [PAD] in the middle [MASK] counts as a token [SEP] like the others",
    "lorem ipsum " * 9000,  # more than 100,000 characters, of which 256 tokens count
]


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> eqxbert.SentenceEncoder:
    return eqxbert.SentenceEncoder.from_pretrained(minilm)


@pytest.fixture(scope="module")
def reference(minilm: Path) -> SentenceTransformer:
    return SentenceTransformer(str(minilm), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def pairs(data: Path) -> list[list[str]]:
    """Score and both sentences of each pair."""
    path = data / "sts-benchmark" / "sts-dev.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 1500
    return [row[4:7] for row in rows]


@pytest.fixture(scope="module")
def vectors(encoder, reference, pairs) -> dict[str, np.ndarray]:
    """The vectors of 3,000 sentences: each pair's first, then each pair's second."""
    sentences = [row[column] for column in (1, 2) for row in pairs]
    return {"ours": encoder.encode(sentences), "reference": reference.encode(sentences)}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks, where equal values share the mean of theirs."""

    def ranks(x: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def test_every_vector_equals_sentence_transformers(vectors):
    assert vectors["ours"].shape == (3000, 384)
    assert vectors["ours"].dtype == np.float32
    assert max_difference(vectors["ours"], vectors["reference"]) <= SENTENCE_VECTORS


def test_similarity_agrees_with_human_judgement_as_well_as_the_original(vectors, pairs):
    scores = np.array([float(score) for score, _, _ in pairs])
    correlation = {
        name: spearman((x[:1500] * x[1500:]).sum(axis=-1), scores) for name, x in vectors.items()
    }
    assert correlation["reference"] > 0.86
    assert round(correlation["ours"], 4) == round(correlation["reference"], 4)


def test_hard_texts_equal_sentence_transformers(encoder, reference):
    ours = encoder.encode(HARDER)
    assert max_difference(ours, reference.encode(HARDER)) <= SENTENCE_VECTORS


def test_what_the_folder_says_is_heard(encoder, reference):
    assert encoder.max_seq_length == reference.max_seq_length == 256
    assert encoder.embedding_size == 384
    assert encoder.prompts == {}
    assert encoder.similarity_fn_name == "cosine"
    assert encoder.model.pooling.modes == ("mean",)
    assert [type(module).__name__ for module in encoder.model.head] == ["Normalize"]


def test_a_shorter_limit_equals_sentence_transformers(minilm, encoder, reference):
    text = "the quick brown fox jumped over the lazy dog " * 3
    short = eqxbert.SentenceEncoder.from_pretrained(minilm, max_seq_length=16)
    assert short.max_seq_length == 16
    reference.max_seq_length = 16
    try:
        expected = reference.encode([text])
    finally:
        reference.max_seq_length = 256
    assert max_difference(short.encode([text]), expected) <= SENTENCE_VECTORS
    assert max_difference(encoder.encode([text]), expected) > 0.001


def test_bfloat16_is_close_to_float32(minilm, pairs, vectors):
    rounded = eqxbert.SentenceEncoder.from_pretrained(minilm, dtype=jnp.bfloat16)
    assert rounded.model.bert.embeddings.word.weight.dtype == jnp.bfloat16
    result = rounded.encode([row[1] for row in pairs[:32]])
    assert result.dtype == np.float32
    cosine = (result * vectors["ours"][:32]).sum(axis=-1) / np.linalg.norm(result, axis=-1)
    assert cosine.min() > 0.999
    assert max_difference(result, vectors["ours"][:32]) > 0
