"""Which examples each batch holds, however training is stopped, resumed and split; and batches made
ahead by a thread.
"""

import ast
import contextlib
import gc
import itertools
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from helpers import run_python
from scipy import stats

from eqxbert.training.batches import _permutation, batch_indices, prefetch, random_bits

UNLIKELY = 1e-4
# For the arguments in `test_the_same_in_another_process_and_on_another_day`.
GOLDEN = [[7, 6, 8, 4, 1], [5, 2, 3, 0, 8], [1, 3, 7, 5, 1]]
SIZES = [(1, 1), (1, 3), (5, 1), (5, 2), (7, 3), (12, 4), (13, 4), (3, 8), (100, 7)]


def batches(size: int, batch_size: int, steps: range, **options: Any) -> list[np.ndarray]:
    return [batch_indices(size, batch_size, step=step, **{"seed": 0} | options) for step in steps]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("size", "batch_size"), SIZES)
def test_each_example_once_in_each_epoch(size, batch_size, shuffle):
    """Full batches, one after the other, are epochs one after the other."""
    rows = batches(size, batch_size, range(4 * size), shuffle=shuffle)
    assert all(len(batch) == batch_size and batch.dtype == np.int64 for batch in rows)
    epochs = np.concatenate(rows).reshape(-1, size)
    assert len(epochs) == 4 * batch_size
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    if not shuffle:
        assert (epochs == np.arange(size)).all()


