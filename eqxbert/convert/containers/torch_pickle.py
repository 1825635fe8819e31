"""The files of `torch.save`, read without PyTorch and without running what is in them.

Two formats hold the same pickle, and apart from it the bytes of its storages:

- since PyTorch 1.6 a zip file with `<any>/data.pkl`, `<any>/data/<key>` and `<any>/byteorder`;
- before, one after the other, pickles of a magic number, a version, facts about the system, the
  object, and the list of the storages' keys; then, for each key, the number of its elements as
  int64, and its bytes.

https://github.com/pytorch/pytorch/blob/v2.9.0/torch/serialization.py
"""

import functools
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .pickle_interpreter import PICKLE_LIMIT, RefusedError, interpret
from .tensor import LazyTensor
from .torch_tensors import CALLS, Storage, Tensor, lazy_tensor, storage_of
from .zip_directory import Entry, read_directory

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_NAMES_LIMIT = 4_000_000  # characters


def read_torch(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a file by name. None is read yet, but each has been checked to lie within the
    file.

    Dictionaries, lists and tuples may be nested: the keys and indices on the way to a tensor,
    joined by dots, are its name. All that is no tensor is left out, and what has no name: items
    whose keys are neither texts nor integers.

    If the file has checksums, reading a tensor verifies that of its storage, unless the tensor is
    a view of only a part of that.

    **Raises:** `ValueError` if the file is not a whole and valid one, or asks for anything that
    tensors do not need. Nothing in it is run or imported.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            contents = _read_contents(file, size)
            return {
                name: _lazy_tensor(path, name, tensor, contents)
                for name, tensor in _named_tensors(contents.root).items()
            }
        except RefusedError as error:
            raise ValueError(f"{path} {error}") from None
        except ValueError as error:
            raise ValueError(
                f"{path} ({size:,} bytes) is not a valid PyTorch checkpoint: {error}. It may be "
                "truncated, or a download that was cut off; fetch it again."
            ) from error


def _lazy_tensor(path: Path, name: str, tensor: Tensor, contents: "_Contents") -> LazyTensor:
    try:
        return lazy_tensor(path, tensor, contents.storages, contents.byteorder)
    except ValueError as error:
        raise ValueError(f"in its tensor {name[:100]!r}, {error}") from error


class _Contents(NamedTuple):
    root: Any
    """The object that was saved."""
    storages: Mapping[str, Entry]
    byteorder: str


def _read_contents(file: BinaryIO, size: int) -> _Contents:
    start = file.read(512)
    if start.startswith(b"PK\3\4"):
        return _read_zip(file, size)
    if start.startswith(b"\x80"):  # as pickles do
        return _read_legacy(file, size)
    if start[257:262] == b"ustar":
        raise RefusedError(
            "is a tar file, as PyTorch wrote in 2016. Load it with PyTorch and save the "
            "state_dict() anew, best as safetensors."
        )
    raise ValueError(f"it begins with {start[:16]!r}, as no file of torch.save does")


def _read_zip(file: BinaryIO, size: int) -> _Contents:
    entries = read_directory(file, size)
    folder = next(iter(entries), "").partition("/")[0] + "/"
    if not all(name.startswith(folder) for name in entries):
        raise ValueError(f"its zip entries are not all in the folder {folder[:100]!r}")
    entries = {name.removeprefix(folder): entry for name, entry in entries.items()}
    if "constants.pkl" in entries or any(name.startswith("code/") for name in entries):
        raise RefusedError(
            "is a TorchScript program. Load it with torch.jit.load and save its state_dict(), best "
            "as safetensors."
        )
    for name, entry in entries.items():
        if not entry.is_plain:
            raise RefusedError(
                f"has an entry {name[:100]!r} that is compressed or encrypted, which no file of "
                "torch.save is: a few bytes could unpack to any number. Save it anew."
            )
    if "data.pkl" not in entries:
        raise ValueError("it is a zip file without the entry data.pkl")
    byteorder = "little"  # as it was when there was no such entry yet
    if "byteorder" in entries:
        byteorder = _read_entry(file, entries["byteorder"]).decode("ascii")
    if byteorder not in ("little", "big"):
        raise ValueError(f"its byte order is {byteorder[:100]!r}, not 'little' or 'big'")
    pickled = _read_entry(file, entries["data.pkl"])
    root, _ = interpret(pickled, 0, CALLS, storage_of)
    storages = {
        name.removeprefix("data/"): entry
        for name, entry in entries.items()
        if name.startswith("data/")
    }
    return _Contents(root, storages, byteorder)


def _read_entry(file: BinaryIO, entry: Entry) -> bytes:
    """The bytes of an entry, or the first of them if they are more than a pickle may have."""
    file.seek(entry.start)
    data = file.read(min(entry.size, PICKLE_LIMIT))
    if entry.crc and len(data) == entry.size and zlib.crc32(data) != entry.crc:
        raise ValueError("its pickle does not have the checksum that was written with it")
    return data


def _read_legacy(file: BinaryIO, size: int) -> _Contents:
    file.seek(0)
    data = file.read(PICKLE_LIMIT)
    named: dict[str, Storage] = {}
    load = functools.partial(_remember, named)
    magic_number, position = interpret(data, 0, CALLS, load)
    if magic_number != _MAGIC_NUMBER:
        raise ValueError("it is a pickle, but does not begin as those of torch.save do")
    version, position = interpret(data, position, CALLS, load)
    if version != _VERSION:
        raise ValueError(f"its version is not {_VERSION}")
    # Of the system's facts, the byte order would matter. But all systems wrote storages as little.
    _, position = interpret(data, position, CALLS, load)
    root, position = interpret(data, position, CALLS, load)
    keys, position = interpret(data, position, CALLS, load)
    if not isinstance(keys, list):
        raise ValueError("it has no list of its storages")
    storages: dict[str, Entry] = {}
    for key in keys:
        if not isinstance(key, str) or key not in named or key in storages:
            raise ValueError("its list of storages is not that of its tensors")
        storage = named[key]
        file.seek(position)
        found = int.from_bytes(file.read(8), "little", signed=True)
        if found != storage.whole_size:
            raise ValueError(
                f"storage {key[:100]!r} has {found:,} elements instead of {storage.whole_size:,}"
            )
        storages[key] = Entry(position + 8, storage.bytes_of(storage.whole_size))
        position += 8 + storages[key].size
        if position > size:
            raise ValueError(f"storage {key[:100]!r} lacks its last {position - size:,} bytes")
    return _Contents(root, storages, "little")


def _remember(named: dict[str, Storage], persistent_id: object) -> Storage:
    """The storage that a persistent id stands for, which enters `named` if its key is new."""
    storage = storage_of(persistent_id)
    named.setdefault(storage.key, storage)
    return storage


def _named_tensors(root: Any) -> dict[str, Tensor]:
    """The tensors in nested containers, by the keys and indices on the way to them."""
    if not isinstance(root, (dict, list, tuple)):
        raise RefusedError("holds no dictionary of tensors. Save a model's state_dict().")
    found: dict[str, Tensor] = {}
    budget = _NAMES_LIMIT  # ends the way also within a container that holds itself
    way = [_items("", root)]
    while way:
        for prefix, key, value in way[-1]:
            name = f"{prefix}{key}" if isinstance(value, (Tensor, dict, list, tuple)) else ""
            budget -= len(name) or 8
            if budget < 0:
                raise RefusedError(
                    "holds containers in one another, or in themselves, so often that the names "
                    f"of what they hold exceed {_NAMES_LIMIT:,} characters. Load it where it was "
                    "made and save the model's state_dict() alone."
                )
            if isinstance(value, Tensor):
                if found.setdefault(name, value) is not value:
                    raise RefusedError(
                        f"holds two tensors named {name[:100]!r}. Rename one of them."
                    )
            elif isinstance(value, (dict, list, tuple)):
                way.append(_items(f"{name}.", value))
                break
        else:
            way.pop()
    return found


def _items(prefix: str, container: Any) -> Iterator[tuple[str, Any, Any]]:
    pairs = container.items() if isinstance(container, dict) else enumerate(container)
    return ((prefix, key, value) for key, value in pairs)
