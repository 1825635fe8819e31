"""Models from checkpoints, and checkpoints from models."""

import dataclasses
import inspect
import json
import logging
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeVar

import equinox as eqx
import numpy as np
from jaxtyping import DTypeLike, PRNGKeyArray

from ..config import CONFIG_FILE, BertConfig
from ..files import Location, is_inside
from .containers import LazyTensor, read_safetensors, write_safetensors
from .report import CheckpointError, LoadReport
from .staging import staged_folder
from .state_dict import apply_state, quantised, to_state_dict

logger = logging.getLogger("eqxbert")

Model = TypeVar("Model", bound=eqx.Module)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Loaded(Generic[Model]):
    """What `load` returns: the model, the configuration as the checkpoint has it (with the changes
    asked for), and what was found in the checkpoint.
    """

    model: Model
    config: BertConfig
    report: LoadReport


def load(
    model_class: type[Model],
    path_or_id: str | PathLike[str] | Location,
    *,
    dtype: DTypeLike | None = None,
    key: PRNGKeyArray | None = None,
    ignore_mismatched_sizes: bool = False,
    ignore_unexpected: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    **changes: Any,
) -> Loaded[Model]:
    """Reads a model from a checkpoint, without PyTorch.

    Every array of the model is filled exactly once, and every name in the checkpoint is used,
    ignored for a reason, or reported.

    **Arguments:**

    - `model_class`: the class of the model, such as `BertModel`.
    - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub.
    - `dtype`: what floating-point arrays become; float32 if None, and what the checkpoint has if
        "auto".
    - `key`: a PRNG key to draw arrays that the checkpoint lacks, such as a new head's. Without one,
        lacking any is an error.
    - `ignore_mismatched_sizes`: with a `key`, draw anew also the arrays whose shape is another.
    - `ignore_unexpected`: accept arrays of the base model that have no place in this one, such as
        the upper layers when `num_hidden_layers` is smaller than the checkpoint's.
    - `revision`, `token`, `cache_dir`, `local_files_only`: as in `huggingface_hub`, whose
        environment variables (`HF_HUB_OFFLINE`, `HF_HOME`, ...) count too.
    - `subfolder`: the folder inside of the folder or the repository.
    - `changes`: fields of the configuration to change (`num_labels=9`), and options of the class
        (`add_pooling_layer=False`).

    **Raises:** `CheckpointError` (a `ValueError`) listing every array that is missing, has the
    wrong shape or has no place; `ValueError` for files that are damaged or not a BERT's;
    `FileNotFoundError` and `ConnectionError` if there are none.
    """
    location = path_or_id
    if not isinstance(location, Location):
        location = Location.of(
            location,
            revision=revision,
            token=token,
            subfolder=subfolder,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    config, options = _split_changes(model_class, BertConfig.from_pretrained(location), changes)
    try:
        model, report = apply_state(
            model_class,
            _without_provenance(config),
            read_weights(location),
            dtype=dtype,
            key=key,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            ignore_unexpected=ignore_unexpected,
            **options,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{location}: {error}") from None
    logger.info("%s from %s: %s", model_class.__name__, location, report.summary())
    if report.initialized:
        logger.warning(
            "%s lacks %s. They were drawn anew and need training.",
            location,
            ", ".join(report.initialized),
        )
    return Loaded(model, config, report)


def _without_provenance(config: BertConfig) -> BertConfig:
    """Without what describes the file rather than the model, so that two models that are alike but
    for where they come from have the same tree structure.
    """
    extra = {k: v for k, v in config.extra.items() if k not in _PROVENANCE}
    return config.replace(dtype=None, architectures=None, extra=extra)


_PROVENANCE = ("_name_or_path", "transformers_version")


def read_weights(location: Location) -> dict[str, LazyTensor]:
    """The arrays of a checkpoint by name, none of them read yet.

    **Raises:** `FileNotFoundError` if there are no weights, or shards are missing; `ValueError` if
    a file is damaged, or the index names files outside the folder or arrays that are not there.
    """
    weights = location.find(WEIGHTS)
    if weights is not None:
        return read_safetensors(weights)
    index = location.find(INDEX)
    if index is None:
        location.require(WEIGHTS, f"nor {INDEX}; the model's weights are read from either")
        raise AssertionError  # require() has raised
    return _read_shards(location, _weight_map(index))


def _weight_map(index: Path) -> dict[str, str]:
    """The index's table of which shard holds which array."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not an index of weights: {error!r}.") from error
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: weight_map is a {type(weight_map).__name__}, not an object.")
    for shard in weight_map.values():
        if not (isinstance(shard, str) and is_inside(shard)):
            raise ValueError(f"{index} names {shard!r}, which is not a file in its folder.")
    return weight_map


def _read_shards(location: Location, weight_map: Mapping[str, str]) -> dict[str, LazyTensor]:
    shards = {shard: location.find(shard) for shard in dict.fromkeys(weight_map.values())}
    absent = [shard for shard, path in shards.items() if path is None]
    if absent:
        raise FileNotFoundError(
            f"{location}: {INDEX} names files that are not there: {', '.join(absent)}. The "
            "checkpoint is incomplete; fetch it again."
        )
    tensors = {shard: read_safetensors(path) for shard, path in shards.items() if path is not None}
    lost = [name for name, shard in weight_map.items() if name not in tensors[shard]]
    if lost:
        raise ValueError(
            f"{location}: {INDEX} promises {', '.join(lost)}, which the shards it names lack."
        )
    return {name: tensors[shard][name] for name, shard in weight_map.items()}


def _split_changes(
    model_class: type[eqx.Module], config: BertConfig, changes: dict[str, Any]
) -> tuple[BertConfig, dict[str, Any]]:
    """The changed configuration, and those of the `changes` that are options of the class."""
    fields = {field.name for field in dataclasses.fields(config)}
    options = {name: value for name, value in changes.items() if name not in fields}
    unknown = options.keys() - inspect.signature(model_class).parameters.keys()
    if unknown:
        raise TypeError(
            f"{', '.join(sorted(unknown))}: neither a field of BertConfig nor an option of "
            f"{model_class.__name__}."
        )
    changed = {name: value for name, value in changes.items() if name in fields}
    return config.replace(**changed) if changed else config, options


def save(model: Any, folder: str | PathLike[str], *, max_shard_size: int | str = "5GB") -> None:
    """Writes a model's weights, as safetensors with PyTorch's names, and its config.json.

    Everything is first written under other names and then renamed: if writing fails, or is cut
    off, what was in the folder before is still there, whole. (Cut off in the instant of renaming,
    the folder is without its config.json and does not load; old and new files are in it and in its
    hidden subfolder.) Other files in the folder stay.

    **Arguments:**

    - `model`: the model, which has a `config`.
    - `folder`: where to; made if it does not exist.
    - `max_shard_size`: the greatest size of one file, in bytes or as "500MB" or "5GB" (powers of
        1000). A model that is larger goes into several, with an index.

    **Raises:** `CheckpointError` if the model's arrays are not those that its configuration
    describes; `OSError` if the folder cannot be written.
    """
    with staged_folder(folder) as staging:
        write_model(model, staging, max_shard_size=max_shard_size)


def write_model(model: Any, folder: Path, *, max_shard_size: int | str = "5GB") -> None:
    """What `save` writes, straight into a folder that is there."""
    state = {name: np.asarray(array) for name, array in to_state_dict(model).items()}
    if problems := quantised({name: LazyTensor.of(array) for name, array in state.items()}):
        raise CheckpointError(problems[0])
    write_weights(state, folder, max_shard_size=max_shard_size)
    config = model.config.replace(architectures=(type(model).__name__,))
    write_config(config, state, folder)


def write_config(config: BertConfig, state: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes config.json, which also says what dtype the arrays have, if all have the same."""
    dtypes = {array.dtype.name for array in state.values()}
    config = config.replace(dtype=dtypes.pop() if len(dtypes) == 1 else None)
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")


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
