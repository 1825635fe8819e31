"""Fine-tuning from files to a folder, which is what the command line does."""

import hashlib
import importlib.util
import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
from jaxtyping import DTypeLike

from ...config import CONFIG_FILE, BertConfig
from ...convert import staged_folder
from ...convert.pretrained import write_model
from ...models import model_class_of
from ...training import adamw, fit
from ..tokenizer import Tokenizer
from .examples import class_names
from .files import read_examples
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .sequence_classification import SequenceClassification
from .task import Task
from .token_classification import TokenClassification

logger = logging.getLogger("eqxbert")

TASKS: dict[str, tuple[type[Task[Any]], str | None]] = {
    "classification": (SequenceClassification, "single_label_classification"),
    "multi-label-classification": (SequenceClassification, "multi_label_classification"),
    "regression": (SequenceClassification, "regression"),
    "token-classification": (TokenClassification, None),
    "question-answering": (QuestionAnswering, None),
    "multiple-choice": (MultipleChoice, None),
}
"""Tasks by their names, with the `problem_type` of their models."""

_SETTINGS, _METRICS, _CHECKPOINTS = "finetuning.json", "metrics.json", "checkpoints"
_SAVE_EVERY = 500  # steps
# Those that a configuration has if it does not say how labels are called.
_DEFAULT_NAME = re.compile(r"LABEL_\d+")


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
    dtype: DTypeLike | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Fine-tunes a model on files of examples, and writes it to a folder with its tokenizer, a
    `metrics.json`, and its settings in a `finetuning.json`: `from_pretrained` and transformers load
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
    - `dtype`: what is computed in; None for float32.
    - `seed`: another one for another order, another new head, and other dropout.
    - `progress`: whether to show a progress bar; if None, in a terminal.

    **Returns:** the metrics on `dev` of the model that is written, and its `step`.

    **Raises:** `ValueError` for files that cannot be read, labels that the model does not have,
    values out of range, and a folder that holds something else; `FileNotFoundError`.
    """
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; there are {', '.join(TASKS)}.")
    kind, problem_type = TASKS[task]
    settings = {
        "task": task,
        "model": str(model),
        "train": _fingerprint(train),
        "dev": None if dev is None else _fingerprint(dev),
        "labels": None if labels is None else list(labels),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "max_length": max_length,
        "group_by_length": group_by_length,
        "dtype": None if dtype is None else jax.numpy.dtype(dtype).name,
        "seed": seed,
    }
    folder = Path(out).expanduser().absolute()
    _check_folder(folder, settings)
    if (folder / _METRICS).is_file():
        logger.warning("%s holds the result of this very run; there is nothing to do.", folder)
        return json.loads((folder / _METRICS).read_text(encoding="utf-8"))

    examples = read_examples(kind.example_class, train)
    dev_examples = None if dev is None else read_examples(kind.example_class, dev)
    head_key, key = jax.random.split(jax.random.key(seed))
    changes: dict[str, Any] = {} if problem_type is None else {"problem_type": problem_type}
    names = _label_names(kind, problem_type, model, labels, [*examples, *(dev_examples or ())])
    if names is not None:
        changes["id2label"] = dict(enumerate(names))
    untrained = kind.model_class.from_pretrained(model, key=head_key, **changes)
    tokenizer = Tokenizer.from_pretrained(model)
    options = {} if max_length is None else {"max_length": max_length}
    work = kind(tokenizer, untrained.config, **options)
    batches = work.train_batches(
        examples, batch_size=batch_size, seed=seed, group_by_length=group_by_length
    )
    evaluate = None if dev_examples is None else work.evaluator(dev_examples)
    steps = epochs * len(batches)
    optimizer = adamw(learning_rate, total_steps=steps, warmup=warmup, weight_decay=weight_decay)
    # Not before here, where all of the input has been looked at.
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / _SETTINGS, settings)
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
        folder=folder / _CHECKPOINTS,
        save_every=_SAVE_EVERY,
        dtype=dtype,
        progress=_is_shown(progress),
    )
    metrics: dict[str, Any] = {"step": steps}
    if result.evaluations:
        evaluations = [_finite(record) for record in result.evaluations]
        lowest = -math.inf
        best = max(evaluations, key=lambda x: lowest if (y := x[work.main_metric]) is None else y)
        metrics = best | {"evaluations": evaluations}
    with staged_folder(folder) as staging:
        write_model(result.model, staging)
        tokenizer.write(staging)
        _write_json(staging / _METRICS, metrics)
    shutil.rmtree(folder / _CHECKPOINTS)
    return metrics


def _label_names(
    kind: type[Task[Any]],
    problem_type: str | None,
    model: str | PathLike[str],
    labels: Sequence[str] | None,
    examples: Sequence[Any],
) -> list[str] | None:
    """The names of the model's labels; None if there are none to name.

    **Raises:** `ValueError` if `labels` are given that are not the model's.
    """
    has_classes = kind in (SequenceClassification, TokenClassification)
    if not has_classes or problem_type == "regression":
        if labels is not None:
            raise ValueError(
                f"labels are given ({', '.join(labels)}), but the task has no classes."
            )
        return ["LABEL_0"] if has_classes else None
    config = BertConfig.from_pretrained(model)
    if model_class_of(config) is not kind.model_class:
        return list(labels) if labels else class_names(_labels(examples))
    known = list(config.id2label.values())
    if labels is None or list(labels) == known:
        return known
    if len(labels) == len(known) and all(map(_DEFAULT_NAME.fullmatch, known)):
        return list(labels)
    raise ValueError(
        f"The labels given are {', '.join(labels)}, but {model} was trained for "
        f"{', '.join(known)}. Leave them out, or give it another head first: "
        "model.with_labels(labels, key=key).save_pretrained(folder)."
    )


def _labels(examples: Sequence[Any]) -> Iterator[Any]:
    """All labels that occur, of texts or of words."""
    for example in examples:
        labels = getattr(example, "labels" if hasattr(example, "labels") else "label")
        if isinstance(labels, list | tuple):
            yield from labels
        elif labels is not None:
            yield labels


def _fingerprint(path: str | PathLike[str]) -> str:
    """What a file is called, and what is in it."""
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return f"{Path(path).name}, sha256 {digest}"


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Checks that a folder holds nothing that matters, or a run with these settings.

    **Raises:** `ValueError` that says what is there.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the model needs a folder.")
    path = folder / _SETTINGS
    if not path.is_file():
        if there := [name for name in (CONFIG_FILE, _CHECKPOINTS) if (folder / name).exists()]:
            raise ValueError(
                f"{folder} holds something else: it has {' and '.join(there)}, but no {_SETTINGS}."
            )
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    differences = [
        f"{name} is {found.get(name)!r} there and {value!r} here"
        for name, value in settings.items()
        if found.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{folder} holds another run: {'; '.join(differences)}. Give another folder, or remove "
            "this one."
        )


def _write_json(path: Path, values: Any) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _finite(record: dict[str, float]) -> dict[str, float | None]:
    """With None for what is not a number, which JSON does not know."""
    return {name: value if math.isfinite(value) else None for name, value in record.items()}


def _is_shown(progress: bool | None) -> bool:
    if progress is not None:
        return progress
    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