@pytest.mark.parametrize(("size", "batch_size"), SIZES)
def test_epochs_may_end_with_a_smaller_batch(size, batch_size):
    count = -(-size // batch_size)
    for epoch in range(3):
        steps = range(epoch * count, (epoch + 1) * count)
        rows = batches(size, batch_size, steps, remainder="keep")
        assert all(len(batch) == batch_size for batch in rows[:-1])
        assert sorted(np.concatenate(rows)) == list(range(size))


@pytest.mark.parametrize(("size", "batch_size"), [s for s in SIZES if s[0] >= s[1]])
def test_the_remainder_may_be_dropped(size, batch_size):
    count = size // batch_size
    left_out = set()
    for epoch in range(20):
        rows = batches(
            size, batch_size, range(epoch * count, (epoch + 1) * count), remainder="drop"
        )
        seen = np.concatenate(rows)
        assert len(set(seen.tolist())) == len(seen) == count * batch_size
        left_out |= set(range(size)) - set(seen.tolist())
    assert (len(left_out) > size % batch_size) == (size % batch_size > 0)


@pytest.mark.parametrize("remainder", ["carry", "drop", "keep"])
def test_epochs_are_the_same_permutations_whatever_becomes_of_the_remainder(remainder):
    rows = batches(12, 4, range(9), remainder=remainder)
    assert np.array_equal(np.concatenate(rows), np.concatenate(batches(12, 3, range(12))))


@pytest.mark.parametrize("remainder", ["carry", "drop", "keep"])
@pytest.mark.parametrize("hosts", [1, 2, 3, 6])
def test_the_parts_of_all_hosts_are_the_batch(hosts, remainder):
    for size, step in itertools.product([12, 25, 31], range(12)):
        whole = batch_indices(size, 12, seed=1, step=step, remainder=remainder)
        parts = [
            batch_indices(size, 12, seed=1, step=step, host=host, hosts=hosts, remainder=remainder)
            for host in range(hosts)
        ]
        assert np.array_equal(np.concatenate(parts), whole)
        if remainder != "keep":
            assert {len(part) for part in parts} == {12 // hosts}


def test_a_batch_does_not_depend_on_those_before():
    steps = range(60)
    in_order = batches(50, 7, steps)
    for step in np.random.default_rng(0).permutation(60).tolist():
        assert np.array_equal(batches(50, 7, range(step, step + 1))[0], in_order[step])
    resumed = batches(50, 7, range(33, 60))
    assert np.array_equal(np.concatenate(resumed), np.concatenate(in_order[33:]))


def test_a_batch_is_the_callers_to_change():
    batch = batch_indices(10, 5, seed=0, step=0)
    expected = batch.copy()
    batch[:] = 0
    assert np.array_equal(batch_indices(10, 5, seed=0, step=0), expected)


def test_the_same_in_another_process_and_on_another_day():
    """Were the numbers below to change, trainings could not be taken up where they stopped."""
    code = """
from eqxbert.training.batches import batch_indices
print([batch_indices(9, 5, seed=2**63, step=step).tolist() for step in (0, 1, 10**15)])
"""
    result = run_python(code, env={"PYTHONHASHSEED": "1"})
    assert ast.literal_eval(result.stdout) == GOLDEN, result.stderr


def test_all_permutations_are_equally_likely():
    for options in ({"seed": 0}, {}):
        counts: Counter[tuple[int, ...]] = Counter()
        for i in range(12000):
            step, seed = (i, 0) if options else (0, i)
            counts[tuple(batch_indices(4, 4, seed=seed, step=step).tolist())] += 1
        assert len(counts) == 24
        assert stats.chisquare(list(counts.values())).pvalue > UNLIKELY


def test_epochs_and_seeds_are_independent():
    orders = [batch_indices(2000, 2000, seed=s, step=e) for s in (0, 1, 2) for e in (0, 1, 2)]
    for a, b in itertools.combinations(orders, 2):
        assert abs(stats.spearmanr(a, b).statistic) < 4 / np.sqrt(2000)
        assert np.sum(a == b) < 10


def test_a_large_data_set_is_permuted_once_an_epoch():
    permuted = _permutation.cache_info().misses
    for step in range(1000):
        batch_indices(10**6, 64, seed=2**40, step=step)
    assert _permutation.cache_info().misses == permuted + 1


def test_random_numbers_of_their_own_for_each_purpose_step_and_row():
    """No two streams have a number in common."""
    streams = [
        random_bits(*arguments).random_raw(2000)
        for arguments in itertools.product(range(3), (0, 1), (0, 1, 2), (0, 1, 2))
    ]
    assert len(set(np.concatenate(streams).tolist())) == 54 * 2000


def at(size: int = 10, batch_size: int = 4, **options: Any) -> np.ndarray:
    return batch_indices(size, batch_size, **{"seed": 0, "step": 0} | options)


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "empty": (lambda: at(0), "The data set has 0 examples; there must be at least one"),
    "batch size": (lambda: at(batch_size=0), "batch_size must be an integer from 1 .* got 0"),
    "float": (lambda: at(batch_size=4.0), "batch_size must be an integer .* got 4.0"),  # type: ignore[arg-type]
    "step": (lambda: at(step=-1), "step must be an integer from 0 .* got -1"),
    "seed": (lambda: at(seed=2**64), r"seed must be an integer from 0 to 2\*\*64 - 1, got 184"),
    "host": (lambda: at(host=2, hosts=2), r"host is 2, expected 0 to 1 \(hosts is 2\)"),
    "negative host": (lambda: at(host=-1, hosts=2), "host is -1"),
    "hosts": (lambda: at(hosts=0), "hosts must be an integer from 1"),
    "uneven": (lambda: at(hosts=3), "A batch of 4 cannot be split evenly over 3 hosts; choose a"),
    "too few": (lambda: at(3, remainder="drop"), "3 examples do not fill a batch of 4"),
    "remainder": (lambda: at(remainder="no"), "remainder must be \"carry\", .*, got 'no'"),
    "prefetch": (lambda: prefetch([], 0), "size must be an integer from 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


# Batches ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert not threads()
    yield
    wait_until(lambda: not threads())


@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_the_same_batches_in_order(count, size):
    made = [{"x": np.full(3, i)} for i in range(count)]
    ahead = prefetch(iter(made), size)
    assert all(a is b for a, b in itertools.zip_longest(ahead, made))
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(ahead)
    assert list(prefetch(made, size)) == made


def test_batches_are_made_ahead_and_not_too_many():
    started = []
    with contextlib.closing(prefetch((started.append(i) or i for i in range(100)), 3)) as ahead:
        for taken in range(20):
            # Three are ready, and one waits for room.
            wait_until(lambda taken=taken: len(started) == taken + 4)
            time.sleep(0.002)
            assert len(started) == taken + 4
            assert next(ahead) == taken


def failing_source(count: int) -> Iterator[int]:
    yield from range(count)
    raise KeyError("this file is damaged")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_errors_come_where_the_batch_would_have(count):
    ahead = prefetch(failing_source(count), 2)
    assert [next(ahead) for _ in range(count)] == list(range(count))
    with pytest.raises(KeyError, match="this file is damaged") as caught:
        next(ahead)
    # It says where it happened.
    assert "failing_source" in "".join(traceback.format_exception(caught.value))
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(ahead)


def test_an_error_does_not_overtake_batches():
    ahead = prefetch(failing_source(3), 5)
    wait_until(lambda: not threads())
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(ahead)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_ends_the_thread_and_the_source(taken):
    is_closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            is_closed.set()

    ahead = prefetch(source(), 2)
    assert list(itertools.islice(ahead, taken)) == list(range(taken))
    ahead.close()
    assert not threads()
    wait_until(is_closed.is_set)
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


def test_closing_after_the_end():
    ahead = prefetch(range(3))
    assert list(ahead) == [0, 1, 2]
    ahead.close()


@pytest.mark.filterwarnings("error")
def test_an_iterator_that_is_dropped_ends_the_thread():
    for batch in prefetch(itertools.count()):
        if batch == 3:
            break
    gc.collect()
    wait_until(lambda: not threads())


def test_closing_does_not_wait_long_for_a_batch_under_way():
    release = threading.Event()
    ahead = prefetch(iter(lambda: release.wait(60), None))
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 10
    assert threads()
    release.set()


def test_an_error_after_closing_is_not_raised():
    release = threading.Event()

    def source() -> Iterator[int]:
        release.wait(60)
        raise KeyError("too late")
        yield

    ahead = prefetch(source())
    ahead.close()
    release.set()
    wait_until(lambda: not threads())
    with pytest.raises(StopIteration):
        next(ahead)


def test_closing_wakes_who_waits_for_a_batch():
    release = threading.Event()
    ahead = prefetch(iter(lambda: release.wait(60), None))
    results: list[object] = []
    consumer = threading.Thread(target=lambda: results.append(list(ahead)))
    consumer.start()
    time.sleep(0.05)
    release_later = threading.Timer(0.5, release.set)
    release_later.start()
    ahead.close()
    consumer.join(20)
    assert not consumer.is_alive()
    release_later.join()


def test_several_consumers_share_the_batches():
    ahead = prefetch(range(2000), 3)
    results: list[list[int]] = [[], [], []]
    consumers = [threading.Thread(target=lambda r=r: r.extend(ahead)) for r in results]
    for consumer in consumers:
        consumer.start()
    for consumer in consumers:
        consumer.join(30)
    assert sorted(itertools.chain(*results)) == list(range(2000))


def test_batches_are_moved_to_a_device_in_the_thread():
    device = jax.devices()[0]
    made = [{"input_ids": np.full((2, 3), i, np.int32), "labels": np.arange(2)} for i in range(3)]
    for place in (device, jax.sharding.SingleDeviceSharding(device)):
        for batch, expected in zip(prefetch(made, device=place), made, strict=True):
            assert all(isinstance(array, jax.Array) for array in batch.values())
            assert batch["input_ids"].devices() == {device}
            assert np.array_equal(batch["input_ids"], expected["input_ids"])
    with pytest.raises(TypeError):
        next(prefetch([{"x": "no array"}], device=device))


ENDLESS = "(np.ones((300, 300)) @ np.ones((300, 300)) for _ in count())"
HANGING = "(time.sleep(3600) for _ in [0])"


@pytest.mark.parametrize(
    ("source", "what"),
    [(ENDLESS, "next(ahead)"), (ENDLESS, "raise SystemExit(0)"), (HANGING, "pass")],
)
def test_the_end_of_the_program_is_not_held_up(source, what):
    start = time.monotonic()
    result = run_python(f"""
import time
from itertools import count
import jax, numpy as np
from eqxbert.training.batches import prefetch
ahead = prefetch({source}, 3, device=jax.devices()[0])
time.sleep(0.2)
{what}
""")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert time.monotonic() - start < 60
