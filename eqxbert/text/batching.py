"""Texts of any lengths as batches of a few shapes.

XLA compiles a program for each shape of its inputs. Lengths are therefore rounded up to a short
list of *buckets*, and a corpus of any lengths compiles a bounded number of programs.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

# Rows that do not fill a batch join the next longer bucket if that adds less than this share of
# work to the whole: one program less to compile, for next to nothing.
_NEGLIGIBLE = 0.02


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
    """The lengths that texts are padded to: 8, 12, 16, ..., 32, then four in every octave (40, 48,
    56, 64, 80, 96, ...), up to, and including, `max_length`.
    """
    octaves = (range(5 * 2**k, 9 * 2**k, 2**k) for k in range(3, 32))
    steps = itertools.chain(range(8, 33, 4), itertools.chain.from_iterable(octaves))
    return [*itertools.takewhile(lambda length: length < max_length, steps), max_length]


def plan_batches(
    lengths: Sequence[int], *, max_length: int, tokens_per_batch: int
) -> Iterator[Batch]:
    """Batches of texts of similar lengths, the shortest first.

    All batches of a bucket have the same shape but the last, whose number of rows is a power of
    two.

    **Arguments:**

    - `lengths`: the number of tokens of each text.
    - `max_length`: the greatest length there may be.
    - `tokens_per_batch`: how many tokens a batch should have, padding included.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start, total = 0, sum(lengths)
    sizes = buckets(max_length)
    for seq, longer in zip(sizes, [*sizes[1:], max_length], strict=True):
        rows = max(1, tokens_per_batch // seq)
        end = start
        while end < len(order) and lengths[order[end]] <= seq:
            end += 1
        while end - start >= rows:
            yield Batch(tuple(order[start : start + rows]), rows, seq)
            start += rows
        left = end - start
        joins_longer = end < len(order) and left * (longer - seq) <= _NEGLIGIBLE * total
        if left and not joins_longer:
            yield Batch(tuple(order[start:end]), min(rows, _power_of_two(left)), seq)
            start = end


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
