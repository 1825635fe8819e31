"""Compiling as a workload of the engines that use JAX."""

from collections.abc import Callable
from typing import Any

import jax
from protocol import Prepared


def compiling(lower: Callable[[], Any], layers: int) -> Prepared:
    """What `lower` returns is compiled, each time anew, tracing included."""

    def run() -> None:
        jax.clear_caches()
        lower().compile()

    return Prepared(run, fingerprint=layers)
