"""The loop around the training step that most want."""

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from os import PathLike
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import DTypeLike, PRNGKeyArray, PyTree

from ..models.checkpointing import Policy
from .batches import prefetch
from .checkpoint import Checkpoints
from .loss import Batch, LossFunction, model_loss
from .progress import progress_bar
from .step import TrainState, make_eval_step, make_train_step

logger = logging.getLogger("eqxbert")

Record = dict[str, float | int]
"""Metrics by their names, among them the `step` after which they were taken."""

# So many steps in a row without finite gradients, and training ends: it would not recover.
_MAX_SKIPPED = 100
_LOOK_FOR = (
    "Look for labels that are no class and for NaN in the data or in the weights, or lower the "
    "learning rate."
)


class FitResult(NamedTuple):
    """What `fit` returns.

    - `model`: the best model by its evaluations; the last one if there were none.
    - `state`: the state after the last step.
    - `history`: the metrics of the training step, every `log_every` steps.
    - `evaluations`: those of each evaluation.
    - `best`: those of the best model, None if there were no evaluations.
    """

    model: Any
    state: TrainState
    history: list[Record]
    evaluations: list[Record]
    best: Record | None


def fit(
    model: Any,
    train: Iterable[Batch] | Callable[[int], Batch],
    optimizer: optax.GradientTransformation,
    *,
    key: PRNGKeyArray,
    steps: int | None = None,
    epochs: int | None = None,
    evaluate: Iterable[Batch] | Callable[[Any], Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    best_metric: str = "loss",
    best_is_highest: bool = False,
    patience: int | None = None,
    folder: str | PathLike[str] | None = None,
    save_every: int | None = None,
    keep: int = 2,
    resume: bool = True,
    callbacks: Iterable[Callable[[TrainState, Record], None]] = (),
    log_every: int = 10,
    progress: bool = True,
    loss: LossFunction = model_loss,
    accumulate: int | None = None,
    dtype: DTypeLike | None = None,
    remat: bool | Policy = False,
    trainable: PyTree | None = None,
) -> FitResult:
    """Trains a model.

    A run that was stopped, in whatever way, resumes from its last checkpoint. With the same
    batches, the result is the same in every bit as that of a run that was not stopped. If an
    evaluation raises, a checkpoint is written to `folder` before the error comes up, and the run
    that resumes begins with that evaluation.

    **Arguments:**

    - `model`: what is trained. Its arrays are copied, it stays as it is.
    - `train`: batches, dictionaries of the model's arguments with labels: something that can be
        gone through again for each epoch; or a function from the number of a step to its batch, so
        that a run that resumes need not make the batches before. (Its `len`, if it has one, is the
        number of batches in an epoch.) They are made ahead of time, in a thread of their own.
    - `optimizer`: such as `adamw`.
    - `key`: a PRNG key, for dropout.
    - `steps`, `epochs`: how many updates, or how often to go through `train`. One is needed.
    - `evaluate`: batches that can be gone through again, for the mean loss; or a function of the
        model that returns metrics.
    - `evaluate_every`: after how many steps; if None, at the end of each epoch where `train` has a
        length, and at the end of all.
    - `best_metric`, `best_is_highest`: which of the evaluation's metrics says what the best model
        is, and whether more of it is better.
    - `patience`: training ends after so many evaluations in a row that were no better than the
        best; None for never.
    - `folder`: for checkpoints; None for none.
    - `save_every`: after how many steps one is written, besides those at evaluations and the end.
    - `keep`: how many of the last ones are kept, besides the best.
    - `resume`: whether to go on from the last checkpoint in `folder`. If not, `folder` must have
        none.
    - `callbacks`: functions of the state and the metrics, called every `log_every` steps and after
        each evaluation. One that raises `StopIteration` ends the training. They must not keep the
        state, whose memory is used again.
    - `log_every`: after how many steps metrics are fetched.
    - `progress`: whether to show a progress bar.
    - `loss`, `accumulate`, `dtype`, `remat`: as in `make_train_step`. In float16, the loss is
        scaled.
    - `trainable`: as in `TrainState.create`.

    **Raises:** `ValueError` if arguments are out of range or contradict one another, if there are
    too few batches, if `best_metric` is not among an evaluation's metrics, or if the checkpoint is
    of another model, or of a later step than the last one; `FloatingPointError` if the gradients of
    100 steps in a row, or of all steps, were not finite. (If those of some were not, a warning says
    so.)
    """
    epoch = _length(train)
    total = _total_steps(epoch, steps, epochs)
    counts = {"evaluate_every": evaluate_every, "save_every": save_every, "patience": patience}
    for name, value in (counts | {"log_every": log_every}).items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if patience is not None and evaluate is None:
        raise ValueError("patience needs evaluate: without it there is nothing to wait for.")

    state = TrainState.create(
        model,
        optimizer,
        key=key,
        trainable=trainable,
        scale_loss=dtype is not None and jnp.dtype(dtype) == jnp.float16,
    )
    step = make_train_step(optimizer, loss=loss, accumulate=accumulate, dtype=dtype, remat=remat)
    evaluator = _evaluator(evaluate, loss, dtype)
    log = _Log(best_metric, best_is_highest)
    callbacks = tuple(callbacks)
    evaluate_every = evaluate_every or epoch

    with contextlib.ExitStack() as stack:
        checkpoints = None
        if folder is not None:
            checkpoints = stack.enter_context(Checkpoints(folder, keep=keep))
            if checkpoints.steps and not resume:
                raise ValueError(
                    f"{checkpoints.folder} has checkpoints of steps {checkpoints.steps}. Give a "
                    "new folder, or resume=True to go on from the last one."
                )
            if (restored := checkpoints.restore(state)) is not None:
                state = restored.state
                log.read(restored.notes)
        number = int(state.step)
        if number > total:
            raise ValueError(
                f"The last checkpoint in {folder} is of step {number}, and there are to be {total} "
                "steps. Give more steps, or a new folder."
            )
        is_over = log.has_waited(patience)
        bar = stack.enter_context(progress_bar(progress, number, total))
        batches = stack.enter_context(
            contextlib.closing(prefetch(_batches(train, number, total, epoch)))
        )
        best_model = None

        def is_due() -> bool:
            return number == total or bool(evaluate_every and number % evaluate_every == 0)

        def save() -> None:
            if checkpoints is not None and number not in checkpoints.steps:
                checkpoints.save(state, log.notes(), best_step=log.best_step)

        # The evaluation of the step gone on from, if it failed.
        is_owed = evaluator is not None and number > 0 and is_due() and not log.is_evaluated(number)
        while is_owed or (number < total and not is_over):
            records = []
            if not is_owed:
                state, metrics = step(state, next(batches))
                number += 1
                if number % log_every == 0 or number == total:
                    records.append(log.add_metrics(number, metrics))
                    if bar is not None:
                        bar.show(number, records[-1])
            is_owed = False
            if evaluator is not None and is_due():
                try:
                    records.append(log.add_evaluation(number, evaluator(state.model)))
                except BaseException:
                    save()  # so that what was trained is not lost with it
                    raise
                is_over = log.has_waited(patience)
                if log.best_step == number and checkpoints is None:
                    best_model = jax.tree.map(jnp.copy, state.model)
            try:
                for record, callback in itertools.product(records, callbacks):
                    callback(state, record)
            except StopIteration:
                is_over = True
            if number == total or is_over:  # before a checkpoint says that all is done
                _check_skipped(state)
            if is_due() or is_over or (save_every and number % save_every == 0):
                save()

        if log.best_step in (None, number):
            best_model = state.model
        elif checkpoints is not None:
            checkpoints.wait()
            best = checkpoints.restore(state, log.best_step)
            assert best is not None
            best_model = best.state.model
    return FitResult(best_model, state, log.history, log.evaluations, log.best)


def _check_skipped(state: TrainState) -> None:
    """Whether some steps, in the end, have changed nothing.

    **Raises:** `FloatingPointError` if none has changed anything.
    """
    skipped, steps = int(state.skipped), int(state.step)
    if skipped == steps:
        raise FloatingPointError(
            f"The gradients of none of the {steps} steps were finite: the model is as it was. "
            f"{_LOOK_FOR}"
        )
    if skipped:
        logger.warning(
            "The gradients of %d of %d steps were not finite: these steps changed nothing.",
            skipped,
            steps,
        )


def _length(train: Any) -> int | None:
    return len(train) if isinstance(train, Sized) else None


def _total_steps(epoch: int | None, steps: int | None, epochs: int | None) -> int:
    if (steps is None) == (epochs is None):
        raise ValueError("Give either steps or epochs.")
    if epoch == 0:
        raise ValueError("train is empty: there must be at least one batch.")
    if epochs is not None:
        if epoch is None:
            raise ValueError("epochs needs batches whose number is known (len); or give steps.")
        steps = epochs * epoch
    assert steps is not None
    if steps < 1:
        raise ValueError(f"There must be at least one step, got steps={steps}, epochs={epochs}.")
    return steps


def _batches(
    train: Iterable[Batch] | Callable[[int], Batch], start: int, total: int, epoch: int | None
) -> Iterator[Batch]:
    """The batches of the steps from `start` on."""
    if callable(train):
        yield from map(train, range(start, total))
        return
    number = start // epoch * epoch if epoch else 0  # whole epochs need not be gone through
    while number < total:
        before = number
        for batch in itertools.islice(train, total - number):
            if number >= start:
                yield batch
            number += 1
        if number == before:
            raise ValueError(
                f"train ended after {number} batches, of {total} steps. Give something that can be "
                "gone through again (a list rather than a generator), or a function of the step."
            )


def _evaluator(
    evaluate: Iterable[Batch] | Callable[[Any], Mapping[str, Any]] | None,
    loss: LossFunction,
    dtype: DTypeLike | None,
) -> Callable[[Any], Record] | None:
    """A function of the model that returns metrics, as numbers."""
    if evaluate is None:
        return None
    if callable(evaluate):
        return lambda model: {name: float(value) for name, value in evaluate(model).items()}
    if iter(evaluate) is evaluate:
        raise ValueError(
            f"evaluate is a {type(evaluate).__name__}, which can be gone through only once, but "
            "there may be several evaluations. Give a list."
        )
    step = make_eval_step(loss=loss, dtype=dtype)

    def mean_loss(model: Any) -> Record:
        batches = [jax.device_get(step(model, batch)) for batch in evaluate]
        if not batches:
            raise ValueError("evaluate is empty: there must be at least one batch.")
        value = 0.0
        for means in zip(*batches, strict=True):  # of one kind, in all batches
            weights = [float(mean.weight) for mean in means]
            total = sum(float(m.mean) * w for m, w in zip(means, weights, strict=True))
            value += means[0].share * total / (sum(weights) or 1)
        return {"loss": value}

    return mean_loss


class _Log:
    """What was measured so far, and what the best was."""

    def __init__(self, best_metric: str, best_is_highest: bool):
        self.history: list[Record] = []
        self.evaluations: list[Record] = []
        self.best_step: int | None = None
        self._best_metric = best_metric
        self._sign = 1.0 if best_is_highest else -1.0
        # The last step before which some gradients were finite, and how many were skipped by then.
        self._finite = 0, 0

    def read(self, notes: Mapping[str, Any]) -> None:
        """Goes on from where `notes` were made."""
        self.history, self.evaluations = list(notes["history"]), list(notes["evaluations"])
        self.best_step = notes["best_step"]
        if self.history:
            self._finite = int(self.history[-1]["step"]), int(self.history[-1]["skipped"])

    def notes(self) -> dict[str, Any]:
        """All there is to keep, as of now: it is written later, in the background."""
        return {
            "history": list(self.history),
            "evaluations": list(self.evaluations),
            "best_step": self.best_step,
        }

    def add_metrics(self, step: int, metrics: Mapping[str, Any]) -> Record:
        values = jax.device_get(dict(metrics))
        record: Record = {"step": step} | {name: float(x) for name, x in values.items()}
        self.history.append(record)
        skipped = int(record["skipped"])
        if skipped - self._finite[1] < step - self._finite[0]:
            self._finite = step, skipped
        elif step - self._finite[0] >= _MAX_SKIPPED:
            raise FloatingPointError(
                f"The gradients of the last {step - self._finite[0]} steps were not finite, and "
                f"the loss is {record['loss']}. {_LOOK_FOR}"
            )
        return record

    def add_evaluation(self, step: int, metrics: Record) -> Record:
        if self._best_metric not in metrics:
            raise ValueError(
                f"best_metric is {self._best_metric!r}, but the evaluation has "
                f"{', '.join(sorted(metrics)) or 'no metrics'}."
            )
        record: Record = {"step": step} | metrics
        if self.best is None or self._goodness(record) > self._goodness(self.best):
            self.best_step = step
        self.evaluations.append(record)
        return record

    @property
    def best(self) -> Record | None:
        return next((r for r in self.evaluations if r["step"] == self.best_step), None)

    def _goodness(self, record: Record) -> float:
        """The more, the better; NaN is worst of all."""
        value = self._sign * record[self._best_metric]
        return -math.inf if math.isnan(value) else value

    def is_evaluated(self, step: int) -> bool:
        return any(record["step"] == step for record in self.evaluations)

    def has_waited(self, patience: int | None) -> bool:
        """Whether the last evaluations, as many as `patience`, were no better than the best."""
        since = [r for r in self.evaluations if r["step"] > (self.best_step or 0)]
        return patience is not None and len(since) >= patience
