"""PyTorch's files from someone who means harm: nothing is run, and nothing takes long or much."""

import json
import pickle
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from convert.containers.cost import costs
from convert.containers.hostile_pickle_programs import exploits
from convert.containers.hostile_torch_files import corpus

# Reads the tensors of a file while Python reports all that is imported, run or opened.
READ = """
import itertools, pickletools, sys
import jax.numpy as jnp
from eqxbert.convert.containers.torch_pickle import read_torch

jnp.arange(3).sum().block_until_ready()
watched, events = None, []

def watch(event, arguments):
    if watched is not None and (event, *map(str, arguments[:2])) != ("open", watched, "r"):
        events.append(f"{event} {arguments}")

sys.addaudithook(watch)

def read(path):
    global watched
    message = None
    events.clear()
    watched = str(path)
    try:
        for tensor in itertools.islice(read_torch(path).values(), 100):
            tensor.read()
    except ValueError as error:
        message = str(error)
    finally:
        watched = None
    return json.dumps([message, events])
"""


class Result(NamedTuple):
    path: Path
    message: str | None
    events: list[str]
    memory: int
    seconds: float


CORPUS = corpus(Path("canary"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all files, in which nothing must appear."""
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Result]:
    """What came of reading each file, all in one process."""
    paths = {}
    for number, (name, (write, _)) in enumerate(corpus(folder / "canary").items()):
        paths[name] = folder / f"{number}.bin"
        write(paths[name])
    before = _contents(folder)
    found = costs(READ, *(f"outcome = read(Path({str(path)!r}))" for path in paths.values()))
    assert _contents(folder) == before
    return {
        name: Result(path, *json.loads(cost.outcome), cost.memory, cost.seconds)
        for (name, path), cost in zip(paths.items(), found, strict=True)
    }


def _contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_file(results: dict[str, Result], folder: Path, name: str) -> None:
    path, message, events, memory, seconds = results[name]
    expected = CORPUS[name][1]
    if expected is None:
        assert message is None
    else:
        assert message is not None
        assert message.startswith(str(path))
        assert expected in message
        assert len(message) < 1000
    assert events == []
    assert seconds < 5
    assert memory < 200 * 2**20


EXPLOITS = [name for name in exploits(Path("canary")) if name not in ("INST", "as attributes")]


@pytest.mark.parametrize("name", [*EXPLOITS[:8], "getattr chain", "STACK_GLOBAL", "OBJ"])
def test_python_would_run_what_these_files_ask_for(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    pickle.loads(exploits(canary)[name][0])
    assert canary.exists()
