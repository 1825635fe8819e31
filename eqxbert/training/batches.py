"""Which examples are in which batch, and batches made ahead of time.

Nothing here has a state to save: what batch `n` holds is a function of the seed and of `n`.
"""

import functools
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Literal, TypeVar

import jax
import numpy as np
from jaxtyping import Int64

T = TypeVar("T")

# What random numbers are for. The same seed and number give each of these others.
ORDER, MASKING, SENTENCE_PAIRS = range(3)

# Seconds for which the end of a program waits for a batch under way. Without a wait, the
# interpreter would be taken down under the thread that makes it.
_PATIENCE = 2.0


def random_bits(purpose: int, seed: int, number: int, row: int = 0) -> np.random.Philox:
    """A stream of random numbers of its own for each combination of arguments, the same on every
    machine and with every version of NumPy (as to its `random_raw`): Philox, whose streams are
    told apart by key and counter ([Salmon et al., 2011](https://doi.org/10.1145/2063384.2063405)).

    **Arguments:**

    - `purpose`: one of `ORDER`, `MASKING`, `SENTENCE_PAIRS`.
    - `seed`, `number`: the seed, and the number of the step or of the epoch; both from 0 to
        `2**64 - 1`.
    - `row`: of which part of that step or epoch.
    """
    return np.random.Philox(
        key=np.array([seed, number], np.uint64),
        counter=np.array([0, row, 0, purpose], np.uint64),  # the first word counts
    )


def check_count(name: str, value: int, least: int = 0) -> None:
    """Checks that `value` is an integer of 64 bits that is at least `least`.

    **Raises:** `ValueError` that names the argument and says what it is.
    """
    if not isinstance(value, int | np.integer) or not least <= value < 2**64:
        raise ValueError(f"{name} must be an integer from {least} to 2**64 - 1, got {value!r}.")


def host_rows(batch_size: int, host: int, hosts: int) -> slice:
    """The rows of a batch that one of several hosts has.

    **Raises:** `ValueError` if there is no such host, or the batch cannot be split so.
    """
    check_count("batch_size", batch_size, 1)
    check_count("hosts", hosts, 1)
    if not 0 <= host < hosts:
        raise ValueError(f"host is {host}, expected 0 to {hosts - 1} (hosts is {hosts}).")
    if batch_size % hosts:
        raise ValueError(
            f"A batch of {batch_size} cannot be split evenly over {hosts} hosts; choose a "
            "batch_size that is a multiple of hosts."
        )
    rows = batch_size // hosts
    return slice(host * rows, (host + 1) * rows)


def batch_indices(
    size: int,
    batch_size: int,
    *,
    seed: int,
    step: int,
    host: int = 0,
    hosts: int = 1,
    shuffle: bool = True,
    remainder: Literal["carry", "drop", "keep"] = "carry",
) -> Int64[np.ndarray, " rows"]:
    """The examples in one batch. Each epoch is a permutation of its own.

    A training that is taken up again at a step sees what it would have seen, on any number of
    hosts: their parts, one after the other, are the batch. Row `i` of a host's part is row
    `host * batch_size // hosts + i` of the batch.

    **Arguments:**

    - `size`: the number of examples in the data set.
    - `batch_size`: the number of examples in a batch, those of all hosts together.
    - `seed`, `step`: the number of the batch is `step`, counted from 0 and on through all epochs.
    - `host`, `hosts`: which part of the batch, of how many.
    - `shuffle`: whether epochs are permuted; otherwise examples come in their order.
    - `remainder`: what becomes of the examples at an epoch's end that do not fill a batch. "carry":
        the batch is filled up with the first ones of the next epoch, so that all batches are full
        and each example is seen exactly once in each epoch. "drop": they are left out; an epoch has
        `size // batch_size` batches. "keep": the last batch of an epoch is smaller, and the last
        hosts have less of it, or nothing; an epoch has `ceil(size / batch_size)` batches.

    **Returns:** places in the data set.

    **Raises:** `ValueError` if there are no examples, or a batch cannot be split so or, with
    "drop", not be filled.
    """
    check_count("seed", seed)
    check_count("step", step)
    rows = host_rows(batch_size, host, hosts)
    if size < 1:
        raise ValueError(f"The data set has {size} examples; there must be at least one.")
    # Places are counted through all epochs: `size` is the first one of the second.
    if remainder == "carry":
        start, end = step * batch_size, (step + 1) * batch_size
    elif remainder in ("drop", "keep"):
        batches = size // batch_size if remainder == "drop" else -(-size // batch_size)
        if batches == 0:
            raise ValueError(
                f"{size} examples do not fill a batch of {batch_size}, and what does not is "
                'dropped: there would be no batch. Choose a smaller batch_size, or "keep".'
            )
        epoch, batch = divmod(step, batches)
        start, end = epoch * size + batch * batch_size, (epoch + 1) * size
    else:
        raise ValueError(f'remainder must be "carry", "drop" or "keep", got {remainder!r}.')
    start, end = start + rows.start, min(start + rows.stop, end)

    parts = [np.zeros(0, np.int64)]
    while start < end:
        epoch, place = divmod(start, size)
        stop = min(place + end - start, size)
        parts.append(
            _permutation(size, seed, epoch)[place:stop] if shuffle else np.arange(place, stop)
        )
        start += stop - place
    return np.concatenate(parts)


