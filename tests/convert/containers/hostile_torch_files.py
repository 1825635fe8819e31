"""Files that ask a reader of PyTorch's files for anything but tensors, or for too much."""

import functools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.containers.hostile_pickle_programs import bombs, exploits, invalid, refused
from convert.containers.torch_files import (
    FOUR,
    program,
    storage,
    tensor,
    write_legacy,
    write_zip,
)

Write = Callable[[Path], object]


def corpus(canary: Path) -> dict[str, tuple[Write, str | None]]:
    """Writers of all files by name, each with a part of the error that it should be (None if the
    file is no more than odd). Those that ask for code to be run would have it make `canary`.
    """
    files: dict[str, tuple[Write, str | None]] = {}
    for name, (pickled, message) in {**exploits(canary), **refused(), **invalid()}.items():
        for write in (write_zip, write_legacy):
            writer = functools.partial(write, pickled=pickled)
            files[f"{name}, {write.__name__[6:]}"] = (writer, message)
    for name, (pickled, message) in bombs().items():
        files[f"{name}, bomb"] = (functools.partial(write_zip, pickled=pickled), message)
    return files | _zip_files() | _legacy_files(exploits(canary)["os.system, protocol 2"][0])


# Zip files whose directory is hostile.


def _zip_files() -> dict[str, tuple[Write, str | None]]:
    state = program({"a": tensor()})

    def of(*changes: Callable[[bytearray], object], **more: Any) -> Write:
        def write(path: Path) -> None:
            entries = {"path": path, "pickled": state} | more
            content = bytearray(write_zip(**entries).read_bytes())
            for change in changes:
                change(content)
            path.write_bytes(content)

        return write

    def listed(name: str, field: int, code: str, value: int) -> Callable[[bytearray], None]:
        """Changes a field in the directory; the fields are counted in bytes."""
        return lambda content: struct.pack_into(
            f"<{code}", content, content.rindex(name.encode()) - 46 + field, value
        )

    def end(field: int, code: str, value: int) -> Callable[[bytearray], None]:
        return lambda content: struct.pack_into(
            f"<{code}", content, len(content) - 22 + field, value
        )

    def renamed(name: str, other: str, *, count: int = -1) -> Callable[[bytearray], None]:
        def change(content: bytearray) -> None:
            content[:] = content.replace(name.encode(), other.encode(), count)

        return change

    def shift(content: bytearray) -> None:
        content[content.index(FOUR)] ^= 1

    def not_utf_8(content: bytearray) -> None:
        content[:] = content.replace(b"data/0", b"data/\xff")

    two = {"storages": {"0": FOUR, "1": FOUR}}
    wrong_size = listed("archive/data/0", 20, "L", 15), listed("archive/data/0", 24, "L", 15)
    too_long = listed("archive/data/0", 20, "L", 30), listed("archive/data/0", 24, "L", 30)
    huge = (
        listed("archive/data/0", 20, "L", 2**32 - 2),
        listed("archive/data/0", 24, "L", 2**32 - 2),
    )
    outside = "leads out of the archive"
    packed = "that is compressed or encrypted, which no file of torch.save is"
    elsewhere = "zip entry 'archive/data/0' is not where the directory says"
    checksum = "its pickle does not have the checksum that was written with it"
    rows: dict[str, tuple[Write, str | None]] = {
        "a bomb": (_write_compressed, packed),
        "packed of another size": (of(listed("archive/data/0", 24, "L", 2**31)), packed),
        "encrypted": (of(listed("archive/data/0", 8, "H", 1)), packed),
        "path upwards": (of(**{"../../canary": b""}), outside),
        "path from the root": (of(renamed("archive/data/0", "/rchive/data/0")), outside),
        "path of Windows": (of(**{"..\\canary": b""}), outside),
        "two folders": (of(renamed("archive/data/0", "brchive/data/0")), "not all in the folder"),
        "name not UTF-8": (of(not_utf_8), "can't decode byte 0xff"),
        "two of a name": (of(renamed("data/1", "data/0"), **two), "two zip entries named 'archive"),
        "overlapping": (of(*too_long, **two), "'archive/data/0' overlaps with 'archive/data/1'"),
        "over the directory": (of(*too_long), "'archive/data/0' overlaps with 'the directory'"),
        "beyond the end": (of(*huge), "'archive/data/0' overlaps with 'the directory'"),
        "header beyond the end": (of(listed("archive/data/0", 42, "L", 2**31)), "points to bytes"),
        "header elsewhere": (of(listed("archive/data/0", 42, "L", 5)), elsewhere),
        "header of another": (of(renamed("data/0", "data/5", count=1)), elsewhere),
        "another number": (of(end(10, "H", 9)), "zip directory has 2 entries, but says 9"),
        "no entries": (of(end(10, "H", 0), end(12, "L", 0)), "zip file without the entry data.pkl"),
        "cut in an entry": (of(end(12, "L", 70)), "zip directory ends within an entry"),
        "no entry": (of(listed("archive/data/0", 0, "L", 0)), "zip directory is damaged"),
        "a name too long": (of(listed("archive/data/0", 28, "H", 65535)), "directory is damaged"),
        "too large": (of(end(12, "L", 2**31)), "zip directory has 2,147,483,648 bytes, over 8,3"),
        "directory outside": (of(end(16, "L", 2**31)), "points to bytes 2,147,483,648 to"),
        "no end": (of(lambda content: content.extend(b".")), "no zip directory at its end"),
        "truncated": (of(lambda content: content.__delitem__(slice(-9, None))), "no zip directory"),
        "no more than a start": (lambda path: path.write_bytes(b"PK\3\4"), "to bytes -18 to"),
        "64 bits outside": (
            of(lambda content: content.__setitem__(
                slice(-22, -22), struct.pack("<4sLQL", b"PK\6\7", 0, 2**64 - 1, 1)
            )),
            "points to bytes 18,446,744,073,709,551,615 to",
        ),
        "64 bits elsewhere": (
            of(lambda content: content.__setitem__(
                slice(-22, -22), struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
            )),
            "zip directory has no end",
        ),
        "no pickle": (of(renamed("data.pkl", "data.pk1")), "zip file without the entry data.pkl"),
        "no storage": (of(storages={}), "in its tensor 'a', storage '0' is missing"),
        "storage too small": (of(storages={"0": b"...."}), "storage '0' has 4 bytes instead of 16"),
        "storage too large": (of(storages={"0": FOUR * 2}), "storage '0' has 32 bytes instead of"),
        "storage cut": (of(*wrong_size), "storage '0' has 15 bytes instead of 16"),
        "storage upwards": (
            of(pickled=program({"a": tensor(storage("FloatStorage", "../../canary"))})),
            "storage '../../canary' is missing",
        ),
        "storage too large to be": (
            of(pickled=program({"a": tensor(storage("FloatStorage", "0", 2**62))})),
            "storage '0' has 16 bytes instead of 18,446,744,073,709,551,616",
        ),
        "storage changed": (of(shift), "do not have the checksum that was written with them"),
        "pickle changed": (of(renamed("_rebuild_tensor_v2", "_rebuild_tensor_v3")), checksum),
        "order": (of(byteorder=b"middle"), "byte order is 'middle', not 'little' or 'big'"),
        "order not ASCII": (of(byteorder=b"\xff"), "can't decode byte 0xff"),
        "TorchScript": (of(**{"code/a.py": b"import os"}), "is a TorchScript program. Load it"),
        "many entries": (_write_many, None),
        "many fields": (_write_many_fields, None),
    }  # fmt: skip
    return {f"zip, {name}": row for name, row in rows.items()}


