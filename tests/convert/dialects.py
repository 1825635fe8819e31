"""The same weights in every container, under the names that belong to it, written without the code
that is being tested.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convert.checkpoints import as_numpy
from convert.containers.bundles import write_bundle
from convert.containers.messagepack import array, packed
from safetensors.numpy import save_file

State = dict[str, np.ndarray]


def write(kind: str, folder: Path, model: Any) -> Path:
    """A folder with a model of transformers in one of the `KINDS`, and its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind != "tensorflow":
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
    KINDS[kind](folder, model)
    return folder


# PyTorch


def write_torch_zip(folder: Path, model: Any) -> None:
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def write_torch_legacy(folder: Path, model: Any) -> None:
    path = folder / "pytorch_model.bin"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def write_torch_shards(folder: Path, model: Any) -> None:
    """As transformers 4 wrote them."""
    state = dict(model.state_dict())
    names = list(state)
    write_shards(
        folder,
        "pytorch_model.bin",
        [names[:9], names[9:20], names[20:]],
        lambda path, part: torch.save({name: state[name] for name in part}, path),
    )


def write_shards(
    folder: Path, file: str, parts: list[list[str]], save: Callable[[Path, list[str]], object]
) -> None:
    """Shards of the arrays named in each of the `parts`, and an index."""
    stem, suffix = file.rsplit(".", 1)
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        shard = f"{stem}-{number:05d}-of-{len(parts):05d}.{suffix}"
        save(folder / shard, part)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{file}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


# safetensors


def write_safetensors(folder: Path, model: Any) -> None:
    model.save_pretrained(folder)


def write_safetensors_shards(folder: Path, model: Any) -> None:
    model.save_pretrained(folder, max_shard_size="3KB")


def write_safetensors_of(form: str | None) -> Callable[[Path, Any], None]:
    """With another format, or none, in the metadata."""

    def write(folder: Path, model: Any) -> None:
        metadata = None if form is None else {"format": form}
        save_file(without_repeats(model), folder / "model.safetensors", metadata=metadata)

    return write


def without_repeats(model: Any) -> State:
    """The arrays of a model without those of the decoder, which repeat others."""
    repeats = "cls.predictions.decoder."
    return {name: value for name, value in as_numpy(model).items() if not name.startswith(repeats)}


# Flax


def flax_name(name: str) -> str:
    """What Flax calls an array; one that ends in "kernel" it stores transposed."""
    module, _, last = name.rpartition(".")
    if last == "weight":
        last = "kernel"
        if module.endswith("LayerNorm"):
            last = "scale"
        elif module.endswith("_embeddings"):
            last = "embedding"
    return f"{module}.{last}".replace(".", "/")


def flax_state(model: Any) -> State:
    """The arrays by the names that Flax gives them, and in the layout."""
    return _with_kernels({flax_name(n): value for n, value in without_repeats(model).items()})


def _with_kernels(state: State) -> State:
    """The arrays with those transposed that are named so."""
    return {
        name: np.ascontiguousarray(value.T) if name.endswith("kernel") else value
        for name, value in state.items()
    }


def nested(state: Mapping[str, Any]) -> dict[str, Any]:
    """Dicts in dicts, one for each part of a name."""
    tree: dict[str, Any] = {}
    for name, value in state.items():
        *path, last = name.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def flax_bytes(tree: dict[str, Any]) -> bytes:
    """A file of Flax's, by its own writer where that is installed."""
    if importlib.util.find_spec("flax") is None:
        return packed(_packed_arrays(tree))
    from flax import serialization

    return serialization.to_bytes(tree)


def _packed_arrays(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _packed_arrays(value) for key, value in tree.items()}
    if isinstance(tree, np.ndarray):
        return array(list(tree.shape), tree.dtype.name, tree.tobytes())
    return tree


def write_flax(folder: Path, model: Any) -> None:
    (folder / "flax_model.msgpack").write_bytes(flax_bytes(nested(flax_state(model))))


def write_flax_shards(folder: Path, model: Any) -> None:
    """With the parts of names joined by "/" in the index."""
    state = flax_state(model)
    names = list(state)

    def save(path: Path, part: list[str]) -> None:
        path.write_bytes(flax_bytes(nested({name: state[name] for name in part})))

    write_shards(folder, "flax_model.msgpack", [names[:9], names[9:20], names[20:]], save)


def write_flax_safetensors(folder: Path, model: Any) -> None:
    state = {name.replace("/", "."): value for name, value in flax_state(model).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "flax"})


# TensorFlow 1


# Arrays that Google's code names as a whole, and does not transpose.
_GOOGLES_NAMES = {
    "cls.predictions.bias": "cls/predictions/output_bias",
    "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
    "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
    "classifier.weight": "output_weights",
    "classifier.bias": "output_bias",
    "qa_outputs.weight": "cls/squad/output_weights",
    "qa_outputs.bias": "cls/squad/output_bias",
}


def tensorflow_name(name: str) -> str:
    """What Google's code calls an array; one that ends in "kernel" it stores transposed."""
    if name in _GOOGLES_NAMES:
        return _GOOGLES_NAMES[name]
    module, _, last = name.rpartition(".")
    if module.endswith("_embeddings"):
        name = module
    elif module.endswith("LayerNorm"):
        name = f"{module}.{'gamma' if last == 'weight' else 'beta'}"
    elif last == "weight":
        name = f"{module}.kernel"
    name = re.sub(r"encoder\.layer\.(\d+)", r"encoder.layer_\1", name)
    if not name.startswith(("bert.", "cls.")):
        name = f"bert.{name}"
    return name.replace(".", "/")


def tensorflow_state(model: Any) -> State:
    """The arrays by the names that Google's code gives them, and in the layout."""
    return _with_kernels({tensorflow_name(n): value for n, value in without_repeats(model).items()})


# What Google's bert_config.json says.
_GOOGLES_KEYS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)


def write_tensorflow(folder: Path, model: Any) -> None:
    values = {key: getattr(model.config, key) for key in _GOOGLES_KEYS}
    (folder / "bert_config.json").write_text(json.dumps(values, indent=2))
    state = tensorflow_state(model) | {"global_step": np.array(7, np.int64)}
    pooler = "bert/pooler/dense/kernel"
    if pooler in state:
        state |= {f"{pooler}/adam_{m}": np.zeros_like(state[pooler]) for m in "mv"}
    write_bundle(folder / "bert_model.ckpt", state)


KINDS: dict[str, Callable[[Path, Any], None]] = {
    "safetensors": write_safetensors,
    "safetensors shards": write_safetensors_shards,
    "safetensors, no format": write_safetensors_of(None),
    "safetensors, format tf": write_safetensors_of("tf"),
    "torch zip": write_torch_zip,
    "torch legacy": write_torch_legacy,
    "torch shards": write_torch_shards,
    "flax": write_flax,
    "flax shards": write_flax_shards,
    "flax safetensors": write_flax_safetensors,
    "tensorflow": write_tensorflow,
}