# A batch may be of two epochs; and by length, there are the orders of examples and of batches.
@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> Int64[np.ndarray, " size"]:
    """Not by `Generator.permutation`, which another version of NumPy may draw otherwise."""
    order = np.argsort(random_bits(ORDER, seed, epoch).random_raw(size), kind="stable")
    order.flags.writeable = False
    return order


def prefetch(
    batches: Iterable[T],
    size: int = 2,
    *,
    device: Any = None,
) -> "Prefetch[T]":
    """The same batches, made ahead by a thread of its own while those before are worked on.

    An error that making them raises is raised where the batch would have come. The thread ends with
    the batches, and with the iterator: when that is closed (`close()`, or
    `with contextlib.closing(...)`), is no longer used, or the program ends.

    **Arguments:**

    - `batches`: what is iterated over in that thread. Further work can go there by a `map`.
    - `size`: how many batches may be ready, at least 1. One more may be in the making.
    - `device`: the device or sharding to which the thread moves the batches' arrays, as
        `jax.device_put` does. None leaves them as they are.

    **Raises:** `ValueError` if `size` is less than 1.
    """
    check_count("size", size, 1)
    if device is not None:
        batches = map(functools.partial(jax.device_put, device=device), batches)
    return Prefetch(batches, size)


class Prefetch(Iterator[T], Generic[T]):
    """What `prefetch` returns."""

    def __init__(self, batches: Iterable[T], size: int):
        self._queue = _Queue[T](size)
        # The thread knows the queue alone, so that it does not keep the iterator in use. It is a
        # daemon, since the interpreter would wait for another one without end.
        thread = threading.Thread(
            target=_produce, args=(iter(batches), self._queue), name="prefetch", daemon=True
        )
        self._end = weakref.finalize(self, _end, self._queue, thread)
        thread.start()

    def __next__(self) -> T:
        return self._queue.get()

    def close(self) -> None:
        """Ends the thread, after the batch under way; there are no more batches then."""
        self._end()


class _Queue(Generic[T]):
    """Batches that are ready, up to `size`, and whether more will come."""

    def __init__(self, size: int):
        self.size = size
        self.ready = deque[T]()
        self.is_closed = False
        self.error: BaseException | None = None
        self.changed = threading.Condition()

    def put(self, batch: T) -> bool:
        """Waits for room. False if the batch is no longer wanted."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_closed or len(self.ready) < self.size)
            if not self.is_closed:
                self.ready.append(batch)
                self.changed.notify_all()
            return not self.is_closed

    def get(self) -> T:
        """Waits for a batch.

        **Raises:** the error with which the batches ended, once; `StopIteration` after the last.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.is_closed or self.ready)
            if self.ready:
                self.changed.notify_all()
                return self.ready.popleft()
            error, self.error = self.error, None
        raise error or StopIteration

    def close(self, error: BaseException | None = None) -> None:
        """No more batches are put in. Those that are ready can be taken still, then comes the
        error.
        """
        with self.changed:
            if not self.is_closed:
                self.is_closed, self.error = True, error
            self.changed.notify_all()

    def discard(self) -> None:
        """No more batches are put in or taken out."""
        with self.changed:
            self.is_closed, self.error = True, None
            self.ready.clear()
            self.changed.notify_all()


def _produce(batches: Iterator[T], queue: _Queue[T]) -> None:
    try:
        for batch in batches:
            if not queue.put(batch):
                break
    except BaseException as error:
        queue.close(error)
    else:
        queue.close()


def _end(queue: _Queue, thread: threading.Thread) -> None:
    queue.discard()
    # What is no longer used may be found so in any thread, this one included.
    if thread is not threading.current_thread():
        thread.join(_PATIENCE)