def _write_compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", program({}))
        file.writestr("archive/data/0", bytes(50_000_000))


def _write_many(path: Path) -> None:
    """As many entries as there may be."""
    names = ["a/data.pkl", *(f"a/data/{i:x}" for i in range(140_000))]
    _write_entries(path, [(name.encode(), b"") for name in names])


def _write_many_fields(path: Path) -> None:
    """Entries with as many extra fields as there may be."""
    names = ["a/data.pkl", *(f"a/data/{i}" for i in range(120))]
    _write_entries(path, [(name.encode(), b"\2\0\0\0" * 16_000) for name in names])


def _write_entries(path: Path, names_and_fields: list[tuple[bytes, bytes]]) -> None:
    """Writes a zip file in which the first entry is an empty state, and the others are empty."""
    data, headers, directory = program({}), bytearray(), bytearray()
    for name, fields in names_and_fields:
        sizes = (0, len(data), len(data), len(name))
        directory += struct.pack("<4s6H3L", b"PK\1\2", 20, 20, 0, 0, 0, 0, *sizes[:3])
        directory += struct.pack("<5H2L", len(name), len(fields), 0, 0, 0, 0, len(headers))
        directory += name + fields
        headers += struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, *sizes, 0) + name + data
        data = b""
    start, count = len(headers), len(names_and_fields)
    numbers = (45, 45, 0, 0, count, count, len(directory), start)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, *numbers)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(headers + directory + end + locator + last)


