"""Inputs that every peer makes in the same way, and text batches for engines that bring none."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

BATCH_SIZE = 32  # sentence-transformers' default
MAX_TOKENS = 256  # the limit all-MiniLM-L6-v2 comes with
MASK_ID = 103
WORD_IDS = (1000, 30000)  # BERT's English vocabulary without special and unused tokens

# Input rows of a batch, token ids and attention mask, both (batch, seq).
TextBatch = tuple[np.ndarray, np.ndarray, np.ndarray]


def token_ids(shape: tuple[int, int], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Random words and the mask that says that all of them are real, `(batch, seq)` each."""
    ids = np.random.default_rng(0).integers(*WORD_IDS, shape).astype(dtype)
    return ids, np.ones_like(ids)


def masked_words(shape: tuple[int, int], dtype: type) -> dict[str, np.ndarray]:
    """A batch with 15 % of its words to find: `input_ids` and `attention_mask`; `labels` for each
    position, -100 where there is nothing to find; and those positions, with their own labels, in
    `masked_positions` and `masked_labels`.
    """
    ids, mask = token_ids(shape, dtype)
    slots = round(0.15 * shape[1])
    order = np.argsort(np.random.default_rng(1).random(shape), axis=1)
    positions = np.sort(order[:, :slots], axis=1).astype(dtype)
    found = np.take_along_axis(ids, positions, axis=1)
    labels = np.full_like(ids, -100)
    np.put_along_axis(labels, positions, found, axis=1)
    np.put_along_axis(ids, positions, MASK_ID, axis=1)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "masked_positions": positions,
        "masked_labels": found,
    }


def load_tokenizer(model: str) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(Path(model, "tokenizer.json")))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    return tokenizer


def text_batches(
    tokenizer: Tokenizer, texts: list[str], dtype: type, pad_to_multiple_of: int = 1
) -> Iterator[TextBatch]:
    """Tokenises all texts and yields them longest first, so that a batch needs little padding."""
    encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    order = np.argsort([-len(ids) for ids in encoded], kind="stable")
    for start in range(0, len(order), BATCH_SIZE):
        rows = order[start : start + BATCH_SIZE]
        longest = len(encoded[rows[0]])
        seq = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
        ids = np.zeros((len(rows), seq), dtype)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(encoded[row])] = encoded[row]
            mask[i, : len(encoded[row])] = 1
        yield rows, ids, mask


def unit_mean(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean of the real tokens scaled to length one: `(batch, seq, hidden)` to `(batch, hidden)`.

    The sum points where the mean does, so there is nothing to divide by the number of tokens.
    """
    sums = np.matmul(mask[:, None, :].astype(hidden.dtype), hidden)[:, 0]
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def in_input_order(pieces: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Joins `(rows, vectors)` of batches, whatever order they come in."""
    rows, vectors = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return vectors[np.argsort(rows)]
