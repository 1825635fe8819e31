"""PyTorch's files: what its own writers write is read bit by bit, and lazily."""

import collections
import io
import json
import pickle
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert.containers.cost import costs
from convert.containers.torch_files import (
    call,
    code,
    named,
    program,
    rewrite_zip,
    storage,
    tensor,
    torch_tensors,
    write_legacy,
    write_zip,
)

from eqxbert.convert.containers import LazyTensor
from eqxbert.convert.containers.torch_pickle import read_torch

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    # which are in untyped storages
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    # which no model has
    torch.complex64,
    torch.complex128,
]
ZIP, LEGACY = True, False
both_formats = pytest.mark.parametrize("new_format", [ZIP, LEGACY], ids=["zip", "legacy"])


def save(value: Any, path: Path, new_format: bool, protocol: int = 2) -> Path:
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new_format)
    return path


def bits(value: torch.Tensor) -> bytes:
    return bytes(value.contiguous().reshape(-1).view(torch.uint8).numpy()) if value.numel() else b""


def assert_same(found: dict[str, LazyTensor], expected: dict[str, torch.Tensor]) -> None:
    """That all names, shapes, dtypes and bits are the same, and were so before the reading."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        array = found[name].read()
        assert array.shape == found[name].shape == tuple(value.shape), name
        assert array.dtype.name == found[name].dtype == str(value.dtype)[6:], name
        assert array.tobytes() == bits(value), name


def assert_read_as_by_torch(path: Path, *, weights_only: bool = True) -> None:
    expected = torch_tensors(torch.load(path, weights_only=weights_only))
    assert expected
    assert_same(read_torch(path), expected)


# What PyTorch writes.


@both_formats
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_every_dtype_is_read_bit_by_bit(tmp_path: Path, dtype: Any, new_format: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, 5 * dtype.itemsize), dtype=torch.uint8, generator=generator)
    value = noise % 2 == 0 if dtype == torch.bool else noise.view(dtype)
    path = save({"a": value}, tmp_path / "a.bin", new_format)
    assert_same(read_torch(path), {"a": value})
    assert read_torch(path)["a"].read().dtype == jnp.dtype(str(dtype)[6:])


@both_formats
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_training_state_is_read_without_what_is_no_tensor(
    tmp_path: Path, new_format: bool, protocol: int
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(7, 3), torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[1], [2]]).reshape(2)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),  # with the attribute _metadata
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "rng": torch.get_rng_state(),
        "history": [{"loss": torch.tensor(0.5), "step": 10}, (torch.ones(2), None)],
        "numbers": [2**31, -(2**31), 2**40, -1, 65536, 255, 2**127, 0.1, True, False, 1j],
        "others": [b"ab", bytearray(b"c"), {"a", 1}, frozenset("x"), collections.Counter("abca")],
        "types": [torch.float32, torch.device("cuda:1"), torch.Size([2, 3]), "ä" * 300],
        "empty": [{}, [], (), set(), "", collections.OrderedDict()],
        (1, 2): torch.ones(3),  # has no name
    }
    path = save(state, tmp_path / "a.bin", new_format, protocol)
    del state[1, 2]
    assert_same(read_torch(path), torch_tensors(state))
    assert len(read_torch(path)) > 20


@both_formats
def test_a_models_state_is_read_as_by_torch(tmp_path: Path, new_format: bool) -> None:
    model = torch.nn.TransformerEncoderLayer(6, 2, 5)
    path = save(model.state_dict(), tmp_path / "a.bin", new_format)
    assert b"_metadata" in path.read_bytes()
    assert_read_as_by_torch(path)


@both_formats
def test_views_are_read_as_they_look(tmp_path: Path, new_format: bool) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    cube = torch.arange(60, dtype=torch.int16).reshape(3, 4, 5)
    views = {
        "whole": whole,
        "tied": whole,
        "rows": whole[1:3],
        "columns": whole[:, 2:5],
        "every second": whole[::2, 1::2],
        "transposed": whole.T,
        "transposed rows": whole[1:3].T,
        "permuted": cube.permute(2, 0, 1),
        "plane": cube[:, 2],
        "diagonal": whole.diagonal(),
        "element": whole[2, 3],
        "new axes": whole[None, :, None],
        "expanded by one": torch.arange(5).expand(1, -1),
        "nothing of it": whole[4:],
        "nothing after it": torch.empty(3, 0)[2],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "channels last": torch.arange(24.0)
        .reshape(1, 2, 3, 4)
        .to(memory_format=torch.channels_last),
    }
    path = save(views, tmp_path / "a.bin", new_format)
    assert_same(read_torch(path), views)


def test_the_stride_of_an_axis_of_one_element_is_anything(tmp_path: Path) -> None:
    far = 2**62
    one, none = tensor(None, 0, (4, 1), (1, far)), tensor(None, far, (0, 2), (far, far))
    path = write_zip(tmp_path / "a.bin", program({"one": one, "none": none}))
    found = {name: lazy.read().tolist() for name, lazy in read_torch(path).items()}
    assert found == {"one": [[1], [2], [3], [4]], "none": []}


@both_formats
def test_parameters_and_tensors_with_attributes_are_tensors(
    tmp_path: Path, new_format: bool
) -> None:
    parameter, marked, plain = (torch.nn.Parameter(torch.randn(2, 3)) for _ in range(3))
    marked.is_marked = {"a": torch.ones(1)}
    attributed, newer = torch.randn(2), torch.ones(2, dtype=torch.uint16)
    attributed.mark, newer.mark = "a", "b"
    state = {"a": parameter, "b": marked, "c": attributed, "d": newer, "e": plain.data}
    path = save(state, tmp_path / "a.bin", new_format)
    assert_same(read_torch(path), torch_tensors(state))


def test_an_array_that_is_read_is_the_readers_own(tmp_path: Path) -> None:
    path = save({"a": torch.ones(3)}, tmp_path / "a.bin", ZIP)
    found = read_torch(path)["a"]
    found.read()[:] = 5
    np.testing.assert_array_equal(found.read(), np.ones(3, np.float32))


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_a_checkpoint_of_2019_is_read_as_by_torch(data: Path, name: str) -> None:
    folder = data / "checkpoints" / f"torch-legacy-pickle-{name}"
    assert_read_as_by_torch(folder / "pytorch_model.bin")


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": torch.arange(5)}, tmp_path / "a.bin", ZIP)
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(path) as file:
        assert {entry.CRC for entry in file.infolist()} == {0}
    assert_read_as_by_torch(path)


def test_the_folder_in_the_zip_file_has_any_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    (tmp_path / "a.bin").write_bytes(buffer.getvalue())  # "archive"
    named_by_file = save({"a": torch.ones(2)}, tmp_path / "model v1.0.bin", ZIP)
    assert zipfile.ZipFile(named_by_file).namelist()[0].startswith("model v1.0/")
    assert_read_as_by_torch(tmp_path / "a.bin")
    assert_read_as_by_torch(named_by_file)


# What PyTorch on other machines, and older ones, wrote.


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.int16, torch.bool, torch.complex64],
)
def test_a_zip_file_from_a_big_endian_machine(tmp_path: Path, dtype: Any) -> None:
    value = (torch.arange(6.0).reshape(2, 3) / 3).to(dtype)
    path = save({"a": value, "b": value.T}, tmp_path / "a.bin", ZIP)
    width = dtype.itemsize // (2 if dtype.is_complex else 1)

    def as_big_endian(name: str, data: bytes) -> bytes:
        if name.startswith("data/"):
            return np.frombuffer(data, f"u{width}").byteswap().tobytes()
        return b"big" if name == "byteorder" else data

    rewrite_zip(path, as_big_endian)
    assert_same(read_torch(path), {"a": value, "b": value.T})
    assert_read_as_by_torch(path)


def test_big_endian_elements_in_an_untyped_storage(tmp_path: Path) -> None:
    # (torch.load leaves these as they are.)
    value = torch.tensor([1, 2, 515], dtype=torch.uint16)
    path = save({"a": value}, tmp_path / "a.bin", ZIP)
    swapped = np.array([1, 2, 515], ">u2").tobytes()
    changes = {"byteorder": b"big", "data/0": swapped}
    rewrite_zip(path, lambda name, data: changes.get(name, data))
    assert_same(read_torch(path), {"a": value})


def test_a_zip_file_of_pytorch_1_6_does_not_say_its_byte_order(tmp_path: Path) -> None:
    path = save({"a": torch.arange(5.0)}, tmp_path / "a.bin", ZIP)
    rewrite_zip(path, lambda name, data: None if name[0] == "." or name == "byteorder" else data)
    assert len(zipfile.ZipFile(path).namelist()) == 3
    assert_read_as_by_torch(path)


def test_the_older_format_is_little_endian_whatever_the_machine(tmp_path: Path) -> None:
    of = storage("FloatStorage", "0", 4, None)
    path = write_legacy(tmp_path / "a.bin", program({"a": tensor(of)}), little_endian=False)
    assert_read_as_by_torch(path)
    np.testing.assert_array_equal(read_torch(path)["a"].read(), np.float32([1, 2, 3, 4]))


def test_views_of_storages_before_pytorch_0_4(tmp_path: Path) -> None:
    view = storage("FloatStorage", "0", 4, ("1", 1, 3))
    pickled = program(
        {
            "whole": tensor(storage("FloatStorage", "0", 4, None)),
            "part": tensor(view, 1, (2,), (1,)),
            "same part": tensor(view, 0, (3,), (1,)),
        }
    )
    path = write_legacy(tmp_path / "a.bin", pickled)
    assert_read_as_by_torch(path)
    np.testing.assert_array_equal(read_torch(path)["part"].read(), np.float32([3, 4]))


def test_tensors_before_pytorch_0_4(tmp_path: Path) -> None:
    of = storage("FloatStorage", "0", 4, None)
    old = call("torch._utils._rebuild_tensor", of, 0, (2, 2), (2, 1))
    path = write_legacy(tmp_path / "a.bin", program({"a": old}))
    assert_read_as_by_torch(path)
    parameter = call("torch.nn.parameter.Parameter", old)
    path = write_zip(tmp_path / "b.bin", program({"a": parameter}))
    np.testing.assert_array_equal(read_torch(path)["a"].read(), np.float32([[1, 2], [3, 4]]))


def test_the_pickles_of_python_2(tmp_path: Path) -> None:
    def old_text(text: str) -> bytes:
        return pickle.SHORT_BINSTRING + bytes([len(text)]) + text.encode()

    of = pickle.MARK + old_text("storage") + named("torch.FloatStorage") + old_text("0")
    of += pickle.BINSTRING + struct.pack("<i", 3) + b"cpu" + code(4) + code(None)
    of += pickle.TUPLE + pickle.BINPERSID
    value = tensor(type(code(None))(of))
    items = type(value)(old_text("a") + value + pickle.TUPLE2)
    ordered = call("collections.OrderedDict", [items])
    state = {"state": ordered, "set": call("__builtin__.set", [1, 2])}
    path = write_legacy(tmp_path / "a.bin", program(state), keys=["0"])
    assert_read_as_by_torch(path, weights_only=False)
    assert list(read_torch(path)) == ["state.a"]


def test_a_zip_file_with_numbers_of_64_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when a file or a tensor has more than 4 GiB.
    path = save({"a": torch.arange(50.0), "b": torch.ones(3)}, tmp_path / "a.bin", ZIP)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    rewrite_zip(path, lambda name, data: data)
    assert b"PK\6\6" in path.read_bytes()
    assert path.read_bytes().count(b"\xff\xff\xff\xff") > 10
    assert_read_as_by_torch(path)


# Laziness.


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    path = save({"a": torch.ones(100), "b": torch.full((100,), 2.0)}, tmp_path / "a.bin", ZIP)
    content = path.read_bytes()
    at = content.index(struct.pack("<f", 2) * 100)
    path.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    found = read_torch(path)
    np.testing.assert_array_equal(found["a"].read(), np.ones(100, np.float32))
    with pytest.raises(ValueError, match=r"a\.bin is damaged: the bytes .* the checksum") as caught:
        found["b"].read()
    assert str(path) in str(caught.value)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = save({"a": torch.ones(100)}, tmp_path / "a.bin", LEGACY)
    found = read_torch(path)["a"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"a\.bin has become shorter since it was opened"):
        found.read()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_view_of_a_huge_storage_reads_its_own_bytes(tmp_path: Path) -> None:
    huge = 2**36
    of = storage("ByteStorage", "0", huge, None)
    state = {"first": tensor(of), "last": tensor(of, huge - 4), "whole": tensor(of, 0, (huge,))}
    path = write_legacy(tmp_path / "a.bin", program(state), [("0", huge, b"")])
    with path.open("r+b") as file:  # a file with a hole, which takes no place
        file.seek(huge - 4, io.SEEK_END)
        file.write(bytes([5, 6, 7, 8]))
    cost = costs(
        "from eqxbert.convert.containers.torch_pickle import read_torch",
        f"found = read_torch(Path({str(path)!r}))",
        "outcome = [found[name].read().tolist() for name in ('first', 'last')]",
    )[1]
    assert cost.outcome == "[[0, 0, 0, 0], [5, 6, 7, 8]]"
    assert cost.memory < 2**20
    assert cost.seconds < 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@both_formats
def test_memory_of_reading(tmp_path: Path, new_format: bool) -> None:
    state = {str(i): torch.full((2_500_000,), i, dtype=torch.float32) for i in range(9)}
    state["transposed"] = torch.ones(1250, 2000).T
    path = save(state, tmp_path / "a.bin", new_format)
    size = path.stat().st_size
    assert size > 100e6
    opening, reading = costs(
        "from eqxbert.convert.containers.torch_pickle import read_torch",
        f"found = read_torch(Path({str(path)!r}))",
        "arrays = [tensor.read() for tensor in found.values()]; outcome = len(arrays)",
    )
    assert opening.memory < 0.1 * size + 2**20
    assert reading.outcome == "10"
    assert 0.9 * size < reading.memory < 1.1 * size


# What is no checkpoint.


def _tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name in ("storages", "tensors", "pickle"):
            file.addfile(tarfile.TarInfo(name))


def _npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def _torch_script(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


STRANGERS = {
    "empty": (lambda path: path.write_bytes(b""), "begins with b''"),
    "a page of the web": (
        lambda path: path.write_text("<!DOCTYPE html><html>404</html>"),
        "begins with b'<!DOCTYPE html><', as no file of torch.save does",
    ),
    "a pointer of git-lfs": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "begins with b'version https://'",
    ),
    "a tar file": (_tar, "is a tar file, as PyTorch wrote in 2016. Load it with PyTorch"),
    "NumPy's": (_npz, "zip entries are not all in the folder"),
    "a TorchScript program": (_torch_script, "is a TorchScript program. Load it with torch.jit"),
    "a pickle": (
        lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        "is a pickle, but does not begin as those of torch.save do",
    ),
    "a number": (lambda path: torch.save(3, path), "holds no dictionary of tensors. Save a model"),
    "a tensor": (lambda path: torch.save(torch.ones(2), path), "holds no dictionary of tensors"),
    "a whole model": (
        lambda path: torch.save(torch.nn.Linear(2, 2), path),
        "asks for torch.nn.modules.linear.Linear, which is not among what a checkpoint of tensors "
        "needs. eqxbert never runs code from files.",
    ),
    "NumPy's arrays": (
        lambda path: torch.save({"a": np.ones(2)}, path),
        "_reconstruct, which is not among",
    ),
    "a sparse tensor": (
        lambda path: torch.save({"a": torch.eye(2).to_sparse()}, path),
        "asks for torch._utils._rebuild_sparse_tensor",
    ),
    "a tensor without data": (
        lambda path: torch.save({"a": torch.empty(2, device="meta")}, path),
        "asks for torch._utils._rebuild_meta_tensor_no_storage",
    ),
    "a conjugated tensor": (
        lambda path: torch.save({"a": torch.ones(2, dtype=torch.complex64).conj()}, path),
        "has a tensor that is to be conjugated or negated",
    ),
    "an expanded tensor": (
        lambda path: torch.save({"a.b": torch.ones(1).expand(3)}, path),
        r"in its tensor 'a.b', its strides (0,) let elements of its shape (3,) overlap",
    ),
    "a container in itself": (
        lambda path: torch.save(_endless(), path),
        "holds containers in one another, or in themselves, so often",
    ),
    "two tensors of one name": (
        lambda path: torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, path),
        "holds two tensors named 'a.b'. Rename one",
    ),
}


def _endless() -> dict[str, Any]:
    state: dict[str, Any] = {"a": torch.ones(2)}
    state["self"] = [state]
    return state


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    write, message = STRANGERS[kind]
    path = tmp_path / "a.bin"
    write(path)
    with pytest.raises(ValueError, match=r"[Ll]oad|[Ss]ave|Rename|[Ff]etch it again") as caught:
        read_torch(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path} ")


def test_a_container_that_is_named_twice_is_read_under_both_names(tmp_path: Path) -> None:
    inner = {"a": torch.ones(2)}
    path = save({"model": inner, "average": inner}, tmp_path / "a.bin", ZIP)
    assert list(read_torch(path)) == ["model.a", "average.a"]


FUZZ = """
import random
from eqxbert.convert.containers.torch_pickle import read_torch

