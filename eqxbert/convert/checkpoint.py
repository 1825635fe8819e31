"""Whole checkpoints, looked at or written anew without making a model of them."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import DTypeLike

from ..config import BertConfig
from ..files import Location, is_inside
from .containers import LazyTensor
from .names import BASE, canonical_names, has_path, is_ignored, name_to_path
from .pretrained import WEIGHTS, read_weights, write_config, write_weights
from .report import CheckpointError, LoadReport
from .staging import staged_folder
from .state_dict import check, named_arrays, quantised, target_dtype

# Files beside the weights that belong to a model as well.
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    # sentence-transformers'
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What is in a checkpoint; as text, for people to read.

    - `config`: its configuration.
    - `tensors`: shape and dtype of its arrays, by their place in the tree; none has been read.
    - `report`: the fate of each name if a base model were loaded, or None if that would fail.
    - `problem`: why it would fail, or None.
    """

    config: BertConfig
    tensors: Mapping[str, LazyTensor]
    report: LoadReport | None
    problem: str | None

    def __str__(self) -> str:
        return "\n".join([*self._config_lines(), "", *self._array_lines(), "", *self._verdict()])

    def _config_lines(self) -> Iterator[str]:
        defaults = BertConfig().to_dict()
        values = self.config.to_dict()
        yield "Configuration (where it differs from bert-base-uncased)"
        changed = {key: value for key, value in values.items() if defaults.get(key) != value}
        width = max(map(len, changed), default=0)
        yield from (f"  {key:{width}}  {value}" for key, value in sorted(changed.items()))

    def _array_lines(self) -> Iterator[str]:
        """A line for each array, those of equal layers only once."""
        layers = _equal_layers(self.tensors)
        rows = []
        for name, tensor in self.tensors.items():
            match = _LAYER.match(name)
            if match and layers:
                if match.group(1) != "0":
                    continue
                name = f"encoder.layers.{{0..{layers - 1}}}.{name[match.end() :]}"
            shape = " x ".join(map(str, tensor.shape))
            rows.append((name, shape, tensor.dtype, f"{math.prod(tensor.shape):,}"))
        header = ("Arrays", "shape", "dtype", "parameters")
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for first, *rest in (header, *rows):
            yield f"{first:{widths[0] + 2}}" + "".join(
                f"{cell:>{width + 2}}" for cell, width in zip(rest, widths[1:], strict=True)
            )
        tensors = self.tensors.values()
        mebibytes = sum(math.prod(t.shape) * _bits(t.dtype) for t in tensors) / 8 / 2**20
        parameters = sum(math.prod(t.shape) for t in tensors)
        yield f"In all {parameters:,} parameters, {mebibytes:,.1f} MiB"

    def _verdict(self) -> Iterator[str]:
        yield "As a BertModel"
        if self.problem is not None:
            yield from (f"  {line}" for line in self.problem.splitlines())
        if self.report is not None:
            yield from (f"  {line}" for line in str(self.report).splitlines())


def _bits(dtype: str) -> int:
    """The bits of an element; in the names of dtypes that NumPy does not know, too."""
    match = re.search(r"\d+", dtype)
    return int(match.group()) if match else 8


_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


def _equal_layers(tensors: Mapping[str, LazyTensor]) -> int:
    """The number of layers if all have arrays of the same names, shapes and dtypes, else 0."""
    layers: dict[str, set[tuple[str, tuple[int, ...], str]]] = {}
    for path, tensor in tensors.items():
        if match := _LAYER.match(path):
            entry = (path[match.end() :], tensor.shape, tensor.dtype)
            layers.setdefault(match.group(1), set()).add(entry)
    return len(layers) if layers and all(x == layers.get("0") for x in layers.values()) else 0


