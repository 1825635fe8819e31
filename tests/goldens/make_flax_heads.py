"""Makes the folder `flax/`: what the Flax BERTs of transformers 4, the last to have them, save and
compute. In an environment of its own, since transformers 5 is what the tests use:

    python -m venv environment
    environment/bin/pip install "transformers==4.57.6" "flax==0.12.8" "jax==0.10.2"
    environment/bin/python tests/goldens/make_flax_heads.py

For each case there is a folder as `save_pretrained` writes it, and in it `golden.npz`: the inputs,
the parameters of the head, and every output of the model that Flax reads back from the folder. The
parameters of the BERT are the same in all cases (`bert.npz`). Everything is float32, but for the
parameters in the folders whose `golden.npz` names another dtype.
"""

import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict

FOLDER = Path(__file__).parent / "flax"

SIZES = {
    "vocab_size": 33,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 17,
}

# Folder -> class, configuration, how it is saved, dtype of the parameters. Whatever Flax can save
# and every activation it has occurs once at least.
MESSAGE_PACK: dict[str, Any] = {}
SAFETENSORS = {"safe_serialization": True}
SHARDS = {"max_shard_size": "4KB"}
UNTIED = {"tie_word_embeddings": False}
DECODER = {"is_decoder": True}
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "BertModel": (transformers.FlaxBertModel, {}, MESSAGE_PACK, "float32"),
    "BertForPreTraining": (transformers.FlaxBertForPreTraining, {}, SHARDS, "bfloat16"),
    "BertForPreTraining-untied": (
        transformers.FlaxBertForPreTraining,
        UNTIED | {"hidden_act": "gelu_new"},
        SAFETENSORS,
        "float32",
    ),
    "BertForMaskedLM": (transformers.FlaxBertForMaskedLM, {}, SAFETENSORS, "float32"),
    "BertForMaskedLM-untied": (
        transformers.FlaxBertForMaskedLM,
        UNTIED | {"hidden_act": "relu"},
        MESSAGE_PACK,
        "float16",
    ),
    "BertForCausalLM": (transformers.FlaxBertForCausalLM, DECODER, MESSAGE_PACK, "float32"),
    "BertForCausalLM-untied": (
        transformers.FlaxBertForCausalLM,
        DECODER | UNTIED | {"hidden_act": "silu"},
        SAFETENSORS,
        "bfloat16",
    ),
    "BertForNextSentencePrediction": (
        transformers.FlaxBertForNextSentencePrediction,
        {"hidden_act": "quick_gelu"},
        SAFETENSORS,
        "float16",
    ),
    "BertForSequenceClassification": (
        transformers.FlaxBertForSequenceClassification,
        {"num_labels": 3, "hidden_act": "swish"},
        MESSAGE_PACK,
        "bfloat16",
    ),
    "BertForMultipleChoice": (transformers.FlaxBertForMultipleChoice, {}, SAFETENSORS, "float16"),
    "BertForTokenClassification": (
        transformers.FlaxBertForTokenClassification,
        {"num_labels": 5, "hidden_act": "gelu_pytorch_tanh"},
        SAFETENSORS,
        "bfloat16",
    ),
    "BertForQuestionAnswering": (
        transformers.FlaxBertForQuestionAnswering,
        {},
        MESSAGE_PACK,
        "float16",
    ),
}


def rng(*what: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(what).encode()))


def random_parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The same for the same name and shape; none is 0 or 1, so that each one counts."""
    values = rng(name.removeprefix("bert/"), shape).standard_normal(shape, np.float32)
    values *= np.float32(0.3 if len(shape) == 2 else 0.1)
    return values + 1 if name.endswith("/scale") else values


def random_inputs(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Token types, positions out of order, a mask with holes in it, and heads switched off."""
    generator = rng("inputs", shape)
    mask = (generator.random(shape) < 0.7).astype(np.int32)
    mask[..., 0] = 1
    return {
        "input_ids": generator.integers(0, SIZES["vocab_size"], shape, np.int32),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, shape, np.int32),
        "position_ids": generator.integers(0, SIZES["max_position_embeddings"], shape, np.int32),
        "head_mask": np.array([[1, 0, 1], [1, 1, 0]], np.float32),
    }


def make_case(
    name: str, model_class: Any, changes: dict[str, Any], how: dict[str, Any], dtype: str
) -> dict[str, np.ndarray]:
    """Writes the folder of a case. Returns its BERT's parameters."""
    model = model_class(transformers.BertConfig(**SIZES | changes))
    shapes = flatten_dict(model.params_shape_tree, sep="/")
    parameters = {name: random_parameter(name, leaf.shape) for name, leaf in shapes.items()}
    model.params = jax.tree.map(lambda x: x.astype(dtype), unflatten_dict(parameters, sep="/"))
    folder = FOLDER / name
    model.save_pretrained(folder, **how)

    model = model_class.from_pretrained(folder)
    inputs = random_inputs((2, 3, 4) if name == "BertForMultipleChoice" else (2, 5))
    out = model(**inputs, output_hidden_states=True, output_attentions=True)
    from_ids_alone = model(inputs["input_ids"])
    head = {key: x for key, x in parameters.items() if key.startswith(("cls", "class", "qa"))}
    np.savez_compressed(
        folder / "golden.npz",
        dtype=np.array(dtype),
        **{f"input/{key}": x for key, x in inputs.items()},
        **{f"head/{key}": x for key, x in head.items()},
        **{f"output/{key}": np.stack(x) for key, x in out.items()},
        **{f"from_ids_alone/{key}": x for key, x in from_ids_alone.items()},
    )
    return {key.removeprefix("bert/"): x for key, x in parameters.items() if key not in head}


def main() -> None:
    transformers.logging.set_verbosity_error()
    shutil.rmtree(FOLDER, ignore_errors=True)
    bert = {}
    for name, case in CASES.items():
        bert |= make_case(name, *case)
    np.savez_compressed(FOLDER / "bert.npz", **bert)


if __name__ == "__main__":
    main()
