"""The layout of sentence-transformers' folders: `modules.json`, and a folder for each module."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import DTypeLike

from .. import convert
from ..config import BertConfig
from ..convert.containers import write_safetensors
from ..convert.matching import named_arrays
from ..convert.pretrained import write_model
from ..convert.state_dict import fill
from ..convert.weights import read_weights
from ..files import Location, read_json
from ..models import BertModel
from ..nn import get_activation
from .pooling import Dense, Normalize, Pooling, SentenceModel

logger = logging.getLogger("eqxbert")

# The file that holds max_seq_length and do_lower_case has had many names.
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# Keys of 1_Pooling/config.json in the older of its two dialects, in the order of concatenation.
_MODE_KEYS: dict[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# PyTorch's classes of activations, and the names they have in eqxbert.nn.ACTIVATIONS.
_ACTIVATIONS = {
    "Identity": "linear",
    "Tanh": "tanh",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "LeakyReLU": "leaky_relu",
    "Hardswish": "hardswish",
    "Mish": "mish",
}


def write_json(path: Path, values: Any) -> None:
    """Writes `values` to a JSON file, making its folder."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class ModuleFolders:
    """Where the modules of a sentence encoder are.

    - `transformer`: the BERT and its tokenizer.
    - `pooling`: the pooling's configuration, or None for a BERT without `modules.json`.
    - `head`: the kind ("Dense" or "Normalize") and folder of each module that follows.
    """

    transformer: Location
    pooling: Location | None
    head: tuple[tuple[str, Location], ...]


def read_modules(location: Location) -> ModuleFolders:
    """Reads `modules.json`. A folder without it counts as a BERT with mean pooling, and no other
    file of sentence-transformers is looked at, as in sentence-transformers.
    """
    modules = read_json(location, "modules.json", expected=list)
    if modules is None:
        logger.warning("%s has no modules.json: mean pooling over its tokens is used.", location)
        return ModuleFolders(location, None, ())
    try:
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        folders = [location.child(module["path"]) for module in modules]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{location}: modules.json is not a list of modules: {error!r}") from error
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= {"Dense", "Normalize"}:
        raise ValueError(
            f"{location}: modules.json lists {', '.join(kinds)}. Supported are a Transformer and a "
            "Pooling, followed by any number of Dense and Normalize."
        )
    head = tuple(zip(kinds[2:], folders[2:], strict=True))
    return ModuleFolders(folders[0], folders[1], head)


def read_transformer_config(modules: ModuleFolders) -> dict[str, Any]:
    """`sentence_bert_config.json`, under any of its names, or {}."""
    names = _TRANSFORMER_CONFIGS if modules.pooling is not None else ()
    found = (read_json(modules.transformer, name) for name in names)
    return next((values for values in found if values is not None), {})


def read_sentence_model(modules: ModuleFolders, dtype: DTypeLike | None) -> SentenceModel:
    """The modules with their weights."""
    # The pooler's result is not a module's input, so it is not even read.
    bert = convert.load(BertModel, modules.transformer, dtype=dtype, add_pooling_layer=False).model
    pooling = Pooling()
    if modules.pooling is not None:
        pooling = _read_pooling(modules.pooling, bert.config)
    head, size = [], bert.config.hidden_size * len(pooling.modes)
    for kind, folder in modules.head:
        module = _read_dense(folder, dtype) if kind == "Dense" else _read_normalize(folder)
        if isinstance(module, Dense):
            out_features, in_features = module.linear.weight.shape
            if in_features != size:
                raise ValueError(
                    f"{folder}: takes vectors of size {in_features}, but those that come in have "
                    f"size {size}."
                )
            size = out_features
        head.append(module)
    return SentenceModel(bert, pooling, tuple(head))


