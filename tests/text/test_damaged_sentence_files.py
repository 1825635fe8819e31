"""Folders that cannot be read: each is a `ValueError` that names the file and what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from sentence_transformers.base.modules import Dense
from text.tiny import HIDDEN, edit_json

import eqxbert


@pytest.fixture
def dense(save_sentence_model) -> Path:
    return save_sentence_model(Dense(HIDDEN, 7))


def assert_refused(folder: Path, message: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message):
        eqxbert.SentenceEncoder.from_pretrained(folder)


def write_modules(folder: Path, *modules: tuple[str, str]) -> None:
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))


@pytest.mark.parametrize("kind", ["CNN", "LSTM", "WeightedLayerPooling", "Dropout", "Mine"])
def test_unknown_modules(copy, kind):
    write_modules(copy, ("Transformer", ""), ("Pooling", "1_Pooling"), (kind, "2"))
    assert_refused(copy, rf"lists Transformer, Pooling, {kind}\. Supported are a Transformer and")


@pytest.mark.parametrize(
    "kinds",
    [[], ["Pooling"], ["Transformer"], ["Pooling", "Transformer"], ["Transformer", "Dense"]],
)
def test_modules_in_another_order(copy, kinds):
    write_modules(copy, *((kind, "") for kind in kinds))
    assert_refused(copy, "modules.json lists .*Supported are a Transformer and a Pooling")


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "1_Pooling/../../x", "..\\x", "C:\\x"])
def test_modules_outside_of_the_folder(copy, path):
    write_modules(copy, ("Transformer", ""), ("Pooling", path))
    assert_refused(copy, "leads out")


@pytest.mark.parametrize(
    "contents",
    ["", "[", "{}", "3", '"text"', "[1]", '[{"idx": 0}]', '[{"idx":0,"type":1,"path":""}]'],
)
def test_damaged_modules_json(copy, contents):
    (copy / "modules.json").write_text(contents)
    assert_refused(copy, r"modules\.json")


@pytest.mark.parametrize(
    "path",
    ["1_Pooling/config.json", "config_sentence_transformers.json", "sentence_bert_config.json"],
)
@pytest.mark.parametrize("contents", ["", "{", "[]", "3"])
def test_other_damaged_json(copy, path, contents):
    (copy / path).write_text(contents)
    assert_refused(copy, path.replace(".", r"\."))


@pytest.mark.parametrize("key", ["embedding_dimension", "word_embedding_dimension"])
def test_a_pooling_of_another_size(copy, key):
    (copy / "1_Pooling" / "config.json").write_text(json.dumps({key: 768}))
    assert_refused(copy, "1_Pooling: pools vectors of size 768, but the model's have 12")


def test_an_unknown_pooling_mode(copy):
    edit_json(copy / "1_Pooling" / "config.json", pooling_mode=["mean", "median"])
    assert_refused(copy, r"Unknown pooling modes \['median'\]; known are cls")


def test_an_unknown_activation(dense):
    edit_json(dense / "2_Dense" / "config.json", activation_function="my.own.Activation")
    assert_refused(dense, r"config\.json: activation_function is 'my\.own\.Activation'; known are")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_dense_without_its_files(dense, name):
    (dense / "2_Dense" / name).unlink()
    assert_refused(dense, rf"2_Dense has no {name}", FileNotFoundError)


@pytest.mark.parametrize("name", ["in_features", "out_features"])
def test_a_dense_that_does_not_say_its_sizes(dense, name):
    path = dense / "2_Dense" / "config.json"
    values = json.loads(path.read_text())
    del values[name]
    path.write_text(json.dumps(values))
    assert_refused(dense, name)


def test_a_dense_with_arrays_of_another_shape(dense):
    path = dense / "2_Dense" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors | {"linear.bias": np.zeros(8, np.float32)}, path)
    assert_refused(dense, r"(?s)linear\.bias.*8.*7")


def test_a_dense_that_does_not_follow_from_the_pooling(save_sentence_model, copy):
    """Its input has another size than what the pooling puts out."""
    other = save_sentence_model(Dense(2 * HIDDEN, 7), pooling_mode=["cls", "mean"])
    edit_json(other / "1_Pooling" / "config.json", pooling_mode="mean")
    assert_refused(other, r"(?s)24.*12|12.*24")


@pytest.mark.parametrize("kind", ["Dense", "Normalize"])
def test_modules_of_token_vectors(dense, kind):
    folder = dense / f"2_{kind}"
    folder.mkdir(exist_ok=True)
    write_modules(dense, ("Transformer", ""), ("Pooling", "1_Pooling"), (kind, folder.name))
    if kind == "Normalize":
        (folder / "config.json").write_text("{}")
    edit_json(folder / "config.json", module_input_name="token_embeddings")
    assert_refused(dense, "module_input_name is 'token_embeddings'; only 'sentence_embedding'")


def test_a_default_prompt_that_is_not_there(copy):
    edit_json(copy / "config_sentence_transformers.json", default_prompt_name="absent")
    assert_refused(copy, "default_prompt_name is 'absent'")


def test_a_folder_that_is_not_there(tmp_path):
    assert_refused(tmp_path / "nowhere", "There is no folder", FileNotFoundError)


def test_a_folder_without_weights(copy):
    (copy / "model.safetensors").unlink()
    assert_refused(copy, r"has no model\.safetensors", FileNotFoundError)
