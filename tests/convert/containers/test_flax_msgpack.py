"""Flax's files: what its own writer writes is read bit by bit, and nothing else is."""

import random
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from convert.checkpoints import assert_same_arrays
from convert.containers.cost import costs
from convert.containers.messagepack import array, byte_string, extension, header, packed

from eqxbert.convert.containers import LazyTensor
from eqxbert.convert.containers.flax_msgpack import read_flax

DTYPES = [
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    np.int64,
    np.int32,
    np.int16,
    np.int8,
    np.uint64,
    np.uint32,
    np.uint16,
    np.uint8,
    np.bool_,
    np.complex64,
]


@pytest.fixture
def serialization() -> Any:
    """Flax's own reader and writer."""
    return pytest.importorskip("flax.serialization", reason="the writer of these files is absent")


def file_of(path: Path, value: Any) -> Path:
    path.write_bytes(packed(value))
    return path


def read_all(tensors: dict[str, LazyTensor]) -> dict[str, np.ndarray]:
    """The arrays, which must be what was said of them before."""
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        assert (arrays[name].shape, arrays[name].dtype.name) == (tensor.shape, tensor.dtype)
    return arrays


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_read_bit_by_bit(tmp_path: Path, serialization: Any, dtype: Any) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 256, (3, 5, np.dtype(dtype).itemsize), np.uint8)
    if dtype is np.bool_:
        bits %= 2
    expected = bits.view(dtype)[..., 0]
    path = tmp_path / "a.msgpack"
    path.write_bytes(serialization.msgpack_serialize({"a": {"b": expected}}))
    assert_same_arrays(read_all(read_flax(path)), {"a/b": expected})


def test_a_training_state_is_read_without_what_is_no_array(
    tmp_path: Path, serialization: Any
) -> None:
    kernel, moment = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    embedding = jnp.arange(4, dtype=jnp.bfloat16).reshape(2, 2)
    state = {
        "step": 300,
        "params": {"bert": {"0": {"kernel": kernel.T, "ä": embedding}}, "empty": {}},
        "opt_state": ({"mu": moment, "count": np.int32(7)}, None, [np.zeros((0, 3)), 1.5]),
        "rest": {"text": "a" * 100, "small": -3, "large": -(2**40), "phase": 1 + 2j, "is": True},
    }
    path = tmp_path / "a.msgpack"
    path.write_bytes(serialization.to_bytes(state))
    expected = {
        "params/bert/0/kernel": kernel.T,
        "params/bert/0/ä": np.asarray(embedding),
        "opt_state/0/mu": moment,
        "opt_state/0/count": np.array(7, np.int32),
        "opt_state/2/0": np.zeros((0, 3)),
    }
    assert_same_arrays(read_all(read_flax(path)), expected)


def test_lists_are_numbered(tmp_path: Path, serialization: Any) -> None:
    a, b = np.arange(2.0), np.arange(3)
    path = tmp_path / "a.msgpack"
    path.write_bytes(serialization.msgpack_serialize({"x": [a, [1, b]]}))
    assert_same_arrays(read_all(read_flax(path)), {"x/0": a, "x/1/1": b})


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
def test_arrays_in_chunks_are_put_together(
    tmp_path: Path, serialization: Any, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    expected = {
        "many": np.arange(96).reshape(2, 1, 48).astype(dtype),  # over ten: "10" before "2"
        "uneven": np.arange(7).astype(dtype),
        "whole": np.arange(2).astype(dtype),
    }
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 4 * np.dtype(dtype).itemsize)
    written = serialization.msgpack_serialize(expected | {"params": {"many": expected["many"]}})
    assert written.count(b"__msgpack_chunked_array__") == 3
    path = tmp_path / "a.msgpack"
    path.write_bytes(written)
    found = read_all(read_flax(path))
    assert_same_arrays(found, expected | {"params/many": expected["many"]})


def chunked(shape: Any, chunks: Any, flag: Any = True) -> dict[str, Any]:
    # (In this order, as a writer might have them that sorts.)
    return {"__msgpack_chunked_array__": flag, "chunks": chunks, "shape": shape}


