"""What belongs together: the name of a function, and what it does."""

import re
from collections.abc import Sequence

import numpy as np

from ..text import Tokenizer
from ..text.tokenizer import pad_rows
from ..training.batches import batch_indices
from .corpus import Entry

# As many tokens of a text count; nine of ten have no more.
_SEQ = 32


def spoken(name: str) -> str:
    """A name as words: "http.client.HTTPConnection" -> "http client HTTP Connection"."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))


def title(entry: Entry) -> str:
    """Its name and arguments, as words."""
    return f"{spoken(entry.name)} ( {spoken(entry.signature)} )"


class PairBatches:
    """Batches for `eqxbert.training.contrastive_loss`: the descriptions of some functions
    (`anchors`), and what belongs to each (`candidates`): its name and arguments, with the rest of
    its documentation in some epochs.
    """

    def __init__(
        self, tokenizer: Tokenizer, entries: Sequence[Entry], *, batch_size: int, seed: int
    ):
        self.tokenizer, self.batch_size, self.seed = tokenizer, batch_size, seed
        self._anchors = self._encode([entry.summary for entry in entries])
        titles = [title(entry) for entry in entries]
        rests = [entry.text.partition("\n\n")[2] for entry in entries]
        both = [f"{name} {rest}" for name, rest in zip(titles, rests, strict=True)]
        self._candidates = [self._encode(titles), self._encode(both)]

    def __len__(self) -> int:
        return -(-len(self._anchors) // self.batch_size)

    def __call__(self, step: int) -> dict[str, dict[str, np.ndarray]]:
        """The batch of a step, counted from 0."""
        chosen = batch_indices(len(self._anchors), self.batch_size, seed=self.seed, step=step)
        candidates = self._candidates[step % len(self._candidates)]
        return {
            "anchors": self._pad([self._anchors[i] for i in chosen]),
            "candidates": self._pad([candidates[i] for i in chosen]),
        }

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self.tokenizer.encode(texts, max_length=_SEQ)[0]

    def _pad(self, rows: list[np.ndarray]) -> dict[str, np.ndarray]:
        shape = len(rows), _SEQ
        masks = [np.ones(len(row), np.int32) for row in rows]
        return {
            "input_ids": pad_rows(rows, shape, self.tokenizer.pad_id),
            "attention_mask": pad_rows(masks, shape, 0),
        }
