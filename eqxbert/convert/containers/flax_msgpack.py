"""Flax's checkpoints: dicts of dicts in MessagePack, in which arrays are objects of extension types
(https://github.com/msgpack/msgpack/blob/master/spec.md, `_MsgpackExtType` in flax.serialization).

The package msgpack is of no use here: it says nothing of an array before it has all of it in
memory, and the arrays are to stay in the file.
"""

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .tensor import LazyTensor

# What a file may have at most, so that none can take up much time or memory. (BERT-large has 400
# arrays, with Adam's moments 1,200.)
_ENTRIES = 50_000
_LEVELS = 32
_NAME_BYTES = 300
_AXES = 32

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's extension types

# An array too large for one object is a dict with this key, the shape, and the chunks.
_CHUNKED = "__msgpack_chunked_array__"

# (The names beyond NumPy's are known to it because jax has been imported.)
_DTYPES = {
    name: jnp.dtype(name)
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
        *("complex128", "complex64"),
    )
}


class _Array(NamedTuple):
    """An array in the file: its elements are in one stretch of bytes, or in one for each chunk."""

    shape: tuple[int, ...]
    dtype: str
    stretches: tuple[tuple[int, int], ...]
    """Where each begins and how many bytes it has."""


def read_flax(path: Path) -> dict[str, LazyTensor]:
    """The arrays of a file by name: the keys that lead to each, joined by "/" (those of lists are
    "0", "1", ...). None is read yet, but all of the file's structure has been checked. What is not
    an array, like a training state's number of steps, is left out.

    **Raises:** `ValueError` if the file is not a whole and valid one, or has what no model's has:
    dtypes other than numbers', names over 300 bytes, over 32 levels or over 50,000 entries.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            arrays = dict(_named(_Parser(file, size).parse(), ""))
        except ValueError as error:
            raise ValueError(
                f"{path} ({size:,} bytes) is not a valid Flax checkpoint: {error}. It may be "
                "truncated, or a download that was cut off; fetch it again."
            ) from error
    return {
        name: LazyTensor(array.shape, array.dtype, functools.partial(_read, path, array))
        for name, array in arrays.items()
    }


def _read(path: Path, array: _Array) -> np.ndarray:
    whole = np.empty(array.shape, _DTYPES[array.dtype])
    rest = whole.reshape(-1).view(np.uint8).data
    with path.open("rb") as file:
        for begin, size in array.stretches:
            file.seek(begin)
            if file.readinto(rest[:size]) < size:
                raise ValueError(f"{path} has become shorter since it was opened; load it again.")
            rest = rest[size:]
    return whole


# By the first byte of an object: what it is, and of how many bytes the number is that follows. (The
# objects whose first byte says all are not here, nor are those that are stepped over.)
_NUMBERED = {
    **{0xC4 + i: ("byte string", 1 << i) for i in range(3)},
    **{0xC7 + i: ("extension", 1 << i) for i in range(3)},
    **{0xCC + i: ("integer", 1 << i) for i in range(4)},
    **{0xD9 + i: ("string", 1 << i) for i in range(3)},
    **{0xDC + i: ("list", 2 << i) for i in range(2)},
    **{0xDE + i: ("dict", 2 << i) for i in range(2)},
}
# None, False, True, two kinds of floats and four of negative integers: how many bytes follow.
_SKIPPED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


class _Parser:
    """Goes through a file once, from object to object, and steps over all that is long."""

    def __init__(self, file: IO[bytes], size: int):
        self.file = file
        self.size = size
        self.position = 0
        self.entries = 0

    def parse(self) -> dict[str, Any]:
        """The file's outermost object, a dict or a list. In it, dicts and lists are dicts, arrays
        `_Array`, integers of zero or more themselves, and all else None.
        """
        tree = self._value("")
        if not isinstance(tree, dict) or _CHUNKED in tree:
            raise ValueError("its outermost object is neither a dict nor a list")
        if self.position < self.size:
            raise ValueError(f"{self.size - self.position:,} bytes follow its end")
        return tree

    def _value(self, name: str) -> Any:
        kind, number = self._header()
        if kind == "dict" or kind == "list":
            return self._entries(name, number, has_keys=kind == "dict")
        if kind == "extension":
            return self._extension(name, number)
        if kind == "integer":
            return number
        self._skip(number)  # the length of a string or of bytes
        return None

    def _entries(self, name: str, count: int, *, has_keys: bool) -> dict[str, Any]:
        self.entries += count
        if self.entries > _ENTRIES:
            raise ValueError(f"it announces {self.entries:,} entries, more than {_ENTRIES:,}")
        tree: dict[str, Any] = {}
        for index in range(count):
            key = self._text() if has_keys else str(index)
            if not key or "/" in key:
                raise ValueError(f"{key!r} is a key of {name!r}, which no name can have as a part")
            if key in tree:
                raise ValueError(f"{name!r} has the key {key!r} twice")
            tree[key] = self._value(_joined(name, key))
        return tree

    def _extension(self, name: str, length: int) -> _Array | None:
        kind = self._take(1)[0]
        end = self.position + length
        if kind == _COMPLEX:
            self._skip(length)
            return None
        if kind not in (_ARRAY, _SCALAR):
            raise ValueError(f"{name!r} is of extension type {kind}, which Flax does not have")
        if self._number("list") != 3:
            raise ValueError(f"{name!r} does not consist of a shape, a dtype and bytes")
        axes = self._number("list")
        if axes > _AXES:
            raise ValueError(f"{name!r} has {axes:,} axes, more than {_AXES}")
        shape = tuple(self._number("integer") for _ in range(axes))
        dtype = self._text()
        size = self._number("byte string")
        stretch = (self.position, size)
        self._skip(size)
        if self.position != end:
            raise ValueError(f"{name!r} ends at byte {self.position:,} instead of {end:,}")
        return _checked(name, _Array(shape, dtype, (stretch,)))

    def _text(self) -> str:
        length = self._number("string")
        if length > _NAME_BYTES:
            raise ValueError(f"it has a name of {length:,} bytes, more than {_NAME_BYTES}")
        return self._take(length).decode()

    def _number(self, expected: str) -> int:
        begin = self.position
        kind, number = self._header()
        if kind != expected:
            raise ValueError(f"at byte {begin:,} is: {kind}, instead of: {expected}")
        return number

    def _header(self) -> tuple[str, int]:
        """What the next object is, and a number: its value if it is an integer, of how many
        entries it is if it is a list or a dict, else of how many bytes.
        """
        first = self._take(1)[0]
        if first < 0x80:
            return "integer", first
        if first < 0x90:
            return "dict", first & 0x0F
        if first < 0xA0:
            return "list", first & 0x0F
        if first < 0xC0:
            return "string", first & 0x1F
        if 0xD4 <= first <= 0xD8:
            return "extension", 1 << (first - 0xD4)
        if first in _NUMBERED:
            kind, width = _NUMBERED[first]
            return kind, int.from_bytes(self._take(width), "big")
        if first >= 0xE0:  # a small negative integer
            return "other value", 0
        if first in _SKIPPED:
            return "other value", _SKIPPED[first]
        raise ValueError(f"byte {self.position - 1:,} is 0x{first:02X}, with which nothing begins")

    def _take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise ValueError("it ends before its contents do")
        self.position += count
        return data

    def _skip(self, count: int) -> None:
        self.position += count
        if self.position > self.size:
            raise ValueError("it ends before its contents do")
        self.file.seek(self.position)


def _joined(name: str, key: str) -> str:
    joined = f"{name}/{key}" if name else key
    if len(joined.encode()) > _NAME_BYTES or joined.count("/") >= _LEVELS:
        raise ValueError(
            f"the name that begins {joined[:40]!r} has more than {_NAME_BYTES} bytes or "
            f"{_LEVELS} parts"
        )
    return joined


def _named(tree: dict[str, Any], name: str) -> Iterator[tuple[str, _Array]]:
    for key, value in tree.items():
        path = _joined(name, key)
        if isinstance(value, dict) and _CHUNKED in value:
            yield path, _unchunked(path, value)
        elif isinstance(value, dict):
            yield from _named(value, path)
        elif isinstance(value, _Array):
            yield path, value


def _unchunked(name: str, tree: dict[str, Any]) -> _Array:
    shape, chunks = (_as_list(name, tree.get(key)) for key in ("shape", "chunks"))
    if not all(isinstance(size, int) for size in shape) or len(shape) > _AXES:
        raise ValueError(f"the chunked array {name!r} has no valid shape")
    if not all(isinstance(chunk, _Array) for chunk in chunks):
        raise ValueError(f"the chunked array {name!r} has chunks that are no arrays")
    dtypes = {chunk.dtype for chunk in chunks}
    if len(dtypes) != 1:
        raise ValueError(f"the chunked array {name!r} has chunks of the dtypes {sorted(dtypes)}")
    stretches = tuple(stretch for chunk in chunks for stretch in chunk.stretches)
    return _checked(name, _Array(tuple(shape), dtypes.pop(), stretches))


def _as_list(name: str, tree: Any) -> list[Any]:
    """The values under the keys "0", "1", ..., in this order whatever the order in the file."""
    if not isinstance(tree, dict) or tree.keys() != set(map(str, range(len(tree)))):
        raise ValueError(f"the shape or the chunks of {name!r} are not numbered from 0")
    return [tree[str(index)] for index in range(len(tree))]


def _checked(name: str, array: _Array) -> _Array:
    if array.dtype not in _DTYPES:
        raise ValueError(f"{name!r} has the dtype {array.dtype!r}, not one of {', '.join(_DTYPES)}")
    size = sum(size for _, size in array.stretches)
    itemsize = _DTYPES[array.dtype].itemsize
    # (NumPy multiplies the other sizes of an array without elements, too.)
    is_possible = math.prod(filter(None, array.shape)) * itemsize < 2**63
    if math.prod(array.shape) * itemsize != size or not is_possible:
        raise ValueError(
            f"{name!r} has {size:,} bytes, which is not the size of {array.shape} in {array.dtype}"
        )
    return array
