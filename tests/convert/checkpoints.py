"""Tiny checkpoints for the tests of this folder, written without the code that is being tested."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from helpers import TINY, tiny_config
from safetensors.numpy import load_file, save_file

import eqxbert
from eqxbert.convert import to_state_dict


def torch_bert(
    model_class: type[Any] = transformers.BertModel, *, seed: int = 0, **changes: Any
) -> Any:
    """A tiny model of transformers in which no two arrays are equal, biases and norms included."""
    torch.manual_seed(seed)
    model = model_class(transformers.BertConfig(**TINY | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def as_numpy(model: Any) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch model by name."""
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def write_checkpoint(folder: Path, state: Mapping[str, np.ndarray], **config_values: Any) -> Path:
    """A folder with a config.json and a model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / "model.safetensors")
    write_config(folder, **config_values)
    return folder


def write_config(folder: Path, **values: Any) -> None:
    values = {"model_type": "bert"} | TINY | values
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")


def write_sharded(folder: Path, state: Mapping[str, np.ndarray], *, shards: int = 2) -> Path:
    """A folder with a config.json, an index and as many shards."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, {"metadata": {}, "weight_map": weight_map})
    write_config(folder)
    return folder


def write_index(folder: Path, index: Any) -> None:
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def new_model(seed: int = 0, **changes: Any) -> eqxbert.BertModel:
    """A tiny model with the arrays of `torch_bert(seed=seed)`."""
    state = as_numpy(torch_bert(seed=seed, **changes))
    return eqxbert.convert.from_state_dict(eqxbert.BertModel, tiny_config(**changes), state)


def assert_same_arrays(found: Any, expected: Any) -> None:
    """That two models, or dictionaries of arrays by name, agree in every bit and every dtype."""
    found, expected = _arrays(found), _arrays(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def digest(model: Any) -> str:
    """A text that two models share only if `assert_same_arrays` holds for them."""
    text = hashlib.sha256()
    for name, array in sorted(_arrays(model).items()):
        text.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return text.hexdigest()


def _arrays(model: Any) -> dict[str, np.ndarray]:
    state = model if isinstance(model, Mapping) else to_state_dict(model)
    return {name: np.asarray(array) for name, array in state.items()}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def arrays_in(folder: Path) -> dict[str, np.ndarray]:
    """The arrays in the safetensors files of a folder."""
    state = {}
    for path in folder.glob("*.safetensors"):
        state |= load_file(path)
    return state
