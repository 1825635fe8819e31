"""What Python's libraries say of their functions, classes and methods."""

import contextlib
import importlib
import inspect
import io
import itertools
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

# Those that do something when they are imported, or are there for tests or other systems only.
_LEFT_OUT = {
    "antigravity",
    "ensurepip",
    "genericpath",
    "idlelib",
    "lib2to3",
    "ntpath",
    "pydoc_data",
    "test",
    "this",
    "tkinter",
    "turtle",
    "turtledemo",
}

# Modules under the names that they are imported by.
_PUBLIC_NAMES = {"posixpath": "os.path"}


class Entry(NamedTuple):
    """One documented object.

    - `name`: as it is imported: "json.loads", "pathlib.Path.exists".
    - `signature`: the names of its arguments, "(s, cls, object_hook)"; empty if they are not known.
    - `text`: its docstring, without what repeats the signature.
    """

    name: str
    signature: str
    text: str

    @property
    def summary(self) -> str:
        """The first paragraph, in one line."""
        return " ".join(self.text.split("\n\n")[0].split())


def standard_library() -> list[Entry]:
    """All that is documented in the standard library of the Python that runs, in order of names.
    (Two or three of thousands, of `ctypes.wintypes` and `concurrent.futures`, are missing where
    other packages have been imported before.)
    """
    names = sorted(n for n in sys.stdlib_module_names if not n.startswith("_"))
    return entries(name for name in names if name not in _LEFT_OUT)


def entries(packages: Iterable[str]) -> list[Entry]:
    """All that is documented in some packages, in order of names. What several modules have is
    listed once: under its shortest name, where it is public.
    """
    found: dict[tuple[str, str], Entry] = {}
    with warnings.catch_warnings():  # of what is deprecated, which is looked at as well
        warnings.simplefilter("ignore")
        for entry in itertools.chain.from_iterable(map(_of_module, _modules(packages))):
            # The same text under the same last name is the same thing.
            identity = entry.name.rpartition(".")[2], entry.text
            known = found.get(identity)
            if known is None or _rank(entry.name) < _rank(known.name):
                found[identity] = entry
    return sorted(found.values())


def lookup(name: str) -> Entry | None:
    """What is documented under a name such as "json.loads"; None if there is nothing."""
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):  # the longest module that there is
        module = _imported(".".join(parts[:end]) or "builtins")
        if module is None:
            continue
        value: Any = module
        for attribute in parts[end:]:
            value = inspect.getattr_static(value, attribute, None)
        return next(_entry(name, value), None)
    return None


def _rank(name: str) -> tuple[int, int, str]:
    """The less, the rather a name is the one to import."""
    return name.count("."), name.startswith(("posix", "nt.", "encodings")), name


def _modules(packages: Iterable[str]) -> Iterator[ModuleType]:
    for package in packages:
        module = _imported(package)
        if module is None:
            continue
        yield module
        for found in pkgutil.walk_packages(
            getattr(module, "__path__", ()), f"{package}.", onerror=lambda name: None
        ):
            parts = found.name.split(".")
            if any(part.startswith("_") or part in ("test", "tests") for part in parts):
                continue
            if (module := _imported(found.name)) is not None:
                yield module


def _imported(name: str) -> ModuleType | None:
    """The module, or None where this system does not have it."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit):
            return None


def _of_module(module: ModuleType) -> Iterator[Entry]:
    exported = set(getattr(module, "__all__", ()))
    for name, value in list(vars(module).items()):
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        home = getattr(value, "__module__", None) or ""
        if name not in exported and home.lstrip("_") != module.__name__:
            continue  # imported from elsewhere
        module_name = _PUBLIC_NAMES.get(module.__name__, module.__name__)
        path = name if module_name == "builtins" else f"{module_name}.{name}"
        yield from _entry(path, value)
        if not inspect.isclass(value):
            continue
        for attribute, member in vars(value).items():
            is_documented = inspect.isroutine(member) or isinstance(
                member, property | classmethod | staticmethod
            )
            if is_documented and not attribute.startswith("_"):
                yield from _entry(f"{path}.{attribute}", member)


def _entry(name: str, value: Any) -> Iterator[Entry]:
    text = inspect.getdoc(value)
    if not text or not text.isascii():
        return
    # C functions repeat their signatures in the first lines.
    last = re.escape(name.rpartition(".")[2])
    text = re.sub(rf"\A(?:(?:\w+\.)*{last}\(.*\)(?: *->.*)?\n)+\s*", "", text).strip()
    if text:
        yield Entry(name, _signature(value), text)


def _signature(value: Any) -> str:
    try:
        parameters = inspect.signature(getattr(value, "__func__", value)).parameters
    except Exception:  # many of C's functions have none, or one that cannot be evaluated
        return ""
    return f"({', '.join(parameters)})"
