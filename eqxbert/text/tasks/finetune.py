"""Fine-tuning from files to a folder, which is what the command line does."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from ...config import BertConfig
from ...convert import staged_folder
from ...models import model_class_of
from ...training import adamw, fit
from ...training.batches import check_count
from ..run_folder import (
    METRICS,
    begin_run,
    check_finite,
    fingerprint,
    open_run,
    read_metrics,
    run_path,
    shows_progress,
    write_json,
)
from ..tokenizer import check_texts
from .examples import class_names
from .files import read_examples
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .sentence_embedding import SentenceEmbedding
from .sequence_classification import SequenceClassification
from .task import Task, are_named
from .token_classification import TokenClassification

logger = logging.getLogger("eqxbert")


class _Kind(NamedTuple):
    """A kind of task: its class and, of two that share one, what tells them apart: the
    `problem_type` of the model, or an option of the task. And the field of its examples that has
    their labels; None if there are none.
    """

    task_class: type[Task[Any]]
    problem_type: str | None = None
    options: Mapping[str, Any] = MappingProxyType({})
    labels: str | None = "label"


TASKS = {
    "classification": _Kind(SequenceClassification, "single_label_classification"),
    "multi-label-classification": _Kind(SequenceClassification, "multi_label_classification"),
    "regression": _Kind(SequenceClassification, "regression"),
    "token-classification": _Kind(TokenClassification, labels="labels"),
    "question-answering": _Kind(QuestionAnswering, labels="answers"),
    "multiple-choice": _Kind(MultipleChoice),
    "sentence-embeddings": _Kind(SentenceEmbedding, labels=None),
    "sentence-similarity": _Kind(SentenceEmbedding, options={"is_scored": True}),
}
"""Tasks by their names."""

_SAVE_EVERY = 500  # steps


def finetune(
    task: str,
    *,
    model: str | PathLike[str],
    train: str | PathLike[str],
    dev: str | PathLike[str] | None = None,
    out: str | PathLike[str],
    labels: Sequence[str] | None = None,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 5e-5,
    warmup: float | int = 0.1,
    weight_decay: float = 0.01,
    max_length: int | None = None,
    group_by_length: bool = False,
    no_answer_threshold: float | int | None = None,
    dtype: DTypeLike | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Fine-tunes a model on files of examples, and writes it to a folder with its tokenizer, a
    `metrics.json`, and its settings in a `training.json`: `from_pretrained` and transformers load
    it.

    Called again after it was stopped, it goes on from the last checkpoint; there is one for every
    500 steps, and for the end of each epoch. They are removed in the end.

    **Arguments:**

    - `task`: one of `TASKS`.
    - `model`: the folder, or the name on the Hugging Face hub, of any BERT with its tokenizer. A
        head that it lacks is drawn anew.
    - `train`, `dev`: files as `read_examples` reads them. The model that is written is the best of
        those at the ends of the epochs, on `dev`; the last one, if that is None.
    - `out`: the folder.
    - `labels`: the names of the classes in the order of their numbers. If None, those that the
        model has, if it was trained for such a task, or else those that are in the files.
    - `epochs`: how often to go through `train`.
    - `batch_size`: how many examples there are in a batch; windows, for questions.
    - `learning_rate`, `warmup`, `weight_decay`: as in `adamw`. It falls linearly.
    - `max_length`: how many tokens an input may have; None for what is usual in the task.
    - `group_by_length`: as in `Task.train_batches`.
    - `no_answer_threshold`: for questions, some of which have no answer; as in
        `QuestionAnswering`.
    - `dtype`: what is computed in; None for float32.
    - `seed`: another one for another order, another new head, and other dropout.
    - `progress`: whether to show a progress bar; if None, in a terminal.

    **Returns:** the metrics on `dev` of the model that is written, and its `step`.

    **Raises:** `ValueError` for files that cannot be read, labels that the model does not have,
    values out of range, and a folder that holds something else; `FileNotFoundError`;
    `FloatingPointError` if the model, or its loss on `dev`, is not finite in the end, or no step
    had finite gradients.
    """
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; there are {', '.join(TASKS)}.")
    kind = TASKS[task]
    check_count("epochs", epochs, 1)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be one of floating point, got {dtype}.")
    if labels is not None:
        check_texts("labels", labels)
        if len(labels) == 0 or "" in labels or len(set(labels)) < len(labels):
            raise ValueError(f"labels must be names, all different, got {labels!r}.")
    settings = {
        "task": task,
        "model": str(model),
        "train": fingerprint(train),
        "dev": None if dev is None else fingerprint(dev),
        "labels": None if labels is None else list(labels),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "max_length": max_length,
        "group_by_length": group_by_length,
        "no_answer_threshold": no_answer_threshold,
        "dtype": None if dtype is None else jnp.dtype(dtype).name,
        "seed": seed,
    }
    folder = run_path(out)
    if (known := open_run(folder, settings)) is not None:
        logger.warning("%s holds the result of this very run; there is nothing to do.", folder)
        return known

    example_class = kind.task_class.example_class
    examples = read_examples(example_class, train, labels=kind.labels)
    dev_examples = None if dev is None else read_examples(example_class, dev, labels=kind.labels)
    head_key, key = jax.random.split(jax.random.key(seed))
    changes: dict[str, Any] = {}
    if kind.problem_type is not None:
        changes["problem_type"] = kind.problem_type
    names = _label_names(kind, model, labels, [*examples, *(dev_examples or ())])
    if names is not None:
        changes["id2label"] = dict(enumerate(names))
    options = dict(kind.options)
    if max_length is not None:
        options["max_length"] = max_length
    if no_answer_threshold is not None:
        if kind.task_class is not QuestionAnswering:
            raise ValueError(
                f"no_answer_threshold is {no_answer_threshold}, but the task has no questions."
            )
        options["no_answer_threshold"] = no_answer_threshold
    work, untrained = kind.task_class.load(model, key=head_key, changes=changes, **options)
    batches = work.train_batches(
        examples, batch_size=batch_size, seed=seed, group_by_length=group_by_length
    )
    evaluate = None if dev_examples is None else work.evaluator(dev_examples)
    steps = epochs * len(batches)
    optimizer = adamw(learning_rate, total_steps=steps, warmup=warmup, weight_decay=weight_decay)
    checkpoints = begin_run(folder, settings)
    result = fit(
        untrained,
        batches,
        optimizer,
        key=key,
        steps=steps,
        evaluate=evaluate,
        evaluate_every=len(batches),
        best_metric=work.main_metric,
        best_is_highest=True,
        folder=checkpoints,
        save_every=_SAVE_EVERY,
        loss=work.loss,
        dtype=dtype,
        progress=shows_progress(progress),
    )
    metrics: dict[str, Any] = {"step": steps}
    if result.best is not None:
        metrics = result.best | {"evaluations": result.evaluations}
    check_finite(result.model, metrics, folder)
    with staged_folder(folder) as staging:
        work.write(result.model, staging)
        write_json(staging / METRICS, metrics)
    shutil.rmtree(checkpoints)
    return read_metrics(folder)


