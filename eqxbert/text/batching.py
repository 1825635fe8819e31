"""Texts of any lengths as batches of a few shapes.

XLA compiles a program for each shape of its inputs. Lengths are therefore rounded up to a short
list of *buckets*, and a corpus of any lengths compiles a bounded number of programs.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from ..models.micro_batches import tokens_in_cache
from ..nn import platform

T = TypeVar("T")

# A GPU wants its thousands of cores filled.
_TOKENS_PER_BATCH_ELSEWHERE = 65536
# Batches that are started before the result of an earlier one is waited for.
_AHEAD = 2
# Batches that a CPU computes at a time.
_THREADS = 2
# Rows that do not fill a batch join the next longer bucket, or are filled up with empty ones, if
# that adds less than this share of work to the whole. It saves compiling a program.
_NEGLIGIBLE = 0.005


@dataclasses.dataclass(frozen=True)
class Batch:
    """Which texts go into a batch, and the shape they are padded to.

    - `indices`: the texts, by their place in the corpus.
    - `rows`: the number of rows, at least that of the texts.
    - `seq`: the number of tokens in each row.
    """

    indices: tuple[int, ...]
    rows: int
    seq: int


def buckets(max_length: int) -> list[int]:
    """The lengths that texts are padded to: 8, 12, 16, 20, 24, 32, and then two in every octave
    (48, 64, 96, 128, ...), up to, and including, `max_length`.
    """
    longer = itertools.chain.from_iterable((3 * 2**k, 4 * 2**k) for k in range(4, 32))
    steps = itertools.chain((8, 12, 16, 20, 24, 32), longer)
    return [*itertools.takewhile(lambda length: length < max_length, steps), max_length]


def plan_batches(
    lengths: Sequence[int],
    *,
    max_length: int,
    tokens_per_batch: int | None = None,
    choices: int = 1,
) -> Iterator[Batch]:
    """Batches of texts of similar lengths, the shortest first.

    All batches of a bucket have the same shape, but for a last one of few texts, whose number of
    rows is a power of two.

    **Arguments:**

    - `lengths`: the number of tokens of each text.
    - `max_length`: the greatest length there may be.
    - `tokens_per_batch`: how many tokens a batch should have, padding included; if None, what suits
        the device and the length.
    - `choices`: how many sequences of its length each text is, such as a question with each of its
        answers.

    **Raises:** `ValueError` if a text is longer than `max_length`.
    """
    if max(lengths, default=0) > max_length:
        raise ValueError(f"A text has {max(lengths)} tokens, but max_length is {max_length}.")
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start, total = 0, sum(lengths)
    sizes = buckets(max_length)
    for seq, longer in zip(sizes, [*sizes[1:], max_length], strict=True):
        tokens = _usual_tokens(seq) if tokens_per_batch is None else tokens_per_batch
        rows = max(1, tokens // (choices * seq))
        end = start
        while end < len(order) and lengths[order[end]] <= seq:
            end += 1
        while end - start >= rows:
            yield Batch(tuple(order[start : start + rows]), rows, seq)
            start += rows
        left = end - start
        joins_longer = end < len(order) and left * (longer - seq) <= _NEGLIGIBLE * total
        if left and not joins_longer:
            if (rows - left) * seq > _NEGLIGIBLE * total:
                rows = min(rows, _power_of_two(left))
            yield Batch(tuple(order[start:end]), rows, seq)
            start = end


def _usual_tokens(seq: int) -> int:
    """How many tokens at once suit the device, in sequences of length `seq`."""
    on_cpu = platform() == "cpu"
    return tokens_in_cache(seq) if on_cpu else _TOKENS_PER_BATCH_ELSEWHERE


def run_batches(
    program: Any, calls: Iterable[tuple[Batch, tuple[Any, ...]]]
) -> Iterator[tuple[Batch, Any]]:
    """What a compiled function returns for each of some batches, in their order, each when later
    ones are under way.

    On a CPU, two are computed at a time: each fills the gaps in which the other keeps a core
    waiting.

    **Arguments:**

    - `program`: the function, as `eqx.filter_jit` returns it.
    - `calls`: batches with its arguments. The shapes of these are the same for all batches of a
        shape.
    """
    if platform() != "cpu":
        yield from _started_ahead((batch, program(*arguments)) for batch, arguments in calls)
        return
    compiled: dict[tuple[int, int], Any] = {}
    with ThreadPoolExecutor(_THREADS) as threads:

        def start(batch: Batch, arguments: tuple[Any, ...]) -> Callable[[], Any]:
            shape = batch.rows, batch.seq
            if shape not in compiled:
                compiled[shape] = None
                result = program(*arguments)
                return lambda: result
            # A thread does not see the settings of this one, such as
            # `jax.default_matmul_precision`, so it is given what has been compiled here.
            if compiled[shape] is None:
                compiled[shape] = program.lower(*arguments).compile()
            return threads.submit(_run, compiled[shape], arguments).result

        started = ((batch, start(batch, arguments)) for batch, arguments in calls)
        for batch, result in _started_ahead(started):
            yield batch, result()


def _run(program: Any, arguments: tuple[Any, ...]) -> Any:
    return jax.block_until_ready(program(*arguments))


def _started_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, each when two more have been asked for: results that the device computes
    while earlier ones are waited for.
    """
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
