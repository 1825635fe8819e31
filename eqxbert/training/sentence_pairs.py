"""Pairs of sentences for next sentence prediction
([Devlin et al., 2019](https://arxiv.org/abs/1810.04805)), made as
[Google's code](https://github.com/google-research/bert/blob/eedf5716ce1268e56f0a50264a88cafad334ac61/create_pretraining_data.py)
makes them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Integer

from ..models import NSP_IS_NEXT, NSP_IS_RANDOM
from .batches import SENTENCE_PAIRS, check_count, random_bits

Sentence = Sequence[int] | Integer[np.ndarray, " _"]

# [CLS] first [SEP] second [SEP]
_SPECIAL = 3


class SentencePair(NamedTuple):
    """Two texts of one or more sentences each.

    - `first`, `second`: their tokens, without special ones.
    - `next_sentence_label`: `NSP_IS_NEXT` (0) if the second followed the first, `NSP_IS_RANDOM` (1)
        if it comes from another document.
    """

    first: Int32[np.ndarray, " first_seq"]
    second: Int32[np.ndarray, " second_seq"]
    next_sentence_label: int


def sentence_pairs(
    documents: Sequence[Sequence[Sentence]],
    *,
    seq: int,
    seed: int,
    epoch: int = 0,
    short_rate: float | int = 0.1,
    random_rate: float | int = 0.5,
) -> list[SentencePair]:
    """All pairs of an epoch, in the order of the documents.

    A document's sentences are gathered until they would fill a row, and parted in two anywhere
    between them. With the probability `random_rate`, or if there is but one sentence, sentences of
    another document take the place of the second part, which is used for the next pair. Of what is
    too long, the longer part is cut, token by token at its beginning or its end.

    It is a function of the documents, `seed` and `epoch` alone. Unlike Google's, it never takes the
    "other" document to be the same one.

    **Arguments:**

    - `documents`: for each, its sentences in their order; for each sentence, its token ids, without
        special ones.
    - `seq`: the greatest number of tokens in a row, with [CLS] and two [SEP]; at least 5.
    - `seed`, `epoch`: each combination makes other pairs.
    - `short_rate`: the probability with which a document's rows aim at a smaller number of tokens,
        drawn for that document, so that models see short rows as well.
    - `random_rate`: see above.

    **Raises:** `ValueError` if there are fewer than two documents, one without sentences, or a
    sentence without tokens.
    """
    check_count("seq", seq, _SPECIAL + 2)
    check_count("seed", seed)
    check_count("epoch", epoch)
    for name, rate in {"short_rate": short_rate, "random_rate": random_rate}.items():
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} must be a probability, from 0 to 1, got {rate}.")
    if len(documents) < 2:
        raise ValueError(
            f"There are {len(documents)} documents; there must be two at least, since random "
            "sentences are taken from another document. Long documents can be divided."
        )
    arrays = [_as_arrays(f"documents[{i}]", document) for i, document in enumerate(documents)]
    pairs = []
    for index in range(len(arrays)):
        rng = np.random.Generator(random_bits(SENTENCE_PAIRS, seed, epoch, index))
        pairs += _pairs_of(index, arrays, seq - _SPECIAL, short_rate, random_rate, rng)
    return pairs


def pair_inputs(
    pairs: Sequence[SentencePair], *, seq: int, cls_id: int, sep_id: int, pad_id: int = 0
) -> dict[str, np.ndarray]:
    """The arguments of `BertForPreTraining` for some pairs, but for masks (see `mask_tokens`):
    [CLS] first [SEP] second [SEP], padded on the right.

    **Arguments:**

    - `pairs`: one for each row.
    - `seq`: the number of tokens in each row.
    - `cls_id`, `sep_id`, `pad_id`: the special tokens.

    **Returns:** `input_ids`, `attention_mask` and `token_type_ids` (1 for the second text and what
    ends it), of shape (pairs, seq); `next_sentence_label`, of shape (pairs,); all int32.

    **Raises:** `ValueError` if a pair is longer than a row.
    """
    inputs = {
        "input_ids": np.full((len(pairs), seq), pad_id, np.int32),
        "attention_mask": np.zeros((len(pairs), seq), np.int32),
        "token_type_ids": np.zeros((len(pairs), seq), np.int32),
        "next_sentence_label": np.array([pair.next_sentence_label for pair in pairs], np.int32),
    }
    for row, (first, second, _) in enumerate(pairs):
        length = len(first) + len(second) + _SPECIAL
        if length > seq:
            raise ValueError(
                f"pairs[{row}] has {length} tokens with the special ones, but a row has {seq}. "
                "Give the seq that the pairs were made with."
            )
        ids = np.concatenate([[cls_id], first, [sep_id], second, [sep_id]])
        inputs["input_ids"][row, :length] = ids
        inputs["attention_mask"][row, :length] = 1
        inputs["token_type_ids"][row, len(first) + 2 : length] = 1
    return inputs


def _pairs_of(
    index: int,
    documents: list[list[np.ndarray]],
    most: int,
    short_rate: float | int,
    random_rate: float | int,
    rng: np.random.Generator,
) -> list[SentencePair]:
    """The pairs of one document, of `most` tokens at most."""
    document = documents[index]
    is_short = rng.random() < short_rate
    target = int(rng.integers(2, most, endpoint=True)) if is_short else most
    pairs = []
    start = 0
    while start < len(document):
        end, gathered = start, 0
        while end < len(document) and gathered < target:
            gathered += len(document[end])
            end += 1
        # At least one sentence in each part, if there are two.
        middle = int(rng.integers(start + 1, max(end, start + 2)))
        first = np.concatenate(document[start:middle])
        if end - start == 1 or rng.random() < random_rate:
            other = documents[(index + rng.integers(1, len(documents))) % len(documents)]
            second = _random_sentences(other, target - len(first), rng)
            label, start = NSP_IS_RANDOM, middle
        else:
            second = np.concatenate(document[middle:end])
            label, start = NSP_IS_NEXT, end
        # The longer one is cut until both fit; of two of a length, the second.
        second_length = min(len(second), max(most // 2, most - len(first)))
        pairs.append(
            SentencePair(
                _cut(first, most - second_length, rng), _cut(second, second_length, rng), label
            )
        )
    return pairs


def _random_sentences(
    document: list[np.ndarray], target: int, rng: np.random.Generator
) -> Int32[np.ndarray, " seq"]:
    """Sentences from anywhere in the document: one, and more until there are `target` tokens."""
    start = end = int(rng.integers(len(document)))
    gathered = 0
    while end == start or (end < len(document) and gathered < target):
        gathered += len(document[end])
        end += 1
    return np.concatenate(document[start:end])


def _cut(
    tokens: Int32[np.ndarray, " seq"], length: int, rng: np.random.Generator
) -> Int32[np.ndarray, " shorter_seq"]:
    """At most `length` tokens, each of the others cut off at the beginning or the end."""
    excess = max(len(tokens) - length, 0)
    start = rng.binomial(excess, 0.5)
    return tokens[start : start + min(len(tokens), length)]


def _as_arrays(name: str, document: Sequence[Sentence]) -> list[Int32[np.ndarray, " _"]]:
    if len(document) == 0:
        raise ValueError(f"{name} has no sentences; leave it out.")
    arrays = []
    for i, sentence in enumerate(document):
        array = np.asarray(sentence)
        if array.ndim == 1 and array.size == 0:
            raise ValueError(f"{name}[{i}] has no tokens; leave it out.")
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{name}[{i}] must be a sequence of token ids, got {sentence!r:.100}. Text goes "
                "through Tokenizer.encode, without the special tokens that it adds."
            )
        arrays.append(array.astype(np.int32))
    return arrays
