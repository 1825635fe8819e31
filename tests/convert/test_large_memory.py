"""How much memory loading takes from each container: the model, and little besides. (Those of
safetensors are in test_memory.py.)
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from convert.checkpoints import torch_bert
from convert.containers import bundles
from convert.containers.cost import costs
from convert.dialects import write

from eqxbert.convert.containers.crc32c import masked_crc32c

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

# The shapes of bert-large, but with fewer layers and words. (Not fewer still: of memory that was
# freed, malloc keeps up to 60 MB, however large the model is.)
LARGE = {
    "vocab_size": 20_000,
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 512,
}


@pytest.fixture(scope="module")
def large() -> transformers.BertModel:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**LARGE)).eval()


@pytest.fixture
def fast_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the writer, which goes byte by byte, would take half a minute."""

    def checksum(data: bytes) -> int:
        return masked_crc32c(np.frombuffer(data, np.uint8))

    monkeypatch.setattr(bundles, "masked_crc32c", checksum)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is empty again afterwards: pytest would keep three of these."""
    yield tmp_path
    shutil.rmtree(tmp_path)


LOAD = "model = eqxbert.BertModel.from_pretrained({folder!r}, dtype={dtype!r})"


@pytest.mark.usefixtures("fast_checksums")
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("torch zip", "float32"),
        ("torch zip", "bfloat16"),
        ("torch legacy", "float32"),
        ("flax", "float32"),
        ("tensorflow", "float32"),
    ],
)
def test_loading_takes_little_more_memory_than_the_model(
    folder: Path, large: Any, kind: str, dtype: str
) -> None:
    write(kind, folder, large)
    total = sum(parameter.nbytes for parameter in large.parameters())
    assert total > 280e6
    small = write(kind, folder / "small", torch_bert())  # which takes what any model does
    loads = (LOAD.format(folder=str(path), dtype=dtype) for path in (small, folder))
    _, cost = costs("import eqxbert", *loads)
    assert cost.outcome == "None"
    size, limit = (0.5, 0.8) if dtype == "bfloat16" else (1, 1.3)
    assert 0.9 * size < cost.memory / total < limit
