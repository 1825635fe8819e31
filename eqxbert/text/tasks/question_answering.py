"""Questions whose answers are spans of a text."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ...config import BertConfig
from ...models import BertForQuestionAnswering
from ..tokenizer import Tokenizer, check_text
from .encodings import encodings
from .examples import Example, as_examples, check_labelled
from .features import Features
from .squad import answer_f1, exact_match
from .task import Metrics, Task

logger = logging.getLogger("eqxbert")


@dataclasses.dataclass(frozen=True)
class QuestionExample(Example):
    """A question on a text, and its answers.

    - `question`, `context`: the question, and the text that answers it.
    - `answers`: answers that count as right, each a dictionary of its `text` and `answer_start`,
        its first character in the context; or a dictionary of these as lists. Empty if there is
        none in the context, None if it is not known. Models are trained on the first one.
    - `id`: what the question is called in its file.
    """

    question: str
    context: str
    answers: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | None = None
    id: str | None = None


class Answer(NamedTuple):
    """A span of a text.

    - `text`: what it says; "" for no answer.
    - `start`, `end`: its first character in the context, and the one after its last.
    - `score`: how sure the model is, relative to the other answers to a question.
    """

    text: str
    start: int
    end: int
    score: float


class _Window(NamedTuple):
    """A part of a context, with its question: a row.

    - `example`: the number of the question.
    - `first`: the place of the first token of the context.
    - `starts`, `ends`: for each token of the context its first character there, and the one after
        its last.
    """

    example: int
    first: int
    starts: Int[np.ndarray, " tokens"]
    ends: Int[np.ndarray, " tokens"]


class QuestionAnswering(Task[QuestionExample]):
    """Questions that spans of a text answer, for `BertForQuestionAnswering`.

    A context that is too long is read in several windows, which overlap. One that does not hold all
    of the answer is labelled with the first token, [CLS].

    - `stride`: how many tokens two windows share.
    - `max_question_length`: how many tokens of a question are read.
    - `max_answer_length`: how many tokens a predicted answer may have.
    - `no_answer_threshold`: by how much the score of [CLS] must exceed that of the best answer for
        there to be none; None if all questions have answers.
    """

    example_class = QuestionExample
    model_class = BertForQuestionAnswering

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: BertConfig,
        *,
        max_length: int | None = 384,
        stride: int | None = None,
        max_question_length: int | None = None,
        max_answer_length: int = 30,
        no_answer_threshold: float | int | None = None,
    ):
        """**Arguments:**

        - `tokenizer`, `config`: of the model.
        - `max_length`: how many tokens a window may have, with the question and special ones; or
            what the model allows, if that is less, or if it is None.
        - `stride`: as above; if None, 128, or half of what a window has room for, if that is less.
        - `max_question_length`: as above; if None, 64, or a quarter of a window, if that is less.
        - `max_answer_length`, `no_answer_threshold`: as above.

        **Raises:** `ValueError` if there is no room for a context, or windows would not advance.
        """
        limit = config.max_position_embeddings
        super().__init__(tokenizer, config, max_length=max_length and min(max_length, limit))
        if max_question_length is None:
            max_question_length = min(64, self.max_length // 4)
        for name, value in {
            "max_question_length": max_question_length,
            "max_answer_length": max_answer_length,
        }.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        room = self.max_length - max_question_length - 3
        if stride is None:
            stride = max(0, min(128, room // 2))
        if not 0 <= stride < room:
            raise ValueError(
                f"stride is {stride}, expected 0 to {room - 1}: of max_length {self.max_length}, a "
                f"question of {max_question_length} tokens and 3 special ones leave {room} for the "
                "context, of which a part must be new in each window."
            )
        self.stride = stride
        self.max_question_length = max_question_length
        self.max_answer_length = max_answer_length
        self.no_answer_threshold = no_answer_threshold

    @property
    def main_metric(self) -> str:
        return "f1"

    def features(self, examples: Iterable[QuestionExample | Mapping[str, Any]]) -> Features:
        return self._labelled_features(examples)[0]

    def predict(
        self, model: Any, examples: Iterable[QuestionExample | Mapping[str, Any]]
    ) -> list[Answer]:
        """**Returns:** the best answer to each question."""
        return [answers[0] for answers in self.predict_best(model, examples, 1)]

    def predict_best(
        self,
        model: Any,
        examples: Iterable[QuestionExample | Mapping[str, Any]],
        number: int = 20,
    ) -> list[list[Answer]]:
        """The best answers to each question, in order; fewer, if there are not so many spans. Where
        `no_answer_threshold` is given, no answer is one of them.
        """
        if number < 1:
            raise ValueError(f"number must be at least 1, got {number}.")
        questions = as_examples(QuestionExample, examples)
        features, windows = self._features(questions)
        contexts = [question.context for question in questions]
        return self._best(contexts, windows, self._outputs(model, features), number)

    def evaluator(
        self, examples: Iterable[QuestionExample | Mapping[str, Any]]
    ) -> Callable[[Any], Metrics]:
        """**Returns:** SQuAD's `exact_match` and `f1`, the means over all questions, from 0 to 1.
        And `loss`, the mean over all windows. A warning tells of questions without answers, if
        there is no `no_answer_threshold`.
        """
        questions = as_examples(QuestionExample, examples)
        features, windows, gold = self._labelled_features(questions)
        contexts = [question.context for question in questions]
        unanswerable = sum(not answers for answers in gold)
        if unanswerable and self.no_answer_threshold is None:
            logger.warning(
                "%d of %d questions have no answer, but the model is always to give one: these "
                "count as wrong. Give a no_answer_threshold, such as 0.",
                unanswerable,
                len(gold),
            )
        labels = np.stack([features.labels[f"{side}_positions"] for side in ("start", "end")], -1)

        def evaluate(model: Any) -> Metrics:
            outputs = list(self._outputs(model, features))
            texts = [answer.text for [answer] in self._best(contexts, windows, outputs, 1)]
            return {
                "loss": float(np.mean([_loss(logits, labels[row]) for row, logits in outputs])),
                "exact_match": float(np.mean([*map(exact_match, texts, gold)])),
                "f1": float(np.mean([*map(answer_f1, texts, gold)])),
            }

        return evaluate

    def _outputs(
        self, model: Any, features: Features
    ) -> Iterator[tuple[int, Float[np.ndarray, "tokens 2"]]]:
        """For each row the scores of its tokens to be the first and the last one of the answer."""
        for row, logits in self.run(model, features, "start_logits", "end_logits"):
            yield row, np.stack(logits, axis=-1)[: features.lengths[row]]

    def _labelled_features(
        self, examples: Iterable[QuestionExample | Mapping[str, Any]]
    ) -> tuple[Features, list[_Window], list[list[str]]]:
        """The features, what is in each of their rows, and the answers to each question."""
        questions = as_examples(QuestionExample, examples)
        check_labelled(questions, "answers")
        features, windows = self._features(questions)
        spans = [_spans(question) for question in questions]
        labels = np.array([_positions(window, spans[window.example]) for window in windows])
        labels = labels.astype(np.int32)
        named = {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
        gold = [
            [question.context[start:end] for start, end in answers]
            for question, answers in zip(questions, spans, strict=True)
        ]
        return dataclasses.replace(features, labels=named), windows, gold

    def _features(self, examples: Sequence[QuestionExample]) -> tuple[Features, list[_Window]]:
        """The features, and what is in each of their rows."""
        for example in examples:
            check_text(f"{example.source}: question", example.question)
            check_text(f"{example.source}: context", example.context)
        questions = self._shortened([example.question for example in examples])
        contexts = [example.context for example in examples]
        truncation = {
            "max_length": self.max_length,
            "stride": self.stride,
            "strategy": "only_second",
        }
        inputs = list(zip(questions, contexts, strict=True))
        ids, types, windows = [], [], []
        for number, encoding in enumerate(encodings(self.tokenizer, inputs, truncation=truncation)):
            if 1 not in encoding.sequence_ids:
                raise ValueError(f"{examples[number].source}: there is no text in the context.")
            for part in (encoding, *encoding.overflowing):
                ids.append(np.asarray(part.ids, np.int32))
                types.append(np.asarray(part.type_ids, np.int32))
                is_context = np.array([sequence == 1 for sequence in part.sequence_ids])
                starts, ends = np.asarray(part.offsets, np.int64)[is_context].T
                windows.append(_Window(number, int(is_context.argmax()), starts, ends))
        features = Features(
            ids, types, {}, max_length=self.max_length, pad_id=self.tokenizer.pad_id
        )
        return features, windows

    def _shortened(self, questions: Sequence[str]) -> list[str]:
        """Questions cut off after `max_question_length` tokens."""
        special = self.tokenizer.backend.num_special_tokens_to_add(False)
        truncation = {"max_length": self.max_question_length + special}
        found = encodings(self.tokenizer, questions, truncation=truncation)
        return [
            question[: max(end for _, end in encoding.offsets)]
            if encoding.overflowing
            else question
            for question, encoding in zip(questions, found, strict=True)
        ]

    def _best(
        self,
        contexts: Sequence[str],
        windows: Sequence[_Window],
        outputs: Iterable[tuple[int, Float[np.ndarray, "_ 2"]]],
        number: int,
    ) -> list[list[Answer]]:
        """The best answers to each question, from all of its windows."""
        scores: list[dict[tuple[int, int], float]] = [{} for _ in contexts]
        no_answer = np.full(len(contexts), np.inf)
        for row, logits in outputs:
            window = windows[row]
            found = scores[window.example]
            for span, score in _best_spans(window, logits, self.max_answer_length, number):
                found[span] = max(score, found.get(span, -np.inf))
            # That of the window which is least sure that it holds none.
            no_answer[window.example] = min(no_answer[window.example], logits[0].sum())
        best = []
        for context, found, empty in zip(contexts, scores, no_answer.tolist(), strict=True):
            answers = [Answer(context[a:b], a, b, score) for (a, b), score in found.items()]
            if self.no_answer_threshold is not None:
                answers.append(Answer("", 0, 0, empty - self.no_answer_threshold))
            best.append(sorted(answers, key=lambda answer: -answer.score)[:number])
        return best


def _spans(example: QuestionExample) -> list[tuple[int, int]]:
    """For each answer its first character in the context, and the one after its last; without
    spaces around it.

    **Raises:** `ValueError` if that is not what the context says.
    """
    answers: Any = example.answers or ()
    try:
        if isinstance(answers, Mapping):  # as the library `datasets` has them
            found = list(zip(answers["text"], answers["answer_start"], strict=True))
        else:
            found = [(answer["text"], answer["answer_start"]) for answer in answers]
        pairs = [(str(text), int(start)) for text, start in found]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{example.source}: an answer must have a text and an answer_start, got "
            f"{answers!r:.200}."
        ) from error
    spans = []
    for text, start in pairs:
        there = example.context[start : start + len(text)] if start >= 0 else ""
        if there != text or not text.strip():
            raise ValueError(
                f"{example.source}: the answer is {text!r}, but at {start} the context says "
                f"{there!r}. answer_start counts characters from 0."
            )
        before, after = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
        spans.append((start + before, start + len(text) - after))
    return spans


def _positions(window: _Window, spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The first and the last token of the first answer; twice 0, which is [CLS], if the window does
    not hold all of it.
    """
    if not spans:
        return 0, 0
    start, end = spans[0]
    if start < window.starts[0] or end > window.ends[-1]:
        return 0, 0
    first = int(np.searchsorted(window.ends, start, side="right"))
    last = int(np.searchsorted(window.starts, end, side="left")) - 1
    return (window.first + first, window.first + last) if first <= last else (0, 0)


