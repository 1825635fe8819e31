"""Compiled programs on disk: found again by another process, and out of the way when unwanted."""

import pytest
from helpers import run_python

COUNT_HITS = """
import jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
from eqxbert.cli import main
assert main(["search", "parse json", "--top-k", "1"]) == 0
print(sum(event == "/jax/compilation_cache/cache_hits" for event in hits))
"""


def search(home, **variables) -> int:
    """How many programs were found in the cache by a process that searches on the command line."""
    env = {"XDG_CACHE_HOME": str(home), "JAX_COMPILATION_CACHE_DIR": ""} | variables
    result = run_python(COUNT_HITS, env=env)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return int(result.stdout.splitlines()[-1])


def test_the_command_line_keeps_its_programs(tmp_path):
    assert search(tmp_path) == 0
    [folder] = (tmp_path / "eqxbert" / "programs").iterdir()
    assert any(folder.iterdir())
    assert search(tmp_path) > 0


def test_what_is_set_for_jax_takes_precedence(tmp_path):
    home, own = tmp_path / "home", tmp_path / "own"
    assert search(home, JAX_COMPILATION_CACHE_DIR=str(own)) == 0
    assert any(own.iterdir())
    assert search(home, JAX_ENABLE_COMPILATION_CACHE="false") == 0
    assert not home.exists()


def test_a_home_that_cannot_be_written_does_not_matter(tmp_path):
    (tmp_path / "file").touch()
    assert search(tmp_path / "file") == 0


def test_in_one_call(tmp_path):
    result = run_python(
        f"import eqxbert; print(eqxbert.enable_compilation_cache({str(tmp_path / 'here')!r}))"
    )
    assert result.stdout.strip() == str(tmp_path / "here"), result.stderr


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    result = run_python(
        f"import eqxbert; eqxbert.enable_compilation_cache({str(tmp_path / 'file')!r})"
    )
    assert "FileExistsError" in result.stderr


@pytest.mark.parametrize("folder", [None, "anywhere"])
def test_turned_off(tmp_path, folder):
    argument = folder and str(tmp_path / folder)
    result = run_python(
        f"import eqxbert; print(eqxbert.enable_compilation_cache({argument!r}))",
        env={"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    assert result.stdout.strip() == "None", result.stderr
    assert not (tmp_path / "anywhere").exists()
