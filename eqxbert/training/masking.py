"""Masked tokens for masked language models, drawn anew at each step."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt64

from ..nn import IGNORED_LABEL
from .batches import MASKING, check_count, random_bits


def mask_tokens(
    ids: Integer[np.ndarray, "batch seq"],
    *,
    vocab_size: int,
    mask_id: int,
    special_ids: Iterable[int],
    pad_id: int = 0,
    seed: int,
    step: int,
    first_row: int = 0,
    rate: float | int = 0.15,
    slots: int | None = None,
    is_continuation: Bool[np.ndarray, " vocab"] | None = None,
    mask_share: float | int = 0.8,
    random_share: float | int = 0.1,
    all_positions: bool = False,
) -> dict[str, np.ndarray]:
    """Hides some tokens of each row, for a model to predict
    ([Devlin et al., 2019](https://arxiv.org/abs/1810.04805)).

    Of `n` tokens, special ones included, `max(1, round(rate * n))` are chosen, as in
    [Google's code](https://github.com/google-research/bert/blob/eedf5716ce1268e56f0a50264a88cafad334ac61/create_pretraining_data.py):
    no more than `slots`, and fewer where whole words do not add up to this number.

    What becomes of a row is a function of its tokens, `seed`, `step` and its place in the whole
    batch alone: not of its padding, of other rows, or of the machine.

    **Arguments:**

    - `ids`: the tokens of each row.
    - `vocab_size`: the number of tokens of the tokenizer. (That of the model may be larger.)
    - `mask_id`, `pad_id`: the tokens that stand for a masked one and for none.
    - `special_ids`: the other tokens that are never chosen, and never drawn at random: those of
        [CLS] and [SEP], and any more.
    - `seed`, `step`: each pair of them chooses other tokens.
    - `first_row`: the place of the first row in the whole batch, if this is a part of it.
    - `rate`: the share of tokens that is chosen, above 0 and below 1.
    - `slots`: how many tokens of a row are chosen at most. None: what `rate` makes of a full row.
    - `is_continuation`: True for the tokens that go on with a word, as `continuation_pieces` says.
        Words are then masked as a whole: all pieces of a word, or none. None: no token does.
    - `mask_share`, `random_share`: the probabilities with which a chosen token is replaced by
        `mask_id`, and by a random one (which may be the same). Otherwise it stays as it is.
    - `all_positions`: whether labels are for all tokens, and not for the chosen ones alone.

    **Returns:** arguments of `BertForPreTraining` and `BertForMaskedLM`, all int32: `input_ids`;
    `masked_positions`, of shape (batch, slots), in ascending order, and filled up with 0; and
    `labels` of that shape, -100 where there is no position. With `all_positions`: `input_ids` and
    `labels`, of shape (batch, seq), -100 for what is not chosen.

    **Raises:** `ValueError` if ids are not in the vocabulary, or a share or number is out of range.
    """
    special = np.unique(np.asarray([*special_ids, pad_id, mask_id]))
    _check_vocabulary("special_ids, pad_id and mask_id", special, vocab_size)
    _check_vocabulary("ids", ids, vocab_size)
    if ids.ndim != 2:
        raise ValueError(f"ids must be of shape (batch, seq), got {ids.shape}.")
    if not 0 < rate < 1:
        raise ValueError(f"rate must be above 0 and below 1, got {rate}; BERT's is 0.15.")
    # Shares that add up to 1 may do so but for a rounding error.
    if min(mask_share, random_share) < 0 or mask_share + random_share > 1 + 1e-9:
        raise ValueError(
            f"mask_share ({mask_share}) and random_share ({random_share}) must be probabilities "
            "that add up to 1 at most; BERT's are 0.8 and 0.1."
        )
    drawable = np.delete(np.arange(vocab_size, dtype=np.int32), special)
    if random_share > 0 and drawable.size == 0:
        raise ValueError(
            f"All {vocab_size} tokens are special: there is none to draw. Is vocab_size right?"
        )
    batch, seq = ids.shape
    if slots is None:
        slots = max(1, round(rate * seq))
    check_count("slots", slots, 1)
    continues = np.zeros(vocab_size, bool) if is_continuation is None else is_continuation
    if continues.shape != (vocab_size,) or continues.dtype != bool:
        raise ValueError(
            f"is_continuation must be a boolean for each of the {vocab_size} tokens of the "
            f"vocabulary (see continuation_pieces), got an array of {continues.dtype} of shape "
            f"{continues.shape}."
        )

    order_bits, replacement_bits = _random_bits(seed, step, first_row, batch, seq)
    number = np.rint(rate * np.sum(ids != pad_id, axis=1)).astype(np.int64)
    is_ordinary = np.ones(vocab_size, bool)
    is_ordinary[special] = False
    is_ordinary = is_ordinary[ids]
    is_start = is_ordinary.copy()
    is_start[:, 1:] &= ~(continues[ids[:, 1:]] & is_ordinary[:, :-1])
    chosen = _choose_words(is_ordinary, is_start, order_bits, number.clip(1, slots))

    rows, columns = np.nonzero(chosen)
    words, bits = ids[rows, columns].astype(np.int32), replacement_bits[rows, columns]
    # One half of the bits says what replaces the token, the other which token is drawn.
    lot = (bits >> 32) / 2**32
    drawn = drawable[((bits & 0xFFFFFFFF) * drawable.size) >> 32]
    replacement = np.where(lot < mask_share + random_share, drawn, words)
    input_ids = ids.astype(np.int32)
    input_ids[rows, columns] = np.where(lot < mask_share, mask_id, replacement)

    if all_positions:
        labels = np.full((batch, seq), IGNORED_LABEL, np.int32)
        labels[rows, columns] = words
        return {"input_ids": input_ids, "labels": labels}
    counts = np.sum(chosen, axis=1)
    slot = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    masked_positions = np.zeros((batch, slots), np.int32)
    masked_positions[rows, slot] = columns
    labels = np.full((batch, slots), IGNORED_LABEL, np.int32)
    labels[rows, slot] = words
    return {"input_ids": input_ids, "masked_positions": masked_positions, "labels": labels}


def continuation_pieces(vocabulary: Iterable[str]) -> Bool[np.ndarray, " vocab"]:
    """Which tokens go on with the word before them: those of WordPiece that begin with `##`.

    **Arguments:**

    - `vocabulary`: the tokens in the order of their ids:
        `[tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)]`.
    """
    return np.array([token.startswith("##") for token in vocabulary], bool)


def _choose_words(
    is_ordinary: Bool[np.ndarray, "batch seq"],
    is_start: Bool[np.ndarray, "batch seq"],
    priorities: UInt64[np.ndarray, "batch seq"],
    budget: Int[np.ndarray, " batch"],
) -> Bool[np.ndarray, "batch seq"]:
    """The tokens of words taken in the order of their `priorities` (those of their first tokens):
    each that fits into what is left of the row's `budget` of tokens.
    """
    word = np.cumsum(is_start)[is_ordinary.ravel()] - 1  # of each ordinary token, counted through
    lengths = np.zeros(is_start.shape, np.int64)
    lengths[is_start] = np.bincount(word, minlength=np.count_nonzero(is_start))
    order = np.argsort(np.where(is_start, priorities, np.uint64(2**64 - 1)), axis=1)
    lengths_in_order = np.take_along_axis(lengths, order, axis=1)
    is_taken_in_order = np.zeros(is_start.shape, bool)
    left = budget.copy()
    for place in range(is_start.shape[1]):
        length = lengths_in_order[:, place]
        # Where there are no words any more, lengths are zero.
        if not np.any((left > 0) & (length > 0)):
            break
        is_taken_in_order[:, place] = fits = length <= left
        left -= length * fits
    is_taken = np.zeros(is_start.shape, bool)
    np.put_along_axis(is_taken, order, is_taken_in_order, axis=1)
    chosen = np.zeros(is_start.shape, bool)
    chosen[is_ordinary] = is_taken[is_start][word]
    return chosen


def _random_bits(
    seed: int, step: int, first_row: int, batch: int, seq: int
) -> tuple[UInt64[np.ndarray, "batch seq"], UInt64[np.ndarray, "batch seq"]]:
    """Two numbers for each token. A longer row has the same, and more."""
    for name, value in {"seed": seed, "step": step, "first_row": first_row}.items():
        check_count(name, value)
    bits = np.empty((batch, seq, 2), np.uint64)
    for row in range(batch):
        stream = random_bits(MASKING, seed, step, first_row + row)
        bits[row] = stream.random_raw(2 * seq).reshape(seq, 2)
    return bits[..., 0], bits[..., 1]


def _check_vocabulary(name: str, ids: Integer[np.ndarray, "..."], vocab_size: int) -> None:
    if not isinstance(ids, np.ndarray) or not np.issubdtype(ids.dtype, np.integer):
        kind = f"an array of {ids.dtype}" if isinstance(ids, np.ndarray) else type(ids).__name__
        raise ValueError(f"{name} must be integers in an array of NumPy, got {kind}.")
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if wrong.size:
        raise ValueError(
            f"{name} contain {wrong[0]}, but valid ids are 0 to {vocab_size - 1} (vocab_size is "
            f"{vocab_size}). {wrong.size} of {ids.size} ids are out of range."
        )
