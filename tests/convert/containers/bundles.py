"""A writer of TensorFlow's checkpoints in which everything can be wrong."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0xDB4775248B80FB57
LITTLE_ENDIAN_HEADER = b"\x08\x01\x1a\x02\x08\x01"  # as TensorFlow writes it for one data file

NUMBERS = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "complex64": 8,
    "int64": 9,
    "bool": 10,
    "bfloat16": 14,
    "uint16": 17,
    "complex128": 18,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}


def _after_zeros(register: int) -> int:
    for _ in range(8):
        register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register


_AFTER_BYTE = [_after_zeros(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    """As it is defined: byte by byte."""
    register = 0xFFFFFFFF
    for byte in data:
        register = register >> 8 ^ _AFTER_BYTE[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number: int) -> bytes:
    longer = b""
    while number > 0x7F:
        longer += bytes([number & 0x7F | 0x80])
        number >>= 7
    return longer + bytes([number])


def field(number: int, value: int | bytes) -> bytes:
    """A number, or a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(
    shape: Iterable[int] = (),
    *,
    dtype: int = 1,
    shard: int = 0,
    begin: int = 0,
    size: int = 4,
    crc: int = 0,
    more: bytes = b"",
) -> bytes:
    axes = b"".join(field(2, field(1, axis)) for axis in shape)
    numbers = {1: dtype, 2: axes, 3: shard, 4: begin, 5: size}
    # (A zero is left out, as by every writer.)
    fields = (field(number, value) for number, value in numbers.items() if value or number == 2)
    return b"".join(fields) + varint(6 << 3 | 5) + crc.to_bytes(4, "little") + more


def block(entries: Iterable[tuple[bytes, bytes]], *, restart_interval: int = 16) -> bytes:
    data, restarts, last = bytearray(), [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % restart_interval == 0:
            restarts.append(len(data))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        lengths = varint(shared) + varint(len(key) - shared) + varint(len(value))
        data += lengths + key[shared:] + value
        last = key
    restarts = restarts or [0]
    return bytes(data) + b"".join(n.to_bytes(4, "little") for n in [*restarts, len(restarts)])


def table(
    blocks: Iterable[bytes],
    *,
    compression: int = 0,
    handles: Iterable[bytes] | None = None,
    magic: int = MAGIC,
) -> bytes:
    data, found = bytearray(), []

    def add(contents: bytes) -> bytes:
        nonlocal data
        handle = varint(len(data)) + varint(len(contents))
        checked = contents + bytes([compression])
        data += checked + masked_crc32c(checked).to_bytes(4, "little")
        return handle

    for contents in blocks:
        found.append(add(contents))
    handles = found if handles is None else handles
    information = add(block([]))
    # (The keys of this block serve to find one; only their order matters here.)
    index = add(block((b"%06d" % n, handle) for n, handle in enumerate(handles)))
    return bytes(data) + (information + index).ljust(40, b"\0") + magic.to_bytes(8, "little")


def index_of(path: Path, entries: Mapping[bytes, bytes], **options: Any) -> Path:
    """An index of one block."""
    path.write_bytes(table([block(entries.items())], **options))
    return path


def write_bundle(
    prefix: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    shards: int = 1,
    keys_per_block: int = 1000,
    restart_interval: int = 16,
) -> Path:
    """A whole checkpoint, its tensors dealt out to the data files; the path of its index."""
    data = [b""] * shards
    entries = [(b"", field(1, shards) + field(3, field(1, 1)))]
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        shard, content = number % shards, tensor.tobytes()
        entries.append(
            (
                name.encode(),
                entry(
                    tensor.shape,
                    dtype=NUMBERS[tensor.dtype.name],
                    shard=shard,
                    begin=len(data[shard]),
                    size=len(content),
                    crc=masked_crc32c(content),
                ),
            )
        )
        data[shard] += content
    for shard, content in enumerate(data):
        Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    starts = range(0, len(entries), keys_per_block)
    parts = [entries[start : start + keys_per_block] for start in starts]
    index = Path(f"{prefix}.index")
    index.write_bytes(table(block(part, restart_interval=restart_interval) for part in parts))
    return index
