"""The real MiniLM on real sentences, layer by layer, against PyTorch in float64: our float32 must
err no more than PyTorch's own float32, and our bfloat16 no more than PyTorch's own bfloat16.
"""

from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tolerances import ERROR_RATIO

import eqxbert

pytestmark = pytest.mark.optimized

TEXTS = [
    "A man is playing a large flute.",
    "BERT was published in October 2018 by researchers at Google.",
    "Some men are fighting, and a dog looks on without much interest in who wins: it has seen it "
    "all before, in other streets and in better weather, and has its own affairs to attend to.",
    "No.",
]


@pytest.fixture(scope="module")
def batch(minilm: Path) -> dict[str, np.ndarray]:
    return eqxbert.Tokenizer.from_pretrained(minilm)(TEXTS)


@pytest.fixture(scope="module")
def torch_states(minilm: Path, batch: dict[str, np.ndarray]) -> Callable[[str], list[np.ndarray]]:
    model = transformers.BertModel.from_pretrained(minilm)

    def states(dtype: str) -> list[np.ndarray]:
        inputs = {name: torch.tensor(array) for name, array in batch.items()}
        with torch.inference_mode():
            out = model.to(getattr(torch, dtype))(**inputs, output_hidden_states=True)
        return [state.double().numpy() for state in out.hidden_states]

    return states


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_error_is_no_larger_than_pytorchs(minilm, batch, torch_states, dtype):
    exact = torch_states("float64")
    theirs = torch_states(dtype)
    model = eqxbert.BertModel.from_pretrained(minilm, dtype=dtype)
    out = eqx.filter_jit(model)(**batch, output_hidden_states=True)
    ours = [np.asarray(state.astype(jnp.float32), np.float64) for state in out.hidden_states]
    real = batch["attention_mask"].astype(bool)

    def rms_error(states: np.ndarray, reference: np.ndarray) -> float:
        return float(np.sqrt(np.mean((states - reference)[real] ** 2)))

    assert len(ours) == len(exact) == 7
    for layer, (o, t, e) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert rms_error(o, e) <= ERROR_RATIO * rms_error(t, e), f"layer {layer}"
