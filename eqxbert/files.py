"""Finding a checkpoint's files: in a local folder, or in a repository of the Hugging Face hub."""

import dataclasses
import json
import os
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

# What can be said of how to reach a repository of the hub, as in huggingface_hub.
HUB_OPTIONS = ("revision", "token", "subfolder", "cache_dir", "local_files_only")


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a checkpoint's files are, and how to reach them.

    - `folder`: the local folder, or None if the files are on the hub.
    - `repository`: the hub's name for them, such as "google-bert/bert-base-uncased".
    - `subfolder`: the folder inside of either.
    - `hub_options`: what else `huggingface_hub.hf_hub_download` is told.
    - `weights`: the file that holds the weights, if it was named.
    """

    folder: Path | None
    repository: str
    subfolder: str
    hub_options: dict[str, Any]
    weights: str | None = None

    @classmethod
    def of(
        cls,
        path_or_id: str | PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str | None = "",
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> "Location":
        """The location of a local folder, if there is one of that name, or of a repository. The
        path may also be that of the file with the weights in such a folder; of a TensorFlow
        checkpoint's without its suffix.

        **Raises:** `FileNotFoundError` if there is no such folder and the name cannot be a
        repository's; `ValueError` for a `subfolder` that leads out of the folder.
        """
        if not isinstance(path_or_id, str | PathLike):
            raise ValueError(
                "Expected the path of a folder or the name of a repository, got "
                f"{type(path_or_id).__name__}."
            )
        subfolder = subfolder or ""
        if not is_inside(subfolder):
            raise ValueError(f"subfolder {subfolder!r} leads out of the checkpoint's folder.")
        options = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        name, path = os.fspath(path_or_id), Path(path_or_id).expanduser()
        if not name:
            raise FileNotFoundError("The name of the folder or repository is empty.")
        if path.is_dir():
            return cls(path / subfolder, name, subfolder, options)
        for file in (path, Path(f"{path}.index")):
            if file.is_file():
                return cls(file.parent / subfolder, name, subfolder, options, weights=file.name)
        looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
        if looks_local or "\\" in name or isinstance(path_or_id, Path):
            raise FileNotFoundError(f"There is no folder {name!r} here.")
        return cls(None, name, subfolder, options)

    def child(self, subfolder: str) -> "Location":
        """The location of a folder inside this one.

        **Raises:** `ValueError` if it leads out of this one.
        """
        if not is_inside(subfolder):
            raise ValueError(f"{self}: the folder {subfolder!r} leads out of it.")
        return dataclasses.replace(
            self,
            folder=None if self.folder is None else self.folder / subfolder,
            subfolder=str(PurePosixPath(self.subfolder, subfolder))
            if subfolder
            else self.subfolder,
            weights=None if subfolder else self.weights,
        )

    def find(self, name: str) -> Path | None:
        """The local path of a file, downloaded if need be; None if there is none of that name.

        **Raises:** `ConnectionError` if the hub cannot be reached and the file is not in its cache;
        `FileNotFoundError` if the hub has no such repository or does not show it.
        """
        if self.folder is None:
            return _download(self, name)
        path = self.folder / name
        return path if path.is_file() else None

    def require(self, name: str, why: str) -> Path:
        """The local path of a file.

        **Raises:** `FileNotFoundError` with `why` it is needed if there is none.
        """
        path = self.find(name)
        if path is None:
            raise FileNotFoundError(f"{self} has no {name}, {why}.{self._what_is_there()}")
        return path

    def _what_is_there(self) -> str:
        if self.folder is None:
            return ""
        if not self.folder.is_dir():
            return f" There is no folder {self.folder}."
        names = sorted(path.name for path in self.folder.iterdir())
        return f" It has {', '.join(names[:20])}." if names else " It is empty."

    def __str__(self) -> str:
        if self.folder is not None:
            return str(self.folder)
        return self.repository + (f"/{self.subfolder}" if self.subfolder else "")


def read_json(location: Location, name: str, default: Any = None, *, expected: type = dict) -> Any:
    """The contents of a JSON file, or `default` if there is none of that name.

    **Raises:** `ValueError` if it is not JSON, or not of the `expected` type.
    """
    path = location.find(name)
    if path is None:
        return default
    return parse_json(path.read_bytes(), path, expected=expected)


def parse_json(text: str | bytes, source: str | Path, *, expected: type = dict) -> Any:
    """What a JSON text holds, of `source`.

    **Raises:** `ValueError` if it is not JSON, or not of the `expected` type.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from error
    if not isinstance(values, expected):
        kind = {dict: "an object", list: "an array"}[expected]
        raise ValueError(f"{source} holds a JSON {type(values).__name__}, not {kind}.")
    return values


def is_inside(path: str) -> bool:
    """Whether a relative path, from a file that may be hostile, stays in its folder."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return not (path.startswith(("/", "\\")) or ".." in parts or any(":" in p for p in parts))


def _download(location: Location, name: str) -> Path | None:
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ModuleNotFoundError(
            f"There is no folder {location.repository!r} here, and fetching it from the Hugging "
            "Face hub needs the package huggingface_hub: pip install 'eqxbert[text]'."
        ) from error

    try:
        path = hub.hf_hub_download(
            location.repository,
            name,
            subfolder=location.subfolder or None,
            **location.hub_options,
        )
        return Path(path)
    except errors.LocalEntryNotFoundError as error:
        if _known_to_be_absent(location, name):
            return None
        raise ConnectionError(
            f"{name} of {location} is not in the local cache, and the Hugging Face hub cannot be "
            "reached (or is switched off, by HF_HUB_OFFLINE or local_files_only). If a local "
            f"folder was meant: there is no folder {location.repository!r} here. ({error})"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{location} has no revision {location.hub_options['revision']!r}."
        ) from error
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{location} is gated: ask for access on its page and pass token=... ({error})"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no folder {location.repository!r} here, and the Hugging Face hub has no "
            "repository of that name that it would show you. For a private one, pass token=..."
        ) from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(
            f"There is no folder {location.repository!r} here, and it cannot be the name of a "
            f"repository: {error}"
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise PermissionError(
                f"The Hugging Face hub refuses to show {location}; the token may be wrong or "
                f"expired. ({error})"
            ) from error
        raise ConnectionError(f"Fetching {name} of {location} failed: {error}") from error
    except Exception as error:  # whatever the library that carries the bytes raises
        raise ConnectionError(f"Fetching {name} of {location} failed: {error!r}") from error


def _known_to_be_absent(location: Location, name: str) -> bool:
    """Whether the cache, which is all there is offline, shows that a file does not exist."""
    import huggingface_hub as hub

    def cached(path: str | PurePosixPath) -> object:
        return hub.try_to_load_from_cache(
            location.repository,
            str(path),
            cache_dir=location.hub_options["cache_dir"],
            revision=location.hub_options["revision"],
        )

    path = PurePosixPath(location.subfolder, name)
    if cached(path) is not None:  # not the path of the file: a note that there is none
        return True
    # snapshot_download makes no such notes, but it fetches all, even what nobody fetches alone.
    if isinstance(cached(".gitattributes"), str):
        return True
    # Where weights are in shards, they are not in one file as well.
    return isinstance(cached(f"{path}.index.json"), str)
