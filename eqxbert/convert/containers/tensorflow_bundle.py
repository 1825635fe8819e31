"""TensorFlow's checkpoints: an index, `X.index`, and raw data, `X.data-00000-of-00001` and so on.

The index is a table as LevelDB has them: blocks of keys in order, each with a value, then a block
that says where those blocks are (github.com/google/leveldb/blob/main/doc/table_format.md). A key is
the name of a variable, its value a `BundleEntryProto`; before them, the empty key has a
`BundleHeaderProto` (tensorflow/core/protobuf/tensor_bundle.proto).
"""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .crc32c import masked_crc32c
from .tensor import LazyTensor

# What an index may have at most, so that none can take up much time or memory. (That of BERT-large
# has 100 KB, with Adam's moments 1,200 tensors.)
_INDEX_BYTES = 4 * 2**20
_TENSORS = 50_000
_KEY_BYTES = 500
_VALUE_BYTES = 4096
_AXES = 32

# The numbers of tensorflow/core/framework/types.proto.
_STRING = 7
_DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
}


class _Entry(NamedTuple):
    """Where a tensor is."""

    shape: tuple[int, ...]
    dtype: str
    shard: int
    begin: int
    size: int
    checksum: int


def read_tensorflow(index: Path) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint by name, an optimizer's included, given its file `X.index`. None
    is read yet, but the index has been compared with its checksums, and every tensor lies within
    its file; reading a tensor compares it with its own. Strings are left out.

    **Raises:** `ValueError` if the index or a data file is not whole and valid, or has what is not
    supported: partitioned variables, compression, big-endian numbers or dtypes that are no
    numbers'. `FileNotFoundError` if a data file is missing.
    """
    size = index.stat().st_size
    if size > _INDEX_BYTES:
        raise ValueError(
            f"{index} has {size:,} bytes, but the index of a checkpoint at most {_INDEX_BYTES:,}. "
            "Pass the file that ends in .index."
        )
    try:
        shards, entries = _parse(index.read_bytes())
    except NotImplementedError as error:
        raise ValueError(
            f"{index}: {error}, which is not supported. Load the checkpoint with TensorFlow and "
            "save it anew without that."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{index} ({size:,} bytes) is not a valid index of a TensorFlow checkpoint: {error}. "
            "It may be truncated, or a download that was cut off; fetch it again."
        ) from error
    files = {
        shard: index.with_suffix(f".data-{shard:05d}-of-{shards:05d}")
        for shard in sorted({entry.shard for entry in entries.values()})
    }
    _check_files(index, files, entries)
    return {
        name: LazyTensor(
            entry.shape, entry.dtype, functools.partial(_read, files[entry.shard], name, entry)
        )
        for name, entry in entries.items()
    }


def _check_files(index: Path, files: dict[int, Path], entries: dict[str, _Entry]) -> None:
    sizes = {}
    for shard, file in files.items():
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing, in which {index.name} has weights. Put it beside the index."
            )
        sizes[shard] = file.stat().st_size
    for name, entry in entries.items():
        if entry.begin + entry.size > sizes[entry.shard]:
            raise ValueError(
                f"{files[entry.shard]} has {sizes[entry.shard]:,} bytes, but {name!r} ends after "
                f"{entry.begin + entry.size:,}. It may be truncated, or a download that was cut "
                "off, or not belong to the index beside it; fetch both again."
            )


def _read(file: Path, name: str, entry: _Entry) -> np.ndarray:
    dtype, count = jnp.dtype(entry.dtype).newbyteorder("<"), math.prod(entry.shape)
    array = np.fromfile(file, dtype, count, offset=entry.begin)
    if array.size < count:
        raise ValueError(f"{file} has become shorter since it was opened; load it again.")
    if masked_crc32c(array.view(np.uint8)) != entry.checksum:
        raise ValueError(
            f"{file}: the checksum of {name!r} is wrong. The file is damaged, or does not belong "
            "to the index beside it; fetch both again."
        )
    return array.reshape(entry.shape)


# The contents of the index


def _parse(index: bytes) -> tuple[int, dict[str, _Entry]]:
    """The number of data files, and where the tensors are by name."""
    table = _table(index)
    first, header = next(table, (b"", b""))
    fields = _Fields(header)
    shards = fields.integer(1)
    if first or not shards:
        raise ValueError("it does not begin with a header that says how many data files there are")
    if fields.integer(2):
        raise NotImplementedError("its numbers are big-endian")
    entries = {}
    for key, value in table:
        if key.startswith(b"\0"):  # one part of a partitioned variable, which has an entry as well
            continue
        if len(entries) == _TENSORS:
            raise ValueError(f"it has more than {_TENSORS:,} tensors")
        name = key.decode()
        entry = _entry(name, _Fields(value), shards)
        if entry is not None:
            entries[name] = entry
    return shards, entries


def _entry(name: str, fields: "_Fields", shards: int) -> _Entry | None:
    dtype, shard, begin, size, checksum = (fields.integer(number) for number in (1, 3, 4, 5, 6))
    if fields.messages(7):
        raise NotImplementedError(f"{name!r} is a partitioned variable")
    if dtype == _STRING:
        return None
    if dtype not in _DTYPES:
        raise NotImplementedError(f"{name!r} has the dtype number {dtype} of TensorFlow's")
    shape = tuple(_Fields(axis).integer(1) for axis in _Fields(fields.message(2)).messages(2))
    entry = _Entry(shape, _DTYPES[dtype], shard, begin, size, checksum)
    if shard >= shards:
        raise ValueError(f"{name!r} is in data file {shard} (from 0) of {shards}")
    if len(shape) > _AXES:
        raise ValueError(f"{name!r} has {len(shape)} axes, more than {_AXES}")
    itemsize = jnp.dtype(entry.dtype).itemsize
    # (NumPy multiplies the other sizes of an array without elements, too.)
    is_possible = math.prod(filter(None, shape)) * itemsize < 2**63
    if math.prod(shape) * itemsize != size or not is_possible:
        raise ValueError(
            f"{name!r} has {size:,} bytes, which is not the size of {shape} in {entry.dtype}"
        )
    return entry


class _Fields:
    """A message's fields by number (https://protobuf.dev/programming-guides/encoding)."""

    def __init__(self, message: bytes):
        self.values: dict[int, list[int | bytes]] = {}
        rest = _Bytes(message)
        while rest:
            number, kind = divmod(rest.varint(), 8)
            if kind == 0:
                value = rest.varint()
            elif kind == 2:
                value = rest.take(rest.varint())
            elif kind in (1, 5):
                value = int.from_bytes(rest.take(8 if kind == 1 else 4), "little")
            else:
                raise ValueError(f"a field of an entry is of kind {kind}")
            self.values.setdefault(number, []).append(value)

    def integer(self, number: int) -> int:
        """An integer; 0 if it is absent, as that is how 0 is written."""
        value = self.values.get(number, [0])[-1]
        if not isinstance(value, int):
            raise ValueError(f"field {number} of an entry is not an integer")
        return value

    def messages(self, number: int) -> list[bytes]:
        values = self.values.get(number, [])
        messages = [value for value in values if isinstance(value, bytes)]
        if len(messages) < len(values):
            raise ValueError(f"field {number} of an entry is not a message")
        return messages

    def message(self, number: int) -> bytes:
        return (self.messages(number) or [b""])[-1]


