"""The notebooks run without an error, and are stored as they ran.

`python tests/test_notebooks.py` runs them all and stores them with their outputs.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install 'eqxbert[test]'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'eqxbert[test]'")
pytest.importorskip("ipykernel", reason="needs ipykernel: pip install 'eqxbert[test]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'eqxbert[test]'")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

# A home, a temporary folder, a mounted disk, an installed package, a folder on a Windows drive.
_MACHINE_PATH = re.compile(r"/(?:home|root|Users|tmp|var|opt|mnt|usr)/|site-packages|\b[A-Z]:\\")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(notebook: Any, folder: Path) -> Any:
    """Runs a notebook in `folder`. An error in a cell is raised."""
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute()


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_runs(path, minilm, tmp_path, monkeypatch):
    for name in ("EQXBERT_TYPECHECK", "JAX_DISABLE_MOST_OPTIMIZATIONS"):  # as a user has it
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stored = read(path)
    ran = run(read(path), tmp_path)
    for cell, stored_cell in zip(code_cells(ran), code_cells(stored), strict=True):
        kinds = [output.output_type for output in cell.outputs]
        stored_kinds = [output.output_type for output in stored_cell.outputs]
        assert kinds == stored_kinds, f"cell {cell.id}: run the notebook again and store it"


@each_notebook
def test_is_stored_as_it_ran(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)
    for cell in cells:
        assert "execution" not in cell.metadata, f"cell {cell.id} has times, which always differ"
        for output in cell.outputs:
            assert output.output_type != "error", f"cell {cell.id} failed: {output.evalue}"
            assert output.get("name") != "stderr", f"cell {cell.id} warns: {output.text}"


@each_notebook
def test_shows_no_path_of_one_machine(path):
    for cell in read(path).cells:
        texts = [cell.source]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts.append(output.get("text", ""))
            texts += [str(data[kind]) for kind in data if not kind.startswith("image/")]
        for text in texts:
            found = _MACHINE_PATH.search(text)
            assert found is None, f"cell {cell.id}: {text[max(0, found.start() - 40) :][:120]}"


def _store_all() -> None:
    """Runs all notebooks and stores them, without what differs from run to run."""
    os.environ.pop("EQXBERT_TYPECHECK", None)
    for path in NOTEBOOKS:
        notebook = run(read(path), path.parent)
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _store_all()
