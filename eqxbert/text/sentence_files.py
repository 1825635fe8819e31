"""The layout of sentence-transformers' folders: `modules.json`, and a folder for each module."""

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
from ..convert.containers import read_safetensors, write_safetensors
from ..convert.pretrained import write_model
from ..convert.state_dict import fill, named_arrays
from ..models import BertModel
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


def read_json(location: convert.Location, name: str, default: Any = None) -> Any:
    """The contents of a JSON file, or `default` if there is none of that name."""
    path = location.find(name)
    if path is None:
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def write_json(path: Path, values: Any) -> None:
    """Writes `values` to a JSON file, making its folder."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_modules(location: convert.Location) -> list[tuple[str, convert.Location]]:
    """The kinds of the modules ("Transformer", "Pooling", ...) in order, and where each one is.

    A folder without `modules.json` counts as a BERT with mean pooling, as in sentence-transformers.
    """
    modules = read_json(location, "modules.json")
    if modules is None:
        logger.warning("%s has no modules.json: mean pooling over its tokens is used.", location)
        return [("Transformer", location), ("Pooling", location.child("1_Pooling"))]
    try:
        modules = sorted(modules, key=lambda module: module["idx"])
        kinds = [(module["type"].rpartition(".")[2], module["path"]) for module in modules]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{location}: modules.json is not a list of modules: {error!r}") from error
    supported = ["Transformer", "Pooling", "Dense", "Normalize"]
    unknown = [kind for kind, _ in kinds if kind not in supported]
    if unknown or [kind for kind, _ in kinds][:2] != ["Transformer", "Pooling"]:
        raise ValueError(
            f"{location}: modules.json lists {', '.join(kind for kind, _ in kinds)}. Supported are "
            "a Transformer and a Pooling, followed by any number of Dense and Normalize."
        )
    return [(kind, location.child(path)) for kind, path in kinds]


def read_transformer_config(location: convert.Location) -> dict[str, Any]:
    """`sentence_bert_config.json`, under any of its names, or {}."""
    for name in _TRANSFORMER_CONFIGS:
        values = read_json(location, name)
        if values is not None:
            return values
    return {}


def read_sentence_model(
    modules: list[tuple[str, convert.Location]], dtype: DTypeLike | None
) -> SentenceModel:
    """The modules with their weights."""
    (_, transformer), (_, pooling), *rest = modules
    # The pooler's result is not a module's input, so it is not even read.
    bert = convert.load(BertModel, transformer, dtype=dtype, add_pooling_layer=False).model
    head = [
        _read_dense(place, dtype) if kind == "Dense" else _read_normalize(place)
        for kind, place in rest
    ]
    return SentenceModel(bert, _read_pooling(pooling, bert.config), tuple(head))


def _read_pooling(location: convert.Location, config: BertConfig) -> Pooling:
    values = read_json(location, "config.json", {})
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


def _read_normalize(location: convert.Location) -> Normalize:
    # Its folder may be missing, for it holds nothing: git does not keep empty folders.
    _refuse_other_inputs(location, read_json(location, "config.json", {}))
    return Normalize()


def _read_dense(location: convert.Location, dtype: DTypeLike | None) -> Dense:
    path = location.require("config.json", "which describes the Dense module")
    values = read_json(location, path.name)
    _refuse_other_inputs(location, values)
    activation = str(values.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"{path}: activation_function is {values['activation_function']!r}; known are "
            f"{', '.join(_ACTIVATIONS)}."
        )
    skeleton = eqx.filter_eval_shape(
        Dense,
        values["in_features"],
        values["out_features"],
        use_bias=values.get("bias", True),
        activation=_ACTIVATIONS[activation],
        use_residual=values.get("use_residual", False),
        key=jax.random.key(0),
    )
    tensors = read_safetensors(
        location.require("model.safetensors", "the weights of the Dense module")
    )
    return fill(skeleton, tensors, dtype=dtype)[0]


def _refuse_other_inputs(location: convert.Location, values: Mapping[str, Any]) -> None:
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
    size = {"word_embedding_dimension": model.bert.config.hidden_size}
    modes = {key: mode in model.pooling.modes for key, mode in _MODE_KEYS.items()}
    return size | modes | {"include_prompt": model.pooling.include_prompt}


def _dense_config(dense: Dense) -> dict[str, Any]:
    out_features, in_features = dense.linear.weight.shape
    [activation] = [name for name, ours in _ACTIVATIONS.items() if ours == dense.activation]
    module = "linear" if activation == "Identity" else "activation"
    config = {
        "in_features": in_features,
        "out_features": out_features,
        "bias": dense.linear.bias is not None,
        "activation_function": f"torch.nn.modules.{module}.{activation}",
    }
    return config | ({"use_residual": True} if dense.use_residual else {})
