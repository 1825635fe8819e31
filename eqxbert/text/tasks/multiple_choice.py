"""Which of several endings goes with a text."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...models import BertForMultipleChoice
from ...nn import cross_entropy
from ..tokenizer import check_text
from . import metrics
from .examples import Example, as_examples, check_labelled, check_strings, is_class_number
from .features import Features
from .task import Metrics, Task


@dataclasses.dataclass(frozen=True)
class ChoiceExample(Example):
    """A text with several endings, or a question with several answers.

    - `context`: what comes before each ending.
    - `endings`: the endings; as many in all examples.
    - `label`: the number of the right one, counted from 0; None if it is not known.
    """

    context: str
    endings: Sequence[str]
    label: int | str | None = None


class MultipleChoice(Task[ChoiceExample]):
    """Choices among endings, for `BertForMultipleChoice`."""

    example_class = ChoiceExample
    model_class = BertForMultipleChoice

    @property
    def main_metric(self) -> str:
        return "accuracy"

    def features(self, examples: Iterable[ChoiceExample | Mapping[str, Any]]) -> Features:
        questions = as_examples(ChoiceExample, examples)
        check_labelled(questions, "label")
        features = self._features(questions)
        labels = np.array([_number(question) for question in questions], np.int32)
        return dataclasses.replace(features, labels={"labels": labels})

    def logits(
        self, model: Any, examples: Iterable[ChoiceExample | Mapping[str, Any]]
    ) -> Float[np.ndarray, "examples choices"]:
        """The model's score for each ending."""
        return self._logits(model, self._features(as_examples(ChoiceExample, examples)))

    def predict(
        self, model: Any, examples: Iterable[ChoiceExample | Mapping[str, Any]]
    ) -> list[int]:
        """**Returns:** for each example the number of an ending, counted from 0."""
        return self.logits(model, examples).argmax(axis=-1).tolist()

    def evaluator(
        self, examples: Iterable[ChoiceExample | Mapping[str, Any]]
    ) -> Callable[[Any], Metrics]:
        """**Returns:** `accuracy` and `loss`."""
        features = self.features(examples)
        labels = features.labels["labels"]
        assert isinstance(labels, np.ndarray)

        def evaluate(model: Any) -> Metrics:
            logits = self._logits(model, features)
            return {
                "loss": float(cross_entropy(jnp.asarray(logits), labels)),
                "accuracy": metrics.accuracy(logits.argmax(axis=-1), labels),
            }

        return evaluate

    def _features(self, examples: Sequence[ChoiceExample]) -> Features:
        endings = [check_strings(example, "endings") for example in examples]
        choices = len(endings[0]) if endings else 1
        for example, theirs in zip(examples, endings, strict=True):
            check_text(f"{example.source}: context", example.context)
            if len(theirs) != choices or choices < 1:
                raise ValueError(
                    f"{example.source} has {len(theirs)} endings, but {examples[0].source} has "
                    f"{choices}: all must have as many, and at least one."
                )
        contexts = [example.context for example in examples for _ in range(choices)]
        ids, types = self.tokenizer.encode(
            contexts,
            [ending for theirs in endings for ending in theirs],
            max_length=self.max_length,
        )
        return Features(ids, types, {}, self.max_length, self.tokenizer.pad_id, choices=choices)

    def _logits(self, model: Any, features: Features) -> Float[np.ndarray, "examples choices"]:
        logits = np.zeros((len(features), features.choices or 1), np.float32)
        for row, [values] in self.run(model, features, "logits"):
            logits[row] = values
        return logits


def _number(example: ChoiceExample) -> int:
    number, choices = example.label, len(example.endings)
    if not is_class_number(number) or int(str(number)) >= choices:
        raise ValueError(
            f"{example.source} has the label {number!r}, expected the number of the right ending, "
            f"0 to {choices - 1}."
        )
    return int(str(number))
