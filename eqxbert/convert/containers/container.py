"""Any file of weights, recognised by what is in it, whatever its name."""

import os
from pathlib import Path

from .flax_msgpack import read_flax
from .safetensors import read_safetensors
from .tensor import LazyTensor
from .tensorflow_bundle import read_tensorflow
from .torch_pickle import read_torch

_ZIP = b"PK"
_PICKLE = b"\x80"
_TAR = b"ustar"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LEVELDB_FOOTER = 0xDB4775248B80FB57.to_bytes(8, "little")
_GIT_LFS = b"version https://git-lfs"


def read_container(path: Path) -> dict[str, LazyTensor]:
    """The arrays of a file of weights by name, none of them read yet.

    **Raises:** `ValueError` if it is in no format that is read here, or damaged.
    """
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(-min(8, file.seek(0, os.SEEK_END)), os.SEEK_END)
        tail = file.read()
    # A header of less than 4 GiB, which begins with a brace. First, as its length may look like
    # any of the others.
    if head[4:9] == b"\0\0\0\0{":
        return read_safetensors(path)
    if head.startswith(_ZIP) or head[257:262] == _TAR:
        return read_torch(path)
    if head.startswith(_PICKLE) and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return read_torch(path)
    if tail == _LEVELDB_FOOTER:
        return read_tensorflow(path)
    if _is_map(head):
        return read_flax(path)
    what = _what_it_is(head)
    if what is None and path.suffix == ".safetensors":
        return read_safetensors(path)  # for the error that it raises
    what = what or f"begins with {head[:8]!r}, as no known format does; it may be damaged"
    raise ValueError(
        f"{path} ({path.stat().st_size:,} bytes) {what}. Read are safetensors, PyTorch's pickles, "
        "Flax's msgpack, and TensorFlow 1's checkpoints (by their .index)."
    )


def _is_map(head: bytes) -> bool:
    """Whether a file begins as a map of msgpack. (One of nine entries has HDF5's first byte.)"""
    first = head[0] if head else 0
    return not head.startswith(_HDF5) and (0x80 <= first <= 0x8F or first in (0xDE, 0xDF))


def _what_it_is(head: bytes) -> str | None:
    if not head:
        return "is empty; fetch it again"
    if head.startswith(_GIT_LFS):
        return "is not the file of weights but git's pointer to it; fetch it with `git lfs pull`"
    if head.startswith(_HDF5):
        return (
            "is in Keras's HDF5 format, which is not read; transformers 4 can load it with "
            "from_tf=True and save it anew"
        )
    if head.lstrip()[:1] == b"<":
        return "is a web page, perhaps one that asks for a login; fetch the file again"
    return None
