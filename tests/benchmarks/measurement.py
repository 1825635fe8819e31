"""One cell: the peers prepare, their results are compared, then they take turns at being timed."""

import dataclasses
import statistics
import time
from typing import Any

from cells import Cell
from engines import Engine
from environments import UnavailableError
from peers.protocol import Workload
from roster import BASELINE

# After a call an engine's threads spin for more work, OpenMP's for up to 0.2 s. On the same CPUs
# they would slow the next peer, so it starts once they sleep.
PAUSE_SECONDS = 0.3

# Largest difference from the peers' median result, as a share of that result's largest value.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}

Result = dict[str, Any]


def measure(
    cell: Cell, workload: Workload, engines: list[Engine], rounds: int
) -> tuple[dict[str, Result], dict[str, str]]:
    """Returns the results of the peers that did the work, and why others did not."""
    running = {engine.name: engine for engine in engines}
    left_out: dict[str, str] = {}

    def leave_out(name: str, why: str) -> None:
        del running[name]
        left_out[name] = why

    def ask_all(**request: Any) -> dict[str, Result]:
        replies = {}
        for name, engine in list(running.items()):
            time.sleep(PAUSE_SECONDS)
            try:
                replies[name] = engine.ask(**request)
            except UnavailableError as reason:
                leave_out(name, str(reason))
        return replies

    results = ask_all(do="prepare", workload=dataclasses.asdict(workload))
    differences = _differences({name: results[name].pop("fingerprint") for name in results})
    tolerance = TOLERANCE[cell.dtype]
    for name, difference in differences.items():
        results[name] |= {"difference": difference, "seconds": []}
        if not difference <= tolerance:  # so that NaN does not pass
            leave_out(name, f"result differs from the peers' by {difference:.2g} (> {tolerance:g})")

    for _ in range(rounds):
        for name, reply in ask_all(do="measure").items():
            results[name]["seconds"].append(reply["seconds"])
    return _with_statistics({name: results[name] for name in running}), left_out


def _differences(fingerprints: dict[str, list[float]]) -> dict[str, float]:
    """How far each peer's result is from the median of all: one wrong peer cannot move that far."""
    consensus = [statistics.median(values) for values in zip(*fingerprints.values(), strict=True)]
    scale = max(map(abs, consensus), default=1.0)
    return {
        name: max(abs(value - agreed) for value, agreed in zip(values, consensus, strict=True))
        / scale
        for name, values in fingerprints.items()
    }


def _with_statistics(results: dict[str, Result]) -> dict[str, Result]:
    """Adds each peer's median, extremes and the ratio of its median to the baseline's."""
    for result in results.values():
        seconds = result["seconds"]
        result |= {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    baseline = results.get(BASELINE)
    for result in results.values():
        result["ratio"] = result["median"] / baseline["median"] if baseline else None
    return results
