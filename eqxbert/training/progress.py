"""The progress bar of training."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any


class Bar:
    """A progress bar, with the loss and the tokens per second."""

    def __init__(self, bar: Any, step: int):
        self._bar, self._step, self._start = bar, step, time.perf_counter()

    def show(self, step: int, record: Mapping[str, float | int]) -> None:
        """Moves on to `step`, with the metrics of the training step."""
        now = time.perf_counter()
        speed = record["tokens"] * (step - self._step) / (now - self._start)
        self._bar.set_postfix(loss=f"{record['loss']:.4g}", tokens_per_s=f"{speed:,.0f}")
        self._bar.update(step - self._bar.n)
        self._step, self._start = step, now


@contextlib.contextmanager
def progress_bar(wanted: bool, step: int, total: int) -> Iterator[Bar | None]:
    """One of `total` steps, of which `step` are done; None if none is wanted."""
    if not wanted:
        yield None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "The progress bar needs tqdm: pip install 'eqxbert[train]', or give progress=False."
        ) from error
    with tqdm(total=total, initial=step, unit="step") as bar:
        yield Bar(bar, step)
