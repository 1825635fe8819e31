"""Word embeddings that are the decoder's weight as well: one array, in training and in files. And
models with a head, from here to transformers and back.
"""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
import torch
import transformers
from convert.checkpoints import arrays_in, assert_same_arrays
from helpers import max_difference
from parity import (
    LANGUAGE_MODELS,
    WITH_HEADS,
    as_torch,
    assert_same_outputs,
    gradients_of,
    labelled_inputs,
    reference_class,
    reference_model,
    same_model,
)
from safetensors.numpy import save_file
from tolerances import FLOAT32, FLOAT32_GRADIENT

import eqxbert
from eqxbert import BertForMaskedLM
from eqxbert.convert import CheckpointError, from_state_dict, load, to_state_dict

WORDS = "bert.embeddings.word_embeddings.weight"
WEIGHT, BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
OTHER_BIAS = "cls.predictions.bias"

tied_and_untied = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def assert_same_model_in_transformers(model: Any, folder: Path) -> Any:
    """That transformers reads the whole of what is in the folder, and computes the same with it."""
    reference, info = reference_class(type(model)).from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[problem], problem
    inputs = labelled_inputs(type(model), num_labels=model.config.num_labels)
    with torch.no_grad():
        assert_same_outputs(model(**inputs), reference.eval()(**as_torch(inputs)), FLOAT32)
    return reference


class TestInTraining:
    @pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
    def test_the_gradient_is_the_sum_of_both_paths(self, model_class):
        """Each path seen alone, in a model with the same numbers in two arrays."""
        tied = same_model(reference_model(model_class))
        arrays = to_state_dict(tied)
        untied = from_state_dict(
            model_class,
            tied.config.replace(tie_word_embeddings=False),
            arrays | {WEIGHT: arrays[WORDS]},
        )
        inputs = labelled_inputs(model_class)
        gradient = jax.grad(lambda model: model(**inputs).loss)
        both, apart = gradients_of(gradient(tied)), gradients_of(gradient(untied))
        assert np.abs(apart[WORDS]).max() > 0.01
        assert np.abs(apart[WEIGHT]).max() > 0.01
        scale = np.abs(both[WORDS]).max()
        difference = max_difference(both[WORDS], apart[WORDS] + apart[WEIGHT])
        assert difference < FLOAT32_GRADIENT * scale

    @tied_and_untied
    @pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
    def test_it_survives_training_saving_and_loading(self, model_class, tied, tmp_path):
        model = same_model(
            reference_model(model_class, num_hidden_layers=1, tie_word_embeddings=tied)
        )
        tables = [leaf for leaf in jax.tree.leaves(model) if leaf.shape == (33, 12)]
        assert len(tables) == (1 if tied else 2)
        inputs = labelled_inputs(model_class)
        optimizer = optax.adamw(1e-2)

        @jax.jit
        def step(model: Any, state: Any) -> tuple[Any, Any, jax.Array]:
            loss, gradient = jax.value_and_grad(lambda model: model(**inputs).loss)(model)
            with jax.numpy_dtype_promotion("standard"):  # optax relies on it
                updates, state = optimizer.update(gradient, state, model)
            return eqx.apply_updates(model, updates), state, loss

        trained, state, losses = model, optimizer.init(model), []
        for _ in range(20):
            trained, state, loss = step(trained, state)
            losses.append(float(loss))
        assert losses[-1] < losses[0] / 2
        assert jax.tree.structure(trained) == jax.tree.structure(model)

        trained.save_pretrained(tmp_path)
        assert (WEIGHT in arrays_in(tmp_path)) == (not tied)
        assert_same_arrays(model_class.from_pretrained(tmp_path), trained)
        reference = assert_same_model_in_transformers(trained, tmp_path)
        words, decoder = reference.get_input_embeddings(), reference.get_output_embeddings()
        assert (words.weight is decoder.weight) == tied
        assert torch.equal(words.weight, decoder.weight) == tied


