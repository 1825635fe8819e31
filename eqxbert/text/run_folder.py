"""The folder that a training from files writes to, and what it says of the run."""

import hashlib
import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..config import CONFIG_FILE
from ..convert import staged_file
from ..files import parse_json

SETTINGS, METRICS, CHECKPOINTS = "training.json", "metrics.json", "checkpoints"

# What a model or its training may consist of, which would be replaced or mixed with another's.
_MODEL_FILES = (
    CONFIG_FILE,
    "modules.json",
    "tokenizer.json",
    "vocab.txt",
    "*.safetensors",
    "*.bin",
    METRICS,
    CHECKPOINTS,
)


def run_path(folder: str | PathLike[str]) -> Path:
    """The folder by its whole name.

    **Raises:** `ValueError` if the name is empty, which would mean the current folder.
    """
    if not fspath(folder):
        raise ValueError("The name of the folder to write is empty.")
    return Path(folder).expanduser().absolute()


def open_run(folder: str | PathLike[str], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Checks that a folder holds nothing that matters, or a run with these settings.

    **Returns:** the metrics of that run if it has ended.

    **Raises:** `ValueError` that says what else is there.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the model needs a folder.")
    path = folder / SETTINGS
    there = _model_files(folder)
    if not path.is_file():
        if there:
            raise ValueError(
                f"{folder} holds something else: it has {' and '.join(there)}, but no {SETTINGS}."
            )
        return None
    found = parse_json(path.read_bytes(), path)
    differences = [
        f"{name} is {found.get(name)!r} there and {value!r} here"
        for name, value in settings.items()
        if found.get(name) != value
    ]
    if there and differences:
        raise ValueError(
            f"{folder} holds another run: {'; '.join(differences)}. Give another folder, or remove "
            "this one."
        )
    # The configuration is written last: without it, a run was stopped while it wrote the model.
    if not {METRICS, CONFIG_FILE} <= {*there}:
        return None
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # if it was stopped just before that
    return read_metrics(folder)


def begin_run(folder: str | PathLike[str], settings: Mapping[str, Any]) -> Path:
    """Makes the folder, and writes the settings into it. To be called once all of the input has
    been looked at.

    **Returns:** the folder for its checkpoints.
    """
    folder = Path(folder)
    text = _json_text(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with staged_file(folder / SETTINGS) as file:
        file.write(text.encode("utf-8"))
    return folder / CHECKPOINTS


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has come so far that it has one to go on from."""
    return (folder / CHECKPOINTS).is_dir() and any((folder / CHECKPOINTS).iterdir())


def read_metrics(folder: str | PathLike[str]) -> dict[str, Any]:
    """The metrics in the folder of a run that has ended, with NaN for null."""
    path = Path(folder) / METRICS
    return _with_nan(parse_json(path.read_bytes(), path))


def check_finite(model: Any, metrics: Mapping[str, Any], folder: Path) -> None:
    """Checks that a model that was trained is worth being written.

    **Raises:** `FloatingPointError` if its loss, or a number in it, is not finite.
    """
    advice = (
        "The model is not written. Look for NaN in the model that it was made of, or lower the "
        f"learning rate; and give another folder, or remove {folder}."
    )
    loss = metrics.get("loss", 0.0)
    if not math.isfinite(loss):
        raise FloatingPointError(f"The loss of the model is {loss} in the end. {advice}")
    for path, array in jax.tree_util.tree_leaves_with_path(model):
        if eqx.is_inexact_array(array) and not bool(jnp.all(jnp.isfinite(array))):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise FloatingPointError(f"{name} has NaN or infinity in the end. {advice}")


def fingerprint(path: str | PathLike[str]) -> str:
    """What a file is called, and what is in it.

    **Raises:** `ValueError` if it is a folder; `FileNotFoundError`.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; the name of a file is needed.")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return f"{Path(path).name}, sha256 {digest}"


def write_json(path: Path, values: Any) -> None:
    """Writes `values`, with null for what is not a finite number, which JSON does not know."""
    path.write_text(_json_text(values), encoding="utf-8")


def shows_progress(progress: bool | None) -> bool:
    """Whether to show a progress bar; if None, in a terminal."""
    if progress is not None:
        return progress
    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None


def _model_files(folder: Path) -> list[str]:
    """What there is in a folder of a model or its training; empty folders are nothing."""
    found = [path for pattern in _MODEL_FILES for path in folder.glob(pattern)]
    return [path.name for path in found if path.is_file() or any(path.iterdir())]


def _json_text(values: Any) -> str:
    return json.dumps(_finite(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _with_nan(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _with_nan(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_with_nan(value) for value in values]
    return math.nan if values is None else values
