"""The safetensors format (https://github.com/huggingface/safetensors)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .tensor import LazyTensor

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a file by name. None is read yet, but the header has been checked: that its
    tensors lie within the file, do not overlap and leave nothing out.

    **Raises:** `ValueError` if the file is not a whole and valid one.
    """
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            return {
                name: LazyTensor(
                    tuple(part.get_shape()),
                    _DTYPES.get(str(part.get_dtype()), str(part.get_dtype())),
                    lambda name=name: _read(path, name),
                )
                for name, part in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is not a valid safetensors file: {error}. It "
            "may be truncated, or a download that was cut off; fetch it again."
        ) from error


def _read(path: Path, name: str) -> np.ndarray:
    # The file is mapped anew for each tensor: the pages of a mapping count as this process's memory
    # until it is closed, and all of them together would be a second copy of the weights.
    with safe_open(path, "numpy") as file:
        return file.get_tensor(name)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the tensors, marked as PyTorch's (`format: pt`), as transformers expects."""
    # (np.ascontiguousarray would give an array of no axes one.)
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
