"""How the runner and a peer talk: one JSON object a line, requests on stdin, replies on stdout.

A peer first says `{"versions": ...}`, then answers `{"do": "prepare", "workload": ...}` and any
number of `{"do": "measure"}`, until its stdin closes. To a request that fails it answers
`{"error": ...}`.
"""

import importlib.metadata
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# A measurement repeats the work until this much time has passed: the first call after another
# process held the caches and this one's threads slept is slower than those that follow.
MEASUREMENT_SECONDS = 0.1
# On a GPU, where a program hands over the next call before the last is done, as in training.
GPU_MEASUREMENT_SECONDS = 0.5
# Of the batches that steps are for.
CHECKED_ROWS = slice(2)

FINGERPRINT_SIZE = 8


@dataclass(frozen=True)
class Workload:
    """What a peer shall do, as both sides of the conversation see it."""

    kind: str  # "forward", "encode", "train", "compile_forward" or "compile_train"
    model: str  # a folder in Hugging Face's layout
    dtype: str  # "float32" or "bfloat16"
    device: str  # "cpu" or "gpu"
    threads: int
    shape: tuple[int, int] = (0, 0)  # (batch, tokens) of a forward pass or a step
    texts: list[str] = field(default_factory=list)  # to encode


@dataclass(frozen=True)
class Prepared:
    """A loaded model with its input.

    **Arguments:** `run` does the work once; its result is complete when `wait` has returned, which
    is given it. `to_numpy` makes a float32 array of a result, `(batch, seq, hidden)` or `(texts,
    hidden)`; it is not measured. `fingerprint`, if there is one, is compared with the peers'
    instead of the result: for steps with dropout, the loss of `CHECKED_ROWS` without it; for
    compiling, the number of layers.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], Any] = lambda result: None
    to_numpy: Callable[[Any], Any] | None = None
    fingerprint: float | None = None


Prepare = Callable[[Workload], Prepared]


def serve(packages: tuple[str, ...], **prepare: Prepare) -> None:
    """Answers the runner until it hangs up.

    **Arguments:** `packages` are those whose versions to report; `prepare` has a function for each
    kind of workload that the peer knows.
    """
    reply = _claim_stdout()
    reply(versions={package: importlib.metadata.version(package) for package in packages})
    prepared = workload = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "measure":
                reply(seconds=_seconds_per_call(prepared, workload.device))
            else:
                prepared = None  # free the previous model before loading the next
                workload = Workload(**request["workload"])
                prepared, report = _load(prepare[workload.kind], workload)
                reply(**report)
        except Exception as error:
            traceback.print_exc()
            reply(error=f"{type(error).__name__}: {error}")


def _claim_stdout() -> Callable[..., None]:
    """Keeps stdout for replies: whatever a library prints, from C++ too, goes to stderr."""
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(**message: Any) -> None:
        print(json.dumps(message), file=stdout, flush=True)

    return reply


def _load(prepare: Prepare, workload: Workload) -> tuple[Prepared, dict[str, Any]]:
    start = time.perf_counter()
    prepared = prepare(workload)
    loaded = time.perf_counter()
    result = prepared.run()  # the call that compiles, where an engine does
    prepared.wait(result)
    warm = time.perf_counter()
    return prepared, {
        "load_seconds": loaded - start,
        "first_call_seconds": warm - loaded,
        "fingerprint": _fingerprint(prepared, result),
    }


def _fingerprint(prepared: Prepared, result: Any) -> list[float]:
    """The start of the first and of the last vector: wrong work and a wrong order both show."""
    if prepared.to_numpy is None:
        assert prepared.fingerprint is not None
        return [prepared.fingerprint]
    values = prepared.to_numpy(result)
    ends = values.reshape(-1, values.shape[-1])[[0, -1], :FINGERPRINT_SIZE]
    return ends.ravel().tolist()


def _seconds_per_call(prepared: Prepared, device: str) -> float:
    if device == "gpu":
        start = time.perf_counter()
        prepared.wait(prepared.run())
        planned = math.ceil(GPU_MEASUREMENT_SECONDS / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in range(planned):
            result = prepared.run()
        prepared.wait(result)
        return (time.perf_counter() - start) / planned
    calls = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < MEASUREMENT_SECONDS:
        prepared.wait(prepared.run())
        calls += 1
    return elapsed / calls
