"""Writing a folder's files so that nothing is lost when it fails halfway."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import IO

_WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@contextlib.contextmanager
def staged_folder(folder: str | PathLike[str]) -> Iterator[Path]:
    """A staging folder to write files into. When the block ends well they move into `folder`, by
    renaming, and replace the weights that were there; when it does not, they vanish and `folder`
    stays as it was. Other files in `folder` stay.

    **Raises:** `NotADirectoryError` if `folder` is a file.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; the model needs a folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, hence on the same disk, where renaming is atomic.
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield staging
        files = [path for path in staging.rglob("*") if path.is_file()]
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if not folder.exists():
            staging.chmod(0o777 & ~_umask())  # it was made for its owner alone
            staging.rename(folder)
            return
        written = sorted((path.relative_to(staging) for path in files), key=_order_of_renaming)
        for path in written:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).replace(folder / path)
        _remove_old_weights(folder, set(written))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def staged_file(path: str | PathLike[str]) -> Iterator[IO[bytes]]:
    """A file open for writing that takes its name when the block ends well; when it does not, it
    vanishes, and a file that had the name stays.
    """
    path = Path(path).expanduser().absolute()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _order_of_renaming(path: Path) -> int:
    """Shards before the index that names them, since a reader starts from the index."""
    return 1 if path.name.endswith(".index.json") else 0


def _remove_old_weights(folder: Path, written: set[Path]) -> None:
    """Removes the weights of an earlier model, lest they be taken for this one's."""
    if not any(_WEIGHT_FILE.fullmatch(str(path)) for path in written):
        return
    for path in folder.iterdir():
        if _WEIGHT_FILE.fullmatch(path.name) and Path(path.name) not in written:
            path.unlink()


def _umask() -> int:
    """The permissions that new files do not get. (It can only be read by setting it.)"""
    umask = os.umask(0)
    os.umask(umask)
    return umask
