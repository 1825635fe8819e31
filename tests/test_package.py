"""The package as a whole: which way imports point, what an import costs, that nothing more than the
declared dependencies is needed.
"""

import ast
from pathlib import Path

import pytest
from helpers import run_python

import eqxbert

PACKAGE = Path(eqxbert.__file__).parent

# Each part may import itself and those it names.
MAY_IMPORT = {
    "files": set(),
    "frozen_dict": set(),
    "compilation_cache": set(),
    "config": {"files", "frozen_dict"},
    "encoder_decoder_config": {"config", "files", "frozen_dict"},
    "freed_memory": set(),
    "nn": set(),
    "checks": {"nn"},
    "outputs": {"nn"},
    "convert": {"config", "files"},
    "models": {"checks", "nn", "config", "encoder_decoder_config", "outputs", "convert"},
    "generation": {"checks", "config", "files", "nn", "outputs"},
    "training": {"config", "convert", "files", "models", "nn", "outputs"},
    "text": {"config", "files", "nn", "outputs", "convert", "models", "training"},
    "pydoc": {"config", "convert", "models", "text", "training"},
    "export": {"convert", "models", "outputs", "text"},
    "cli": {
        "compilation_cache",
        "config",
        "convert",
        "export",
        "files",
        "models",
        "pydoc",
        "text",
    },
}


def imported_parts(path: Path) -> set[str]:
    """The parts of eqxbert that a file imports."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*start, *filter(None, [node.module])])
            names = (
                [f"{base}.{alias.name}" for alias in node.names] if base == "eqxbert" else [base]
            )
        parts |= {name.split(".")[1] for name in names if name.startswith("eqxbert.")}
    return parts


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part == "__init__":
        return
    assert imported_parts(path) <= MAY_IMPORT[part] | {part}


def test_import_checker_sees_imports():
    assert imported_parts(PACKAGE / "models" / "bert.py") == {
        "checks",
        "config",
        "nn",
        "outputs",
        "models",
    }


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_annotations_are_not_postponed(path):
    """Postponed annotations would switch the checks of shapes off, silently."""
    assert "from __future__ import annotations" not in path.read_text(encoding="utf-8")


def test_import_needs_no_extra_and_stays_cheap():
    """Once what it stands on is there, which is a million calls. (Pallas would be 40,000 more.)"""
    result = run_python(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from calls import calls_of

extras = "tokenizers", "huggingface_hub", "tqdm", "beartype", "torch", "transformers", "flax"
sys.modules.update(dict.fromkeys(extras))
import jax, equinox, optax, safetensors
print(calls_of(lambda: exec("import eqxbert")))
""")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 160_000


def test_type_checking_is_off_unless_asked_for():
    result = run_python("""
import jax.numpy as jnp, eqxbert, sys
eqxbert.nn.LayerNorm(4, eps=1e-12)(jnp.zeros((2, 4)))
print("beartype" in sys.modules)
""")
    assert result.stdout.strip() == "False", result.stderr