# The table


_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_COMPRESSIONS = {1: "Snappy", 2: "Zstandard"}


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a table, in order."""
    blocks, footer = data[:-_FOOTER_BYTES], data[-_FOOTER_BYTES:]
    if not footer.endswith(_MAGIC):
        raise ValueError(f"it does not end in the bytes {_MAGIC.hex()}")
    handles = _Bytes(footer)
    _handle(handles)  # of a block with information on the table
    last_key, end = None, 0
    for _, handle in _block(blocks, *_handle(handles)):
        begin, size = _handle(_Bytes(handle))
        if begin < end:
            raise ValueError(f"two blocks overlap at byte {begin:,}")
        end = begin + size + _TRAILER_BYTES
        for key, value in _block(blocks, begin, size):
            if last_key is not None and key <= last_key:
                raise ValueError(f"the key {key!r} follows {last_key!r}, out of order")
            last_key = key
            yield key, value


def _handle(data: "_Bytes") -> tuple[int, int]:
    """Where a block begins and its size."""
    return data.varint(), data.varint()


def _block(table: bytes, begin: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of one block."""
    end = begin + size
    if end + _TRAILER_BYTES > len(table):
        raise ValueError(f"a block ends at byte {end:,}, which it does not have")
    compression = table[end]
    checksum = int.from_bytes(table[end + 1 : end + _TRAILER_BYTES], "little")
    if masked_crc32c(np.frombuffer(table[begin : end + 1], np.uint8)) != checksum:
        raise ValueError(f"the checksum of the block at byte {begin:,} is wrong")
    if compression:
        name = _COMPRESSIONS.get(compression, f"unknown kind {compression}")
        raise NotImplementedError(f"it is compressed ({name})")
    # After the entries: where keys are written whole (for a binary search), and how many those are.
    restarts = int.from_bytes(table[max(begin, end - 4) : end], "little")
    if size < 4 + 4 * restarts:
        raise ValueError(f"the block at byte {begin:,} is too short for its {restarts:,} restarts")
    entries = _Bytes(table[begin : end - 4 - 4 * restarts])
    key = b""
    while entries:
        shared, unshared, length = entries.varint(), entries.varint(), entries.varint()
        if shared > len(key) or shared + unshared > _KEY_BYTES or length > _VALUE_BYTES:
            raise ValueError(
                f"it has a key of {shared:,} bytes of {key!r} and {unshared:,} more (together "
                f"{_KEY_BYTES} at most) and a value of {length:,} (at most {_VALUE_BYTES:,})"
            )
        key = key[:shared] + entries.take(unshared)
        yield key, entries.take(length)


class _Bytes:
    """Takes bytes from the front."""

    def __init__(self, data: bytes):
        self.data = data
        self.position = 0

    def __bool__(self) -> bool:
        return self.position < len(self.data)

    def take(self, count: int) -> bytes:
        taken = self.data[self.position : self.position + count]
        if len(taken) < count:
            raise ValueError("it ends within an entry")
        self.position += count
        return taken

    def varint(self) -> int:
        """A number of seven bits in each byte, the lowest first; the eighth says "and so on"."""
        number = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise ValueError("a number in it has more than ten bytes")
