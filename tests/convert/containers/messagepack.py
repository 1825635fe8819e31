"""A writer of MessagePack in which every header can be wrong."""

import math
import struct
from typing import Any


def packed(value: Any) -> bytes:
    """A value in MessagePack; bytes are taken as already packed."""
    match value:
        case bytes():
            return value
        case None | False | True:
            return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
        case int():
            return b"\xd3" + struct.pack(">q", value) if value < 0 else header(0xCC, 8, value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case str():
            return header(0xD9, 4, len(value.encode())) + value.encode()
        case dict():
            entries = (packed(key) + packed(entry) for key, entry in value.items())
            return header(0xDE, 4, len(value)) + b"".join(entries)
        case list() | tuple():
            return header(0xDC, 4, len(value)) + b"".join(map(packed, value))
        case _:
            raise TypeError(value)


def header(first: int, width: int, number: int) -> bytes:
    """The header with a number of so many bytes; `first` is the header of the shortest number."""
    longer = {1: 0, 2: 1, 4: 2, 8: 3}[width] - (1 if first in (0xDC, 0xDE) else 0)
    return bytes([first + longer]) + number.to_bytes(width, "big")


def extension(code: int, data: bytes, *, width: int = 4, length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return header(0xC7, width, size) + bytes([code]) + data


def byte_string(data: bytes, *, width: int = 4, length: int | None = None) -> bytes:
    return header(0xC4, width, len(data) if length is None else length) + data


def array(shape: Any, dtype: Any = "float32", data: bytes | None = None, *, code: int = 1) -> bytes:
    """An array as Flax writes it; of zeros, where no data are given."""
    if data is None:
        data = bytes(4 * math.prod(shape))
    return extension(code, packed([shape, dtype, byte_string(data)]))
