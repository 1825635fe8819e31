"""Where the entries of a zip file lie. Nothing is unpacked.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

import itertools
import struct
from typing import BinaryIO, NamedTuple

# torch.save needs 70 bytes for an entry, and Python then some hundreds.
_DIRECTORY_LIMIT = 8 * 2**20

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LISTED = struct.Struct("<4s6H3L5H2L")
_HEADER = struct.Struct("<4s5H3L2H")


class Entry(NamedTuple):
    """The bytes of an entry."""

    start: int
    size: int
    crc: int = 0
    """Their CRC-32, or 0 if the writer did not compute it."""
    is_plain: bool = True
    """Whether they are neither compressed nor encrypted."""


def read_directory(file: BinaryIO, file_size: int) -> dict[str, Entry]:
    """The entries by name. It has been checked that they lie within the file and do not overlap.

    **Raises:** `ValueError` if the file is not a whole and valid one.
    """
    return _Reader(file, file_size).entries()


class _Reader:
    def __init__(self, file: BinaryIO, file_size: int):
        self.file = file
        self.file_size = file_size

    def entries(self) -> dict[str, Entry]:
        start, size, count = self._find_directory()
        if size > _DIRECTORY_LIMIT:
            raise ValueError(f"its zip directory has {size:,} bytes, over {_DIRECTORY_LIMIT:,}")
        directory, position = self._read(start, size), 0
        entries: dict[str, Entry] = {}
        extents = [(start, start + size, "the directory")]
        while position < size:
            name, header, entry, position = self._entry(directory, position)
            if name in entries:
                raise ValueError(f"it has two zip entries named {name[:100]!r}")
            entries[name] = entry
            extents.append((header, entry.start + entry.size, name))
        if len(entries) != count:
            raise ValueError(f"its zip directory has {len(entries)} entries, but says {count}")
        extents.append((self.file_size, self.file_size, "the end of the file"))
        for (_, end, name), (following, _, other) in itertools.pairwise(sorted(extents)):
            if end > following:
                raise ValueError(f"its zip entry {name[:100]!r} overlaps with {other[:100]!r}")
        return entries

    def _find_directory(self) -> tuple[int, int, int]:
        """Where the directory starts, its size in bytes, and the number of entries."""
        end = self.file_size - _END.size  # torch.save adds no comment
        signature, *_, count, size, start, _ = _END.unpack(self._read(end, _END.size))
        if signature != b"PK\5\6":
            raise ValueError("it has no zip directory at its end")
        if end >= _END64_LOCATOR.size:
            locator = self._read(end - _END64_LOCATOR.size, _END64_LOCATOR.size)
            signature, _, end64, _ = _END64_LOCATOR.unpack(locator)
            if signature == b"PK\6\7":
                end = self._read(end64, _END64.size)
                signature, *_, count, size, start = _END64.unpack(end)
                if signature != b"PK\6\6":
                    raise ValueError("its zip directory has no end")
        return start, size, count

    def _entry(self, directory: bytes, position: int) -> tuple[str, int, Entry, int]:
        """An entry's name, the position of its header in the file, the entry, and the position
        after it in the directory.
        """
        name_at = position + _LISTED.size
        if name_at > len(directory):
            raise ValueError("its zip directory ends within an entry")
        signature, _, _, flags, method, _, _, *sizes, _, _, _, header = _LISTED.unpack_from(
            directory, position
        )
        crc, packed, size, name_size, extra_size, comment_size = sizes
        extra_at = name_at + name_size
        end = extra_at + extra_size + comment_size
        if signature != b"PK\1\2" or end > len(directory):
            raise ValueError("its zip directory is damaged")
        name = str(directory[name_at:extra_at], "utf-8")
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise ValueError(f"its zip entry {name[:100]!r} leads out of the archive")
        wide = iter(_wide_values(directory, extra_at, extra_at + extra_size))
        size, packed, header = (
            next(wide, value) if value == 0xFFFFFFFF else value for value in (size, packed, header)
        )
        is_plain = method == 0 and packed == size and not flags & 1
        return name, header, Entry(self._start(header, name), packed, crc, is_plain), end

    def _start(self, header: int, name: str) -> int:
        """Where an entry's bytes start, which follow its header."""
        fields = _HEADER.unpack(self._read(header, _HEADER.size))
        signature, *_, name_size, extra_size = fields
        name_at = header + _HEADER.size
        if signature != b"PK\3\4" or self._read(name_at, name_size) != name.encode():
            raise ValueError(f"its zip entry {name[:100]!r} is not where the directory says")
        return name_at + name_size + extra_size

    def _read(self, position: int, size: int) -> bytes:
        if not 0 <= position <= position + size <= self.file_size:
            raise ValueError(
                f"its zip directory points to bytes {position:,} to {position + size:,}, outside "
                "of it"
            )
        self.file.seek(position)
        return self.file.read(size)


def _wide_values(directory: bytes, position: int, end: int) -> tuple[int, ...]:
    """The 64-bit values in an entry's extra fields, which replace those that do not fit 32 bits."""
    while position + 4 <= end:
        kind, size = struct.unpack_from("<2H", directory, position)
        position += 4
        if kind == 1:
            return struct.unpack_from(f"<{min(size, end - position) // 8}Q", directory, position)
        position += size
    return ()
