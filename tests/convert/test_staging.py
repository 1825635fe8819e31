"""Files and folders that appear whole or not at all."""

import contextlib
import os
from pathlib import Path

import pytest
from convert.checkpoints import contents

from eqxbert.convert import staged_file, staged_folder


def fail_within(stack: contextlib.ExitStack, error: type[BaseException]) -> None:
    """Leaves the contexts of the stack as an error in their block does."""
    with pytest.raises(error), stack:
        raise error


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_appears_whole(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_bytes(before)
    with staged_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.exists() == (before is not None)
        if before is not None:
            assert path.read_bytes() == before
    assert contents(tmp_path) == {"a.txt": b"new"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [{}, {"a.txt": b"old"}])
def test_a_file_that_fails_leaves_the_old_one(
    tmp_path: Path, error: type[BaseException], before: dict[str, bytes]
) -> None:
    for name, text in before.items():
        (tmp_path / name).write_bytes(text)
    stack = contextlib.ExitStack()
    stack.enter_context(staged_file(tmp_path / "a.txt")).write(b"new")
    fail_within(stack, error)
    assert contents(tmp_path) == before


def test_a_file_has_the_permissions_of_a_new_one(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with staged_file(tmp_path / "a.txt") as file:
            file.write(b"new")
        assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_fails_stays_as_it_was(
    tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    if exists:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_bytes(b"old")
    stack = contextlib.ExitStack()
    (stack.enter_context(staged_folder(tmp_path / "a")) / "x").write_bytes(b"new")
    fail_within(stack, error)
    assert contents(tmp_path) == ({"a/x": b"old"} if exists else {})
    assert os.listdir(tmp_path) == (["a"] if exists else [])


@pytest.mark.parametrize("exists", [True, False])
def test_folders_within_a_folder_move_along(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "old").write_bytes(b"old")
    with staged_folder(tmp_path / "a") as staging:
        (staging / "b").mkdir()
        (staging / "b" / "new").write_bytes(b"new")
    assert contents(tmp_path / "a") == {"b/new": b"new"} | ({"b/old": b"old"} if exists else {})
    assert os.listdir(tmp_path) == ["a"]


def test_weights_stay_if_none_were_written(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with staged_folder(tmp_path) as staging:
        (staging / "modules.json").write_bytes(b"[]")
    assert contents(tmp_path) == {"model.safetensors": b"weights", "modules.json": b"[]"}


def test_weights_of_another_module_stay(tmp_path: Path) -> None:
    """A folder of sentence-transformers holds several models; each is replaced on its own."""
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"old")
    with staged_folder(tmp_path) as staging:
        (staging / "model-00001-of-00001.safetensors").write_bytes(b"new")
    assert contents(tmp_path) == {
        "model-00001-of-00001.safetensors": b"new",
        "2_Dense/model.safetensors": b"old",
    }


def test_the_working_folder_can_be_named_by_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with staged_folder(".") as staging:
        (staging / "x").write_bytes(b"new")
    assert contents(tmp_path) == {"a/x": b"new"}


def test_a_path_that_goes_up_and_down_again(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with staged_folder(tmp_path / "a" / ".." / "b") as staging:
        (staging / "x").write_bytes(b"new")
    assert contents(tmp_path) == {"b/x": b"new"}


def test_the_permissions_of_other_threads_files_are_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they would be by `os.umask`, which is of the whole process."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("was called"))
    with staged_file(tmp_path / "a.txt") as file:
        file.write(b"new")
    for _ in range(2):
        with staged_folder(tmp_path / "folder") as folder:
            (folder / "b.txt").touch(0o600)
    plain = tmp_path / "plain"
    plain.touch()
    for path in (tmp_path / "a.txt", tmp_path / "folder" / "b.txt"):
        assert path.stat().st_mode == plain.stat().st_mode
