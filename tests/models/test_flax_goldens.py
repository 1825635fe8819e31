"""The Flax models of transformers 4, from goldens (tests/goldens/flax/): what they saved loads bit
for bit, and what they computed is computed.
"""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import max_difference
from tolerances import FLOAT32

import eqxbert
from eqxbert.models import model_class_of

GOLDENS = Path(__file__).parents[1] / "goldens" / "flax"
CASES = sorted(path.name for path in GOLDENS.iterdir() if path.is_dir())


def golden(case: str, prefix: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / case / "golden.npz") as arrays:
        return {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}


def dtype_of(case: str) -> jnp.dtype:
    with np.load(GOLDENS / case / "golden.npz") as arrays:
        return jnp.dtype(str(arrays["dtype"]))


@cache
def loaded(case: str) -> Any:
    model_class = getattr(eqxbert, case.partition("-")[0])
    return model_class.from_pretrained(GOLDENS / case, dtype="auto")


def in_float32(case: str) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), loaded(case))


def arrays_as_flax_has_them(model: Any) -> dict[str, jax.Array]:
    """The arrays of a model by Flax's names; a linear map's weight is stored (in, out) there."""
    found: dict[str, jax.Array] = {}

    def linear(name: str, x: Any) -> None:
        found[f"{name}/kernel"] = x.weight.T
        if x.bias is not None:
            found[f"{name}/bias"] = x.bias

    def norm(name: str, x: Any) -> None:
        found[f"{name}/scale"], found[f"{name}/bias"] = x.weight, x.bias

    bert = getattr(model, "bert", model)
    found["embeddings/word_embeddings/embedding"] = bert.embeddings.word.weight
    found["embeddings/position_embeddings/embedding"] = bert.embeddings.position.weight
    found["embeddings/token_type_embeddings/embedding"] = bert.embeddings.token_type.weight
    norm("embeddings/LayerNorm", bert.embeddings.norm)
    for i, layer in enumerate(bert.encoder.layers):
        name = f"encoder/layer/{i}"
        for part in ("query", "key", "value"):
            linear(f"{name}/attention/self/{part}", getattr(layer.attention, part))
        linear(f"{name}/attention/output/dense", layer.attention.output)
        norm(f"{name}/attention/output/LayerNorm", layer.attention_norm)
        linear(f"{name}/intermediate/dense", layer.feed_forward.intermediate)
        linear(f"{name}/output/dense", layer.feed_forward.output)
        norm(f"{name}/output/LayerNorm", layer.feed_forward_norm)
    if bert.pooler is not None:
        linear("pooler/dense", bert.pooler.dense)
    if hasattr(model, "lm_head"):
        linear("cls/predictions/transform/dense", model.lm_head.dense)
        norm("cls/predictions/transform/LayerNorm", model.lm_head.norm)
        found["cls/predictions/bias"] = model.lm_head.bias
        if model.lm_head.decoder is not None:
            linear("cls/predictions/decoder", model.lm_head.decoder)
    if hasattr(model, "nsp_head"):
        linear("cls/seq_relationship", model.nsp_head)
    for name in ("classifier", "qa_outputs"):
        if hasattr(model, name):
            linear(name, getattr(model, name))
    return found


def test_every_class_container_and_dtype_occurs():
    assert len({type(loaded(case)) for case in CASES}) == 9
    files = {path.name for path in GOLDENS.rglob("*") if path.is_file()}
    assert {"flax_model.msgpack", "flax_model.msgpack.index.json", "model.safetensors"} <= files
    assert {str(dtype_of(case)) for case in CASES} == {"float32", "float16", "bfloat16"}


@pytest.mark.parametrize("case", CASES)
def test_what_flax_saved_loads_bit_for_bit(case):
    model, dtype = loaded(case), dtype_of(case)
    with np.load(GOLDENS / "bert.npz") as arrays:
        expected = dict(arrays) | golden(case, "head/")
    if getattr(model, "bert", model).pooler is None:
        expected = {k: x for k, x in expected.items() if not k.startswith("pooler/")}
    found = arrays_as_flax_has_them(model)
    assert found.keys() == expected.keys()
    assert len(jax.tree.leaves(model)) == len(found)
    for name, array in found.items():
        assert array.dtype == dtype, name
        assert array.shape == expected[name].shape, name
        assert np.asarray(array).tobytes() == expected[name].astype(dtype).tobytes(), name


@pytest.mark.parametrize("case", CASES)
def test_the_class_that_was_saved_is_known(case):
    config = eqxbert.BertConfig.from_pretrained(GOLDENS / case)
    assert model_class_of(config) is type(loaded(case))


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_flax(case):
    expected = golden(case, "output/")
    inputs = golden(case, "input/")
    out = in_float32(case)(**inputs, output_hidden_states=True, output_attentions=True)
    assert list(out.keys()) == list(expected)
    for name, reference in expected.items():
        found = out[name]
        if isinstance(found, tuple):  # of each layer; Flax has the choices in the axis of the batch
            found = np.reshape(np.stack(found), reference.shape)
        assert max_difference(found, reference) < FLOAT32, name


@pytest.mark.parametrize("case", CASES)
def test_defaults_are_those_of_flax(case):
    expected = golden(case, "from_ids_alone/")
    out = in_float32(case)(golden(case, "input/")["input_ids"])
    assert list(out.keys()) == list(expected)
    for name, reference in expected.items():
        assert max_difference(out[name], reference) < FLOAT32, name
