"""How much memory loading takes: the model, and little besides."""

import sys
from pathlib import Path

import numpy as np
import pytest
from convert.checkpoints import write_config, write_index
from helpers import run_python
from safetensors.numpy import save_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

BASE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}

# Prints the growth of the resident memory at its greatest, over what an idle jax has.
MEASURE = """
import jax.numpy as jnp
import eqxbert

def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

jnp.arange(3).sum().block_until_ready()
try:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # makes the present size the greatest so far
except OSError:
    pass
before = resident("VmHWM")
model = eqxbert.BertModel.from_pretrained({folder!r}, dtype={dtype!r})
print(resident("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def base_state() -> dict[str, np.ndarray]:
    """Random arrays of the shapes of bert-base-uncased."""
    generator = np.random.default_rng(0)
    layer = {
        "attention.self.query.weight": (768, 768),
        "attention.self.query.bias": (768,),
        "attention.self.key.weight": (768, 768),
        "attention.self.key.bias": (768,),
        "attention.self.value.weight": (768, 768),
        "attention.self.value.bias": (768,),
        "attention.output.dense.weight": (768, 768),
        "attention.output.dense.bias": (768,),
        "attention.output.LayerNorm.weight": (768,),
        "attention.output.LayerNorm.bias": (768,),
        "intermediate.dense.weight": (3072, 768),
        "intermediate.dense.bias": (3072,),
        "output.dense.weight": (768, 3072),
        "output.dense.bias": (768,),
        "output.LayerNorm.weight": (768,),
        "output.LayerNorm.bias": (768,),
    }
    shapes = {
        "embeddings.word_embeddings.weight": (30522, 768),
        "embeddings.position_embeddings.weight": (512, 768),
        "embeddings.token_type_embeddings.weight": (2, 768),
        "embeddings.LayerNorm.weight": (768,),
        "embeddings.LayerNorm.bias": (768,),
        **{f"encoder.layer.{i}.{n}": shape for i in range(12) for n, shape in layer.items()},
        "pooler.dense.weight": (768, 768),
        "pooler.dense.bias": (768,),
    }
    return {n: generator.random(shape, dtype=np.float32) for n, shape in shapes.items()}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, base_state: dict[str, np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("single")
    save_file(base_state, folder / "model.safetensors")
    write_config(folder, **BASE)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, base_state: dict[str, np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    names = list(base_state)
    weight_map = {}
    for number in range(4):
        part, file = names[number::4], f"model-{number + 1:05d}-of-00004.safetensors"
        save_file({name: base_state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, {"weight_map": weight_map})
    write_config(folder, **BASE)
    return folder


@pytest.mark.parametrize("kind", ["single", "sharded"])
@pytest.mark.parametrize(
    ("dtype", "size", "limit"),
    [("float32", 1.0, 1.3), ("bfloat16", 0.5, 0.8)],  # as shares of what is on disk
)
def test_loading_takes_little_more_memory_than_the_model(
    request: pytest.FixtureRequest, kind: str, dtype: str, size: float, limit: float
) -> None:
    folder = request.getfixturevalue(kind)
    on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert on_disk > 430e6
    result = run_python(MEASURE.format(folder=str(folder), dtype=dtype))
    assert result.returncode == 0, result.stderr
    taken = int(result.stdout) / on_disk
    assert 0.9 * size < taken < limit
