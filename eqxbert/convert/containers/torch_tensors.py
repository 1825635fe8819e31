"""What a pickle of PyTorch says of its tensors, and reading one from where it says that it lies.

A tensor is a view of a storage, with an offset, a shape and strides in elements. Storages are
persistent ids in the pickle; tensors are calls of PyTorch's functions, which are matched here.
"""

import dataclasses
import functools
import math
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
import numpy as np

from .pickle_interpreter import UNUSED, Global
from .tensor import LazyTensor
from .zip_directory import Entry

_AXES_LIMIT = 32

_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.ComplexFloatStorage": "complex64",
    "torch.storage.UntypedStorage": "uint8",
}
# Newer dtypes have untyped storages.
_NEWER = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")
_NEWER += ("float8_e5m2fnuz", "float8_e8m0fnu")
_DTYPES = {f"torch.{name}": name for name in (*_STORAGES.values(), *_NEWER)}


@dataclass(frozen=True, slots=True)
class Storage:
    """The memory of tensors, or the part of it from `start` on. Sizes are in elements."""

    dtype: str
    key: str
    whole_size: int
    start: int
    size: int

    def bytes_of(self, size: int) -> int:
        return size * jnp.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage, as the pickle has it: it may be one that is not possible."""

    storage: Storage
    dtype: str
    offset: Any
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


def storage_of(persistent_id: object) -> Storage:
    """The storage that a persistent id stands for.

    **Raises:** `ValueError` if it is something else.
    """
    match persistent_id:
        case ("storage", Global(kind), str(key), _, int(size)):
            start, length = 0, size
        case ("storage", Global(kind), str(key), _, int(size), None):  # before PyTorch 1.6
            start, length = 0, size
        case ("storage", Global(kind), str(key), _, int(size), (_, int(start), int(length))):
            pass  # before PyTorch 0.4
        case _:
            raise ValueError("its pickle has a persistent id that is not a storage's")
    if kind not in _STORAGES or not 0 <= start <= start + length <= size:
        raise ValueError(
            f"its storage {key[:100]!r} is of {kind}, elements {start} to "
            f"{start + length} of {size}, which is not possible"
        )
    return Storage(_STORAGES[kind], key, size, start, length)


# What the pickle may call.


def _tensor(arguments: tuple) -> Tensor:
    match arguments[:4]:
        case (Storage() as storage, offset, tuple(shape), tuple(strides)):
            return Tensor(storage, storage.dtype, offset, shape, strides)
    raise ValueError("its pickle makes a tensor of something other than a storage and numbers")


def _tensor_v2(arguments: tuple) -> Tensor:
    if any(arguments[6:]):
        raise ValueError("it has a tensor that is to be conjugated or negated when it is loaded")
    return _tensor(arguments)


def _tensor_v3(arguments: tuple) -> Tensor:
    match arguments[6:7]:
        case (Global(name),) if name in _DTYPES:
            tensor = _tensor_v2((*arguments[:6], *arguments[7:]))
            return dataclasses.replace(tensor, dtype=_DTYPES[name])
    raise ValueError("its pickle makes a tensor without a dtype")


def _tensor_with_attributes(arguments: tuple) -> Tensor:
    match arguments:
        case (Global("torch._utils._rebuild_tensor_v2"), Global(), tuple(inner), _):
            return _tensor_v2(inner)
        case (Global("torch._utils._rebuild_tensor_v3"), Global(), tuple(inner), _):
            return _tensor_v3(inner)
    raise ValueError("its pickle makes a tensor with attributes in an unknown way")


def _parameter(arguments: tuple) -> Tensor:
    match arguments[:1]:
        case (Tensor() as tensor,):
            return tensor
    raise ValueError("its pickle makes a parameter of something other than a tensor")


def _size(arguments: tuple) -> tuple:
    match arguments:
        case (tuple(size),):
            return size
    raise ValueError("its pickle makes a torch.Size of something other than a tuple")


CALLS: Final[Mapping[str, Callable[[tuple], Any] | None]] = {
    **dict.fromkeys((*_STORAGES, *_DTYPES)),
    "torch.Size": _size,
    "torch.Tensor": None,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,  # before PyTorch 0.4
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch.device": lambda arguments: UNUSED,
    "torch.nn.parameter.Parameter": _parameter,
}
"""The names that a pickle of tensors uses, and what each does if it is called."""


# Reading.


class _Extent(NamedTuple):
    """The bytes from a tensor's first element to its last, and how it lies in them."""

    start: int
    size: int
    strides: tuple[int, ...]  # in bytes
    crc: int
    byteorder: str