def outcomes(path, changes):
    content = bytearray(path.read_bytes())
    expected = {name: tensor.read().tobytes() for name, tensor in read_torch(path).items()}
    counts = {"same": 0, "other": 0, "refused": 0}
    generator, broken = random.Random(0), path.with_name("broken.bin")
    for _ in range(changes):
        copy = bytearray(content)
        for _ in range(generator.choice([1, 1, 1, 2, 8])):
            copy[generator.randrange(len(copy))] = generator.randrange(256)
        counts[fate(broken, copy, expected)] += 1
    for _ in range(changes):
        copy = content[: generator.randrange(len(content))]
        assert fate(broken, copy, expected) == "refused"
    return counts

def fate(path, content, expected):
    path.write_bytes(content)
    try:
        found = {name: tensor.read().tobytes() for name, tensor in read_torch(path).items()}
    except ValueError as error:
        assert str(error).startswith(str(path)), error
        return "refused"
    return "same" if found == expected else "other"
"""


@both_formats
def test_damage_is_an_error_or_does_no_harm(tmp_path: Path, new_format: bool) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "b": {"c": torch.ones(5, dtype=torch.int64)}}
    state["b"]["d"] = state["a"]
    path = save(state, tmp_path / "a.bin", new_format, protocol=2)
    (cost,) = costs(FUZZ, f"outcome = json.dumps(outcomes(Path({str(path)!r}), 2000))")
    counts = json.loads(cost.outcome)
    assert sum(counts.values()) == 2000
    assert counts["refused"] > 500
    if new_format:  # whose checksums let nothing else pass
        assert counts["other"] == 0
        assert counts["same"] > 100
    assert cost.seconds < 60
