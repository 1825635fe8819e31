"""Functions by what they do."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int8

from ..text import SentenceEncoder
from .corpus import Entry, lookup
from .pairs import title

MODEL = Path(__file__).parent / "model"
"""The folder of the model that comes with the package."""
INDEX_FILE = "standard_library.npz"
MAX_TOKENS = 64

# What a function is called says more of it than the first sentence of its description.
_SUMMARY_WEIGHT = 0.5


class Found(NamedTuple):
    """A function that was found.

    - `entry`: what is documented of it.
    - `similarity`: the cosine of the angle between its vector and the query's.
    """

    entry: Entry
    similarity: float


class SearchIndex:
    """Functions by their vectors: sums of one for the name and one for the description.

    - `names`: the functions.
    - `vectors`: one for each, its largest number scaled to 127.
    """

    def __init__(self, names: Sequence[str], vectors: Int8[np.ndarray, "names size"]):
        self.names = list(names)
        self.vectors = vectors

    @classmethod
    def create(cls, encoder: SentenceEncoder, entries: Sequence[Entry]) -> "SearchIndex":
        """The index of some functions."""
        names = encoder.encode([title(entry) for entry in entries], normalize=True)
        summaries = encoder.encode([entry.summary for entry in entries], normalize=True)
        vectors = np.asarray(names) + _SUMMARY_WEIGHT * np.asarray(summaries)
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        return cls(
            [entry.name for entry in entries], np.rint(vectors / largest * 127).astype(np.int8)
        )

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "SearchIndex":
        """The index in a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(str(file["names"]).split("\n"), file["vectors"])

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a .npz file."""
        np.savez_compressed(path, names="\n".join(self.names), vectors=self.vectors)

    def scores(
        self, queries: Float[np.ndarray, "queries size"]
    ) -> Float[np.ndarray, "queries names"]:
        """The cosine of each query's vector with each function's."""
        vectors = self.vectors.astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return queries / np.linalg.norm(queries, axis=1, keepdims=True) @ vectors.T


def search(query: str, *, top_k: int = 10) -> list[Found]:
    """The functions, classes and methods of Python's standard library that do what is asked for,
    the likeliest first.

    **Arguments:**

    - `query`: what they should do: "parse json from a string".
    - `top_k`: how many there are at most.

    **Raises:** `ValueError` if `query` is empty, or `top_k` is not positive.
    """
    if not query.strip():
        raise ValueError("The query is empty: say what the function should do.")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}.")
    index = SearchIndex.load(MODEL / INDEX_FILE)
    vector = np.asarray(load_encoder().encode([query]))
    [scores] = index.scores(vector)
    found: list[Found] = []
    for i in np.argsort(-scores, kind="stable"):
        # Another version of Python may not have it.
        if (entry := lookup(index.names[i])) is not None:
            found.append(Found(entry, float(scores[i])))
        if len(found) == top_k:
            break
    return found


def load_encoder() -> SentenceEncoder:
    """The sentence encoder that comes with the package. It was made for what is said of functions,
    not for prose.
    """
    return SentenceEncoder.from_pretrained(MODEL)