# Files of the older format around whose pickle all is hostile.


def _legacy_files(exploit: bytes) -> dict[str, tuple[Write, str | None]]:
    state, four = program({"a": tensor()}), ("0", 4, FOUR)
    start = program(0x1950A86A20F9469CFC6C), program(1001), program({"little_endian": True})
    large = 2**62

    def pieces(*parts: bytes) -> Write:
        return lambda path: path.write_bytes(b"".join(parts))

    def of(*storages: tuple[str, int, bytes], **more: Any) -> Write:
        return lambda path: write_legacy(path, storages=storages, **{"pickled": state} | more)

    system, not_listed = "system, which is not among", "list of storages is not that of its tensors"
    rows: dict[str, tuple[Write, str | None]] = {
        "exploit for a magic number": (pieces(exploit), system),
        "exploit for a version": (pieces(start[0], exploit), system),
        "exploit for the system's facts": (pieces(*start[:2], exploit), system),
        "exploit for the keys": (pieces(*start, state, exploit), system),
        "exploit after the magic number": (
            pieces(start[0], start[0], exploit),
            "version is not 1001",
        ),
        "another magic number": (pieces(program(0x1950)), "does not begin as those of torch.save"),
        "a list for a magic number": (
            pieces(program([[]])),
            "does not begin as those of torch.save",
        ),
        "another version": (pieces(start[0], program(1002)), "its version is not 1001"),
        "no object": (pieces(*start), "its pickle ends 1 bytes too early"),
        "no keys": (pieces(*start, state), "its pickle ends 1 bytes too early"),
        "no data": (pieces(*start, state, program(["0"])), "storage '0' has 0 elements instead"),
        "a number for the keys": (of(four, keys=1), "has no list of its storages"),
        "a tuple for the keys": (of(four, keys=("0",)), "has no list of its storages"),
        "a list of numbers for the keys": (of(four, keys=[0]), not_listed),
        "a list of lists for the keys": (of(four, keys=[["0"]]), not_listed),
        "an unknown key": (of(four, keys=["0", "1"]), not_listed),
        "a key twice": (of(four, four), not_listed),
        "a key twice, very often": (of(four, keys=["0"] * 100_000), not_listed),
        "no key": (of(keys=[]), "in its tensor 'a', storage '0' is missing"),
        "another size": (of(("0", 3, FOUR)), "storage '0' has 3 elements instead of 4"),
        "a negative size": (of(("0", -4, FOUR)), "storage '0' has -4 elements instead of 4"),
        "data cut off": (of(("0", 4, FOUR[:-1])), "storage '0' lacks its last 1 bytes"),
        "a storage too large to be": (
            of(
                ("0", large, FOUR),
                pickled=program({"a": tensor(storage("ByteStorage", "0", large))}),
            ),
            "storage '0' lacks its last 4,611,686,018,427,387,888 bytes",
        ),
        "a pickle too long": (
            of(four, pickled=program({"a": "k" * 9_000_000})),
            "has a pickle of more than 8,388,608 bytes",
        ),
    }
    return {f"legacy, {name}": row for name, row in rows.items()}