def _label_names(
    kind: _Kind,
    model: str | PathLike[str],
    labels: Sequence[str] | None,
    examples: Sequence[Any],
) -> list[str] | None:
    """The names of the model's labels; None if there are none to name.

    **Raises:** `ValueError` if the model was trained for other labels, or a new head would tell
    apart a single class.
    """
    has_head = kind.task_class in (SequenceClassification, TokenClassification)
    is_regression = kind.problem_type == "regression"
    if labels is not None and (is_regression or not has_head):
        raise ValueError(f"labels are given ({', '.join(labels)}), but the task has no classes.")
    if not has_head:
        return None
    config = BertConfig.from_pretrained(model)
    known = list(config.id2label.values())
    other_head = (
        "give it another head first: model.with_labels(labels, key=key).save_pretrained(folder)."
    )
    is_new = model_class_of(config) is not kind.task_class.model_class
    if is_regression:
        if not is_new and len(known) != 1:
            raise ValueError(
                f"{model} was trained for {', '.join(known)}, not for a number; {other_head}"
            )
        return ["LABEL_0"] if is_new else known
    if is_new:
        names = class_names(_labels(examples)) if labels is None else list(labels)
        occurring = {str(label) for label in _labels(examples)} if labels is None else {*names}
        if len(occurring) == 1 and kind.problem_type != "multi_label_classification":
            raise ValueError(
                f"The only label is {occurring.pop()!r}: there is nothing to tell it from. Give "
                "examples of other classes, or the names of all classes (labels)."
            )
        return names
    if labels is None or list(labels) == known:
        return known
    if len(labels) == len(known) and not are_named(known):
        return list(labels)
    raise ValueError(
        f"The labels given are {', '.join(labels)}, but {model} was trained for "
        f"{', '.join(known)}. Leave them out, or {other_head}"
    )


def _labels(examples: Sequence[Any]) -> Iterator[Any]:
    """All labels that occur, of texts or of words."""
    for example in examples:
        labels = getattr(example, "labels" if hasattr(example, "labels") else "label")
        if isinstance(labels, list | tuple):
            yield from labels
        elif labels is not None:
            yield labels