def _best_spans(
    window: _Window, logits: Float[np.ndarray, "tokens 2"], max_length: int, number: int
) -> Iterator[tuple[tuple[int, int], float]]:
    """The spans of a context with the highest scores, as characters, with their scores.

    **Arguments:**

    - `logits`: for all tokens of the row, the scores to be the first and the last one.
    - `max_length`: how many tokens a span may have.
    - `number`: how many spans.
    """
    tokens = len(window.starts)
    max_length = min(max_length, tokens)
    begin, end = logits[window.first : window.first + tokens].astype(np.float64).T
    nothing = np.full(max_length - 1, -np.inf)
    # For each token, the scores of the ends from this token on.
    ends = np.lib.stride_tricks.sliding_window_view(np.concatenate([end, nothing]), max_length)
    totals = (begin[:, None] + ends).ravel()
    number = min(number, totals.size)
    for place in np.argpartition(-totals, number - 1)[:number]:
        first, more = divmod(int(place), max_length)
        if first + more < tokens:
            span = int(window.starts[first]), int(window.ends[first + more])
            yield span, float(totals[place])


def _loss(logits: Float[np.ndarray, "tokens 2"], positions: Int[np.ndarray, " 2"]) -> float:
    """The cross-entropy of both positions, the mean of the two."""
    logits = logits.astype(np.float64)
    largest = logits.max(axis=0)
    normalizers = largest + np.log(np.sum(np.exp(logits - largest), axis=0))
    return float(np.mean(normalizers - logits[positions, [0, 1]]))
