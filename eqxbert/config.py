"""The configuration of a BERT, with Hugging Face's field names and `config.json`'s rules."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from .files import HUB_OPTIONS, Location, parse_json
from .frozen_dict import FrozenDict

CONFIG_FILE = "config.json"
_GOOGLES_CONFIG_FILE = "bert_config.json"

# Of the keys that no field stands for, those that describe the file rather than the model.
PROVENANCE = ("_name_or_path", "transformers_version")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class BertConfig:
    """What determines a BERT's architecture and behaviour. The defaults are bert-base-uncased.

    Fields and meanings are those of transformers' `BertConfig`. Keys of a `config.json` that no
    field stands for are kept in `extra` and written back by `to_dict`.

    **Raises:** `ValueError` for values that contradict one another or that no BERT can have. (Of
    `id2label` and `label2id`, the former counts.)
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    classifier_dropout: float | int | None = None
    chunk_size_feed_forward: int = 0
    # Layer -> the heads that were taken out of it.
    pruned_heads: Mapping[int, Sequence[int]] = FrozenDict()

    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    sep_token_id: int | None = None
    cls_token_id: int | None = None

    is_decoder: bool = False
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None
    is_encoder_decoder: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = True

    # Any one of these settles the others; two labels if none is given.
    num_labels: int = 0
    id2label: Mapping[int, str] = FrozenDict()
    label2id: Mapping[str, int] = FrozenDict()
    problem_type: str | None = None

    output_attentions: bool = False
    output_hidden_states: bool = False
    dtype: str | None = None
    architectures: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        _settle_labels(self)
        if isinstance(self.dtype, str):
            object.__setattr__(self, "dtype", self.dtype.removeprefix("torch."))
        object.__setattr__(self, "extra", FrozenDict(self.extra))
        _check_values(self)
        _settle_pruned_heads(self)

    def __repr__(self) -> str:
        default = BertConfig()
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changed = [f"{k}={x!r}" for k, x in values.items() if x != getattr(default, k)]
        return f"BertConfig({', '.join(changed)})"

    @property
    def head_size(self) -> int:
        """The size of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def kept_heads(self, layer: int) -> tuple[int, ...]:
        """The heads of a layer that have not been taken out of it."""
        pruned = self.pruned_heads.get(layer, ())
        return tuple(head for head in range(self.num_attention_heads) if head not in pruned)

    def replace(self, **changes: Any) -> "BertConfig":
        """The same configuration with other values for some fields. A new `num_labels`, `id2label`
        or `label2id` replaces all three.
        """
        unsettled = {"num_labels": 0, "id2label": FrozenDict(), "label2id": FrozenDict()}
        if unsettled.keys() & changes.keys():
            changes = unsettled | changes
        return dataclasses.replace(self, **changes)

    def without_provenance(self) -> "BertConfig":
        """Without what describes the file rather than the model, so that two models that are alike
        but for where they come from have the same tree structure.
        """
        extra = {key: value for key, value in self.extra.items() if key not in PROVENANCE}
        return self.replace(dtype=None, architectures=None, extra=extra)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BertConfig":
        """The configuration that a `config.json`, parsed into `values`, describes; that of the
        encoder, for an encoder-decoder.

        **Raises:** `ValueError` if it is not a BERT's, if it asks for custom code or for
        mathematics that is not BERT's, or if its values contradict one another.
        """
        if values.get("model_type") == "encoder-decoder" and "encoder" in values:
            values = values["encoder"]  # of which the weights are taken, too
        _refuse_what_is_not_bert(values)
        values = {key: value for key, value in values.items() if key != "model_type"}
        if "torch_dtype" in values:
            values.setdefault("dtype", values["torch_dtype"])
            del values["torch_dtype"]
        if values.get("dtype") == "auto":
            del values["dtype"]
        fields = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        known: dict[str, Any] = {
            key: _from_json(value) for key, value in values.items() if key in fields
        }
        known = {k: v for k, v in known.items() if not (v is None and k in _NULL_MEANS_DEFAULT)}
        if "id2label" in known:
            known["id2label"] = dict(sorted(_numbered("id2label", known["id2label"]).items()))
        if "pruned_heads" in known:
            known["pruned_heads"] = _numbered("pruned_heads", known["pruned_heads"])
        extra = {key: value for key, value in values.items() if key not in fields}
        return cls(**known, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a `config.json`, as transformers reads it."""
        values: dict[str, Any] = {"model_type": "bert"}
        for field in dataclasses.fields(self):
            if field.name not in ("num_labels", "extra"):  # transformers counts id2label
                values[field.name] = getattr(self, field.name)
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        values["label2id"] = dict(self.label2id)
        values["pruned_heads"] = {str(i): list(heads) for i, heads in self.pruned_heads.items()}
        for name in ("eos_token_id", "architectures"):
            if isinstance(values[name], tuple):
                values[name] = list(values[name])
        if not self.pruned_heads:
            del values["pruned_heads"]
        optional = {"architectures", "cross_attention_hidden_size", "dtype", "problem_type"}
        optional |= {"sep_token_id", "cls_token_id"}
        values = {k: v for k, v in values.items() if not (k in optional and v is None)}
        return {**values, **self.extra}

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | PathLike[str] | Location, **options: Any
    ) -> "BertConfig":
        """The configuration of a checkpoint, from its `config.json` (or Google's
        `bert_config.json`).

        **Arguments:**

        - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub.
        - `options`: how to reach it (`revision`, `token`, `subfolder`, `cache_dir`,
            `local_files_only`), and fields to change (`num_labels=9`).

        **Raises:** `FileNotFoundError` and `ConnectionError` if there is none; `ValueError` if it
        is damaged, or not a BERT's.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        changes = {name: options.pop(name) for name in fields & options.keys()}
        unknown = options.keys() - HUB_OPTIONS
        if unknown:
            raise TypeError(
                f"{', '.join(sorted(unknown))}: neither a field of BertConfig nor one of "
                f"{', '.join(HUB_OPTIONS)}."
            )
        location = path_or_id
        if not isinstance(location, Location):
            location = Location.of(location, **options)
        path = location.find(CONFIG_FILE) or location.find(_GOOGLES_CONFIG_FILE)
        if path is None:
            path = location.require(
                CONFIG_FILE, f"nor Google's {_GOOGLES_CONFIG_FILE}; it says what the sizes are"
            )
        return cls.from_json_file(path).replace(**changes)

    @classmethod
    def from_json_file(cls, path: str | Path) -> "BertConfig":
        """The configuration in a `config.json` (or in Google's `bert_config.json`)."""
        values = parse_json(Path(path).read_bytes(), path)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_json(self) -> str:
        """The text of a `config.json`."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def tiny(cls, **changes: Any) -> "BertConfig":
        """2 layers, hidden size 128: the smallest of Google's miniatures
        ([Turc et al., 2019](https://arxiv.org/abs/1908.08962)), with `changes`.
        """
        return cls._of_size(2, 128, changes)

    @classmethod
    def mini(cls, **changes: Any) -> "BertConfig":
        """4 layers, hidden size 256, with `changes`."""
        return cls._of_size(4, 256, changes)

    @classmethod
    def small(cls, **changes: Any) -> "BertConfig":
        """4 layers, hidden size 512, with `changes`."""
        return cls._of_size(4, 512, changes)

    @classmethod
    def medium(cls, **changes: Any) -> "BertConfig":
        """8 layers, hidden size 512, with `changes`."""
        return cls._of_size(8, 512, changes)

    @classmethod
    def base(cls, **changes: Any) -> "BertConfig":
        """12 layers, hidden size 768: bert-base, with `changes`."""
        return cls._of_size(12, 768, changes)

    @classmethod
    def large(cls, **changes: Any) -> "BertConfig":
        """24 layers, hidden size 1024: bert-large, with `changes`."""
        return cls._of_size(24, 1024, changes)

    @classmethod
    def _of_size(cls, layers: int, hidden: int, changes: dict[str, Any]) -> "BertConfig":
        sizes: dict[str, Any] = {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": hidden // 64,
            "intermediate_size": 4 * hidden,
        }
        return cls(**sizes | changes)


# Fields that transformers treats as absent when they are null.
_NULL_MEANS_DEFAULT = {
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "num_labels",
    "position_embedding_type",
    "pruned_heads",
}

# Fields that models with BERT's name and other mathematics carry (JinaBERT, MosaicBERT, Nomic).
_CUSTOM_MATHEMATICS = (
    "alibi_starting_size",
    "feed_forward_type",
    "rotary_emb_base",
    "rotary_emb_fraction",
    "rotary_emb_interleaved",
    "rotary_emb_scale_base",
    "rotary_scaling_factor",
)

_POSITION_TYPES = ("absolute", "relative_key", "relative_key_query")
_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def _refuse_what_is_not_bert(values: Mapping[str, Any]) -> None:
    model_type = values.get("model_type", "bert")  # Google's bert_config.json has none
    if model_type != "bert":
        raise ValueError(
            f"model_type is {model_type!r}, but eqxbert reads only 'bert'. Other families differ "
            "in their mathematics even where the names of their weights agree."
        )
    if values.get("auto_map"):
        raise ValueError(
            f"auto_map is {values['auto_map']!r}: this checkpoint brings code of its own, so its "
            "model is not BERT's. eqxbert runs no code from checkpoints; use the library it was "
            "written for."
        )
    custom = {key: values[key] for key in _CUSTOM_MATHEMATICS if values.get(key) is not None}
    if custom:
        raise ValueError(
            f"{custom} belongs to a variant of BERT with other mathematics (ALiBi, rotary "
            "positions, gated feed-forward), which eqxbert does not compute."
        )


def _from_json(value: Any) -> Any:
    """Lists as tuples, since a field must be hashable."""
    return tuple(value) if isinstance(value, list) else value


def _numbered(name: str, values: Any) -> dict[int, Any]:
    """JSON's keys are strings, those of some fields are numbers."""
    try:
        return {int(key): value for key, value in values.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"The keys of {name} must be numbers, got {values!r}.") from error


def _settle_labels(config: BertConfig) -> None:
    """Fills in whichever of `num_labels`, `id2label` and `label2id` were not given."""
    num_labels, id2label, label2id = config.num_labels, config.id2label, config.label2id
    for name, labels in {"id2label": id2label, "label2id": label2id}.items():
        if not isinstance(labels, Mapping):
            raise ValueError(f"{name} must be a dictionary, got {labels!r}.")
    if not id2label and len(set(label2id.values())) < len(label2id):
        raise ValueError(f"label2id gives several labels the same number: {dict(label2id)!r}.")
    id2label = id2label or {index: label for label, index in label2id.items()}
    id2label = id2label or {index: f"LABEL_{index}" for index in range(num_labels or 2)}
    if num_labels not in (0, len(id2label)):
        raise ValueError(
            f"num_labels is {num_labels}, but id2label has {len(id2label)} entries: "
            f"{dict(id2label)!r}. Give one of them, or both in agreement."
        )
    id2label = dict(sorted(id2label.items()))
    if list(id2label) != list(range(len(id2label))):
        raise ValueError(f"id2label must number its labels 0, 1, 2, ...; got {list(id2label)}.")
    if {index: label for label, index in label2id.items()} != id2label:
        label2id = {label: index for index, label in id2label.items()}
    object.__setattr__(config, "num_labels", len(id2label))
    object.__setattr__(config, "id2label", FrozenDict(id2label))
    object.__setattr__(config, "label2id", FrozenDict(label2id))


def _settle_pruned_heads(config: BertConfig) -> None:
    """Checks them, and sorts them."""
    for heads in config.pruned_heads.values():
        if not (isinstance(heads, list | tuple) and all(type(h) is int for h in heads)):
            raise ValueError(f"pruned_heads must have lists of heads, got {heads!r}.")
    pruned = {layer: tuple(sorted(set(heads))) for layer, heads in config.pruned_heads.items()}
    for layer, heads in pruned.items():
        if not 0 <= layer < config.num_hidden_layers:
            raise ValueError(
                f"pruned_heads names layer {layer}; there are {config.num_hidden_layers}, from 0."
            )
        if not all(0 <= h < config.num_attention_heads for h in heads):
            raise ValueError(
                f"pruned_heads names heads {heads} of layer {layer}; there are "
                f"{config.num_attention_heads}, from 0."
            )
        if len(heads) == config.num_attention_heads:
            raise ValueError(
                f"pruned_heads takes every head out of layer {layer}; at least one must stay."
            )
    pruned = {layer: pruned[layer] for layer in sorted(pruned) if pruned[layer]}
    object.__setattr__(config, "pruned_heads", FrozenDict(pruned))


def _check_values(config: BertConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type is bool and not isinstance(value, bool):
            raise ValueError(f"{field.name} must be true or false, got {value!r}.")
        if field.name.endswith("_token_id"):
            ids = value if isinstance(value, tuple) else (value,)
            if not all(i is None or type(i) is int for i in ids):
                raise ValueError(f"{field.name} must be an id or null, got {value!r}.")
    if not (config.dtype is None or isinstance(config.dtype, str)):
        raise ValueError(f"dtype must be the name of a dtype, got {config.dtype!r}.")
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
    ):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    if config.hidden_size % config.num_attention_heads != 0:
        raise ValueError(
            f"hidden_size ({config.hidden_size}) must be a multiple of num_attention_heads "
            f"({config.num_attention_heads}): every head has the same size."
        )
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        value = getattr(config, name)
        if name == "classifier_dropout" and value is None:
            continue
        if not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ValueError(f"{name} must be a probability between 0 and 1, got {value!r}.")
    if not (isinstance(config.layer_norm_eps, float) and 0 < config.layer_norm_eps < math.inf):
        raise ValueError(f"layer_norm_eps must be a positive float, got {config.layer_norm_eps!r}.")
    if not isinstance(config.chunk_size_feed_forward, int) or config.chunk_size_feed_forward < 0:
        raise ValueError(
            "chunk_size_feed_forward must be 0 (off) or a number of positions, got "
            f"{config.chunk_size_feed_forward!r}."
        )
    if config.position_embedding_type not in _POSITION_TYPES:
        raise ValueError(
            f"position_embedding_type is {config.position_embedding_type!r}, but eqxbert knows "
            f"{', '.join(_POSITION_TYPES)}."
        )
    if config.problem_type is not None and config.problem_type not in _PROBLEM_TYPES:
        raise ValueError(
            f"problem_type is {config.problem_type!r}; expected None or one of "
            f"{', '.join(_PROBLEM_TYPES)}."
        )
    if config.add_cross_attention and not config.is_decoder:
        raise ValueError(
            "add_cross_attention is True but is_decoder is False: only decoders attend to an "
            "encoder. Set is_decoder=True as well."
        )
    names = config.architectures
    if names is not None and not (
        isinstance(names, tuple) and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"architectures must be a list of names, got {names!r}.")
    if not isinstance(config.hidden_act, str):
        raise ValueError(
            f"hidden_act must be the name of an activation, got {config.hidden_act!r}."
        )
    if not isinstance(config.initializer_range, float | int) or config.initializer_range < 0:
        raise ValueError(
            f"initializer_range must be a standard deviation, got {config.initializer_range!r}."
        )
    fields = {field.name for field in dataclasses.fields(config)}
    if fields & config.extra.keys():
        raise ValueError(
            f"{sorted(fields & config.extra.keys())} are fields of BertConfig, which cannot be in "
            "`extra`."
        )
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        raise ValueError(
            f"pad_token_id ({config.pad_token_id}) must be an id, from 0 to below vocab_size "
            f"({config.vocab_size}), or None."
        )
