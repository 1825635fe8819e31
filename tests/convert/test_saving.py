"""Saving: what is written, and what becomes of what was there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from convert.checkpoints import arrays_in, assert_same_arrays, contents, new_model

import eqxbert
from eqxbert.convert import CheckpointError, save
from eqxbert.convert.containers.safetensors import read_safetensors

INDEX = "model.safetensors.index.json"
SIZES = {"single": "5GB", "sharded": "10KB"}


def reloaded(folder: Path) -> eqxbert.BertModel:
    return eqxbert.BertModel.from_pretrained(folder)


def is_whole(folder: Path, seed: int, size: str) -> None:
    """That the folder holds one model, with that seed, and no file of another."""
    assert_same_arrays(reloaded(folder), new_model(seed))
    assert_same_arrays(arrays_in(folder), new_model(seed))
    files = set(contents(folder))
    if size == "single":
        assert files == {"config.json", "model.safetensors"}
    else:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        assert files == {"config.json", INDEX, *index["weight_map"].values()}
        assert len(files) > 3


@pytest.mark.parametrize("size", SIZES)
def test_saving_into_a_new_folder_of_a_new_folder(tmp_path: Path, size: str) -> None:
    folder = tmp_path / "a" / "b"
    new_model().save_pretrained(folder, max_shard_size=SIZES[size])
    is_whole(folder, 0, size)
    assert os.listdir(tmp_path / "a") == ["b"]


def test_a_new_folder_has_the_permissions_of_one(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        save(new_model(), tmp_path / "a")
        (tmp_path / "b").mkdir()
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
        for path in (tmp_path / "a").iterdir():
            assert path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)


@pytest.mark.parametrize("after", SIZES)
@pytest.mark.parametrize("before", SIZES)
def test_saving_again_leaves_nothing_of_the_old_weights(
    tmp_path: Path, before: str, after: str
) -> None:
    save(new_model(1), tmp_path, max_shard_size=SIZES[before])
    save(new_model(2), tmp_path, max_shard_size=SIZES[after])
    is_whole(tmp_path, 2, after)


def test_saving_in_fewer_shards_leaves_nothing_of_the_others(tmp_path: Path) -> None:
    save(new_model(1), tmp_path, max_shard_size="5KB")
    many = len(contents(tmp_path))
    save(new_model(2), tmp_path, max_shard_size="10KB")
    assert len(contents(tmp_path)) < many
    is_whole(tmp_path, 2, "sharded")


def test_saving_a_smaller_model_over_a_larger(tmp_path: Path) -> None:
    save(new_model(num_hidden_layers=3), tmp_path)
    save(new_model(), tmp_path)
    is_whole(tmp_path, 0, "single")


def test_a_model_can_be_saved_into_the_folder_it_came_from(tmp_path: Path) -> None:
    save(new_model(), tmp_path)
    save(reloaded(tmp_path), tmp_path, max_shard_size="10KB")
    is_whole(tmp_path, 0, "sharded")


def test_other_files_stay(tmp_path: Path) -> None:
    others = {"vocab.txt": b"[PAD]", "my model.safetensors": b"?", "1_Pooling/config.json": b"{}"}
    for name, text in others.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    save(new_model(), tmp_path)
    assert contents(tmp_path).items() >= others.items()


def test_no_shard_is_larger_than_asked_for(tmp_path: Path) -> None:
    model = new_model()
    save(model, tmp_path, max_shard_size=2000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert [s.name for s in shards] == [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]
    total = 0
    for shard in shards:
        arrays = read_safetensors(shard)
        sizes = [array.read().nbytes for array in arrays.values()]
        assert sum(sizes) <= 2000 or len(sizes) == 1
        total += sum(sizes)
    assert json.loads((tmp_path / INDEX).read_text())["metadata"] == {"total_size": total}


@pytest.mark.parametrize("size", ["", "5", "5 apples", "-1KB", "1.5GB", 0, -1, "5TB "])
def test_a_size_that_is_none_is_an_error_before_anything_is_written(
    tmp_path: Path, size: int | str
) -> None:
    save(new_model(1), tmp_path / "a")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="max_shard_size must be"):
        save(new_model(2), tmp_path / "a", max_shard_size=size)
    assert contents(tmp_path) == before


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    with pytest.raises(NotADirectoryError, match="is a file; the model needs a folder"):
        save(new_model(), tmp_path / "a")
    assert contents(tmp_path) == {"a": b"text"}


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(new_model(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    is_whole(tmp_path / "real", 0, "single")


def test_the_folder_may_be_on_another_disk_than_its_parent(tmp_path: Path) -> None:
    """A link stands for what it stands for on servers: a folder that is a mount point."""
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk")
    other_disk = shared_memory / f"eqxbert-test-{os.getpid()}"
    other_disk.mkdir()
    try:
        (tmp_path / "model").symlink_to(other_disk)
        save(new_model(), tmp_path / "model")
        is_whole(tmp_path / "model", 0, "single")
    finally:
        for path in other_disk.iterdir():
            path.unlink()
        other_disk.rmdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: eqx.tree_at(lambda m: m.encoder.layers, m, m.encoder.layers[:1]),
            r"encoder\.layer\.1\.attention\.self\.key\.bias: missing from the model",
        ),
        (
            lambda m: eqx.tree_at(lambda m: m.embeddings.word.weight, m, jnp.zeros((40, 12))),
            r"word_embeddings\.weight: shape \(40, 12\), the configuration says \(33, 12\)",
        ),
        (
            lambda m: eqx.tree_at(lambda m: m.pooler.dense.bias, m, None),
            r"pooler\.dense\.bias: missing from the model",
        ),
    ],
)
def test_a_model_that_contradicts_its_configuration_is_not_saved(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    save(new_model(1), tmp_path / "a")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        save(change(new_model(2)), tmp_path / "a")
    assert contents(tmp_path) == before


def test_a_model_with_fewer_layers_is_saved_if_its_configuration_says_so(tmp_path: Path) -> None:
    model = new_model()
    model = eqx.tree_at(lambda m: m.encoder.layers, model, model.encoder.layers[:1])
    structure = jax.tree.structure(new_model(num_hidden_layers=1))
    model = jax.tree.unflatten(structure, jax.tree.leaves(model))
    save(model, tmp_path)
    assert_same_arrays(reloaded(tmp_path), model)
