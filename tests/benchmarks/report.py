"""What a run leaves behind: the table on the terminal and the record in JSON."""

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from cells import Cell
from measurement import Result
from roster import ROOT

# The instruction sets that matrix products depend on.
CPU_FEATURES = ("amx", "avx", "fma", "f16c", "asimd", "sve", "bf16")

ROW = "{:36} {:22} {:>7} {:>8} {:>10} {:>10} {:>10} {:>11} {:>6}"
HEADER = ROW.format(
    "cell", "peer", "load s", "first s", "median ms", "min ms", "max ms", "sequences/s", "ratio"
)


def rows(cell: Cell, results: dict[str, Result]) -> str:
    """One line a peer, the fastest first."""
    fastest_first = sorted(results.items(), key=lambda item: item[1]["median"])
    return "\n".join(
        ROW.format(
            cell.name,
            name,
            f"{result['load_seconds']:.1f}",
            f"{result['first_call_seconds']:.2f}",
            *(f"{result[which] * 1000:.2f}" for which in ("median", "min", "max")),
            f"{cell.sequences / result['median']:.1f}",
            "-" if result["ratio"] is None else f"{result['ratio']:.2f}",
        )
        for name, result in fastest_first
    )


class Record:
    """All that a run found out, and what it had to leave out."""

    def __init__(self, options: argparse.Namespace):
        self.path: Path | None = options.json
        self.settings = {
            name: getattr(options, name) for name in ("device", "threads", "rounds", "texts")
        }
        self.machine = machine(options.device)
        self.versions: dict[str, dict[str, str]] = {}
        self.cells: dict[str, dict[str, Result]] = {}
        self.left_out: dict[tuple[str, str], str] = {}

    def leave_out(self, what: str, where: str, why: object) -> None:
        """Notes a gap: in one cell, in all that have a part such as "encode", or "everywhere"."""
        self.left_out[what, where] = str(why)

    def print_left_out(self) -> None:
        for (what, where), why in self.left_out.items():
            print(f"left out: {what} ({where}): {why.splitlines()[0]}")

    def write(self) -> None:
        if self.path is not None:
            record = {
                "settings": self.settings,
                "machine": self.machine,
                "versions": self.versions,
                "cells": self.cells,
                "left_out": [
                    {"what": what, "where": where, "why": why}
                    for (what, where), why in self.left_out.items()
                ],
            }
            self.path.write_text(json.dumps(record, indent=2) + "\n")


def machine(device: str) -> dict[str, Any]:
    cpu = _cpu()
    features = cpu.get("flags", cpu.get("Features", "")).split()
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "cpus": os.cpu_count(),
        "features": sorted(name for name in features if any(part in name for part in CPU_FEATURES)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        if device == "gpu"
        else None,
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }


def _cpu() -> dict[str, str]:
    """The first CPU's entry in Linux's list; nothing on other systems."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    entry = path.read_text().split("\n\n")[0]
    fields = (line.partition(":") for line in entry.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
