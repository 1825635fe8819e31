"""Whole checkpoints, looked at or written anew without making a model of them."""

import dataclasses
import inspect
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import DTypeLike

from ..config import CONFIG_FILE, BertConfig
from ..files import Location, read_json
from .containers import LazyTensor
from .dtypes import quantised, target_dtype
from .matching import by_canonical_name, match, named_arrays, without_prefix
from .names import BASE, architecture, has_path, is_ignored, name_to_path
from .pretrained import write_config
from .report import CheckpointError, LoadReport
from .staging import staged_folder
from .ties import find_overridden, settle_ties, with_decoder_bias
from .weights import read_weights, write_weights

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

    - `model`: the class of the model that was tried.
    - `config`: its configuration.
    - `tensors`: shape and dtype of its arrays, by their place in the tree; none has been read.
    - `report`: the fate of each name if such a model were loaded, or None if that would fail.
    - `problem`: why it would fail, or None.
    """

    model: str
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
        yield f"As a {self.model}"
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

    - `model_class`: the class of the model against which the arrays are held.
    - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub.
    - `hub_options`: `revision`, `token`, `subfolder`, `cache_dir`, `local_files_only`.

    **Raises:** as `load` for files that cannot be read; an incomplete model is no error here.
    """
    location = Location.of(path_or_id, **hub_options)
    config, state = BertConfig.from_pretrained(location), read_weights(location)
    found = by_canonical_name(state)
    skeleton = _skeleton(model_class, config, found)
    report, problem = None, None
    try:
        report = match(skeleton, state).report
    except CheckpointError as error:
        problem = str(error)
    in_order = dict.fromkeys(
        name for name in without_prefix(named_arrays(skeleton)) if name in found
    )
    repeats = {} if report is None else report.tied
    tensors = {
        name_to_path(name) if has_path(name) else name: found[name].tensor
        for name in in_order | found
        if not is_ignored(name) and found[name].name not in repeats
    }
    return Inspection(model_class.__name__, config, tensors, report, problem)


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
    found = by_canonical_name(state)
    try:
        report = match(_skeleton(model_class, config, found), state).report
    except CheckpointError as error:
        raise CheckpointError(f"{location}: {error}") from None

    found = {name: entry for name, entry in found.items() if not is_ignored(name)}
    heads = {name for name in found if has_path(name) and not name.startswith(BASE)}
    repeats = ()
    if any(name.startswith("cls.predictions.") for name in heads):
        found, repeats = settle_ties(found, tied=config.tie_word_embeddings)
    kept = {name: entry for name, entry in found.items() if has_path(name)}
    if problems := quantised({name: entry.tensor for name, entry in kept.items()}):
        raise CheckpointError(f"{location}: " + problems[0])
    arrays = with_decoder_bias(
        {
            name: np.asarray(
                tensor.read(), tensor.dtype if dtype == "auto" else target_dtype(dtype, {})
            )
            for name, (_, tensor) in kept.items()
        }
    )
    overridden = find_overridden(repeats, arrays, tied=config.tie_word_embeddings)
    if heads:  # transformers names the base of a model with a head so
        arrays = {("bert." if n.startswith(BASE) else "") + n: x for n, x in arrays.items()}
    if config.architectures:
        config = config.replace(architectures=tuple(map(architecture, config.architectures)))
    with staged_folder(folder) as staging:
        write_weights(arrays, staging)
        write_config(config, arrays, staging)
        for companion in _COMPANIONS:
            if path := location.find(companion):
                shutil.copyfile(path, staging / companion)
        _convert_modules(location, staging)
    written = {entry.name: name for name, entry in kept.items()}
    tied = {entry.name: name for entry, name in repeats}
    return dataclasses.replace(
        report,
        loaded=written,
        tied=tied,
        overridden=overridden,
        unexpected=tuple(n for n in report.unexpected if n not in written and n not in tied),
    )


def _convert_modules(location: Location, folder: Path) -> None:
    """Writes sentence-transformers' modules that follow the model, each in a folder of its own."""
    modules = read_json(location, "modules.json", [], expected=list)
    for module in modules:
        match module:
            case {"path": str(path), "type": str(kind)}:
                source = location.child(path)
            case _:
                raise ValueError(
                    f"{location}: modules.json has {module!r:.100} where a module should be, with "
                    "the texts path and type."
                )
        if path and (config := source.find(CONFIG_FILE)):
            target = folder / path
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(config, target / CONFIG_FILE)
            if kind.endswith(".Dense"):
                tensors = read_weights(source)
                write_weights({name: tensors[name].read() for name in tensors}, target)


def _skeleton(
    model_class: type[eqx.Module], config: BertConfig, names: Mapping[str, object]
) -> eqx.Module:
    """The shapes of a model, with a pooler where the checkpoint has one if that is optional."""
    options = {}
    if "add_pooling_layer" in inspect.signature(model_class).parameters:
        options["add_pooling_layer"] = any(name.startswith("pooler.") for name in names)
    construct: Any = model_class
    return eqx.filter_eval_shape(construct, config, key=jax.random.key(0), **options)
