"""What several test files need: tiny configurations, models of other libraries, subprocesses."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import eqxbert

# Odd sizes, so that no two axes can be confused.
TINY: dict[str, Any] = {
    "vocab_size": 33,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 17,
    "type_vocab_size": 2,
    "initializer_range": 0.5,
}


def tiny_config(**changes: Any) -> eqxbert.BertConfig:
    return eqxbert.BertConfig(**TINY | changes)


def max_difference(a: Any, b: Any) -> float:
    """The largest difference, where NaN counts as infinite and the shapes must agree."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, f"{a.shape} != {b.shape}"
    difference = np.abs(a - b).max(initial=0)
    return float("inf") if np.isnan(difference) else float(difference)


def run_python(code: str, *, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter of its own, without run-time shape checking, as users run it."""
    clean = {k: v for k, v in os.environ.items() if k not in ("EQXBERT_TYPECHECK", "XLA_FLAGS")}
    root = str(Path(eqxbert.__file__).parents[1])
    clean["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [clean.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=clean | (env or {}),
        timeout=300,
        check=False,
    )
