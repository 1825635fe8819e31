"""The files of a checkpoint that hold its arrays: found, read, and written."""

import json
import re
from pathlib import Path

import numpy as np

from ..files import Location, is_inside, read_json
from .containers import LazyTensor, read_container, write_safetensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Where weights are looked for, in this order; each may be in shards, with an index. (Some files in
# such folders are never opened: training_args.bin, optimizer.pt and their like hold no weights.)
_NAMES = (WEIGHTS, "pytorch_model.bin", "flax_model.msgpack")
_TENSORFLOW = "bert_model.ckpt.index"
_TENSORFLOW_DATA = "bert_model.ckpt.data-00000-of-00001"


def read_weights(location: Location) -> dict[str, LazyTensor]:
    """The arrays of a checkpoint by name, none of them read yet.

    **Raises:** `FileNotFoundError` if there are no weights, or shards are missing; `ValueError` if
    a file is damaged, or the index names files outside the folder or arrays that are not there.
    """
    if location.weights is not None:
        path = location.require(location.weights, "which was asked for")
        is_index = path.name.endswith(".index.json")
        return _read_shards(location, path) if is_index else read_container(path)
    for name in _NAMES:
        if path := location.find(name):
            return read_container(path)
        if index := location.find(f"{name}.index.json"):
            return _read_shards(location, index)
    if path := _find_tensorflow(location):
        return read_container(path)
    _raise_no_weights(location)
    raise AssertionError  # it has raised


def _find_tensorflow(location: Location) -> Path | None:
    if location.folder is None:
        location.find(_TENSORFLOW_DATA)  # to have it beside the index
        return location.find(_TENSORFLOW)
    paths = sorted(path for path in location.folder.glob("*.index") if path.is_file())
    if len(paths) > 1:
        raise ValueError(
            f"{location} has several TensorFlow checkpoints: {', '.join(p.name for p in paths)}. "
            "Give the path of the one that is meant."
        )
    return paths[0] if paths else None


def _raise_no_weights(location: Location) -> None:
    if location.find("tf_model.h5"):
        raise ValueError(
            f"{location} has its weights in tf_model.h5 only, Keras's format, which eqxbert does "
            "not read. Save them anew with transformers 4: "
            "BertModel.from_pretrained(folder, from_tf=True).save_pretrained(folder)."
        )
    others = ", ".join(_NAMES[1:])
    location.require(
        WEIGHTS,
        f"nor {others}, an index of their shards, or {_TENSORFLOW}; the model's weights are read "
        "from one of these. If they are in a file of another name, give its path",
    )


def _read_shards(location: Location, index: Path) -> dict[str, LazyTensor]:
    weight_map = read_json(location, index.name).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: weight_map is {weight_map!r:.100}, not an object.")
    for shard in weight_map.values():
        if not (isinstance(shard, str) and is_inside(shard)):
            raise ValueError(f"{index} names {shard!r}, which is not a file in its folder.")
    shards = {shard: location.find(shard) for shard in dict.fromkeys(weight_map.values())}
    absent = [shard for shard, path in shards.items() if path is None]
    if absent:
        raise FileNotFoundError(
            f"{location}: {index.name} names files that are not there: {', '.join(absent)}. The "
            "checkpoint is incomplete; fetch it again."
        )
    tensors = {shard: read_container(path) for shard, path in shards.items() if path is not None}
    lost = [name for name, shard in weight_map.items() if name not in tensors[shard]]
    if lost:
        raise ValueError(
            f"{location}: {index.name} promises {', '.join(lost)}, which the shards it names lack."
        )
    return {name: tensors[shard][name] for name, shard in weight_map.items()}


def _bytes(size: int | str) -> int:
    if isinstance(size, int) and size > 0:
        return size
    match = re.fullmatch(r"(\d+)\s*(KB|MB|GB)", str(size))
    if match is None:
        raise ValueError(f"max_shard_size must be bytes or a text like '5GB', got {size!r}.")
    return int(match.group(1)) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[match.group(2)]


def _split_into_shards(state: dict[str, np.ndarray], limit: int) -> list[dict[str, np.ndarray]]:
    """The arrays in order, as many in each shard as fit, but at least one."""
    shards: list[dict[str, np.ndarray]] = [{}]
    room = limit
    for name, array in state.items():
        if array.nbytes > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = array
        room -= array.nbytes
    return shards


def write_weights(
    state: dict[str, np.ndarray], folder: Path, *, max_shard_size: int | str = "5GB"
) -> None:
    """Writes arrays to one file, or to several and an index where they are too large for one."""
    shards = _split_into_shards(state, _bytes(max_shard_size))
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(array.nbytes for shard in shards for array in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
