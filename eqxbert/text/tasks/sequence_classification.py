"""Labels for texts, or for pairs of texts: one class, several classes, or numbers."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...models import BertForSequenceClassification
from ...nn import binary_cross_entropy, cross_entropy, mean_squared_error
from ..tokenizer import check_text
from . import metrics
from .examples import Example, as_examples, check_labelled, class_number
from .features import Features
from .task import Metrics, Task

logger = logging.getLogger("eqxbert")

Label = str | int | float | Sequence[str | int] | Sequence[float]


@dataclasses.dataclass(frozen=True)
class TextExample(Example):
    """A text, or a pair of texts, and its label.

    - `text`, `text_pair`: the text, and the second one of a pair.
    - `label`: what it is follows from `config.problem_type`. With "single_label_classification",
        the name or the number of a class; with "multi_label_classification", a list of these,
        which may be empty; with "regression", a number, or a list of as many as the model has
        labels. None if it is not known.
    """

    text: str
    text_pair: str | None = None
    label: Label | None = None


class SequenceClassification(Task[TextExample]):
    """Texts with labels, for `BertForSequenceClassification`.

    If `config.problem_type` is None, one label means regression, more mean that one of them holds.
    """

    example_class = TextExample
    model_class = BertForSequenceClassification

    @property
    def problem_type(self) -> str:
        """What is asked: "single_label_classification", "multi_label_classification" or
        "regression".
        """
        default = "regression" if self.config.num_labels == 1 else "single_label_classification"
        return self.config.problem_type or default

    @property
    def main_metric(self) -> str:
        return _PROBLEMS[self.problem_type]

    def features(self, examples: Iterable[TextExample | Mapping[str, Any]]) -> Features:
        texts = as_examples(TextExample, examples)
        check_labelled(texts, "label")
        encode = {
            "single_label_classification": self._class,
            "multi_label_classification": self._classes,
            "regression": self._numbers,
        }[self.problem_type]
        return self._features(texts, {"labels": np.stack([encode(text) for text in texts])})

    def logits(
        self, model: Any, examples: Iterable[TextExample | Mapping[str, Any]]
    ) -> Float[np.ndarray, "examples labels"]:
        """The model's scores; in regression, the numbers themselves."""
        return self._logits(model, self._features(as_examples(TextExample, examples), {}))

    def predict(self, model: Any, examples: Iterable[TextExample | Mapping[str, Any]]) -> list[Any]:
        """**Returns:** for each example, the name of a class; the names of all classes that are
        more probable than not; or a number, as a float (a list, if the model has several labels).
        """
        logits, names = self.logits(model, examples), self.config.id2label
        if self.problem_type == "single_label_classification":
            return [names[int(number)] for number in logits.argmax(axis=-1)]
        if self.problem_type == "multi_label_classification":
            return [[names[int(i)] for i in np.flatnonzero(row > 0)] for row in logits]
        return [row[0] if len(row) == 1 else row for row in logits.tolist()]

    def evaluator(
        self, examples: Iterable[TextExample | Mapping[str, Any]]
    ) -> Callable[[Any], Metrics]:
        """**Returns:** for one class, `accuracy`, `f1` (of class 1 if there are two, else the mean
        over the classes that occur) and `matthews`; for several, `accuracy` (all of them right),
        `f1` (over all together) and `f1_macro` (the mean over the classes that occur); for numbers,
        `pearson` and `spearman` (the mean, where there are several). And `loss`.
        """
        features = self.features(examples)
        labels = features.labels["labels"]
        assert isinstance(labels, np.ndarray)
        measure = {
            "single_label_classification": _measure_class,
            "multi_label_classification": _measure_classes,
            "regression": _measure_numbers,
        }[self.problem_type]
        return lambda model: measure(self._logits(model, features), labels)

    def _features(
        self, examples: Sequence[TextExample], labels: Mapping[str, np.ndarray]
    ) -> Features:
        for example in examples:
            check_text(f"{example.source}: text", example.text)
            if (example.text_pair is None) != (examples[0].text_pair is None):
                first, second = ("no", "a") if example.text_pair is None else ("a", "no")
                raise ValueError(
                    f"{example.source} has {first} text_pair, but {examples[0].source} has "
                    f"{second} one: all must be pairs, or none."
                )
        texts, pairs = [e.text for e in examples], None
        if examples and examples[0].text_pair is not None:
            for example in examples:
                check_text(f"{example.source}: text_pair", example.text_pair)
            pairs = [str(e.text_pair) for e in examples]
        ids, types = self.tokenizer.encode(texts, pairs, max_length=self.max_length)
        full = sum(len(row) == self.max_length for row in ids)
        if full:
            logger.info(
                "%d of %d texts have all of the %d tokens there may be, or had more, which were "
                "cut off.",
                full,
                len(ids),
                self.max_length,
            )
        return Features(
            ids, types, labels, max_length=self.max_length, pad_id=self.tokenizer.pad_id
        )

    def _logits(self, model: Any, features: Features) -> Float[np.ndarray, "examples labels"]:
        logits = np.zeros((len(features), self.config.num_labels), np.float32)
        for row, [values] in self.run(model, features, "logits"):
            logits[row] = values
        return logits

    def _class(self, example: TextExample) -> np.ndarray:
        source = str(example.source)
        return np.asarray(class_number(example.label, self.config.label2id, source), np.int32)

    def _classes(self, example: TextExample) -> np.ndarray:
        if isinstance(example.label, str) or not isinstance(example.label, Sequence | np.ndarray):
            raise ValueError(
                f"{example.source} has the label {example.label!r}, expected a list of classes."
            )
        holds = np.zeros(self.config.num_labels, np.float32)
        for label in example.label:
            holds[class_number(label, self.config.label2id, str(example.source))] = 1
        return holds

    def _numbers(self, example: TextExample) -> np.ndarray:
        number = self.config.num_labels
        try:
            with np.errstate(over="ignore"):  # infinity, which is refused
                values = np.asarray(example.label, np.float32)
        except (TypeError, ValueError, OverflowError):
            values = np.array(np.nan, np.float32)
        is_shaped = values.shape == (number,) or (values.shape == () and number == 1)
        if not is_shaped or not np.all(np.isfinite(values)):
            raise ValueError(
                f"{example.source} has the label {example.label!r}, expected "
                f"{'a number' if number == 1 else f'{number} numbers'}."
            )
        return values.reshape(number)


