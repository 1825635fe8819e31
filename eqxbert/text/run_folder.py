"""The folder that a training from files writes to, and what it says of the run."""

import hashlib
import importlib.util
import json
import math
import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..config import CONFIG_FILE

SETTINGS, METRICS, CHECKPOINTS = "training.json", "metrics.json", "checkpoints"


def open_run(folder: str | PathLike[str], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Checks that a folder holds nothing that matters, or a run with these settings.

    **Returns:** the metrics of that run if it has ended.

    **Raises:** `ValueError` that says what else is there.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the model needs a folder.")
    path = folder / SETTINGS
    if not path.is_file():
        if there := [name for name in (CONFIG_FILE, CHECKPOINTS) if (folder / name).exists()]:
            raise ValueError(
                f"{folder} holds something else: it has {' and '.join(there)}, but no {SETTINGS}."
            )
        return None
    found = _read_json(path)
    differences = [
        f"{name} is {found.get(name)!r} there and {value!r} here"
        for name, value in settings.items()
        if found.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{folder} holds another run: {'; '.join(differences)}. Give another folder, or remove "
            "this one."
        )
    return _read_json(folder / METRICS) if (folder / METRICS).is_file() else None


def begin_run(folder: str | PathLike[str], settings: Mapping[str, Any]) -> Path:
    """Makes the folder, and writes the settings into it. To be called once all of the input has
    been looked at.

    **Returns:** the folder for its checkpoints.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)
    return folder / CHECKPOINTS


def fingerprint(path: str | PathLike[str]) -> str:
    """What a file is called, and what is in it."""
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return f"{Path(path).name}, sha256 {digest}"


def write_json(path: Path, values: Any) -> None:
    """Writes `values`, with null for what is not a finite number, which JSON does not know."""
    text = json.dumps(_finite(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")


def shows_progress(progress: bool | None) -> bool:
    """Whether to show a progress bar; if None, in a terminal."""
    if progress is not None:
        return progress
    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(values).__name__}.")
    return values


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
