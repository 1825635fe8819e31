"""One cell: the peers prepare, they take turns at being timed, and their results are compared."""

import dataclasses
import statistics
import time
from typing import Any

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
    workload: Workload, engines: list[Engine], rounds: int
) -> tuple[dict[str, Result], dict[str, str]]:
    """Returns what the engines that did the work found out, and why others did not."""
    running = {engine.name: engine for engine in engines}
    left_out: dict[str, str] = {}

    def ask_all(**request: Any) -> dict[str, Result]:
        replies = {}
        for name, engine in list(running.items()):
            time.sleep(PAUSE_SECONDS)
            try:
                replies[name] = engine.ask(**request)
            except UnavailableError as reason:
                del running[name]
                left_out[name] = str(reason)
        return replies

    results = ask_all(do="prepare", workload=dataclasses.asdict(workload))
    for result in results.values():
        result["seconds"] = []
    for _ in range(rounds):
        for name, reply in ask_all(do="measure").items():
            results[name]["seconds"].append(reply["seconds"])
    return {name: results[name] for name in running}, left_out


def compare(
    results: dict[str, Result], tolerance: float
) -> tuple[dict[str, Result], dict[str, str]]:
    """The results of those that agree, with statistics; and how far the others are from these."""
    agreeing, left_out = {}, {}
    differences = _differences({name: result["fingerprint"] for name, result in results.items()})
    for name, difference in differences.items():
        result = {key: value for key, value in results[name].items() if key != "fingerprint"}
        if difference <= tolerance:
            agreeing[name] = result | {"difference": difference}
        else:  # NaN too
            text = f"result differs from the peers' by {difference:.2g} (> {tolerance:g})"
            left_out[name] = text
    return _with_statistics(agreeing), left_out


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
