"""Models as programs that run without this library: JAX's serialised StableHLO, and the weights."""

import importlib.util
from collections.abc import Sequence
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from .convert import staged_folder
from .convert.containers import write_safetensors
from .models import BertForMultipleChoice, EncoderDecoderModel
from .outputs import ModelOutput

PROGRAM_FILE = "model.jax_export"
WEIGHTS_FILE = "weights.safetensors"

PLATFORMS = ("cpu", "cuda", "tpu")


def export_model(
    model: Any, folder: str | PathLike[str], *, platforms: Sequence[str] = PLATFORMS
) -> None:
    """Writes a model as a program for batches of any size and sequences of any length, which runs
    with nothing but JAX and safetensors:

        import jax, safetensors.flax

        with open("folder/model.jax_export", "rb") as file:
            program = jax.export.deserialize(bytearray(file.read()))
        weights = safetensors.flax.load_file("folder/weights.safetensors")
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        outputs = jax.jit(program.call)(weights, inputs)  # outputs["last_hidden_state"], ...

    The inputs are int32, of shape (batch, seq), or (batch, choices, seq) for multiple choice. An
    encoder-decoder also takes `decoder_input_ids`, of a length of their own. The outputs are those
    of the model, by name; of a `SentenceModel`, "sentence_embedding". Weights are an input too, so
    that others of the same shapes will do; their names are their paths in the model's tree.

    There is no dropout, no cache and no check of values in it: ids out of range give NaN.

    **Arguments:**

    - `model`: any of the models.
    - `folder`: where to; made if it does not exist. Other files in it stay, and if writing fails,
        so does what was there.
    - `platforms`: what it shall run on: "cpu", "cuda", "rocm", "tpu".

    **Raises:** `ValueError` for an unknown platform; `ModuleNotFoundError` without the package
    flatbuffers, from the extra `export`; `OSError` if the folder cannot be written.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ModuleNotFoundError(
            "To export a model needs the package flatbuffers: pip install 'eqxbert[export]'."
        )
    if not platforms or not set(platforms) <= {"cpu", "cuda", "rocm", "tpu"}:
        raise ValueError(
            f"platforms must be some of cpu, cuda, rocm and tpu, got {sorted(platforms)}."
        )
    structure = jax.tree.structure(model)
    weights = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(model)
    }

    names = list(weights)  # in the order of the tree; a dictionary is given in that of its names

    def run(weights: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        model = jax.tree.unflatten(structure, [weights[name] for name in names])
        return _by_name(model(**inputs))

    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    program = export.export(jax.jit(run), platforms=tuple(platforms))(shapes, _inputs_of(model))
    with staged_folder(folder) as staging:
        (staging / PROGRAM_FILE).write_bytes(program.serialize())
        arrays = {name: np.asarray(x) for name, x in weights.items()}
        write_safetensors(staging / WEIGHTS_FILE, arrays)


def _inputs_of(model: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what a model reads, with sizes that stand for any."""
    if isinstance(model, EncoderDecoderModel):
        limits = {
            "seq": model.encoder.config.max_position_embeddings,
            "decoder_seq": model.decoder.config.max_position_embeddings,
        }
    else:
        limits = {"seq": model.config.max_position_embeddings}
    scope = export.SymbolicScope([f"{name} <= {limit}" for name, limit in limits.items()])
    leading = "batch, choices" if isinstance(model, BertForMultipleChoice) else "batch"

    def ids(shape: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), jnp.int32)

    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: ids(f"{leading}, seq") for name in names}
    if isinstance(model, EncoderDecoderModel):
        inputs["decoder_input_ids"] = ids("batch, decoder_seq")
    return inputs


def _by_name(out: Any) -> dict[str, Any]:
    if not isinstance(out, ModelOutput):
        return {"sentence_embedding": out}
    plain = {name: out[name] for name in out.keys()}  # noqa: SIM118 (iteration gives the values)
    return {name: value for name, value in plain.items() if isinstance(value, jax.Array | tuple)}
