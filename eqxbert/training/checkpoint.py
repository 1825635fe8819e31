"""Checkpoints of training, by orbax: everything that is needed to go on as if nothing had been."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .step import TrainState

# Where orbax moves the checkpoints that are no longer kept. Moving one takes no time; removed in
# its place, it would be there in part, should the run be killed meanwhile.
_REMOVED = "removed"


class Restored(NamedTuple):
    """A checkpoint that was read: the state, and the notes that were saved with it."""

    state: TrainState
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run in a folder: the last ones, and the best.

    They are written in the background, and are there whole or not at all, whatever happens
    meanwhile. To be closed, or used in a `with` statement, so that the last one is finished.
    """

    def __init__(self, folder: str | PathLike[str], *, keep: int = 2):
        """**Arguments:**

        - `folder`: where they are, or will be.
        - `keep`: how many of the last ones are kept, besides the best.

        **Raises:** `ImportError` without orbax-checkpoint, `ValueError` if `keep` is not positive.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}.")
        self.folder = Path(folder).expanduser().absolute()
        self._orbax = _orbax()
        self._policy = _LastAndBest(keep)
        self._manager = self._orbax.CheckpointManager(
            self.folder,
            options=self._orbax.CheckpointManagerOptions(
                preservation_policy=self._policy, todelete_subdir=_REMOVED
            ),
        )
        self._remove()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def wait(self) -> None:
        """Until all are written.

        **Raises:** `OSError` if that failed.
        """
        with self._errors():
            self._manager.wait_until_finished()
        self._remove()

    def close(self) -> None:
        """Waits until all are written, and ends what there is in the background.

        **Raises:** `OSError` if one could not be written.
        """
        with self._errors():
            self._manager.close()
        self._remove()

    @property
    def steps(self) -> list[int]:
        """The steps of which there are checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(
        self, state: TrainState, notes: Mapping[str, Any], *, best_step: int | None = None
    ) -> None:
        """Writes one in the background.

        **Arguments:**

        - `state`: the state of training; its step names the checkpoint.
        - `notes`: what else there is to keep: JSON's values.
        - `best_step`: the step of the best one so far, which is kept.

        **Raises:** `OSError` if this one, or the one before it, could not be written. Those before
        are whole.
        """
        self.wait()
        args = self._orbax.args
        state = _with_key_data(state)
        self._policy.best_step = best_step
        with self._errors():
            self._manager.save(
                int(state.step),
                args=args.Composite(
                    state=args.StandardSave(state),
                    notes=args.JsonSave(
                        {
                            "notes": dict(notes),
                            "arrays": _arrays(state),
                            "config": _config(state.model),
                        }
                    ),
                ),
            )

    def restore(self, like: TrainState, step: int | None = None) -> Restored | None:
        """The checkpoint of a step, or the last one; None if there is none.

        **Arguments:**

        - `like`: a state of the same model and optimizer, whose structure, dtypes and devices
            the result has.

        **Raises:** `ValueError` if it is of another model or optimizer, if there is none of `step`,
        or if it is damaged.
        """
        if not self.steps:
            return None
        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            raise ValueError(
                f"{self.folder} has no checkpoint of step {step}, but of {self.steps}."
            )
        args = self._orbax.args
        form = _with_key_data(like)
        with self._read_errors(step):
            saved = self._manager.restore(step, args=args.Composite(notes=args.JsonRestore())).notes
            notes, arrays, config = saved["notes"], saved["arrays"], saved.get("config")
        self._check(arrays, _arrays(form))
        if config:  # shapes do not tell how many heads there are, or which label is which
            self._check(config, _config(like.model))
        with self._read_errors(step):
            state = self._manager.restore(
                step, args=args.Composite(state=args.StandardRestore(form))
            ).state
        state = jax.tree.map(_committed_as, state, form)
        key = jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(like.key))
        return Restored(eqx.tree_at(lambda s: s.key, state, key), notes)

    def _remove(self) -> None:
        """Removes what is no longer kept. To be called while nothing is being written."""
        shutil.rmtree(self.folder / _REMOVED, ignore_errors=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Those of writing, which come in many kinds, later than they happen."""
        try:
            yield
        except Exception as error:
            raise OSError(
                f"A checkpoint could not be written to {self.folder}. Those of the steps "
                f"{self.steps} are whole: once there is room, training can go on from the last. "
                f"The reason: {error}"
            ) from error

    @contextlib.contextmanager
    def _read_errors(self, step: int) -> Iterator[None]:
        """Those of reading, which are as many as there are files."""
        try:
            yield
        except Exception as error:
            raise ValueError(
                f"{self.folder / str(step)} cannot be read: it is damaged, or no checkpoint of a "
                "training. Move it away, and training goes on from the one before, if there is "
                f"one; or give a new folder. The reason: {type(error).__name__}: {error!s:.300}"
            ) from error

    def _check(self, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        problems = [
            f"{name} is {saved.get(name, 'missing')!s:.200} there and "
            f"{wanted.get(name, 'missing')!s:.200} here"
            for name in [*wanted, *(n for n in saved if n not in wanted)]
            if saved.get(name) != wanted.get(name)
        ]
        if problems:
            more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError(
                f"The checkpoint in {self.folder} is of another model or optimizer: "
                f"{'; '.join(problems[:5])}{more}. Give the folder of this run, or a new one."
            )


class _LastAndBest:
    """Says to orbax which checkpoints are kept once another one is written."""

    def __init__(self, last: int):
        self.last = last
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        last = {checkpoint.step for checkpoint in checkpoints[-self.last :]}
        return [checkpoint.step in last | {self.best_step} for checkpoint in checkpoints]


def _committed_as(x: Array, like: Array) -> Array:
    """The array, bound to devices only if `like` is: a step's number, say, follows the model to
    where that is.
    """
    return x if like.committed else jnp.array(np.asarray(x))


def _with_key_data(state: TrainState) -> TrainState:
    """With the numbers of the key in its place, which every version of orbax can write."""
    return eqx.tree_at(lambda s: s.key, state, jax.random.key_data(state.key))


def _arrays(state: TrainState) -> dict[str, str]:
    """The shape and dtype of each array."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{x.dtype}{list(np.shape(x))}"
        for path, x in leaves
    }


def _config(model: Any) -> dict[str, Any]:
    """The configuration of the model as JSON gives it back; empty if it has none."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", dict)
    return json.loads(json.dumps(to_dict(), default=str))


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "Checkpoints of training need orbax-checkpoint: pip install 'eqxbert[train]'."
        ) from error
    return orbax.checkpoint
