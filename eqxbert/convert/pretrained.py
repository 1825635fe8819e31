"""Models from checkpoints, and checkpoints from models."""

import dataclasses
import inspect
import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeVar

import equinox as eqx
import numpy as np
from jaxtyping import DTypeLike, PRNGKeyArray

from ..config import CONFIG_FILE, BertConfig
from ..files import Location
from .containers import LazyTensor
from .dtypes import quantised
from .names import architecture
from .report import CheckpointError, LoadReport
from .staging import staged_folder
from .state_dict import apply_state, to_state_dict
from .weights import read_weights, write_weights

logger = logging.getLogger("eqxbert")

Model = TypeVar("Model", bound=eqx.Module)


@dataclasses.dataclass(frozen=True)
class Loaded(Generic[Model]):
    """What `load` returns: the model, the configuration as the checkpoint has it (with the changes
    asked for), and what was found in the checkpoint.
    """

    model: Model
    config: Any
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
    - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub. The weights
        in it may be in safetensors, PyTorch's, Flax's or TensorFlow 1's format. Where there are
        several, or their file has an unusual name, the path of that file.
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
    wrong shape or, of the base model, has no place; `ValueError` for files that are damaged or not
    a BERT's; `FileNotFoundError` and `ConnectionError` if there are none.
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
    config, options = _split_changes(
        model_class, config_class_of(model_class).from_pretrained(location), changes
    )
    try:
        model, report = apply_state(
            model_class,
            config.without_provenance(),
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
            "%s lacks %s%s. They were drawn anew and need training.",
            location,
            ", ".join(report.initialized),
            ", or has them in another shape" if report.mismatched else "",
        )
    trained_as = config.architectures or ()
    if "classifier.weight" in report.loaded.values() and model_class.__name__ not in trained_as:
        logger.warning(
            "%s: the classifier of %s is taken for that of %s.",
            location,
            " and ".join(trained_as) or "an unnamed class",
            model_class.__name__,
        )
    return Loaded(model, config, report)


def config_class_of(model_class: type[eqx.Module]) -> Any:
    """The class of a model's configuration: what it says, or `BertConfig`."""
    return getattr(model_class, "config_class", BertConfig)


def _split_changes(
    model_class: type[eqx.Module], config: Any, changes: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The changed configuration, and those of the `changes` that are options of the class."""
    fields = {field.name for field in dataclasses.fields(config)}
    options = {name: value for name, value in changes.items() if name not in fields}
    unknown = options.keys() - inspect.signature(model_class).parameters.keys()
    if unknown:
        raise TypeError(
            f"{', '.join(sorted(unknown))}: neither a field of {type(config).__name__} nor an "
            f"option of {model_class.__name__}."
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
    config = model.config.replace(architectures=(architecture(type(model).__name__),))
    write_config(config, state, folder)


def write_config(config: Any, state: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes config.json, which also says what dtype the arrays have, if all have the same."""
    dtypes = {array.dtype.name for array in state.values()}
    config = config.replace(dtype=dtypes.pop() if len(dtypes) == 1 else None)
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