@pytest.mark.parametrize("shape", [{"1": 3, "0": 2}, [2, 3]])
def test_the_order_of_chunks_is_that_of_their_numbers(tmp_path: Path, shape: Any) -> None:
    values = np.arange(6, dtype=np.float32)
    parts = {"1": values[4:], "0": values[:4]}
    chunks = {key: array(part.shape, data=part.tobytes()) for key, part in parts.items()}
    path = file_of(tmp_path / "a.msgpack", {"a": chunked(shape, chunks)})
    assert_same_arrays(read_all(read_flax(path)), {"a": values.reshape(2, 3)})


def test_every_form_of_a_header_is_understood(tmp_path: Path) -> None:
    """All 35 of the specification, except the one of no meaning, twice as keys of one another."""
    skipped = {
        "nil": b"\xc0",
        "false": b"\xc2",
        "true": b"\xc3",
        "float32": b"\xca" + bytes(4),
        "float64": b"\xcb" + bytes(8),
        "negative": b"\xe0",
        "positive": b"\x7f",
        **{f"uint{8 * n}": header(0xCC, n, 200) for n in (1, 2, 4, 8)},
        **{f"int{8 * n}": bytes([0xCF + n.bit_length()]) + bytes(n) for n in (1, 2, 4, 8)},
        "fixstr": b"\xbf" + bytes(31),
        **{f"str{8 * n}": header(0xD9, n, 40) + bytes(40) for n in (1, 2, 4)},
        **{f"bin{8 * n}": byte_string(bytes(40), width=n) for n in (1, 2, 4)},
        **{f"ext{8 * n}": extension(2, bytes(40), width=n) for n in (1, 2, 4)},
        **{f"fixext{n}": bytes([0xD3 + n.bit_length(), 2]) + bytes(n) for n in (1, 2, 4, 8, 16)},
        "fixarray": b"\x92\xc0\xc2",
        "array16": header(0xDC, 2, 2) + b"\xc0\xc2",
        "array32": header(0xDC, 4, 2) + b"\xc0\xc2",
        "fixmap": b"\x81\xa1a\xc0",
        "map16": header(0xDE, 2, 1) + b"\xa1a\xc0",
        "map32": header(0xDE, 4, 1) + b"\xa1a\xc0",
    }
    forms = {
        "scalar": b"\xd8\x03" + b"\x93\x90\xa7float32\xc4\x04" + np.float32(3).tobytes(),
        "short": extension(1, b"\x93\x91\x02\xa5int16\xc4\x04" + b"\1\0\2\0", width=1),
        "middle": extension(
            1,
            header(0xDC, 2, 3)
            + (header(0xDC, 2, 1) + header(0xCC, 1, 2))
            + (header(0xD9, 1, 5) + b"int16")
            + byte_string(b"\1\0\2\0", width=2),
            width=2,
        ),
        "long": array((2,), "int16", b"\1\0\2\0"),
    }
    path = file_of(tmp_path / "a.msgpack", {"skipped": skipped, **forms, "more": skipped})
    two = np.array([1, 2], np.int16)
    expected = {"scalar": np.float32(3), "short": two, "middle": two, "long": two}
    assert_same_arrays(read_all(read_flax(path)), expected)


GOOD = packed({"bert": {"a": array((2, 3)), "b": array((), "int32", bytes(4), code=3)}, "step": 5})

