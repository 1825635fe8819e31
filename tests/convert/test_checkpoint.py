"""Checkpoints looked at, or written anew, without making a model."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from convert.checkpoints import (
    arrays_in,
    as_numpy,
    assert_same_arrays,
    contents,
    torch_bert,
    write_checkpoint,
    write_sharded,
)
from convert.dialects import write
from helpers import tiny_config

import eqxbert
from eqxbert.convert import CheckpointError, convert_checkpoint, inspect_checkpoint

State = dict[str, np.ndarray]
QUERY = "encoder.layer.0.attention.self.query.weight"


def converted(source: Path, target: Path, **options: Any) -> eqxbert.convert.LoadReport:
    return convert_checkpoint(eqxbert.BertModel, source, target, **options)


@pytest.mark.parametrize("prefix", ["", "module.bert.", "0.auto_model."])
def test_old_names_become_todays(tmp_path: Path, tiny_state: State, prefix: str) -> None:
    old = {
        prefix + name.replace("LayerNorm.weight", "LayerNorm.gamma"): array
        for name, array in tiny_state.items()
    }
    old[prefix + "embeddings.position_ids"] = np.arange(17)[None]
    write_checkpoint(tmp_path / "old", old)
    report = converted(tmp_path / "old", tmp_path / "new")
    assert_same_arrays(arrays_in(tmp_path / "new"), tiny_state)
    assert report.ignored == (prefix + "embeddings.position_ids",)


@pytest.mark.parametrize("model_class", ["BertForPreTraining", "BertForQuestionAnswering"])
def test_transformers_loads_a_converted_model_with_its_head(
    tmp_path: Path, model_class: str
) -> None:
    theirs = getattr(transformers, model_class)
    reference = torch_bert(theirs)
    reference.save_pretrained(tmp_path / "old", max_shard_size="10KB")
    converted(tmp_path / "old", tmp_path / "new")
    found, info = theirs.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(info.values())
    assert_same_arrays(as_numpy(found), as_numpy(reference))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_dtype_is_the_one_asked_for(tmp_path: Path, tiny_state: State, dtype: Any) -> None:
    write_checkpoint(tmp_path / "old", tiny_state, dtype="float32")
    converted(tmp_path / "old", tmp_path / "new", dtype=dtype)
    expected = {name: array.astype(dtype) for name, array in tiny_state.items()}
    assert_same_arrays(arrays_in(tmp_path / "new"), expected)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "new")
    assert config.dtype == getattr(torch, jnp.dtype(dtype).name)


def test_the_dtype_stays_unless_asked_for(tmp_path: Path, tiny_state: State) -> None:
    half = {name: array.astype(np.float16) for name, array in tiny_state.items()}
    write_checkpoint(tmp_path / "old", half)
    converted(tmp_path / "old", tmp_path / "new")
    assert_same_arrays(arrays_in(tmp_path / "new"), half)


def test_a_mixture_of_dtypes_loses_nothing(tmp_path: Path, tiny_state: State) -> None:
    mixed = {
        name: array if "LayerNorm" in name else array.astype(jnp.bfloat16)
        for name, array in tiny_state.items()
    }
    write_checkpoint(tmp_path / "old", mixed)
    converted(tmp_path / "old", tmp_path / "new")
    for name, array in arrays_in(tmp_path / "new").items():
        np.testing.assert_array_equal(array.astype(np.float32), mixed[name].astype(np.float32))


def test_a_quantised_head_is_not_converted(tmp_path: Path) -> None:
    state = as_numpy(torch_bert(transformers.BertForTokenClassification))
    state["classifier.weight"] = state["classifier.weight"].astype(np.int8)
    write_checkpoint(tmp_path / "old", state)
    with pytest.raises(CheckpointError, match=r"classifier\.weight: int8"):
        converted(tmp_path / "old", tmp_path / "new")


def test_shards_become_one_file(tmp_path: Path, tiny_state: State) -> None:
    write_sharded(tmp_path / "old", tiny_state)
    converted(tmp_path / "old", tmp_path / "new")
    assert set(contents(tmp_path / "new")) == {"config.json", "model.safetensors"}
    assert_same_arrays(eqxbert.BertModel.from_pretrained(tmp_path / "new"), tiny_state)


def test_the_files_of_the_tokenizer_come_along_and_no_others(
    tmp_path: Path, tiny_state: State
) -> None:
    write_checkpoint(tmp_path / "old", tiny_state)
    (tmp_path / "old" / "vocab.txt").write_text("[PAD]")
    (tmp_path / "old" / "optimizer.pt").write_text("?")
    converted(tmp_path / "old", tmp_path / "new")
    assert set(contents(tmp_path / "new")) == {"config.json", "model.safetensors", "vocab.txt"}


def test_a_checkpoint_can_be_converted_in_place(tmp_path: Path, tiny_state: State) -> None:
    write_sharded(tmp_path, {f"bert.{name}": array for name, array in tiny_state.items()})
    converted(tmp_path, tmp_path)
    assert set(contents(tmp_path)) == {"config.json", "model.safetensors"}
    assert_same_arrays(arrays_in(tmp_path), tiny_state)


def test_what_does_not_fit_is_not_converted(tmp_path: Path, tiny_state: State) -> None:
    state = {name: array for name, array in tiny_state.items() if name != QUERY}
    write_checkpoint(tmp_path / "old", state)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'old'}: .*\n\n.*\n  {QUERY}"):
        converted(tmp_path / "old", tmp_path / "new")
    assert contents(tmp_path) == before


def test_the_report_of_a_conversion(tmp_path: Path) -> None:
    state = as_numpy(torch_bert(transformers.BertForPreTraining))
    write_checkpoint(tmp_path / "old", state | {"foo.weight": np.zeros(3, np.float32)})
    report = converted(tmp_path / "old", tmp_path / "new")
    tied = {
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    once = {name: array for name, array in state.items() if name not in tied}
    assert report.loaded == {name: name.removeprefix("bert.") for name in once}
    assert report.tied == tied
    assert report.overridden == ()
    assert report.unexpected == ("foo.weight",)
    assert_same_arrays(arrays_in(tmp_path / "new"), once)


def test_an_optimizers_leftovers_are_left_out(tmp_path: Path) -> None:
    reference = torch_bert(transformers.BertForPreTraining)
    report = converted(write("tensorflow", tmp_path / "old", reference), tmp_path / "new")
    expected = as_numpy(reference)
    del expected["cls.predictions.decoder.weight"], expected["cls.predictions.decoder.bias"]
    assert_same_arrays(arrays_in(tmp_path / "new"), expected)
    assert len(report.loaded) == len(expected)
    pooler = "bert/pooler/dense/kernel"
    assert set(report.ignored) == {"global_step", f"{pooler}/adam_m", f"{pooler}/adam_v"}
    assert not set(report.ignored) & report.loaded.keys()


def test_a_decoder_of_its_own_stays(tmp_path: Path) -> None:
    reference = torch_bert(transformers.BertForMaskedLM, tie_word_embeddings=False)
    with torch.no_grad():
        reference.cls.predictions.bias.copy_(reference.cls.predictions.decoder.bias)
    converted(write("torch zip", tmp_path / "old", reference), tmp_path / "new")
    assert_same_arrays(arrays_in(tmp_path / "new"), as_numpy(reference))
    found, info = transformers.BertForMaskedLM.from_pretrained(
        tmp_path / "new", output_loading_info=True
    )
    assert not any(info.values())
    assert_same_arrays(as_numpy(found), as_numpy(reference))


def test_a_tied_decoder_that_is_another_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = as_numpy(torch_bert(transformers.BertForMaskedLM))
    decoder = "cls.predictions.decoder.weight"
    write_checkpoint(tmp_path / "old", state | {decoder: state[decoder] + 1})
    report = converted(tmp_path / "old", tmp_path / "new")
    assert report.overridden == (decoder,)
    assert set(report.tied) == {decoder, "cls.predictions.decoder.bias"}
    assert decoder not in report.loaded
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert f"{decoder}: not equal to the word embeddings" in record.getMessage()
    del state[decoder], state["cls.predictions.decoder.bias"]
    assert_same_arrays(arrays_in(tmp_path / "new"), state)


def test_two_biases_that_contradict_each_other_are_not_converted(tmp_path: Path) -> None:
    state = as_numpy(torch_bert(transformers.BertForMaskedLM))
    bias = "cls.predictions.decoder.bias"
    write_checkpoint(tmp_path / "old", state | {bias: state[bias] + 1})
    with pytest.raises(CheckpointError, match="are two names of one array"):
        converted(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "modules",
    [
        [1],
        [{"idx": 0}],
        [{"path": 1, "type": "x.Dense"}],
        [{"path": "2_Dense", "type": 3}],
        [{"path": "../2_Dense", "type": "x.Dense"}],
    ],
    ids=str,
)
def test_modules_that_are_none_are_not_converted(
    tmp_path: Path, tiny_state: State, modules: Any
) -> None:
    write_checkpoint(tmp_path / "old", tiny_state)
    (tmp_path / "old" / "2_Dense").mkdir()
    (tmp_path / "old" / "2_Dense" / "config.json").write_text("{}")
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=str(tmp_path / "old")):
        converted(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_without_some_heads_stays_so(tmp_path: Path, key: Any) -> None:
    model = eqxbert.BertForTokenClassification(tiny_config(), key=key).prune_heads({0: [0, 2]})
    model.save_pretrained(tmp_path / "old")
    converted(tmp_path / "old", tmp_path / "new")
    loaded = eqxbert.BertForTokenClassification.from_pretrained(tmp_path / "new")
    assert loaded.config.pruned_heads == {0: (0, 2)}
    assert_same_arrays(loaded, model)


def test_looking_at_a_checkpoint(tmp_path: Path, tiny_state: State) -> None:
    write_checkpoint(tmp_path, tiny_state)
    found = inspect_checkpoint(eqxbert.BertModel, tmp_path)
    assert found.problem is None
    assert found.report is not None
    assert len(found.report.loaded) == len(found.tensors) == len(tiny_state)
    query = found.tensors["encoder.layers.0.attention.query.weight"]
    assert (query.shape, query.dtype) == ((12, 12), "float32")
    text = str(found)
    count = sum(array.size for array in tiny_state.values())
    assert f"In all {count:,} parameters" in text
    assert "encoder.layers.{0..1}.attention.query.weight" in text
    assert "encoder.layers.0" not in text


def test_looking_at_a_checkpoint_that_does_not_fit(tmp_path: Path, tiny_state: State) -> None:
    write_checkpoint(tmp_path, {n: a for n, a in tiny_state.items() if n != QUERY})
    found = inspect_checkpoint(eqxbert.BertModel, tmp_path)
    assert found.report is None
    assert found.problem is not None
    assert QUERY in found.problem
    assert QUERY in str(found)
    assert "encoder.layers.0." in str(found), "layers that differ are listed one by one"


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_looking_at_a_quantised_checkpoint(tmp_path: Path, tiny_state: State, dtype: str) -> None:
    state = tiny_state | {QUERY: tiny_state[QUERY].astype(jnp.dtype(dtype))}
    write_checkpoint(tmp_path, state)
    found = inspect_checkpoint(eqxbert.BertModel, tmp_path)
    assert found.problem is not None
    assert "Quantised" in found.problem
    assert "encoder.layers.0.attention.query.weight" in str(found)


def test_tied_arrays_are_counted_once(tmp_path: Path) -> None:
    """As in the checkpoints of transformers 4, which had both."""
    reference = torch_bert(transformers.BertForMaskedLM)
    write("torch zip", tmp_path, reference)
    count = sum(parameter.numel() for parameter in reference.parameters())
    found = inspect_checkpoint(eqxbert.BertForMaskedLM, tmp_path)
    assert found.problem is None
    assert f"In all {count:,} parameters" in str(found)
