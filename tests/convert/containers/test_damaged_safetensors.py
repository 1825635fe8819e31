"""Any damage to a safetensors file, or to an index of shards, is an error or does no harm."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert.checkpoints import write_checkpoint, write_sharded

from eqxbert.convert.containers import read_container
from eqxbert.convert.weights import read_weights
from eqxbert.files import Location

DAMAGES = 2000


def read_all(path: Path) -> None:
    """Reads a file; a `ValueError` that names it is all that may come of damage."""
    try:
        for tensor in read_container(path).values():
            assert tensor.read().shape == tensor.shape
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    state = {name: rng.normal(size=(3, 4)).astype(np.float32) for name in ("a", "b", "c.d")}
    return write_checkpoint(tmp_path, state) / "model.safetensors"


def test_flipped_bits(file: Path) -> None:
    rng, whole = np.random.default_rng(1), file.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    for i in range(DAMAGES):
        damaged = bytearray(whole)
        # Half of them where the damage can show.
        damaged[rng.integers(header if i % 2 else len(whole))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        read_all(file)


def test_truncation(file: Path) -> None:
    whole = file.read_bytes()
    for length in np.random.default_rng(2).integers(0, len(whole), DAMAGES):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            read_container(file)


def test_damage_to_an_index(tmp_path: Path, tiny_state: Any) -> None:
    write_sharded(tmp_path, tiny_state)
    index = tmp_path / "model.safetensors.index.json"
    rng, whole = np.random.default_rng(3), index.read_bytes()
    assert json.loads(whole)["weight_map"].keys() == tiny_state.keys()
    for i in range(300):
        damaged = bytearray(whole)
        if i % 2:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        index.write_bytes(damaged)
        try:
            read_weights(Location.of(tmp_path))
        except (ValueError, FileNotFoundError) as error:
            assert str(tmp_path) in str(error)  # noqa: PT017