def _read_pooling(location: Location, config: BertConfig) -> Pooling:
    path = location.require("config.json", "which says how token vectors are pooled")
    values = read_json(location, path.name)
    size = values.get("embedding_dimension", values.get("word_embedding_dimension"))
    if size is not None and size != config.hidden_size:
        raise ValueError(
            f"{location}: pools vectors of size {size}, but the model's have {config.hidden_size}."
        )
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _MODE_KEYS.items() if values.get(key)] or ["mean"]
    elif isinstance(modes, str):
        modes = [modes]
    return Pooling(tuple(modes), include_prompt=values.get("include_prompt", True))


def _read_normalize(location: Location) -> Normalize:
    # Its folder may be missing, for it holds nothing: git does not keep empty folders.
    _refuse_other_inputs(location, read_json(location, "config.json", {}))
    return Normalize()


def _read_dense(location: Location, dtype: DTypeLike | None) -> Dense:
    path = location.require("config.json", "which describes the Dense module")
    values = read_json(location, path.name)
    _refuse_other_inputs(location, values)
    activation = str(values.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"{path}: activation_function is {values['activation_function']!r}; known are "
            f"{', '.join(_ACTIVATIONS)}."
        )
    sizes = [values.get("in_features"), values.get("out_features")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(
            f"{path}: in_features and out_features must be positive integers, got {sizes}."
        )
    skeleton = eqx.filter_eval_shape(
        Dense,
        *sizes,
        use_bias=values.get("bias", True),
        activation=_ACTIVATIONS[activation],
        use_residual=values.get("use_residual", False),
        key=jax.random.key(0),
    )
    return fill(skeleton, read_weights(location), dtype=dtype)[0]


def _refuse_other_inputs(location: Location, values: Mapping[str, Any]) -> None:
    for key in ("module_input_name", "module_output_name"):
        if values.get(key) not in (None, "sentence_embedding"):
            raise ValueError(
                f"{location}: {key} is {values[key]!r}; only 'sentence_embedding' is supported."
            )


def write_sentence_model(model: SentenceModel, folder: Path) -> None:
    """Writes the modules, `modules.json` among them, for this library and sentence-transformers."""
    write_model(model.bert, folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write_json(folder / "1_Pooling" / "config.json", _pooling_config(model))
    for number, module in enumerate(model.head, start=2):
        kind = type(module).__name__
        path = f"{number}_{kind}"
        modules.append((path, kind))
        if isinstance(module, Dense):
            write_json(folder / path / "config.json", _dense_config(module))
            leaves = named_arrays(module)
            write_safetensors(
                folder / path / "model.safetensors",
                {name: np.asarray(leaf) for name, leaf in leaves.items()},
            )
    listed = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)


def _pooling_config(model: SentenceModel) -> dict[str, Any]:
    """In the older dialect, which every version of sentence-transformers reads, where it can say
    what is meant: it has no order.
    """
    size, modes = model.bert.config.hidden_size, model.pooling.modes
    include_prompt = {"include_prompt": model.pooling.include_prompt}
    if modes == tuple(mode for mode in _MODE_KEYS.values() if mode in modes):
        flags = {key: mode in modes for key, mode in _MODE_KEYS.items()}
        return {"word_embedding_dimension": size} | flags | include_prompt
    return {"embedding_dimension": size, "pooling_mode": list(modes)} | include_prompt


def _dense_config(dense: Dense) -> dict[str, Any]:
    out_features, in_features = dense.linear.weight.shape
    wanted = get_activation(dense.activation)
    names = [name for name, ours in _ACTIVATIONS.items() if get_activation(ours) is wanted]
    if not names:
        raise ValueError(
            f"sentence-transformers has no name for the Dense module's activation "
            f"{dense.activation!r}. It knows {', '.join(_ACTIVATIONS.values())}."
        )
    module = "linear" if names[0] == "Identity" else "activation"
    config = {
        "in_features": in_features,
        "out_features": out_features,
        "bias": dense.linear.bias is not None,
        "activation_function": f"torch.nn.modules.{module}.{names[0]}",
    }
    return config | ({"use_residual": True} if dense.use_residual else {})
