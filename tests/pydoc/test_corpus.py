"""What is read of Python's documentation."""

import inspect
import json
import sys

import pytest

from eqxbert.pydoc.corpus import entries, lookup, standard_library
from eqxbert.pydoc.pairs import spoken, title

KNOWN = ["json.loads", "os.path.join", "os.path.exists", "str.split", "len", "pathlib.Path.exists"]


@pytest.fixture(scope="module")
def library():
    return {entry.name: entry for entry in standard_library()}


def test_the_standard_library(library):
    assert len(library) > 5000
    names = [
        "json.loads",
        "os.path.join",
        "os.path.exists",
        "str.split",
        "len",
        "pathlib.Path.exists",
    ]
    assert {*names} <= {*library}
    entry = library["json.loads"]
    assert entry.text == inspect.getdoc(json.loads)
    assert entry.signature.startswith("(s, cls, object_hook")
    assert entry.summary.startswith("Deserialize ``s`` (a ``str``")
    assert "\n" not in entry.summary
    assert list(library) == sorted(library)


def test_each_thing_once_and_nothing_private(library):
    texts = [(name.rpartition(".")[2], entry.text) for name, entry in library.items()]
    assert len(set(texts)) == len(texts)
    assert not [name for name in library if any(p.startswith("_") for p in name.split("."))]
    assert not [name for name in library if name.startswith(("posixpath", "test.", "idlelib"))]


def test_signatures_that_are_repeated_in_the_text_are_left_out():
    entry = lookup("dict.pop")
    assert entry is not None
    assert not entry.text.startswith("D.pop(")
    assert lookup("range") is not None


@pytest.mark.parametrize(
    "name", ["json.loads", "os.path.exists", "str.split", "pathlib.Path.exists"]
)
def test_lookup_finds_what_is_listed(library, name):
    assert lookup(name) == library[name]


@pytest.mark.parametrize("name", ["json.nothing", "no_such_module.f", "", "str.nothing.at.all"])
def test_lookup_of_what_is_not_there(name):
    assert lookup(name) is None


def test_packages_that_are_not_installed_are_left_out():
    assert entries(["no_such_package"]) == []


def test_a_package_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text(
        "from json import loads\n\ndef f(a, *, b=1):\n    'Does a.'\n\ndef _g():\n    'Hidden.'\n"
    )
    (tmp_path / "own_package" / "part.py").write_text(
        "class C:\n    'Holds c.'\n    def m(self, x):\n        'Does m.\\n\\nAt length.'\n"
    )
    (tmp_path / "own_package" / "broken.py").write_text("raise SystemExit('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = entries(["own_package"])
    assert [(e.name, e.signature, e.summary) for e in found] == [
        ("own_package.f", "(a, b)", "Does a."),
        ("own_package.part.C", "()", "Holds c."),
        ("own_package.part.C.m", "(self, x)", "Does m."),
    ]
    assert "own_package" in sys.modules


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("http.client.HTTPConnection", "http client HTTP Connection"),
        ("os.path.join", "os path join"),
        ("base64.b64encode", "base 64 b 64 encode"),
        ("object_hook", "object hook"),
        ("(s, cls)", "s cls"),
    ],
)
def test_names_as_words(name, words):
    assert spoken(name) == words


def test_titles(library):
    assert title(library["os.path.join"]) == "os path join ( a p )"
