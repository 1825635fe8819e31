"""An array that stays in its file until it is asked for."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class LazyTensor(NamedTuple):
    """What is known of an array before it is read, and how to read it."""

    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of the dtype, or "bfloat16"."""
    read: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: Any) -> "LazyTensor":
        """Stands for an array that is already in memory: NumPy's, JAX's, or PyTorch's on CPU."""
        if isinstance(array, cls):
            return array
        dtype = str(array.dtype).removeprefix("torch.")
        return cls(tuple(array.shape), dtype, lambda: _as_numpy(array))

    def transposed(self) -> "LazyTensor":
        """The same array with its axes in reverse order."""
        return LazyTensor(self.shape[::-1], self.dtype, lambda: self.read().T)


def _as_numpy(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):  # PyTorch's
        array = array.detach()
    if str(array.dtype) == "torch.bfloat16":  # which NumPy cannot take over
        array = array.float()
    return np.asarray(array)
