"""Labels for words: named entities, parts of speech."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ...models import BertForTokenClassification
from ...nn import IGNORED_LABEL, cross_entropy
from . import metrics
from .encodings import encodings
from .entities import entity_scores, is_iob
from .examples import Example, as_examples, check_labelled, check_strings, class_number
from .features import Features
from .task import Metrics, Task

logger = logging.getLogger("eqxbert")


@dataclasses.dataclass(frozen=True)
class WordsExample(Example):
    """A text as words, and a label for each of them.

    - `words`: the words.
    - `labels`: for each the name or the number of a class; None if they are not known.
    """

    words: Sequence[str]
    labels: Sequence[str | int] | None = None


class TokenClassification(Task[WordsExample]):
    """Words with labels, for `BertForTokenClassification`.

    Of the pieces of a word, the first one has its label, and gives its prediction. A text that is
    too long is cut off between two words, of which a warning tells. Words that are cut off have no
    prediction; nor do those without a piece, such as an empty one.
    """

    example_class = WordsExample
    model_class = BertForTokenClassification

    @property
    def main_metric(self) -> str:
        return "f1" if self._marks_entities else "accuracy"

    @property
    def _marks_entities(self) -> bool:
        return all(map(is_iob, self.config.id2label.values()))

    def features(self, examples: Iterable[WordsExample | Mapping[str, Any]]) -> Features:
        return self._labelled_features(examples)[0]

    def predict(
        self, model: Any, examples: Iterable[WordsExample | Mapping[str, Any]]
    ) -> list[list[str | None]]:
        """**Returns:** for each word the name of a class; None where there is no prediction."""
        features, pieces = self._features(as_examples(WordsExample, examples))
        predictions: list[list[str | None]] = [[None] * len(words) for words in pieces]
        for row, words, logits in self._word_logits(model, features, pieces):
            for word, number in zip(words, logits.argmax(axis=-1), strict=True):
                predictions[row][word] = self.config.id2label[int(number)]
        return predictions

    def evaluator(
        self, examples: Iterable[WordsExample | Mapping[str, Any]]
    ) -> Callable[[Any], Metrics]:
        """**Returns:** the `accuracy` of words; if the labels mark entities, `precision`, `recall`
        and `f1` of these (see `entity_scores`). What has no prediction counts as wrong, and as
        outside of any entity. And `loss`, over the words that have one.
        """
        features, pieces, gold = self._labelled_features(examples)

        def evaluate(model: Any) -> Metrics:
            predictions = [np.full(len(labels), -1, np.int64) for labels in gold]
            # A first row without a label, since there may be no other.
            all_logits = [np.zeros((1, self.config.num_labels), np.float32)]
            all_labels = [np.array([IGNORED_LABEL], np.int64)]
            for row, words, logits in self._word_logits(model, features, pieces):
                predictions[row][words] = logits.argmax(axis=-1)
                all_logits.append(logits)
                all_labels.append(gold[row][words])
            logits, labels = np.concatenate(all_logits), np.concatenate(all_labels)
            found = {
                "loss": float(cross_entropy(jnp.asarray(logits), labels.astype(np.int32))),
                "accuracy": metrics.accuracy(np.concatenate(predictions), np.concatenate(gold)),
            }
            if self._marks_entities:
                found |= entity_scores(map(self._names, predictions), map(self._names, gold))
            return found

        return evaluate

    def _labelled_features(
        self, examples: Iterable[WordsExample | Mapping[str, Any]]
    ) -> tuple[Features, list[Int[np.ndarray, " _"]], list[Int[np.ndarray, " _"]]]:
        """The features, the place of each word's first piece, and the number of its label."""
        texts = as_examples(WordsExample, examples)
        check_labelled(texts, "labels")
        features, pieces = self._features(texts)
        gold = [self._numbers(text) for text in texts]
        labels = []
        for ids, places, numbers in zip(features.input_ids, pieces, gold, strict=True):
            row = np.full(len(ids), IGNORED_LABEL, np.int32)
            row[places[places >= 0]] = numbers[places >= 0]
            labels.append(row)
        return dataclasses.replace(features, labels={"labels": labels}), pieces, gold

    def _features(
        self, examples: Sequence[WordsExample]
    ) -> tuple[Features, list[Int[np.ndarray, " _"]]]:
        """The features, and the place of each word's first piece, -1 if it has none."""
        texts = [check_strings(example, "words") for example in examples]
        ids, types, pieces = [], [], []
        cut_texts = cut_words = 0
        found = encodings(self.tokenizer, texts, is_pretokenized=True)
        for words, encoding in zip(texts, found, strict=True):
            kept = _kept(encoding.word_ids, self.max_length)
            ids.append(np.asarray(encoding.ids, np.int32)[kept])
            types.append(np.asarray(encoding.type_ids, np.int32)[kept])
            pieces.append(_first_pieces([encoding.word_ids[token] for token in kept], len(words)))
            if len(kept) < len(encoding.ids):
                had_piece = _first_pieces(encoding.word_ids, len(words)) >= 0
                cut_texts += 1
                cut_words += int(np.sum(had_piece & (pieces[-1] < 0)))
        if cut_texts:
            logger.warning(
                "%d of %d texts have more than %d tokens: %d words at their ends were cut off.",
                cut_texts,
                len(texts),
                self.max_length,
                cut_words,
            )
        features = Features(
            ids, types, {}, max_length=self.max_length, pad_id=self.tokenizer.pad_id
        )
        return features, pieces

    def _word_logits(
        self, model: Any, features: Features, pieces: Sequence[Int[np.ndarray, " _"]]
    ) -> Iterator[tuple[int, Int[np.ndarray, " words"], Float[np.ndarray, "words labels"]]]:
        """For each row, which words have a piece, and the model's scores for these."""
        for row, [logits] in self.run(model, features, "logits"):
            words = np.flatnonzero(pieces[row] >= 0)
            yield row, words, logits[pieces[row][words]]

    def _numbers(self, example: WordsExample) -> Int[np.ndarray, " words"]:
        labels = example.labels
        if isinstance(labels, str) or not isinstance(labels, Sequence | np.ndarray):
            raise ValueError(f"{example.source}: labels must be a list, got {labels!r:.100}.")
        if len(labels) != len(example.words):
            raise ValueError(
                f"{example.source} has {len(example.words)} words, but {len(labels)} labels."
            )
        source, label2id = str(example.source), self.config.label2id
        return np.array([class_number(x, label2id, source) for x in labels], np.int64)

    def _names(self, numbers: Int[np.ndarray, " words"]) -> list[str]:
        return [self.config.id2label.get(int(number), "O") for number in numbers]


def _kept(word_ids: Sequence[int | None], max_length: int) -> list[int]:
    """Which tokens are kept: all or, if there are too many, whole words from the beginning, and the
    special ones at the end.

    **Arguments:**

    - `word_ids`: the word of each token, None for special ones.
    """
    length = len(word_ids)
    if length <= max_length:
        return list(range(length))
    special = next(i for i in range(length) if word_ids[-1 - i] is not None)
    end = max_length - special
    while end > 0 and word_ids[end] == word_ids[end - 1]:
        end -= 1
    return [*range(end), *range(length - special, length)]


def _first_pieces(word_ids: Sequence[int | None], words: int) -> Int[np.ndarray, " words"]:
    """The place of each word's first token, -1 if it has none."""
    places = np.full(words, -1, np.int64)
    for place, word in reversed(list(enumerate(word_ids))):
        if word is not None:
            places[word] = place
    return places