def lazy_tensor(
    path: Path, tensor: Tensor, storages: Mapping[str, Entry], byteorder: str
) -> LazyTensor:
    """A tensor that stays in the file until it is read.

    **Arguments:**

    - `path`: the file.
    - `tensor`: what its pickle says.
    - `storages`: where the storages are, by key.
    - `byteorder`: of their elements, "little" or "big".

    **Raises:** `ValueError` if the tensor is not one that lies within its storage and the file,
    with each element in a place of its own.
    """
    storage, entry = tensor.storage, storages.get(tensor.storage.key)
    if entry is None:
        raise ValueError(f"storage {storage.key[:100]!r} is missing")
    if entry.size != storage.bytes_of(storage.whole_size):
        raise ValueError(
            f"storage {storage.key[:100]!r} has {entry.size:,} bytes instead of "
            f"{storage.bytes_of(storage.whole_size):,}"
        )
    dtype, reach = jnp.dtype(tensor.dtype), _reach(tensor)
    offset = tensor.offset * dtype.itemsize if reach else 0
    size = reach * dtype.itemsize
    if offset + size > storage.bytes_of(storage.size):
        raise ValueError(
            f"it extends over bytes {offset:,} to {offset + size:,} of a storage of "
            f"{storage.bytes_of(storage.size):,}"
        )
    extent = _Extent(
        entry.start + storage.bytes_of(storage.start) + offset,
        size,
        # Those of axes of one element mean nothing, and may be anything.
        tuple(
            stride * dtype.itemsize if length > 1 and size else 0
            for stride, length in zip(tensor.strides, tensor.shape, strict=True)
        ),
        entry.crc if size == entry.size else 0,
        byteorder,
    )
    return LazyTensor(
        tensor.shape, tensor.dtype, functools.partial(_read, path, extent, tensor.shape, dtype)
    )


def _reach(tensor: Tensor) -> int:
    """The number of elements from the first to the last, those between them included that are not
    the tensor's.
    """
    shape, strides = tensor.shape, tensor.strides
    if len(shape) != len(strides) or len(shape) > _AXES_LIMIT:
        raise ValueError(f"it has {len(shape)} axes and {len(strides)} strides")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in (tensor.offset, *shape, *strides)):
        raise ValueError("its offset, shape and strides are not natural numbers of 63 bits")
    if math.prod(max(length, 1) for length in shape) >= 2**59:
        raise ValueError(f"its shape is {shape}")
    if 0 in shape:
        return 0
    reach = 1
    for stride, length in sorted(zip(strides, shape, strict=True)):
        if length > 1 and stride < reach:
            raise ValueError(f"its strides {strides} let elements of its shape {shape} overlap")
        reach += stride * (length - 1)
    return reach


def _read(path: Path, extent: _Extent, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    data = np.fromfile(path, np.uint8, extent.size, offset=extent.start)
    if data.size != extent.size:
        raise ValueError(f"{path} has become shorter since it was opened; load it again.")
    if extent.crc and zlib.crc32(data.data) != extent.crc:
        raise ValueError(
            f"{path} is damaged: the bytes {extent.start:,} to {extent.start + extent.size:,} do "
            "not have the checksum that was written with them. Fetch it again."
        )
    if extent.byteorder != sys.byteorder:
        parts = 2 if dtype.kind == "c" else 1
        data.view(f"u{dtype.itemsize // parts}").byteswap(inplace=True)
    array = np.ndarray(shape, dtype, data, strides=extent.strides)
    return array if array.nbytes == data.nbytes else array.copy()
