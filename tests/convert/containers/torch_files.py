"""A writer of PyTorch's files in which everything can be wrong."""

import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch


class Code(bytes):
    """Opcodes that leave one object on the stack."""


def code(value: Any) -> Code:
    """The opcodes that build a value; those in it that are `Code` are taken as they are."""
    match value:
        case Code():
            return value
        case None | False | True:
            return Code({None: pickle.NONE, False: pickle.NEWFALSE, True: pickle.NEWTRUE}[value])
        case int():
            size = value.bit_length() // 8 + 1
            return Code(pickle.LONG1 + bytes([size]) + value.to_bytes(size, "little", signed=True))
        case float():
            return Code(pickle.BINFLOAT + struct.pack(">d", value))
        case str():
            text = value.encode()
            return Code(pickle.BINUNICODE + struct.pack("<I", len(text)) + text)
        case tuple():
            return Code(pickle.MARK + b"".join(map(code, value)) + pickle.TUPLE)
        case list():
            items = b"".join(map(code, value))
            return Code(pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS)
        case dict():
            items = b"".join(code(key) + code(item) for key, item in value.items())
            return Code(pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS)
        case _:
            raise TypeError(value)


def named(name: str) -> Code:
    module, _, attribute = name.rpartition(".")
    return Code(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())


def stack_named(module: Any, attribute: Any) -> Code:
    return Code(code(module) + code(attribute) + pickle.STACK_GLOBAL)


def call(name: str, *arguments: Any) -> Code:
    return Code(named(name) + code(arguments) + pickle.REDUCE)


def persistent(value: Any) -> Code:
    return Code(code(value) + pickle.BINPERSID)


def stored(code_of_top: bytes, index: int) -> Code:
    return Code(code_of_top + pickle.LONG_BINPUT + struct.pack("<I", index))


def recalled(index: int) -> Code:
    return Code(pickle.LONG_BINGET + struct.pack("<I", index))


def storage(kind: str = "FloatStorage", key: Any = "0", size: Any = 4, *more: Any) -> Code:
    return persistent(("storage", named(f"torch.{kind}"), key, "cpu", size, *more))


def tensor(
    of: Any = None, offset: Any = 0, shape: Any = (4,), strides: Any = (1,), *more: Any
) -> Code:
    """A tensor as PyTorch describes it; by default the first four elements of storage "0"."""
    hooks = call("collections.OrderedDict")
    function = "torch._utils._rebuild_tensor_v2"
    return call(
        function, storage() if of is None else of, offset, shape, strides, False, hooks, *more
    )


def program(value: Any) -> bytes:
    return pickle.PROTO + b"\2" + code(value) + pickle.STOP


FOUR = struct.pack("<4f", 1, 2, 3, 4)


def write_zip(
    path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None, **more: bytes
) -> Path:
    """The newer format."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        for key, data in ({"0": FOUR} if storages is None else storages).items():
            file.writestr(f"archive/data/{key}", data)
        for name, data in more.items():
            file.writestr(f"archive/{name}", data)
    return path


def write_legacy(
    path: Path,
    pickled: bytes,
    storages: Iterable[tuple[str, int, bytes]] = (("0", 4, FOUR),),
    *,
    keys: Any = None,
    protocol: int = 2,
    little_endian: bool = True,
) -> Path:
    """The older format; of storages the keys, the numbers of elements, and the bytes."""
    storages = list(storages)
    start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": little_endian})
    with path.open("wb") as file:
        for value in start:
            pickle.dump(value, file, protocol)
        file.write(pickled)
        file.write(program([key for key, _, _ in storages] if keys is None else keys))
        for _, size, data in storages:
            file.write(struct.pack("<q", size) + data)
    return path


def rewrite_zip(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Writes PyTorch's zip file anew: each entry as `change` gives it, without those it drops."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            changed = change(name.partition("/")[2], data)
            if changed is not None:
                file.writestr(name, changed)
    return path


def torch_tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors in nested containers under the names that `read_torch` should give them."""
    if isinstance(value, torch.Tensor):
        return {name: value.detach()}
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    else:
        return {}
    tensors = {}
    for key, item in pairs:
        tensors |= torch_tensors(item, f"{name}.{key}" if name else str(key))
    return tensors
