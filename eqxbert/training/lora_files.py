"""LoRA's adapters in the files of [PEFT](https://github.com/huggingface/peft), which reads what is
written here, and the other way round.
"""

import collections
import json
import logging
import re
from collections.abc import Container, Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..convert.containers import LazyTensor, read_container, write_safetensors
from ..convert.dtypes import quantised
from ..convert.matching import by_canonical_name
from ..convert.names import BASE, DECODER_BIAS, DECODER_WEIGHT, LM_BIAS, WORDS, without_bert
from ..convert.report import CheckpointError
from ..convert.staging import staged_folder
from ..convert.ties import Found
from ..files import Location, read_json
from ..nn import Linear
from .lora import (
    LoRALinear,
    is_in_any,
    map_modules,
    name_of,
    named_modules,
    remove_lora,
    trained_whole,
)

logger = logging.getLogger("eqxbert")

Model = TypeVar("Model", bound=eqx.Module)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_OLD_WEIGHTS = "adapter_model.bin"

# Before every name; then comes that of PyTorch.
_PREFIX = "base_model.model."

# What PEFT calls the task of a class. It then expects that the head is saved whole.
_TASKS = {
    "BertModel": ("FEATURE_EXTRACTION", None),
    "BertForCausalLM": ("CAUSAL_LM", None),
    "BertForSequenceClassification": ("SEQ_CLS", "classifier"),
    "BertForTokenClassification": ("TOKEN_CLS", "classifier"),
    "BertForQuestionAnswering": ("QUESTION_ANS", "qa_outputs"),
    "EncoderDecoderModel": ("SEQ_2_SEQ_LM", None),
}

# Ways to draw new adapters that leave the base weights as they are. (Others, such as "pissa", take
# the adapter off them first.)
_INITIALIZERS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")

# Settings of PEFT that make another model than LoRA's; `use_...` and `..._config` do too.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "layer_replication",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
)
_HARMLESS = ("use_rslora", "eva_config")


def save_lora(
    model: eqx.Module,
    folder: str | PathLike[str],
    *,
    modules_to_save: str | Sequence[str] | None = None,
    base_model: str | None = None,
) -> None:
    """Writes the adapters of a model, and the modules that were trained whole, without the rest of
    it, to files that PEFT loads: `PeftModel.from_pretrained(base, folder)`.

    Everything is first written under other names and then renamed: if writing fails, what was in
    the folder before is still there. Other files in the folder stay.

    **Arguments:**

    - `model`: the adapted model.
    - `folder`: where to; made if it does not exist.
    - `modules_to_save`: the modules that were trained whole, as in `lora_filter`.
    - `base_model`: the name on the Hugging Face hub, or the folder, of the model without its
        adapters, which PEFT's `AutoPeftModel` looks up.

    **Raises:** `ValueError` as `lora_filter`, if some adapters use rsLoRA and others do not, or if
    word embeddings were trained, but not the decoder that is tied to them; `OSError` if the folder
    cannot be written.
    """
    whole = trained_whole(model, modules_to_save)
    adapters = named_modules(LoRALinear, model)
    tensors = {f"{name}.lora_A.weight": adapted.a for name, adapted in adapters.items()}
    tensors |= {f"{name}.lora_B.weight": adapted.b for name, adapted in adapters.items()}
    tensors |= _whole_arrays(model, whole)
    config = _config(type(model).__name__, adapters, whole, base_model)
    with staged_folder(folder) as staging:
        arrays = {_PREFIX + name: np.asarray(array) for name, array in tensors.items()}
        write_safetensors(staging / WEIGHTS, arrays)
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _whole_arrays(model: eqx.Module, whole: Sequence[str]) -> dict[str, Array]:
    """The arrays of the modules that were trained whole, all those that they have in PyTorch."""
    arrays = dict(_named_leaves(remove_lora(model)))
    names = {without_bert(name): name for name in arrays}
    for part in _language_models(names):
        words, decoder = names[part + WORDS], part + DECODER_WEIGHT
        is_tied = decoder not in arrays
        arrays |= {decoder: arrays[words if is_tied else decoder]}
        arrays |= {part + DECODER_BIAS: arrays[part + LM_BIAS]}
        if is_tied and is_in_any(words, whole) and not is_in_any(decoder, whole):
            raise ValueError(
                "The decoder is tied to the word embeddings, but PEFT trains a copy of these. Name "
                f"both in modules_to_save: {[*whole, 'cls']}."
            )
    return {name: array for name, array in arrays.items() if is_in_any(name, whole)}


