"""What the tests of generation share: a decoder that knows what to say, and quick compilation."""

import importlib
from typing import Any

import equinox as eqx
import pytest
import transformers
from generation.references import same_reference, trained_decoder
from quick_jit import QUICKLY

from eqxbert import BertForCausalLM

# (The package has a function of that name.)
generate_module = importlib.import_module("eqxbert.generation.generate")
QUICK: dict[str, Any] = {
    name: eqx.filter_jit(
        getattr(generate_module, name).__wrapped__, donate=donate, compiler_options=QUICKLY
    )
    for name, donate in (("_run", "none"), ("_start", "none"), ("_advance", "all-except-first"))
}


@pytest.fixture(autouse=True)
def quick_compilation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of generation are compiled without optimisation."""
    if "optimised" not in request.fixturenames:
        for name, function in QUICK.items():
            monkeypatch.setattr(generate_module, name, function)


@pytest.fixture
def optimised() -> None:
    """They are compiled as users run them."""


@pytest.fixture(scope="session")
def trained() -> tuple[BertForCausalLM, transformers.BertLMHeadModel]:
    """A decoder that has learnt a toy language, here and in transformers."""
    model = trained_decoder()
    return model, same_reference(model)
