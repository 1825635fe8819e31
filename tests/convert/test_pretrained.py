"""Folders that transformers wrote, read by us, and the other way round."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from convert.checkpoints import (
    as_numpy,
    assert_same_arrays,
    new_model,
    torch_bert,
    write_checkpoint,
)
from helpers import max_difference, tiny_config
from safetensors.numpy import load_file, save_file
from tolerances import FLOAT32

import eqxbert
from eqxbert.convert import CheckpointError, load, save

IDS = np.arange(30).reshape(2, 15)
MASK = np.where(np.arange(15) < np.array([[15], [9]]), 1, 0)
TYPES = (IDS % 3 == 0).astype(int)


def assert_same_outputs(model: eqxbert.BertModel, reference: Any) -> None:
    arguments = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}
    found = model(**arguments)
    with torch.no_grad():
        expected = reference(**{name: torch.tensor(value) for name, value in arguments.items()})
    assert max_difference(found.last_hidden_state, expected.last_hidden_state) < FLOAT32
    assert max_difference(found.pooler_output, expected.pooler_output) < FLOAT32


def from_folder(folder: Path, **options: Any) -> eqxbert.BertModel:
    return eqxbert.BertModel.from_pretrained(folder, **options)


def test_a_single_file_of_transformers(tmp_path: Path) -> None:
    reference = torch_bert()
    reference.save_pretrained(tmp_path)
    model = from_folder(tmp_path)
    assert_same_arrays(model, as_numpy(reference))
    assert_same_outputs(model, reference)


def test_shards_of_transformers(tmp_path: Path) -> None:
    reference = torch_bert()
    reference.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = from_folder(tmp_path)
    assert_same_arrays(model, as_numpy(reference))
    assert_same_outputs(model, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_of_transformers(tmp_path: Path, dtype: torch.dtype) -> None:
    reference = torch_bert().to(dtype)
    reference.save_pretrained(tmp_path)
    widened = reference.float()
    model = from_folder(tmp_path)
    assert_same_arrays(model, as_numpy(widened))
    assert_same_outputs(model, widened)
    kept = from_folder(tmp_path, dtype="auto")
    assert str(kept.embeddings.word.weight.dtype) == str(dtype).removeprefix("torch.")


def test_a_model_with_a_head_of_transformers(tmp_path: Path) -> None:
    reference = torch_bert(transformers.BertForPreTraining)
    reference.save_pretrained(tmp_path)
    loaded = load(eqxbert.BertModel, tmp_path)
    assert_same_arrays(loaded.model, as_numpy(reference.bert))
    assert_same_outputs(loaded.model, reference.bert)
    assert set(loaded.report.unexpected) == {
        name for name in load_file(tmp_path / "model.safetensors") if name.startswith("cls.")
    }


def test_a_model_without_a_pooler_of_transformers(tmp_path: Path) -> None:
    reference = torch_bert(transformers.BertForMaskedLM)
    reference.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="add_pooling_layer=False"):
        from_folder(tmp_path)
    model = from_folder(tmp_path, add_pooling_layer=False)
    assert_same_arrays(model, as_numpy(reference.bert))
    assert model(IDS).pooler_output is None


def test_a_file_with_names_of_tensorflow(tmp_path: Path) -> None:
    reference = torch_bert(transformers.BertForPreTraining)
    reference.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in load_file(path).items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in renamed
    save_file(renamed, path)
    assert_same_outputs(from_folder(tmp_path), reference.bert)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float16])
def test_loaded_saved_and_loaded_is_the_same(tmp_path: Path, dtype: Any) -> None:
    torch_bert().save_pretrained(tmp_path / "theirs")
    first = from_folder(tmp_path / "theirs", dtype=dtype)
    first.save_pretrained(tmp_path / "ours")
    second = from_folder(tmp_path / "ours", dtype="auto")
    assert_same_arrays(second, first)


@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_what_we_save(
    tmp_path: Path, max_shard_size: str, dtype: torch.dtype
) -> None:
    expected = torch_bert().to(dtype)
    name = str(dtype).removeprefix("torch.")
    model = eqxbert.convert.from_state_dict(
        eqxbert.BertModel, tiny_config(), expected.state_dict(), dtype=name
    )
    save(model, tmp_path, max_shard_size=max_shard_size)
    found, info = transformers.AutoModel.from_pretrained(
        tmp_path, dtype="auto", output_loading_info=True
    )
    assert type(found) is transformers.BertModel
    assert not any(info.values())
    assert found.state_dict().keys() == expected.state_dict().keys()
    for key, tensor in expected.state_dict().items():
        assert found.state_dict()[key].dtype == dtype
        assert torch.equal(found.state_dict()[key], tensor), key


def test_a_configuration_survives_loading_and_saving(tmp_path: Path, tiny_state: Any) -> None:
    values = {
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-6,
        "hidden_dropout_prob": 0.25,
        "id2label": {"0": "no", "1": "yes", "2": "maybe"},
        "label2id": {"no": 0, "yes": 1, "maybe": 2},
        "pad_token_id": 3,
        "directionality": "bidi",
        "task_specific_params": {"a": [1, 2.5, None]},
    }
    write_checkpoint(tmp_path / "theirs", tiny_state, **values)
    loaded = load(eqxbert.BertModel, tmp_path / "theirs")
    save(loaded.model, tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text(encoding="utf-8"))
    assert written.items() >= values.items()
    assert written["architectures"] == ["BertModel"]
    again = load(eqxbert.BertModel, tmp_path / "ours").config
    assert again.replace(architectures=None, dtype=None) == loaded.config


def test_the_saved_configuration_says_the_dtype(tmp_path: Path, tiny_state: Any) -> None:
    write_checkpoint(tmp_path / "a", tiny_state, dtype="float32")
    from_folder(tmp_path / "a", dtype=jnp.bfloat16).save_pretrained(tmp_path / "b")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "b").dtype == torch.bfloat16
    expected = {name: array.astype(ml_dtypes.bfloat16) for name, array in tiny_state.items()}
    assert_same_arrays(load_file(tmp_path / "b" / "model.safetensors"), expected)


def test_the_single_file_comes_before_the_shards(tmp_path: Path) -> None:
    """As in transformers, which looks for model.safetensors first."""
    torch_bert(seed=1).save_pretrained(tmp_path, max_shard_size="10KB")
    expected = torch_bert(seed=2)
    expected.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert_same_arrays(from_folder(tmp_path), as_numpy(expected))


def test_googles_configuration_without_a_model_type(tmp_path: Path, tiny_state: Any) -> None:
    write_checkpoint(tmp_path, tiny_state)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["model_type"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert_same_arrays(from_folder(tmp_path), tiny_state)


def test_the_name_of_a_sentence_transformer_model_in_an_older_layout(
    tmp_path: Path, tiny_state: Any
) -> None:
    state = {f"0.auto_model.{name}": array for name, array in tiny_state.items()}
    write_checkpoint(tmp_path, state)
    assert_same_arrays(from_folder(tmp_path), tiny_state)


def test_a_model_of_ours_computes_the_same_after_saving(tmp_path: Path) -> None:
    model = new_model()
    model.save_pretrained(tmp_path)
    assert max_difference(model(IDS).pooler_output, from_folder(tmp_path)(IDS).pooler_output) == 0