# What is in the file, and what is said of it.
DAMAGES: dict[str, tuple[Any, str]] = {
    "empty": (b"", "it ends before its contents do"),
    "truncated in an array": (GOOD[:60], "it ends before its contents do"),
    "truncated in a key": (GOOD[:8], "it ends before its contents do"),
    "truncated in a header": (b"\xde\x00", "it ends before its contents do"),
    "with bytes too many": (GOOD + b"\0\0", "2 bytes follow its end"),
    "a number": (b"\x05", "its outermost object is neither"),
    "an array": (array((2,)), "its outermost object is neither"),
    "chunks": (chunked([1], [array((1,))]), "its outermost object is neither"),
    "of an unused format": ({"a": b"\xc1"}, "byte 11 is 0xC1, with which nothing begins"),
    "of an unknown extension": ({"a": extension(7, b"xx")}, "'a' is of extension type 7"),
    "with a number as key": ({5: 1}, "at byte 5 is: integer, instead of: string"),
    "with None as key": ({None: 1}, "at byte 5 is: other value, instead of: string"),
    "with bytes as key": ({byte_string(b"a"): 1}, "is: byte string, instead of: string"),
    "with a key that is not UTF-8": (b"\x81\xa1\xff\xc0", "can't decode byte 0xff"),
    "with a key that is empty": ({"a": {"": 1}}, "'' is a key of 'a'"),
    "with a key that has a slash": ({"a": {"b/c": 1}}, "'b/c' is a key of 'a'"),
    "with a key twice": (
        {"a": header(0xDE, 2, 2) + 2 * (packed("b") + packed(1))},
        "'a' has the key 'b' twice",
    ),
    "with an array twice": (b"\x82" + 2 * (packed("b") + array((1,))), "'' has the key 'b' twice"),
    "with a dict of 2**32 entries": (header(0xDE, 4, 2**32 - 1), "announces 4,294,967,295 entries"),
    "with a list of 2**32": ({"a": header(0xDC, 4, 2**32 - 1)}, "announces 4,294,967,296 entries"),
    "with too many dicts": ({"a": [{"x": 1}] * 30_000}, "entries, more than 50,000"),
    "with a string of 4 GiB": ({"a": header(0xD9, 4, 2**32 - 1)}, "it ends before its contents"),
    "with bytes of 4 GiB": ({"a": header(0xC4, 4, 2**32 - 1)}, "it ends before its contents do"),
    "with a key of 4 GiB": ({header(0xD9, 4, 2**32 - 1): 1}, "a name of 4,294,967,295 bytes"),
    "with an extension of 4 GiB": (
        {"a": extension(1, packed([[1], "float32", byte_string(bytes(4))]), length=2**32 - 1)},
        "'a' ends at byte 57 instead of 4,294,967,312",
    ),
    "with an extension too short": (
        {"a": extension(1, packed([[1], "float32", byte_string(bytes(4))]), length=9)},
        "'a' ends at byte 57 instead of 26",
    ),
    "with an array's bytes of 4 GiB": (
        {"a": extension(1, packed([[1], "float32", byte_string(b"", length=2**32 - 1)]))},
        "it ends before its contents do",
    ),
    "deep": (b"\x81\xa1a" * 100_000, "has more than 300 bytes or 32 parts"),
    "one level too deep": (b"\x81\xa1a" * 33 + b"\xc0", "has more than 300 bytes or 32 parts"),
    "deep in lists": ({"a": b"\x91" * 100_000}, "has more than 300 bytes or 32 parts"),
    "deep in long names": (3 * (b"\x81" + packed("a" * 150)) + b"\xc0", "has more than 300 bytes"),
    "with an array of two parts": (
        {"a": extension(1, packed([[1], "float32"]))},
        "'a' does not consist of a shape, a dtype and bytes",
    ),
    "with an array that is none": (
        {"a": extension(1, packed("float32"))},
        "is: string, instead of: list",
    ),
    "with an array without bytes": (
        {"a": extension(1, packed([[1], "float32", "abcd"]))},
        "is: string, instead of: byte string",
    ),
    "with an array of 2**32 axes": (
        {"a": array(header(0xDC, 4, 2**32 - 1), data=b"")},
        "'a' has 4,294,967,295 axes, more than 32",
    ),
    "with a negative size": ({"a": array([-1], data=bytes(4))}, "value, instead of: integer"),
    "with too few bytes": (
        {"a": array([2, 3], data=bytes(20))},
        "'a' has 20 bytes, which is not the size of (2, 3) in float32",
    ),
    "with too many bytes": ({"a": array([1], data=bytes(5))}, "'a' has 5 bytes"),
    "overflowing": ({"a": array([2**62, 4], data=b"")}, "'a' has 0 bytes"),
    "overflowing without elements": ({"a": array([0, 2**62], data=b"")}, "'a' has 0 bytes"),
    **{
        f"of dtype {dtype}": ({"a": array([1], dtype, bytes(4))}, f"'a' has the dtype {dtype!r}")
        for dtype in ("object", "O", "V4", "<f4", "f4", "f4,f4", "str32", "datetime64", "float33")
    },
    "of chunks without a shape": (
        {"a": {"__msgpack_chunked_array__": True, "chunks": [array((1,))]}},
        "the shape or the chunks of 'a' are not numbered from 0",
    ),
    "of chunks with a hole": (
        {"a": chunked([2], {"0": array((1,)), "2": array((1,))})},
        "the shape or the chunks of 'a' are not numbered from 0",
    ),
    "of no chunks": ({"a": chunked([0], [])}, "'a' has chunks of the dtypes []"),
    "of chunks of two dtypes": (
        {"a": chunked([2], [array((1,)), array((1,), "int32")])},
        "'a' has chunks of the dtypes ['float32', 'int32']",
    ),
    "of chunks that are none": ({"a": chunked([2], [1, 2])}, "'a' has chunks that are no arrays"),
    "of chunks with a bad shape": ({"a": chunked([1.5], [array((1,))])}, "'a' has no valid shape"),
    "of chunks with many axes": (
        {"a": chunked([1] * 33, [array((1,))])},
        "'a' has no valid shape",
    ),
    "of too few chunks": ({"a": chunked([3], [array((1,))] * 2)}, "'a' has 8 bytes"),
    "a page of the web": (b"<!DOCTYPE html><html>404</html>", "its outermost object is neither"),
    "a pickle": (b"\x80\x04}\x94.", "4 bytes follow its end"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    content, reason = DAMAGES[damage]
    path = file_of(tmp_path / "a.msgpack", content)
    with pytest.raises(ValueError, match="is not a valid Flax checkpoint") as caught:
        read_flax(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ({path.stat().st_size:,} bytes) ")
    assert reason in message
    assert message.endswith(
        ". It may be truncated, or a download that was cut off; fetch it again."
    )
    assert len(message) < 1000


def test_names_may_have_32_parts(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.msgpack", b"\x81\xa1a" * 32 + array((2,)))
    assert_same_arrays(read_all(read_flax(path)), {"/".join("a" * 32): np.zeros(2, np.float32)})


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.msgpack", {"a": array((100,))})
    tensors = read_flax(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a\.msgpack has become shorter since it was opened"):
        tensors["a"].read()


def test_any_damage_is_an_error_of_ours_or_another_file(tmp_path: Path) -> None:
    whole = packed(
        {
            "bert": {"a": array((2, 3)), "b": array((), "int32", bytes(4), code=3)},
            "long": chunked([1, 3], [array((2,)), array((1,))]),
            "step": 5,
            "list": [1.5, "text", None, extension(2, packed([1.0, 2.0]))],
        }
    )
    path = tmp_path / "a.msgpack"
    generator = random.Random(0)
    read, errors = 0, []
    for number in range(4000):
        damaged = bytearray(whole)
        if number % 2:
            damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        else:
            del damaged[generator.randrange(len(whole)) :]
        path.write_bytes(damaged)
        try:
            read_all(read_flax(path))
        except ValueError as error:
            errors.append(str(error))
        else:
            assert len(damaged) == len(whole), "a truncated file was read"
            read += 1
    assert all("is not a valid Flax checkpoint" in error for error in errors)
    assert read > 100  # those with other elements, or another name
    assert len(errors) > 2500


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and sparse files are Linux's")
IMPORT = "from eqxbert.convert.containers.flax_msgpack import read_flax"


def sparse_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file of float32 zeros which takes up no place on the disk."""
    with path.open("wb") as file:
        file.write(header(0xDE, 4, len(shapes)))
        for name, shape in shapes.items():
            size = 4 * int(np.prod(shape, dtype=np.int64))
            data_header = byte_string(b"", length=size)
            start = packed([list(shape), "float32", data_header])
            file.write(packed(name) + extension(1, start, length=len(start) + size))
            file.seek(size, 1)
        file.truncate()
    return path


@on_linux
def test_opening_reads_no_array_and_reading_copies_none(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "a.msgpack", {"a": (5000, 2500), "b": (5000, 2500)})
    size = path.stat().st_size
    assert size > 100_000_000
    opening, reading_one, reading_all = costs(
        IMPORT,
        f"tensors = read_flax(Path({str(path)!r})); outcome = len(tensors)",
        "outcome = tensors['b'].read().shape",
        "arrays = [tensor.read() for tensor in tensors.values()]; outcome = len(arrays)",
    )
    assert opening.outcome == "2"
    assert opening.memory < 4e6
    assert reading_one.outcome == "(5000, 2500)"
    assert 0.45 * size < reading_one.memory < 0.65 * size
    assert reading_all.outcome == "2"
    assert 0.9 * size < reading_all.memory < 1.3 * size


@on_linux
def test_a_chunked_array_is_read_into_one(tmp_path: Path) -> None:
    whole = sparse_file(tmp_path / "a.msgpack", {str(i): (6_250_000,) for i in range(4)})
    chunks = chunked([25_000_000], b"")
    path = tmp_path / "b.msgpack"
    with path.open("wb") as file, whole.open("rb") as source:
        end = packed("shape") + packed([25_000_000])
        file.write(packed({"a": chunks}).removesuffix(end) + source.read() + end)
    (reading,) = costs(IMPORT, f"outcome = read_flax(Path({str(path)!r}))['a'].read().shape")
    assert reading.outcome == "(25000000,)"
    assert 0.9 * 1e8 < reading.memory < 1.3e8


@on_linux
def test_a_file_of_12_gigabytes_is_opened_at_once(tmp_path: Path) -> None:
    shape = (1_000_000, 1_000)
    path = sparse_file(tmp_path / "a.msgpack", dict.fromkeys("abc", shape))
    assert path.stat().st_size > 12e9
    (opening,) = costs(IMPORT, f"outcome = read_flax(Path({str(path)!r}))['c'].shape")
    assert opening.outcome == str(shape)
    assert opening.memory < 4e6
    assert opening.seconds < 1


@on_linux
def test_no_file_takes_long_or_much_memory(tmp_path: Path) -> None:
    key = "ä" * 100 + "\N{PILE OF POO}"  # this last character makes four bytes of each
    bombs = {
        "arrays": ({key: {f"{i:05}": array((0,)) for i in range(49_000)}}, "49000"),
        "long keys": ({f"{i:05}{key}": array((0,)) for i in range(49_000)}, "49000"),
        "dicts": ({"a": [b"\x80"] * 49_000}, "0"),
        "numbers": ({"a": byte_string(bytes(10**8)), "b": [1] * 10**6}, "more than 50,000"),
        "depth": (b"\x81\xa1a" * 10**7, "32 parts"),
        "a long key": ({"a" * 10**8: 1}, "a name of 100,000,000 bytes"),
        "a long string": ({"a": "a" * 10**8, "b": b"\xc1"}, "0xC1"),
        "axes": ({"a": array([1] * 10**6, data=bytes(4))}, "axes, more than 32"),
        "chunks": ({"a": chunked([49_000], [array((1,))] * 49_000)}, "1"),
    }
    paths = [file_of(tmp_path / f"{i}.msgpack", bomb) for i, (bomb, _) in enumerate(bombs.values())]
    taken = costs(
        IMPORT,
        *(f"outcome = 0; outcome = len(read_flax(Path({str(path)!r})))" for path in paths),
    )
    for (name, (_, outcome)), cost in zip(bombs.items(), taken, strict=True):
        assert outcome in cost.outcome, name
        assert cost.seconds < 5, name
        assert cost.memory < 200 * 2**20, name
