"""The container: what it reads and writes, and that damaged files are refused."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from convert.checkpoints import assert_same_arrays, write_checkpoint
from safetensors.numpy import load_file, save_file

import eqxbert
from eqxbert.convert.containers.safetensors import read_safetensors, write_safetensors

DTYPES = [
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.int64,
    np.int32,
    np.int16,
    np.int8,
    np.uint8,
    np.bool_,
]


def file_of(path: Path, header: Any, data: bytes = b"", *, header_size: int | None = None) -> Path:
    """A file with a header of our own making."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if header_size is None else header_size))
    with path.open("ab") as file:
        file.write(text + data)
    return path


def tensor(begin: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "shorter than its length field": lambda path: path.write_bytes(b"\x10\x00\x00"),
    "truncated in the data": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "truncated in the header": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "with bytes too many": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "header longer than the file": lambda path: file_of(path, {}, header_size=10**6),
    "header of absurd length": lambda path: file_of(path, {}, header_size=2**63),
    "header not JSON": lambda path: file_of(path, b"{'a': 1}"),
    "header not UTF-8": lambda path: file_of(path, b'{"\xff": 1}'),
    "header without shapes": lambda path: file_of(path, {"a": {"dtype": "F32"}}),
    "overlapping": lambda path: file_of(
        path, {"a": tensor(0, 8, 2), "b": tensor(4, 12, 2)}, b"." * 12
    ),
    "with a gap": lambda path: file_of(
        path, {"a": tensor(0, 4, 1), "b": tensor(8, 12, 1)}, b"." * 12
    ),
    "beyond the end": lambda path: file_of(path, {"a": tensor(0, 400, 100)}, b"." * 8),
    "backwards": lambda path: file_of(path, {"a": tensor(8, 0, 2)}, b"." * 8),
    "size unlike the shape": lambda path: file_of(path, {"a": tensor(0, 8, 3)}, b"." * 8),
    "overflowing": lambda path: file_of(path, {"a": tensor(0, 8, 2**62, 2**62)}, b"." * 8),
    "of unknown dtype": lambda path: file_of(path, {"a": tensor(0, 8, 2, dtype="F33")}, b"." * 8),
    "a page of the web": lambda path: path.write_text("<!DOCTYPE html><html>404</html>"),
    "a pointer of git-lfs": lambda path: path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 440449768\n"
    ),
}


_REASONS = (
    "is not a valid safetensors file|is empty|is a web page|not the file of weights but git's"
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, tiny_state: Any, damage: str) -> None:
    write_checkpoint(tmp_path, tiny_state)
    path = tmp_path / "model.safetensors"
    DAMAGES[damage](path)
    size = f"{path.stat().st_size:,} bytes"
    with pytest.raises(ValueError, match=_REASONS) as caught:
        eqxbert.BertModel.from_pretrained(tmp_path)
    assert str(path) in str(caught.value)
    assert size in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_with_its_numpy_name(tmp_path: Path, dtype: Any) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    save_file({"a": array}, tmp_path / "a.safetensors")
    found = read_safetensors(tmp_path / "a.safetensors")["a"]
    assert found.shape == (2, 3)
    assert found.dtype == np.dtype(dtype).name
    assert_same_arrays({"a": found.read()}, {"a": array})


def test_what_torch_wrote_is_read_bit_by_bit(tmp_path: Path) -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, torch.inf, -torch.inf, torch.nan, 1 / 3])
    state = {"a": values, "b": values.to(torch.bfloat16), "c": values.half()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    for name, found in read_safetensors(tmp_path / "a.safetensors").items():
        assert found.read().tobytes() == bytes(state[name].view(torch.uint8).numpy())


@pytest.mark.parametrize("metadata", [None, {"format": "tf"}, {"format": "pt", "x": "y"}])
def test_metadata_does_not_matter(tmp_path: Path, tiny_state: Any, metadata: Any) -> None:
    write_checkpoint(tmp_path, {})
    save_file(tiny_state, tmp_path / "model.safetensors", metadata=metadata)
    assert_same_arrays(eqxbert.BertModel.from_pretrained(tmp_path), tiny_state)


def test_an_array_that_is_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"transposed": whole.T, "strided": whole[::2, 1::2], "reversed": whole[::-1]}
    write_safetensors(tmp_path / "a.safetensors", views)
    found = load_file(tmp_path / "a.safetensors")
    for name, view in views.items():
        np.testing.assert_array_equal(found[name], view)


def test_what_we_write_is_marked_as_torchs(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(2, np.float32)})
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_an_array_of_no_size_and_one_of_no_axes(tmp_path: Path) -> None:
    state = {"empty": np.zeros((0, 3), np.float32), "scalar": np.float32(7).reshape(())}
    write_safetensors(tmp_path / "a.safetensors", state)
    found = read_safetensors(tmp_path / "a.safetensors")
    assert_same_arrays({name: array.read() for name, array in found.items()}, state)
