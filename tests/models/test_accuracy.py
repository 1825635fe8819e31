"""Layer by layer, against PyTorch in float64: where products are asked to be as exact as they can
be, our float32 must err no more than PyTorch's own float32, and our bfloat16 no more than PyTorch's
own bfloat16.
"""

from pathlib import Path

import equinox as eqx
import jax
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


def run_pytorch(
    model: transformers.BertModel, batch: dict[str, np.ndarray], dtype: str
) -> list[np.ndarray]:
    inputs = {name: torch.tensor(array) for name, array in batch.items()}
    with torch.inference_mode():
        out = model.to(getattr(torch, dtype))(**inputs, output_hidden_states=True)
    return [state.double().numpy() for state in out.hidden_states]


def check_errors(folder: Path, batch: dict[str, np.ndarray], dtype: str) -> None:
    reference = transformers.BertModel.from_pretrained(folder).eval()
    exact = run_pytorch(reference, batch, "float64")
    theirs = run_pytorch(reference, batch, dtype)
    model = eqxbert.BertModel.from_pretrained(folder, dtype=dtype)
    with jax.default_matmul_precision("highest"):
        out = eqx.filter_jit(model)(**batch, output_hidden_states=True)
    ours = [np.asarray(state.astype(jnp.float32), np.float64) for state in out.hidden_states]
    real = batch["attention_mask"].astype(bool)

    def rms_error(states: np.ndarray, reference: np.ndarray) -> float:
        return float(np.sqrt(np.mean((states - reference)[real] ** 2)))

    assert len(ours) == len(exact) == model.config.num_hidden_layers + 1
    for layer, (o, t, e) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert rms_error(o, e) <= ERROR_RATIO * rms_error(t, e), f"layer {layer}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_minilm_errs_no_more_than_in_pytorch(minilm, dtype):
    check_errors(minilm, eqxbert.Tokenizer.from_pretrained(minilm)(TEXTS), dtype)


@pytest.mark.parametrize("shape", [(1, 16), (4, 50), (1, 300)])
def test_long_sums_err_no_more_than_in_pytorch(tmp_path, shape):
    """Of 768 and 3,072 terms, as in BERT-base."""
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=500, num_hidden_layers=2))
    model.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 500, shape, np.int32)
    mask = np.ones_like(ids)
    mask[0, -3:] = 0
    check_errors(tmp_path, {"input_ids": ids, "attention_mask": mask}, "float32")
