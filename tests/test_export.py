"""Models as programs that run without this library."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from helpers import TINY, max_difference, run_python, tiny_config
from tolerances import FLOAT32

import eqxbert
from eqxbert.cli import main
from eqxbert.export import export_model
from eqxbert.text import Dense, Normalize, Pooling, SentenceModel

CLASSES = [
    eqxbert.BertModel,
    eqxbert.BertForPreTraining,
    eqxbert.BertForMaskedLM,
    eqxbert.BertForCausalLM,
    eqxbert.BertForNextSentencePrediction,
    eqxbert.BertForSequenceClassification,
    eqxbert.BertForTokenClassification,
    eqxbert.BertForMultipleChoice,
    eqxbert.BertForQuestionAnswering,
]
SHAPES = [(1, 1), (2, TINY["max_position_embeddings"])]


def inputs(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    mask = random.random(shape) < 0.7
    mask[..., 0] = True
    return {
        "input_ids": random.integers(0, TINY["vocab_size"], shape, np.int32),
        "attention_mask": mask.astype(np.int32),
        "token_type_ids": random.integers(0, 2, shape, np.int32),
    }


def load(folder: Path) -> Any:
    program = jax.export.deserialize(bytearray((folder / "model.jax_export").read_bytes()))
    weights = safetensors.flax.load_file(folder / "weights.safetensors")
    return lambda values: jax.jit(program.call)(weights, values)


def assert_computes_the_same(program: Any, model: Any, values: dict[str, np.ndarray]) -> None:
    found, expected = program(values), jax.jit(lambda m, x: m(**x))(model, values)
    assert set(found) == set(expected.keys())
    for name, value in found.items():
        assert_close(value, expected[name])


def assert_close(found: Any, expected: Any) -> None:
    """Up to the rounding of another program for the same."""
    assert max_difference(found, expected) <= FLOAT32 * np.abs(expected).max()


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)
def test_any_size_and_length(model_class, tmp_path):
    model = model_class(tiny_config(), key=jax.random.key(0))
    export_model(model, tmp_path / "exported")
    program = load(tmp_path / "exported")
    for batch, seq in SHAPES:
        choices = (4,) if model_class is eqxbert.BertForMultipleChoice else ()
        assert_computes_the_same(program, model, inputs((batch, *choices, seq)))


@pytest.mark.parametrize("position_type", ["relative_key", "relative_key_query"])
def test_configurations_that_depend_on_the_length(position_type, tmp_path):
    """Relative positions; and chunks, which cannot be cut of a length that is not known."""
    config = tiny_config(position_embedding_type=position_type, chunk_size_feed_forward=3)
    model = eqxbert.BertModel(config, key=jax.random.key(0))
    export_model(model, tmp_path)
    for shape in SHAPES:
        assert_computes_the_same(load(tmp_path), model, inputs(shape))


def test_an_encoder_decoder(tmp_path):
    encoder = eqxbert.BertModel(tiny_config(), key=jax.random.key(0))
    config = tiny_config(is_decoder=True, add_cross_attention=True)
    decoder = eqxbert.BertForCausalLM(config, key=jax.random.key(1))
    model = eqxbert.EncoderDecoderModel.from_encoder_decoder(
        encoder, decoder, decoder_start_token_id=1, key=jax.random.key(2)
    )
    export_model(model, tmp_path)
    values = inputs((3, 5)) | {"decoder_input_ids": inputs((3, 4))["input_ids"]}
    found, expected = load(tmp_path)(values), model(**values)
    assert_close(found["logits"], expected.logits)


def test_sentence_vectors(tmp_path):
    bert = eqxbert.BertModel(tiny_config(), add_pooling_layer=False, key=jax.random.key(0))
    head = (Dense(12, 7, key=jax.random.key(1)), Normalize())
    model = SentenceModel(bert, Pooling(("mean",)), head)
    export_model(model, tmp_path)
    values = inputs((3, 5))
    found = load(tmp_path)(values)
    assert set(found) == {"sentence_embedding"}
    assert_close(found["sentence_embedding"], model(**values))


def test_half_precision_stays_so(tmp_path):
    model = eqxbert.BertModel(tiny_config(), key=jax.random.key(0))
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    export_model(model, tmp_path)
    found = load(tmp_path)(inputs((2, 5)))
    assert found["last_hidden_state"].dtype == jnp.bfloat16
    expected = jax.jit(lambda m, x: m(**x))(model, inputs((2, 5)))
    assert max_difference(found["last_hidden_state"], expected.last_hidden_state) == 0


def test_it_runs_where_the_library_is_not(tmp_path):
    """With the lines of the documentation, in a process that cannot import eqxbert."""
    model = eqxbert.BertModel(tiny_config(), key=jax.random.key(0))
    export_model(model, tmp_path / "folder")
    values = inputs((2, 6))
    np.savez(tmp_path / "inputs.npz", **values)
    lines = (export_model.__doc__ or "").split("safetensors:\n\n")[1].split("\n\n    The inputs")[0]
    code = "\n".join(line.removeprefix("        ") for line in lines.splitlines())
    prepare = (
        "import sys; sys.modules['eqxbert'] = None\n"
        "import numpy as np; ids, mask, types = np.load('inputs.npz').values()\n"
    )
    collect = "\nnp.save('out.npy', outputs['last_hidden_state'])"
    done = subprocess.run(
        [sys.executable, "-c", prepare + code + collect],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npy")
    assert_close(found, model(**values).last_hidden_state)


def test_too_long_a_sequence_is_an_error(tmp_path):
    export_model(eqxbert.BertModel(tiny_config(), key=jax.random.key(0)), tmp_path)
    with pytest.raises(ValueError, match="shapes"):
        load(tmp_path)(inputs((1, TINY["max_position_embeddings"] + 1)))


def test_unknown_platforms(tmp_path):
    model = eqxbert.BertModel(tiny_config(), key=jax.random.key(0))
    for platforms in (["gpu"], []):
        with pytest.raises(ValueError, match="platforms must be some of cpu, cuda"):
            export_model(model, tmp_path / "new", platforms=platforms)
    assert not (tmp_path / "new").exists()


def test_the_package_that_is_missing_is_named():
    result = run_python(
        "import sys, eqxbert, jax; sys.modules['flatbuffers'] = None\n"
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "eqxbert.export_model(None, 'folder')"
    )
    assert "pip install 'eqxbert[export]'" in result.stderr


class TestCommand:
    def test_a_task_model(self, tmp_path, capsys):
        model = eqxbert.BertForTokenClassification(tiny_config(), key=jax.random.key(0))
        model.save_pretrained(tmp_path / "model")
        assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
        assert "Written to" in capsys.readouterr().out
        assert_computes_the_same(load(tmp_path / "out"), model, inputs((2, 3)))

    def test_a_sentence_encoder(self, minilm, tmp_path):
        assert main(["export", str(minilm), str(tmp_path), "--platforms", "cpu"]) == 0
        encoder = eqxbert.SentenceEncoder.from_pretrained(minilm)
        [ids], _ = encoder.tokenizer.encode(["A dog runs."], max_length=20)
        values = {"input_ids": ids[None].astype(np.int32)}
        values["attention_mask"] = np.ones_like(values["input_ids"])
        values["token_type_ids"] = np.zeros_like(values["input_ids"])
        found = load(tmp_path)(values)["sentence_embedding"]
        assert_close(found[0], encoder.encode("A dog runs."))

    def test_an_encoder_decoder(self, tmp_path):
        model = eqxbert.EncoderDecoderModel.from_encoder_decoder(
            eqxbert.BertModel(tiny_config(), key=jax.random.key(0)),
            eqxbert.BertForCausalLM(
                tiny_config(is_decoder=True, add_cross_attention=True), key=jax.random.key(1)
            ),
            decoder_start_token_id=1,
            key=jax.random.key(2),
        )
        model.save_pretrained(tmp_path / "model")
        assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
        values = inputs((3, 5)) | {"decoder_input_ids": inputs((3, 4))["input_ids"]}
        found = load(tmp_path / "out")(values)
        assert_close(found["logits"], model(**values).logits)

    def test_errors(self, tmp_path, capsys):
        assert main(["export", str(tmp_path / "absent"), str(tmp_path / "out")]) == 1
        assert "absent" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
