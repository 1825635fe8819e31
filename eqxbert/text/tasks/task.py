"""What all tasks have in common: from examples to batches to train on, and to metrics."""

import abc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic

import numpy as np
from jaxtyping import PRNGKeyArray

from ...config import BertConfig
from ...convert.pretrained import write_model
from ...models import model_class_of
from ...training.loss import LossFunction, model_loss
from ..tokenizer import Tokenizer
from .examples import E, Example
from .features import Features, TrainBatches, run

Metrics = dict[str, float]

# Those that a configuration has if it does not say how labels are called.
_DEFAULT_NAME = re.compile(r"LABEL_\d+")


def are_named(labels: Iterable[str]) -> bool:
    """Whether labels have names of their own."""
    return not all(map(_DEFAULT_NAME.fullmatch, labels))


class Task(abc.ABC, Generic[E]):
    """A task on texts, for a model with the head for it.

        batches = task.train_batches(examples, batch_size=32)
        fit(model, batches, ..., evaluate=task.evaluator(other_examples))
        task.predict(model, some_more)

    - `tokenizer`: what makes tokens of texts.
    - `config`: the model's configuration, which says what its labels are.
    - `max_length`: how many tokens an input may have, special ones included.
    """

    example_class: ClassVar[type[Example]]
    model_class: ClassVar[type[Any]]

    tokenizer: Tokenizer
    config: BertConfig
    max_length: int

    def __init__(self, tokenizer: Tokenizer, config: BertConfig, *, max_length: int | None = None):
        """**Arguments:**

        - `tokenizer`, `config`: of the model.
        - `max_length`: how many tokens an input may have; if None, as many as the tokenizer and the
            model allow. Batches are padded no further than to a length near that of their longest
            input.

        **Raises:** `ValueError` if the tokenizer is another model's, or `max_length` is greater
        than the model allows.
        """
        limit = config.max_position_embeddings
        if max_length is None:
            max_length = min(limit, tokenizer.max_length or limit)
        if not 5 <= max_length <= limit:
            raise ValueError(
                f"max_length is {max_length}, expected 5 to {limit} (max_position_embeddings)."
            )
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"The tokenizer has {tokenizer.vocab_size} tokens, but the model only "
                f"{config.vocab_size}: they do not belong together."
            )
        self.tokenizer = tokenizer
        self.config = config
        self.max_length = max_length

    @property
    @abc.abstractmethod
    def main_metric(self) -> str:
        """The metric by which models are compared. More of it is better."""

    @property
    def loss(self) -> LossFunction:
        """What training minimises, for `fit`: for most tasks, the loss that the model defines."""
        return model_loss

    @classmethod
    def load(
        cls,
        path_or_id: str | PathLike[str],
        *,
        key: PRNGKeyArray,
        changes: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> tuple[Any, Any]:
        """The task for a checkpoint, and its model.

        **Arguments:**

        - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub, with
            any BERT and its tokenizer.
        - `key`: a PRNG key, for a head that it lacks.
        - `changes`: of the model's configuration, such as its `id2label`.
        - `options`: arguments of the task.

        **Raises:** as `from_pretrained`, and as the task itself; `ValueError` if `changes` give
        other names to what a head was trained for.
        """
        _check_names(cls.model_class, path_or_id, changes)
        model = cls.model_class.from_pretrained(path_or_id, key=key, **changes)
        return cls(Tokenizer.from_pretrained(path_or_id), model.config, **options), model

    def write(self, model: Any, folder: Path) -> None:
        """Writes a model and its tokenizer into a folder that is there."""
        write_model(model, folder)
        self.tokenizer.write(folder)

    @abc.abstractmethod
    def features(self, examples: Iterable[E | Mapping[str, Any]]) -> Features:
        """The arguments of the model for some examples, labels included.

        **Raises:** `ValueError` for an example that is none, that has no label, or one that the
        model does not know.
        """

    @abc.abstractmethod
    def evaluator(self, examples: Iterable[E | Mapping[str, Any]]) -> Callable[[Any], Metrics]:
        """A function of the model that returns metrics over some examples; with the mean `loss`,
        where the model has one.

        **Raises:** as `features`; the function, `ValueError` for a model with other labels.
        """

    @abc.abstractmethod
    def predict(self, model: Any, examples: Iterable[E | Mapping[str, Any]]) -> Sequence[Any]:
        """For each example what its label should be."""

    def train_batches(
        self,
        examples: Iterable[E | Mapping[str, Any]],
        *,
        batch_size: int = 32,
        seed: int = 0,
        group_by_length: bool = False,
        host: int = 0,
        hosts: int = 1,
    ) -> Any:
        """Batches to train on, in random order.

        **Arguments:**

        - `examples`: with labels.
        - `batch_size`, `seed`, `group_by_length`, `host`, `hosts`: see `TrainBatches`.

        **Raises:** as `features` and `TrainBatches`.
        """
        return TrainBatches(
            self.features(examples),
            batch_size=batch_size,
            seed=seed,
            group_by_length=group_by_length,
            host=host,
            hosts=hosts,
        )

    def run(
        self, model: Any, features: Features, *outputs: str
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """The outputs of the model for each row of `features`; see `features.run`.

        **Raises:** `ValueError` if the model has other labels than the task.
        """
        theirs, ours = dict(model.config.id2label), dict(self.config.id2label)
        if theirs != ours:
            raise ValueError(
                f"The model's labels are {', '.join(theirs.values())}, but those of the task are "
                f"{', '.join(ours.values())}. Make the task with the configuration of the model."
            )
        return run(model, features, outputs)


def _check_names(
    model_class: type[Any], path_or_id: str | PathLike[str], changes: Mapping[str, Any]
) -> None:
    names = {name: changes[name] for name in ("id2label", "label2id") if name in changes}
    if not names:
        return
    config = BertConfig.from_pretrained(path_or_id)
    known, wanted = list(config.id2label.values()), list(config.replace(**names).id2label.values())
    # With another number of labels, loading fails anyway; default names may be replaced.
    if (
        model_class_of(config) is model_class
        and len(wanted) == len(known)
        and wanted != known
        and are_named(known)
    ):
        raise ValueError(
            f"The labels given are {', '.join(wanted)}, but the head of {path_or_id} was trained "
            f"for {', '.join(known)}, in this order: it would give them wrong names. Leave them "
            "out, or give it another head: model.with_labels(labels, key=key)."
        )
