"""What `load` and `from_pretrained` can be told, and what `load` tells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert.checkpoints import as_numpy, assert_same_arrays, torch_bert, write_checkpoint

import eqxbert
from eqxbert.convert import CheckpointError, load


def from_folder(folder: Path, **options: Any) -> eqxbert.BertModel:
    return eqxbert.BertModel.from_pretrained(folder, **options)


def test_a_subfolder(tmp_path: Path, tiny_state: Any) -> None:
    write_checkpoint(tmp_path / "outer" / "inner", tiny_state)
    assert_same_arrays(from_folder(tmp_path, subfolder="outer/inner"), tiny_state)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        from_folder(tmp_path, subfolder="outer")


@pytest.mark.parametrize("subfolder", ["..", "a/../../b", "/etc", "..\\b", "C:\\b"])
def test_a_subfolder_must_not_lead_out(tmp_path: Path, tiny_state: Any, subfolder: str) -> None:
    write_checkpoint(tmp_path / "b", tiny_state)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="leads out"):
        from_folder(tmp_path / "a", subfolder=subfolder)


def test_a_folder_may_be_given_as_text_or_below_home(
    tmp_path: Path, tiny_state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "model", tiny_state)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "model"), "~/model", "./model", "model"):
        assert_same_arrays(eqxbert.BertModel.from_pretrained(name), tiny_state)


def test_fields_of_the_configuration_can_be_changed(tmp_path: Path) -> None:
    reference = torch_bert(num_hidden_layers=3)
    reference.save_pretrained(tmp_path)
    loaded = load(eqxbert.BertModel, tmp_path, num_hidden_layers=1, ignore_unexpected=True)
    assert loaded.config.num_hidden_layers == 1
    assert loaded.model.config.num_hidden_layers == 1
    assert len(loaded.model.encoder.layers) == 1
    reference.encoder.layer = reference.encoder.layer[:1]
    assert_same_arrays(loaded.model, as_numpy(reference))


def test_more_layers_than_the_checkpoint_has_are_missing(tmp_path: Path, tiny_state: Any) -> None:
    write_checkpoint(tmp_path, tiny_state)
    with pytest.raises(CheckpointError, match="16 missing from the checkpoint"):
        from_folder(tmp_path, num_hidden_layers=3)


@pytest.mark.parametrize("name", ["num_layers", "add_pooling", "config", "key_"])
def test_an_unknown_change_is_an_error(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, {})
    with pytest.raises(TypeError, match=name):
        from_folder(tmp_path, **{name: 1})


def test_a_change_that_contradicts_the_rest_is_an_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {})
    with pytest.raises(ValueError, match="multiple of num_attention_heads"):
        from_folder(tmp_path, num_attention_heads=5)


def test_an_error_says_which_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {})
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: The checkpoint does not fit"):
        from_folder(tmp_path)


def test_the_report_tells_the_fate_of_every_name(tmp_path: Path, tiny_state: Any, key: Any) -> None:
    state = {f"bert.{name}": array for name, array in tiny_state.items()}
    del state["bert.pooler.dense.bias"]
    state["bert.embeddings.word_embeddings.weight"] = np.zeros((40, 12), np.float32)
    state["bert.embeddings.position_ids"] = np.arange(17)[None]
    state["cls.predictions.bias"] = np.zeros(33, np.float32)
    write_checkpoint(tmp_path, state)
    report = load(eqxbert.BertModel, tmp_path, key=key, ignore_mismatched_sizes=True).report
    words = "embeddings.word_embeddings.weight"
    others = tiny_state.keys() - {words, "pooler.dense.bias"}
    assert report.loaded == {f"bert.{name}": name for name in others}
    assert set(report.initialized) == {words, "pooler.dense.bias"}
    assert report.mismatched == {words: ((40, 12), (33, 12))}
    assert report.unexpected == ("cls.predictions.bias",)
    assert report.ignored == ("bert.embeddings.position_ids",)
    assert f"{words} (checkpoint (40, 12), model (33, 12))" in str(report)
    assert str(report).startswith(report.summary())
    for part in (
        "arrays loaded: 37",
        "drawn anew: 2",
        "not used by this model: 1",
        "buffers ignored: 1",
    ):
        assert part in report.summary()
