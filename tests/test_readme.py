"""The README's Python runs, as it stands there, from top to bottom."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )


def test_python_blocks_run(minilm, tmp_path, monkeypatch):
    """With the model that is at hand in place of those on the hub."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = python_blocks()
    assert len(blocks) == 12
    for block in blocks:
        local = re.sub(r'"(sentence-transformers|google-bert)/[\w.-]+"', repr(str(minilm)), block)
        exec(compile(local, str(README), "exec"), names)
    assert np.shape(names["vectors"]) == (2, 384)
    assert (tmp_path / "folder" / "model.safetensors").is_file()


@pytest.mark.parametrize("heading", ["# eqxbert", "## Tests"])
def test_each_command_sets_itself_up(heading):
    """What is promised to work from nothing makes its own virtual environment."""
    after = README.read_text("utf-8").partition(f"{heading}\n")[2]
    block = after.partition("```sh\n")[2].partition("```")[0]
    assert block.startswith("python3 -m venv .venv")
