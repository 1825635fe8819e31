"""A peer at work: its process, and what it is asked."""

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from environments import UnavailableError, last_line
from roster import Peer

GPU_VARIABLES = {
    # An error is better than figures from a CPU that nobody noticed.
    "JAX_PLATFORMS": "cuda,cpu",
    # Peers have the GPU to themselves.
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
}


class Engine:
    """A peer's process, alive until `close`."""

    def __init__(self, peer: Peer, python: Path, environ: dict[str, str], log: Path):
        self.name = peer.name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [str(python), *peer.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environ,
                encoding="utf-8",
            )
        assert process.stdin is not None  # both are pipes
        assert process.stdout is not None
        self._process, self._requests, self._replies = process, process.stdin, process.stdout
        self.versions: dict[str, str] = self._reply()["versions"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """**Raises:** `UnavailableError` if the peer fails at this or has ended."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: no reply will come
            print(json.dumps(request), file=self._requests, flush=True)
        return self._reply()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._process.wait()

    def _reply(self) -> dict[str, Any]:
        line = self._replies.readline()
        if not line:
            status = self._process.wait()
            reason = last_line(self._log.read_text(errors="replace"))
            raise UnavailableError(f"its process ended with status {status}: {reason}")
        reply = json.loads(line)
        if "error" in reply:
            raise UnavailableError(reply["error"])
        return reply


def environ(threads: int, device: str) -> dict[str, str]:
    """The environment variables that peers run under."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    common = inherited | {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    if device == "gpu":
        return common | GPU_VARIABLES
    libraries = ("OMP", "MKL", "OPENBLAS", "RAYON")
    limits = {f"{library}_NUM_THREADS": str(threads) for library in libraries}
    return common | limits | {"JAX_PLATFORMS": "cpu"}


def limit_cpus(threads: int) -> None:
    """Keeps this process and the peers it starts on as many CPUs as they have threads.

    XLA has no other setting for it: it starts as many threads as it may use CPUs.
    """
    if hasattr(os, "sched_setaffinity"):  # Linux only
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