def _config(
    class_name: str,
    adapters: Mapping[str, LoRALinear],
    whole: Sequence[str],
    base_model: str | None,
) -> dict[str, Any]:
    """What adapter_config.json says."""
    ranks = {name: adapted.rank for name, adapted in adapters.items()}
    alphas = {name: _plain(adapted.alpha) for name, adapted in adapters.items()}
    rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    if len({adapted.use_rslora for adapted in adapters.values()}) > 1:
        raise ValueError(
            "Some adapters use rsLoRA and others do not; PEFT has one setting for all."
        )
    task, head = _TASKS.get(class_name, (None, None))
    return {
        "peft_type": "LORA",
        "task_type": task if head is None or head in whole else None,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": all(adapted.use_rslora for adapted in adapters.values()),
        # The whole names: ends of them might be those of other modules in PyTorch.
        "target_modules": list(adapters),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "modules_to_save": list(whole) or None,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def load_lora(
    model: Model,
    path_or_id: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    subfolder: str = "",
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Model:
    """The model with the adapters that PEFT, or `save_lora`, has written, and with the modules that
    were trained whole in place of its own.

    Those of a model with a head fit one without, and the other way round, as in `convert.load`.
    Adapters have at least float32. `lora_dropout`, which only counts in training, is left out.

    **Arguments:**

    - `model`: the model that was adapted, without adapters.
    - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub, with
        `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
    - `revision`, `token`, `subfolder`, `cache_dir`, `local_files_only`: as in `convert.load`.

    **Raises:** `CheckpointError` (a `ValueError`) listing every array that is missing, has the
    wrong shape or has no place, and every setting of PEFT that is not supported (DoRA, biases,
    LoRA of embeddings, and others); `ValueError` if the model has adapters, and for files that are
    damaged; `FileNotFoundError` and `ConnectionError` if there are none.
    """
    if named_modules(LoRALinear, model):
        raise ValueError(
            "The model has adapters already. merge_lora makes them part of its weights, and "
            "remove_lora takes them out."
        )
    location = Location.of(
        path_or_id,
        revision=revision,
        token=token,
        subfolder=subfolder,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    location.require(CONFIG, "which says how adapters are scaled")
    path = location.find(location.weights or WEIGHTS) or location.find(_OLD_WEIGHTS)
    if path is None:
        path = location.require(WEIGHTS, f"nor {_OLD_WEIGHTS}; the adapters are in one of these")
    try:
        return _apply(model, read_json(location, CONFIG), read_container(path), str(location))
    except CheckpointError as error:
        raise CheckpointError(f"{location}: {error}") from None


def _apply(
    model: Model, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], source: str
) -> Model:
    problems = _unsupported_settings(config)
    if problems:
        raise CheckpointError("Not supported:\n  " + "\n  ".join(problems))
    adapters, whole = _split(by_canonical_name(tensors, whole=True))
    leaves = _named_leaves(model)
    linears = {without_bert(name): linear for name, linear in named_modules(Linear, model).items()}
    arrays = {without_bert(name): leaf for name, leaf in leaves}
    problems = [
        *_settle_words(whole, arrays),
        *_misfits(adapters, linears),
        *_misplaced(whole, arrays),
        *(
            f"{name}: missing, although modules_to_save names it"
            for name, _ in leaves
            if is_in_any(name, config.get("modules_to_save") or ())
            and without_bert(name) not in whole
        ),
        *quantised(tensors),
    ]
    if problems or not adapters:
        rows = problems or ["there are none in it"]
        raise CheckpointError("The adapters do not fit the model:\n  " + "\n  ".join(rows))

    new = {n: jnp.array(e.tensor.read(), arrays[n].dtype) for n, e in whole.items() if n in arrays}
    model = jax.tree.unflatten(
        jax.tree.structure(model), [new.get(without_bert(name), leaf) for name, leaf in leaves]
    )

    def adapt(name: str, linear: Linear) -> Linear | LoRALinear:
        pair = adapters.get(without_bert(name))
        if pair is None:
            return linear
        adapted = LoRALinear(
            linear,
            rank=pair["A"].tensor.shape[0],
            alpha=_alpha(config, pair["A"].name.removesuffix(".lora_A.weight")),
            use_rslora=bool(config.get("use_rslora")),
            key=jax.random.key(0),  # what it draws is replaced
        )
        a, b = (jnp.array(pair[part].tensor.read(), adapted.a.dtype) for part in "AB")
        return eqx.tree_at(lambda adapted: (adapted.a, adapted.b), adapted, (a, b))

    logger.info(
        "Adapters from %s: %d; arrays trained whole: %d; not used by this model: %s",
        source,
        len(adapters),
        len(new),
        ", ".join(sorted(whole.keys() - new.keys())) or "none",
    )
    return map_modules(adapt, Linear, model)


def _split(
    found: Mapping[str, Found],
) -> tuple[dict[str, dict[str, Found]], dict[str, Found]]:
    """The two matrices, "A" and "B", of the adapter of each map; and the other arrays."""
    adapters: dict[str, dict[str, Found]] = {}
    others = {}
    for name, entry in found.items():
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if match is None:
            others[name] = entry
        else:
            adapters.setdefault(match.group(1), {})[match.group(2)] = entry
    return adapters, others


def _misfits(
    adapters: Mapping[str, Mapping[str, Found]], linears: Mapping[str, Linear]
) -> list[str]:
    """What to say of adapters that the model has no place for."""
    problems = []
    for name, pair in adapters.items():
        if name not in linears:
            problems.append(f"{name}: the model has no such linear map")
            continue
        absent = {"A", "B"} - pair.keys()
        if absent:
            problems.append(f"{name}.lora_{absent.pop()}.weight: missing")
            continue
        out_size, in_size = linears[name].weight.shape
        shapes = pair["A"].tensor.shape, pair["B"].tensor.shape
        rank = shapes[0][0] if shapes[0] else 0
        if rank < 1 or shapes != ((rank, in_size), (out_size, rank)):
            problems.append(
                f"{name}: lora_A and lora_B have shapes {shapes[0]} and {shapes[1]}, the map goes "
                f"from {in_size} to {out_size}"
            )
    return problems


def _misplaced(whole: Mapping[str, Found], arrays: Mapping[str, Array]) -> list[str]:
    """What to say of other arrays that cannot take the place of the model's. As in checkpoints, a
    head that the model lacks changes nothing in what it computes.
    """
    problems = []
    for name, entry in whole.items():
        shape = entry.tensor.shape
        if name in arrays and shape != arrays[name].shape:
            problems.append(f"{name}: {shape} in the file, {arrays[name].shape} in the model")
        elif name in arrays:
            continue
        elif ".lora_" in name:
            problems.append(f"{name}: only lora_A and lora_B of linear maps are supported")
        elif name.startswith(BASE):
            problems.append(f"{name}: the model has no such array")
    return problems


def _settle_words(whole: dict[str, Found], arrays: Mapping[str, Array]) -> list[str]:
    """Takes out of `whole` what a language model's head repeats. What to say if the decoder is tied
    to the word embeddings here, but was not there: PEFT trains copies, of either or of both.
    """
    problems = []
    for part in _language_models(arrays):
        words, decoder = part + WORDS, part + DECODER_WEIGHT
        if part + DECODER_BIAS in whole:  # with which PyTorch computes
            whole[part + LM_BIAS] = whole.pop(part + DECODER_BIAS)
        if decoder in arrays or (words not in whole and decoder not in whole):
            continue
        table = whole[words].tensor.read() if words in whole else np.asarray(arrays[words])
        copy = whole.pop(decoder, None)
        if copy is None or not np.array_equal(copy.tensor.read().astype(table.dtype), table):
            problems.append(
                f"{decoder}: tied to the word embeddings in this model, but not in that of the "
                "adapters; load it with tie_word_embeddings=False"
            )
    return problems


def _language_models(names: Container[str]) -> list[str]:
    """What precedes the canonical names of language models: nothing, or "decoder."."""
    return [p for p in ("", "decoder.") if p + LM_BIAS in names and p + WORDS in names]


def _unsupported_settings(config: Mapping[str, Any]) -> list[str]:
    """What to say of the settings of PEFT that would make another model."""
    if config.get("peft_type") != "LORA":
        return [f"peft_type {config.get('peft_type')!r}; only 'LORA' is"]
    problems = [
        f"{name} = {value!r:.100}"
        for name, value in config.items()
        if value
        and (name in _UNSUPPORTED or name.startswith("use_") or name.endswith("_config"))
        and name not in _HARMLESS
    ]
    if config.get("bias", "none") != "none":
        problems.append(f"bias = {config['bias']!r}; only 'none' is")
    initializer = config.get("init_lora_weights", True)
    if str(initializer).lower() not in _INITIALIZERS:
        problems.append(
            f"init_lora_weights = {initializer!r}, which changes the base weights; when it saves, "
            "PEFT makes plain adapters of such (path_initial_model_for_weight_conversion)"
        )
    patterns = config.get("alpha_pattern") or {}
    problems += [f"alpha_pattern has {p!r}; a pattern is" for p in patterns if not _is_regex(p)]
    alphas = config.get("lora_alpha", 8), *patterns.values()
    problems += [
        f"lora_alpha = {a!r}; a number is" for a in alphas if not isinstance(a, int | float)
    ]
    return problems


def _is_regex(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _alpha(config: Mapping[str, Any], name: str) -> float | int:
    """The numerator of a map's scale, of which there may be one for each pattern of names."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return alpha
    return config.get("lora_alpha", 8)


def _named_leaves(model: eqx.Module) -> list[tuple[str, Array]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return [(name_of(path), leaf) for path, leaf in leaves]


def _most_common(values: Any) -> Any:
    return collections.Counter(values).most_common(1)[0][0]


def _plain(number: float) -> float | int:
    """A whole number as such, as PEFT writes them."""
    return int(number) if number.is_integer() else number