def inspect_checkpoint(
    model_class: type[eqx.Module], path_or_id: str | PathLike[str], **hub_options: Any
) -> Inspection:
    """Looks at a checkpoint without reading its arrays.

    **Arguments:**

    - `model_class`: the class of the base model, against which the arrays are held.
    - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub.
    - `hub_options`: `revision`, `token`, `subfolder`, `cache_dir`, `local_files_only`.

    **Raises:** as `load` for files that cannot be read; an incomplete model is no error here.
    """
    location = Location.of(path_or_id, **hub_options)
    config, state = BertConfig.from_pretrained(location), read_weights(location)
    names = {canonical: name for name, canonical in canonical_names(state).items()}
    skeleton = _skeleton(model_class, config, names)
    in_order = dict.fromkeys(name for name in named_arrays(skeleton) if name in names) | names
    tensors = {
        name_to_path(name) if has_path(name) else name: state[names[name]]
        for name in in_order
        if not is_ignored(name)
    }
    report, problem = None, None
    try:
        report = check(skeleton, state)
    except CheckpointError as error:
        problem = str(error)
    return Inspection(config, tensors, report, problem)


def convert_checkpoint(
    model_class: type[eqx.Module],
    path_or_id: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    dtype: DTypeLike = "auto",
    **hub_options: Any,
) -> LoadReport:
    """Writes a checkpoint anew: its arrays, heads included, under today's names as safetensors,
    with config.json and the tokenizer's files. Buffers and unknown arrays are left out.

    **Arguments:**

    - `model_class`: the class of the base model, which must be complete.
    - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub.
    - `folder`: where to; what is replaced there stays whole until all is written.
    - `dtype`: what the arrays become; each stays what it is if "auto".
    - `hub_options`: `revision`, `token`, `subfolder`, `cache_dir`, `local_files_only`.

    **Returns:** the fate of each name.

    **Raises:** as `load`.
    """
    location = Location.of(path_or_id, **hub_options)
    config, state = BertConfig.from_pretrained(location), read_weights(location)
    names = {canonical: name for name, canonical in canonical_names(state).items()}
    try:
        report = check(_skeleton(model_class, config, names), state)
    except CheckpointError as error:
        raise CheckpointError(f"{location}: {error}") from None

    kept = {name: state[names[name]] for name in names if has_path(name)}
    if problems := quantised(kept):
        raise CheckpointError(f"{location}: " + problems[0])
    heads = [name for name in kept if not name.startswith(BASE)]
    prefix = "bert." if heads else ""  # as transformers names the base of a model with a head
    arrays = {
        (prefix if name.startswith(BASE) else "") + name: np.asarray(
            tensor.read(), tensor.dtype if dtype == "auto" else target_dtype(dtype, {})
        )
        for name, tensor in kept.items()
    }
    written = {names[name] for name in heads}
    with staged_folder(folder) as staging:
        write_weights(arrays, staging)
        write_config(config, arrays, staging)
        for companion in (*_COMPANIONS, *_files_of_modules(location)):
            if path := location.find(companion):
                (staging / companion).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, staging / companion)
    return dataclasses.replace(
        report,
        loaded={**report.loaded, **{names[name]: name for name in heads}},
        unexpected=tuple(name for name in report.unexpected if name not in written),
    )


def _files_of_modules(location: Location) -> list[str]:
    """The files of sentence-transformers' modules that follow the model, each in a folder."""
    path = location.find("modules.json")
    modules = json.loads(path.read_text(encoding="utf-8")) if path else []
    folders = [module["path"] for module in modules if module["path"]]
    if not all(map(is_inside, folders)):
        raise ValueError(f"{path} names folders outside of its own: {folders}.")
    return [f"{folder}/{name}" for folder in folders for name in ("config.json", WEIGHTS)]


def _skeleton(
    model_class: type[eqx.Module], config: BertConfig, names: Mapping[str, object]
) -> eqx.Module:
    """The shapes of the base model, with a pooler where the checkpoint has one."""
    return eqx.filter_eval_shape(
        model_class,
        config,
        add_pooling_layer=any(name.startswith("pooler.") for name in names),
        key=jax.random.key(0),
    )
