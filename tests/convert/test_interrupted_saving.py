"""Saving that fails halfway, or is cut off: nothing of what was there is lost."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from convert.checkpoints import assert_same_arrays, contents, new_model
from helpers import run_python

import eqxbert
from eqxbert.convert import save
from eqxbert.convert.containers import write_safetensors

SIZES = {"single": "5GB", "sharded": "10KB"}
WRITER = "eqxbert.convert.weights.write_safetensors"


def reloaded(folder: Path) -> eqxbert.BertModel:
    return eqxbert.BertModel.from_pretrained(folder)


def half_a_file(error: BaseException, *, file: int) -> Callable[..., None]:
    """A writer that fails in the middle of a file."""
    count = 0

    def write(path: Path, tensors: Any) -> None:
        nonlocal count
        count += 1
        write_safetensors(path, tensors)
        if count == file:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise error

    return write


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(("size", "file"), [("single", 1), ("sharded", 1), ("sharded", 2)])
@pytest.mark.parametrize("before", SIZES)
def test_a_failure_while_writing_leaves_the_folder_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    size: str,
    file: int,
    before: str,
) -> None:
    folder = tmp_path / "model"
    save(new_model(1), folder, max_shard_size=SIZES[before])
    (folder / "vocab.txt").write_text("[PAD]")
    whole = contents(tmp_path)
    monkeypatch.setattr(WRITER, half_a_file(error, file=file))
    with pytest.raises(type(error)):
        save(new_model(2), folder, max_shard_size=SIZES[size])
    assert contents(tmp_path) == whole
    assert os.listdir(tmp_path) == ["model"]
    assert_same_arrays(reloaded(folder), new_model(1))


def test_a_failure_while_writing_a_new_folder_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WRITER, half_a_file(OSError("full"), file=1))
    with pytest.raises(OSError, match="full"):
        save(new_model(), tmp_path / "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_failure_while_moving_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """As on a system where a file that is open cannot be replaced."""
    folder = tmp_path / "model"
    save(new_model(1), folder, max_shard_size="10KB")
    whole = contents(tmp_path)
    count = 0
    replace = Path.replace

    def fail(self: Path, target: Any) -> Path:
        nonlocal count
        count += 1
        if count == step:
            raise PermissionError("the file is open")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(PermissionError):
            save(new_model(2), folder, max_shard_size="10KB")
    assert contents(tmp_path) == whole


KILLED = """
import os, signal
from pathlib import Path
import eqxbert, jax
import eqxbert.convert.weights as weights

write, count = weights.write_safetensors, 0

def write_and_die(path, tensors):
    global count
    count += 1
    write(path, tensors)
    if count == {file}:
        path.write_bytes(path.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)

weights.write_safetensors = write_and_die
model = eqxbert.BertModel.from_pretrained({folder!r})
model = jax.tree.map(lambda array: array + 1, model)
model.save_pretrained({folder!r}, max_shard_size={size!r})
"""


@pytest.mark.parametrize(("size", "file"), [("5GB", 1), ("10KB", 2)])
def test_being_killed_while_writing_leaves_the_folder_as_it_was(
    tmp_path: Path, size: str, file: int
) -> None:
    folder = tmp_path / "model"
    save(new_model(1), folder)
    whole = contents(folder)
    result = run_python(KILLED.format(folder=str(folder), size=size, file=file))
    assert result.returncode == -signal.SIGKILL, result.stderr
    # What was half-written lies in a folder of its own, for nothing could run to remove it.
    now = {path: data for path, data in contents(folder).items() if ".part/" not in path}
    assert now == whole
    assert_same_arrays(reloaded(folder), new_model(1))
    save(new_model(2), folder)
    assert_same_arrays(reloaded(folder), new_model(2))


KILLED_WHILE_MOVING = """
import os, signal
from pathlib import Path
import eqxbert, jax

replace, count = Path.replace, 0

def replace_or_die(self, target):
    global count
    count += 1
    if count == {move}:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = replace_or_die
model = eqxbert.BertModel.from_pretrained({folder!r})
jax.tree.map(lambda array: array + 1, model).save_pretrained({folder!r}, max_shard_size="10KB")
"""


@pytest.mark.parametrize("move", range(1, 6))
def test_being_killed_while_moving_never_leaves_a_mixture(tmp_path: Path, move: int) -> None:
    """What is left loads as the old model or does not load at all."""
    folder = tmp_path / "model"
    save(new_model(1), folder, max_shard_size="10KB")
    result = run_python(KILLED_WHILE_MOVING.format(folder=str(folder), move=move))
    assert result.returncode == -signal.SIGKILL, result.stderr
    if (folder / "config.json").exists():
        assert_same_arrays(reloaded(folder), new_model(1))
    else:
        with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
            reloaded(folder)