class TestThereAndBack:
    @pytest.mark.parametrize("changes", [{}, {"num_labels": 5}], ids=str)
    @pytest.mark.parametrize("model_class", WITH_HEADS)
    def test_ours_in_transformers(self, model_class, changes, tmp_path):
        if model_class is eqxbert.BertForQuestionAnswering:
            changes = {}
        model = same_model(reference_model(model_class, seed=1, **changes))
        model.save_pretrained(tmp_path)
        name = reference_class(model_class).__name__
        assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [name]
        assert_same_model_in_transformers(model, tmp_path)
        automatic = transformers.AutoConfig.from_pretrained(tmp_path)
        assert automatic.num_labels == model.config.num_labels

    @tied_and_untied
    @pytest.mark.parametrize("model_class", WITH_HEADS)
    def test_transformers_here(self, model_class, tied, tmp_path):
        reference = reference_model(model_class, seed=1, tie_word_embeddings=tied)
        reference.save_pretrained(tmp_path)
        loaded = load(model_class, tmp_path)
        assert loaded.config.architectures == (reference_class(model_class).__name__,)
        assert not loaded.report.initialized
        assert not loaded.report.unexpected
        inputs = labelled_inputs(model_class)
        with torch.no_grad():
            assert_same_outputs(loaded.model(**inputs), reference(**as_torch(inputs)), FLOAT32)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of this library; transformers gives its own."""
    return [record.getMessage() for record in caplog.records if record.name == "eqxbert"]


class TestTwoNamesOfOneArray:
    """Checkpoints of other ages have the bias, and the decoder's weight, under either name or both.

    In the cases, an array is replaced by that of another name, by random numbers, or taken out.
    """

    @pytest.fixture
    def write(self, tmp_path: Path) -> Any:
        def write(tied: bool, changes: dict[str, str | None]) -> tuple[Path, Any]:
            """A checkpoint, and what transformers makes of it."""
            reference = reference_model(BertForMaskedLM, tie_word_embeddings=tied)
            arrays = {name: x.numpy().copy() for name, x in reference.state_dict().items()}
            for name, change in changes.items():
                array = arrays.pop(name)
                if change == "other":
                    arrays[name] = np.random.default_rng(0).normal(size=array.shape)
                elif change is not None:
                    arrays[name] = arrays[change].copy()
            arrays = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
            save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
            reference.config.save_pretrained(tmp_path)
            return tmp_path, transformers.BertForMaskedLM.from_pretrained(tmp_path)

        return write

    @staticmethod
    def assert_same_logits(model: Any, reference: Any) -> None:
        inputs = labelled_inputs(BertForMaskedLM)
        with torch.no_grad():
            assert_same_outputs(model(**inputs), reference.eval()(**as_torch(inputs)), FLOAT32)

    @pytest.mark.parametrize(
        ("tied", "changes", "repeats"),
        [
            (True, {}, {WEIGHT, BIAS}),
            (True, {BIAS: None}, {WEIGHT}),
            (True, {OTHER_BIAS: None}, {WEIGHT}),
            (True, {WEIGHT: None}, {BIAS}),
            (True, {WORDS: None}, {BIAS}),
            (True, {WORDS: None, OTHER_BIAS: None}, set()),
            (True, {WEIGHT: None, BIAS: None}, set()),
            (False, {OTHER_BIAS: None}, set()),
            (False, {OTHER_BIAS: BIAS}, {OTHER_BIAS}),
            (False, {OTHER_BIAS: BIAS, WEIGHT: WORDS}, {OTHER_BIAS}),
        ],
    )
    def test_any_one_of_them_will_do(self, write, caplog, tied, changes, repeats):
        folder, reference = write(tied, changes)
        loaded = load(BertForMaskedLM, folder)
        self.assert_same_logits(loaded.model, reference)
        assert loaded.report.tied.keys() == repeats
        assert not loaded.report.overridden
        assert not loaded.report.initialized
        assert not loaded.report.unexpected
        assert not warnings_in(caplog)

    def test_a_bias_is_enough_where_nothing_is_tied(self, write):
        """transformers would start the decoder's own from zero."""
        folder, _ = write(False, {OTHER_BIAS: BIAS})
        expected = load(BertForMaskedLM, folder).model
        folder, _ = write(False, {OTHER_BIAS: BIAS, BIAS: None})
        assert_same_arrays(load(BertForMaskedLM, folder).model, expected)

    def test_two_different_biases_are_refused_where_they_should_be_one(self, write):
        folder, reference = write(True, {BIAS: "other"})
        message = rf"'{BIAS}' and '{OTHER_BIAS}' are two names of one array.* tie_word_embeddings"
        with pytest.raises(CheckpointError, match=message):
            load(BertForMaskedLM, folder)
        # What the message proposes is what transformers 5 does of its own accord.
        untied = load(BertForMaskedLM, folder, tie_word_embeddings=False)
        self.assert_same_logits(untied.model, reference)

    def test_the_decoders_bias_counts_where_nothing_is_tied(self, write, caplog):
        folder, reference = write(False, {BIAS: "other"})
        loaded = load(BertForMaskedLM, folder)
        self.assert_same_logits(loaded.model, reference)
        assert loaded.report.overridden == (OTHER_BIAS,)
        (warning,) = warnings_in(caplog)
        assert f"{OTHER_BIAS}: not used" in warning

    def test_the_word_embeddings_count_where_the_decoder_should_equal_them(self, write, caplog):
        """So it is in transformers 4. transformers 5 would not tie them."""
        folder, untied_reference = write(True, {WEIGHT: "other"})
        untied = load(BertForMaskedLM, folder, tie_word_embeddings=False).model
        self.assert_same_logits(untied, untied_reference)
        caplog.clear()
        loaded = load(BertForMaskedLM, folder)
        assert loaded.report.overridden == (WEIGHT,)
        (warning,) = warnings_in(caplog)
        assert f"{WEIGHT}: not equal to the word embeddings" in warning
        assert "tie_word_embeddings=False" in warning
        _, reference = write(True, {WEIGHT: None})
        self.assert_same_logits(loaded.model, reference)

    @tied_and_untied
    def test_without_either_there_is_none(self, write, tied):
        for names in ((BIAS, OTHER_BIAS), (WEIGHT, WORDS)):
            folder, _ = write(tied, dict.fromkeys(names))
            missing = "|".join(name.removeprefix("bert.") for name in names)
            with pytest.raises(
                CheckpointError, match=f"missing from the checkpoint:\n  ({missing})"
            ):
                load(BertForMaskedLM, folder)
