"""Writing a folder's files so that nothing is lost when it fails halfway."""

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import IO

# Without it, nothing in the folder is a model.
_COMMIT = Path("config.json")
_WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@contextlib.contextmanager
def staged_folder(folder: str | PathLike[str]) -> Iterator[Path]:
    """A staging folder to write files into. When the block ends well they move into `folder`, by
    renaming, and replace the weights that were there; when it does not, they vanish and `folder`
    stays as it was. Other files in `folder` stay.

    **Raises:** `NotADirectoryError` if `folder` is a file.
    """
    if not os.fspath(folder):
        raise ValueError("The name of the folder to write is empty.")
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; the model needs a folder.")
    is_new = not folder.exists()
    # Where the files will be on the disk that they will stay on: only there is renaming atomic.
    place = folder.parent if is_new else folder
    place.mkdir(parents=True, exist_ok=True)
    staging = place / _hidden_name(folder.name)
    staging.mkdir()
    permissions = stat.S_IMODE(staging.stat().st_mode) & 0o666
    try:
        yield staging
        files = [path for path in staging.rglob("*") if path.is_file()]
        for path in files:
            path.chmod(permissions)  # some writers make files for their owner alone
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if is_new:
            staging.rename(folder)
            _sync(folder.parent)
        else:
            _move_into(folder, staging, {path.relative_to(staging) for path in files})
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_into(folder: Path, staging: Path, written: set[Path]) -> None:
    """Moves the files from `staging` to `folder` in place of those that were there. If one cannot
    be moved, all that were replaced or removed come back.

    The old config.json goes first and the new one comes last: at no moment, not even that of a
    power failure, can a mixture of the old files and the new be taken for a model.
    """
    backup = staging / "backup"
    backup.mkdir()
    moved: list[Path] = []
    put_aside: list[Path] = []
    try:
        if (folder / _COMMIT).exists() and _COMMIT in written:
            (folder / _COMMIT).replace(backup / _COMMIT)
            put_aside.append(_COMMIT)
        for path in _old_weights(folder) - written if _has_weights(written) else set():
            (folder / path).replace(backup / path)
            put_aside.append(path)
        for path in sorted(written, key=lambda path: path == _COMMIT):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if (folder / path).exists():
                _link_or_move(folder / path, backup / path)
                put_aside.append(path)
            (staging / path).replace(folder / path)
            moved.append(path)
        _sync(folder)
    except BaseException:
        for path in moved:
            (folder / path).unlink()
        for path in put_aside:
            (backup / path).replace(folder / path)
        raise


def _link_or_move(path: Path, to: Path) -> None:
    """Keeps a file that is about to be replaced. A link leaves it in its place until then."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, to)
    except OSError:  # not every file system has links
        path.replace(to)


@contextlib.contextmanager
def staged_file(path: str | PathLike[str]) -> Iterator[IO[bytes]]:
    """A file open for writing that takes its name when the block ends well; when it does not, it
    vanishes, and a file that had the name stays.
    """
    path = Path(path).expanduser().absolute()
    staging = path.parent / _hidden_name(path.name)
    try:
        with staging.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system can do that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _has_weights(paths: set[Path]) -> bool:
    return any(_WEIGHT_FILE.fullmatch(str(path)) for path in paths)


def _old_weights(folder: Path) -> set[Path]:
    """The weights in a folder, which could be taken for those that are written now."""
    return {Path(path.name) for path in folder.iterdir() if _WEIGHT_FILE.fullmatch(path.name)}


def _hidden_name(name: str) -> str:
    """A name that nothing else has, for what will have another one."""
    return f".{name}.{secrets.token_hex(8)}.part"
