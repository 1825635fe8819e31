"""Weights in several files, and indices that lie about them."""

import json
from pathlib import Path
from typing import Any

import pytest
from convert.checkpoints import assert_same_arrays, write_checkpoint, write_index, write_sharded

import eqxbert

INDEX = "model.safetensors.index.json"


def from_folder(folder: Path) -> eqxbert.BertModel:
    return eqxbert.BertModel.from_pretrained(folder)


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]


def test_shards_are_read_through_their_index(tmp_path: Path, tiny_state: Any) -> None:
    assert_same_arrays(from_folder(write_sharded(tmp_path, tiny_state, shards=3)), tiny_state)


def test_shards_may_lie_in_a_folder_within(tmp_path: Path, tiny_state: Any) -> None:
    write_sharded(tmp_path, tiny_state, shards=1)
    (tmp_path / "parts").mkdir()
    shard = "model-00001-of-00001.safetensors"
    (tmp_path / shard).rename(tmp_path / "parts" / shard)
    write_index(tmp_path, {"weight_map": dict.fromkeys(tiny_state, f"parts/{shard}")})
    assert_same_arrays(from_folder(tmp_path), tiny_state)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("null", "holds a JSON NoneType, not an object"),
        ("[]", "holds a JSON list, not an object"),
        ('{"metadata": {}}', "weight_map is None, not an object"),
        ('{"weight_map": null}', "weight_map is None, not an object"),
        ('{"weight_map": ["a"]}', r"weight_map is \['a'\], not an object"),
        ('{"weight_map": {"a": 1}}', "names 1, which is not a file in its folder"),
        ('{"weight_map": {"a": null}}', "names None, which is not a file in its folder"),
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, tiny_state: Any, index: str, message: str) -> None:
    write_sharded(tmp_path, tiny_state)
    write_index(tmp_path, index)
    with pytest.raises(ValueError, match=message) as caught:
        from_folder(tmp_path)
    assert str(tmp_path / INDEX) in str(caught.value)


def test_an_index_that_is_not_text_is_refused(tmp_path: Path, tiny_state: Any) -> None:
    write_sharded(tmp_path, tiny_state)
    (tmp_path / INDEX).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not valid JSON"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        "../outside/x.safetensors",
        "a/../../outside/x.safetensors",
        "{absolute}",
        "..\\outside\\x.safetensors",
        "\\outside\\x.safetensors",
        "C:\\outside\\x.safetensors",
        "C:x.safetensors",
    ],
)
def test_an_index_must_not_lead_out_of_its_folder(
    tmp_path: Path, tiny_state: Any, shard: str
) -> None:
    """The file it leads to is there and whole, so only the check can stop it from being read."""
    outside = write_checkpoint(tmp_path / "outside", tiny_state) / "x.safetensors"
    (tmp_path / "outside" / "model.safetensors").rename(outside)
    folder = write_sharded(tmp_path / "model", tiny_state)
    shard = shard.replace("{absolute}", str(outside))
    write_index(folder, {"weight_map": dict.fromkeys(tiny_state, shard)})
    with pytest.raises(ValueError, match="which is not a file in its folder") as caught:
        from_folder(folder)
    assert repr(shard) in str(caught.value)


def test_all_absent_shards_are_named(tmp_path: Path, tiny_state: Any) -> None:
    write_sharded(tmp_path, tiny_state, shards=3)
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"not there: model-00001-of-00003\.sa[^,]*$"):
        from_folder(tmp_path)
    (tmp_path / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"not there: model-00001-of.*, model-00003-of"):
        from_folder(tmp_path)


def test_a_truncated_shard_is_refused_by_name(tmp_path: Path, tiny_state: Any) -> None:
    write_sharded(tmp_path, tiny_state, shards=3)
    path = tmp_path / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} .*is not a valid safetensors file"):
        from_folder(tmp_path)


def test_arrays_that_the_shards_lack_are_named(tmp_path: Path, tiny_state: Any) -> None:
    write_sharded(tmp_path, tiny_state)
    promised = weight_map(tmp_path) | {"a": "model-00001-of-00002.safetensors"}
    other = set(weight_map(tmp_path).values()) - {weight_map(tmp_path)["pooler.dense.bias"]}
    promised["pooler.dense.bias"] = other.pop()
    write_index(tmp_path, {"weight_map": promised})
    with pytest.raises(ValueError, match=r"promises (pooler\.dense\.bias, a|a, pooler)"):
        from_folder(tmp_path)