# The metric by which models are compared.
_PROBLEMS = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "f1",
    "regression": "pearson",
}


def _measure_class(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    classes, predictions = logits.shape[-1], logits.argmax(axis=-1)
    by_class = metrics.class_f1(predictions, labels, classes)
    return {
        "loss": float(cross_entropy(jnp.asarray(logits), labels)),
        "accuracy": metrics.accuracy(predictions, labels),
        "f1": float(np.nan_to_num(by_class[1]) if classes == 2 else np.nanmean(by_class)),
        "matthews": metrics.matthews(predictions, labels, classes),
    }


def _measure_classes(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    predictions, holds = logits > 0, labels > 0
    occurs = np.any(predictions | holds, axis=0)
    by_class = [metrics.binary_f1(predictions[:, i], holds[:, i]) for i in np.flatnonzero(occurs)]
    return {
        "loss": float(binary_cross_entropy(jnp.asarray(logits), labels)),
        "accuracy": float(np.mean(np.all(predictions == holds, axis=-1))),
        "f1": metrics.binary_f1(predictions, holds),
        "f1_macro": float(np.mean(by_class)) if by_class else 0.0,
    }


def _measure_numbers(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    columns = list(zip(logits.T, labels.T, strict=True))
    return {
        "loss": float(mean_squared_error(jnp.asarray(logits), labels)),
        "pearson": float(np.mean([metrics.pearson(x, y) for x, y in columns])),
        "spearman": float(np.mean([metrics.spearman(x, y) for x, y in columns])),
    }
