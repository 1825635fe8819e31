"""TensorFlow's checkpoints: a real one and some of our own are read bit by bit, and nothing that
is damaged is.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from convert.checkpoints import assert_same_arrays
from convert.containers.bundles import (
    LITTLE_ENDIAN_HEADER,
    NUMBERS,
    block,
    crc32c,
    entry,
    field,
    index_of,
    masked_crc32c,
    table,
    varint,
    write_bundle,
)
from convert.containers.cost import costs

from eqxbert.convert.containers import LazyTensor
from eqxbert.convert.containers.tensorflow_bundle import read_tensorflow

HEADER = {b"": LITTLE_ENDIAN_HEADER}


def read_all(tensors: dict[str, LazyTensor]) -> dict[str, np.ndarray]:
    """The arrays, which must be what was said of them before."""
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        assert (arrays[name].shape, arrays[name].dtype.name) == (tensor.shape, tensor.dtype)
    return arrays


@pytest.fixture(scope="module")
def tiny(data: Path) -> Path:
    """The folder of a checkpoint that TensorFlow 1 wrote."""
    return data / "checkpoints" / "tf1-tiny"


def test_a_real_checkpoint_has_the_names_and_shapes_of_its_configuration(tiny: Path) -> None:
    config = json.loads((tiny / "bert_config.json").read_text())
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    square, wide, narrow = (hidden, hidden), (hidden, intermediate), (intermediate, hidden)
    norm = {"gamma": (hidden,), "beta": (hidden,)}
    shapes = {
        "bert/embeddings/word_embeddings": (config["vocab_size"], hidden),
        "bert/embeddings/position_embeddings": (config["max_position_embeddings"], hidden),
        "bert/embeddings/token_type_embeddings": (config["type_vocab_size"], hidden),
        "bert/pooler/dense/kernel": square,
        "bert/pooler/dense/bias": (hidden,),
        "cls/predictions/transform/dense/kernel": square,
        "cls/predictions/transform/dense/bias": (hidden,),
        "cls/predictions/output_bias": (config["vocab_size"],),
        "cls/seq_relationship/output_weights": (2, hidden),
        "cls/seq_relationship/output_bias": (2,),
        "global_step": (),
    }
    norms = ["bert/embeddings/LayerNorm", "cls/predictions/transform/LayerNorm"]
    for number in range(config["num_hidden_layers"]):
        layer = f"bert/encoder/layer_{number}"
        kernels = {f"attention/self/{part}": square for part in ("query", "key", "value")} | {
            "attention/output/dense": square,
            "intermediate/dense": wide,
            "output/dense": narrow,
        }
        for part, shape in kernels.items():
            shapes |= {f"{layer}/{part}/kernel": shape, f"{layer}/{part}/bias": shape[1:]}
        norms += [f"{layer}/attention/output/LayerNorm", f"{layer}/output/LayerNorm"]
    shapes |= {f"{name}/{part}": shape for name in norms for part, shape in norm.items()}
    moments = {
        f"{name}/adam_{moment}": shape
        for name, shape in shapes.items()
        for moment in "mv"
        if name != "global_step"
    }
    found = read_tensorflow(tiny / "bert_model.ckpt.index")
    assert {name: tensor.shape for name, tensor in found.items()} == shapes | moments
    assert {tensor.dtype for name, tensor in found.items()} == {"float32", "int64"}
    assert found["global_step"].dtype == "int64"


def test_every_byte_of_a_real_checkpoint_is_in_its_place(tiny: Path) -> None:
    arrays = read_all(read_tensorflow(tiny / "bert_model.ckpt.index"))
    # TensorFlow wrote the tensors one after the other in the order of their names, ...
    written = b"".join(arrays[name].tobytes() for name in sorted(arrays))
    assert written == (tiny / "bert_model.ckpt.data-00000-of-00001").read_bytes()
    # ... and in the index the checksum of each.
    index = (tiny / "bert_model.ckpt.index").read_bytes()
    for name, array in arrays.items():
        assert masked_crc32c(array.tobytes()).to_bytes(4, "little") in index, name
    assert arrays["global_step"] == 20
    assert np.all(arrays["bert/embeddings/LayerNorm/gamma"].round(3) == 1)
    assert np.all(arrays["bert/embeddings/word_embeddings/adam_v"] >= 0)


def test_the_checksum_of_these_tests_is_the_standards() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720 has more of them
    assert crc32c(bytes(32)) == 0x8A9136AA


def many_tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    names = [f"bert/encoder/layer_{i}/{j}/kernel" for i in range(40) for j in ("key", "query")]
    shapes = [(), (1,), (2, 3), (3, 0), (2, 1, 5)]
    return {
        name: generator.standard_normal(shapes[number % 5]).astype(np.float32)
        for number, name in enumerate([*names, "a", "bert", "bert/ä", "global_step"])
    }


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("keys_per_block", [1, 7, 1000])
@pytest.mark.parametrize("restart_interval", [1, 16])
def test_blocks_and_data_files_can_be_any(
    tmp_path: Path, shards: int, keys_per_block: int, restart_interval: int
) -> None:
    expected = many_tensors()
    index = write_bundle(
        tmp_path / "model.ckpt-100",
        expected,
        shards=shards,
        keys_per_block=keys_per_block,
        restart_interval=restart_interval,
    )
    assert len(list(tmp_path.iterdir())) == 1 + shards
    assert_same_arrays(read_all(read_tensorflow(index)), expected)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_dtype_is_read_bit_by_bit(tmp_path: Path, dtype: str) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 256, (3, 5, jnp.dtype(dtype).itemsize), np.uint8)
    if dtype == "bool":
        bits %= 2
    expected = {"a": bits.view(jnp.dtype(dtype))[..., 0], "b": np.zeros(2, dtype)}
    found = read_tensorflow(write_bundle(tmp_path / "x", expected))
    assert found["a"].dtype == dtype
    assert_same_arrays(read_all(found), expected)


@pytest.mark.parametrize("size", [4095, 4096, 4097, 8192, 40_001])
def test_a_large_tensor_is_compared_with_its_checksum(tmp_path: Path, size: int) -> None:
    values = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    index = write_bundle(tmp_path / "x", {"a": values})
    assert_same_arrays(read_all(read_tensorflow(index)), {"a": values})
    data = tmp_path / "x.data-00000-of-00001"
    for position in (0, 4000, size // 2, size - 1):
        data.write_bytes(flipped(values.tobytes(), position, 0x10))
        with pytest.raises(ValueError, match="the checksum of 'a' is wrong") as caught:
            read_tensorflow(index)["a"].read()
        assert str(caught.value).startswith(f"{data}: ")
        assert str(caught.value).endswith("fetch both again.")


def test_strings_are_left_out(tmp_path: Path) -> None:
    index = write_bundle(tmp_path / "x", {"model/a/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(1)})
    entries = {
        **HEADER,
        b"_CHECKPOINTABLE_OBJECT_GRAPH": entry(dtype=7, size=8),
        b"model/a/.ATTRIBUTES/VARIABLE_VALUE": entry((2,), size=8, crc=masked_crc32c(bytes(8))),
    }
    found = read_all(read_tensorflow(index_of(index, entries)))
    expected = {"model/a/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(2, np.float32)}
    assert_same_arrays(found, expected)


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    index = write_bundle(tmp_path / "x.ckpt", many_tensors(), shards=3)
    (tmp_path / "x.ckpt.data-00001-of-00003").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        read_tensorflow(index)
    assert str(caught.value) == (
        f"{tmp_path / 'x.ckpt.data-00001-of-00003'} is missing, in which x.ckpt.index has "
        "weights. Put it beside the index."
    )


def test_a_data_file_that_is_too_short_is_named(tmp_path: Path) -> None:
    index = write_bundle(tmp_path / "x", {"a": np.zeros(3), "b": np.zeros(5)})
    data = tmp_path / "x.data-00000-of-00001"
    data.write_bytes(bytes(63))
    with pytest.raises(ValueError, match="has 63 bytes, but 'b' ends after 64") as caught:
        read_tensorflow(index)
    assert str(caught.value).startswith(f"{data} ")
    assert "truncated" in str(caught.value)
    assert "fetch both again" in str(caught.value)


def test_a_data_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    tensors = read_tensorflow(write_bundle(tmp_path / "x", {"a": np.zeros(3)}))
    data = tmp_path / "x.data-00000-of-00001"
    data.write_bytes(bytes(23))
    with pytest.raises(ValueError, match="has become shorter since it was opened"):
        tensors["a"].read()


def one_block(contents: bytes, **options: Any) -> bytes:
    return table([contents], **options)


def damaged_entry(value: bytes, key: bytes = b"a") -> bytes:
    return one_block(block({**HEADER, key: value}.items()))


def flipped(data: bytes, position: int, bits: int = 1) -> bytes:
    return data[:position] + bytes([data[position] ^ bits]) + data[position + 1 :]


GOOD = damaged_entry(entry((1,), crc=masked_crc32c(bytes(4))))
NEGATIVE = 2**64 - 1  # how -1 is written

# What is in the index, and what is said of it.
DAMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it does not end in the bytes 57fb808b247547db"),
    "only a footer": (GOOD[-48:], "which it does not have"),
    "truncated": (GOOD[:-1], "it does not end in the bytes 57fb808b247547db"),
    "without its beginning": (GOOD[1:], "which it does not have"),
    "with a wrong footer": (one_block(block([]), magic=7), "it does not end in the bytes"),
    "with a damaged block": (flipped(GOOD, 12), "the checksum of the block at byte 0 is wrong"),
    "with a damaged checksum": (
        flipped(GOOD, len(block({**HEADER, b"a": entry((1,))}.items())) + 1),
        "the checksum of the block at byte 0 is wrong",
    ),
    "a page of the web": (b"<!DOCTYPE html>" + bytes(90), "it does not end in the bytes"),
    "without a block": (one_block(b"", handles=[]), "it does not begin with a header"),
    "with an empty block": (one_block(block([])), "it does not begin with a header"),
    "with a block of no bytes": (one_block(b""), "the block at byte 0 is too short for its 0"),
    "without a header": (one_block(block([(b"a", entry())])), "it does not begin with a header"),
    "with a header of nothing": (one_block(block([(b"", b"")])), "does not begin with a header"),
    "with a block beyond its end": (
        one_block(block(HEADER.items()), handles=[varint(2**40) + varint(9)]),
        "a block ends at byte 1,099,511,627,785, which it does not have",
    ),
    "with a block of 2**63 bytes": (
        one_block(block(HEADER.items()), handles=[varint(0) + varint(2**63)]),
        "a block ends at byte 9,223,372,036,854,775,808, which it does not have",
    ),
    "with a block twice": (
        one_block(block(HEADER.items()), handles=[b"\0" + varint(17)] * 2),
        "two blocks overlap at byte 0",
    ),
    "with a handle cut off": (one_block(b"", handles=[b"\x80"]), "it ends within an entry"),
    "with an endless number": (
        one_block(b"", handles=[b"\x80" * 10 + b"\0" * 2]),
        "a number in it has more than ten bytes",
    ),
    "with keys out of order": (
        one_block(block([*HEADER.items(), (b"b", entry()), (b"a", entry())])),
        "the key b'a' follows b'b', out of order",
    ),
    "with a key twice": (
        one_block(block([*HEADER.items(), (b"a", entry()), (b"a", entry())])),
        "the key b'a' follows b'a', out of order",
    ),
    "with a key that shares too much": (
        one_block(b"\5\1\0a" + block([])),
        "it has a key of 5 bytes of b'' and 1 more (together 500 at most)",
    ),
    "with a key that is too long": (damaged_entry(entry(), b"a" * 501), "and 501 more"),
    "with a key of 2**60 bytes": (
        one_block(b"\0" + varint(2**60) + b"\0a" + block([])),
        "and 1,152,921,504,606,846,976 more (together 500 at most)",
    ),
    "with a value of 2**60 bytes": (
        one_block(b"\0\1" + varint(2**60) + b"a" + block([])),
        "a value of 1,152,921,504,606,846,976 (at most 4,096)",
    ),
    "with 2**32 restarts": (
        one_block(block(HEADER.items())[:-4] + b"\xff" * 4),
        "the block at byte 0 is too short for its 4,294,967,295 restarts",
    ),
    "with a name that is not UTF-8": (damaged_entry(entry(), b"\xff"), "can't decode byte 0xff"),
    "with an entry that is too long": (
        damaged_entry(entry(more=field(9, bytes(4096)))),
        "(at most 4,096)",
    ),
    "with an entry cut off": (damaged_entry(entry()[:-1]), "it ends within an entry"),
    "with a field of unknown kind": (damaged_entry(b"\x0b"), "a field of an entry is of kind 3"),
    "with a dtype that is no number": (
        damaged_entry(field(1, b"x")),
        "field 1 of an entry is not an integer",
    ),
    "with a shape that is no message": (
        damaged_entry(field(1, 1) + field(2, 5)),
        "field 2 of an entry is not a message",
    ),
    "with a negative size": (damaged_entry(entry((NEGATIVE,))), "'a' has 4 bytes, which is not"),
    "with two negative sizes": (damaged_entry(entry((NEGATIVE, NEGATIVE))), "which is not the"),
    "with too few bytes": (
        damaged_entry(entry((2, 3), size=20)),
        "'a' has 20 bytes, which is not the size of (2, 3) in float32",
    ),
    "overflowing": (damaged_entry(entry((2**62, 4), size=0)), "'a' has 0 bytes"),
    "overflowing without elements": (damaged_entry(entry((2**62, 0), size=0)), "'a' has 0 bytes"),
    "with too many axes": (damaged_entry(entry([1] * 33)), "'a' has 33 axes, more than 32"),
    "with a data file too many": (damaged_entry(entry(shard=1)), "'a' is in data file 1 (from 0)"),
    "with a negative data file": (damaged_entry(entry(shard=NEGATIVE)), "(from 0) of 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_refused(tmp_path: Path, damage: str) -> None:
    content, reason = DAMAGES[damage]
    index = tmp_path / "x.index"
    index.write_bytes(content)
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(4))
    with pytest.raises(ValueError, match="is not a valid index of a TensorFlow check") as caught:
        read_tensorflow(index)
    message = str(caught.value)
    assert message.startswith(f"{index} ({len(content):,} bytes) ")
    assert reason in message
    assert message.endswith(
        ". It may be truncated, or a download that was cut off; fetch it again."
    )
    assert len(message) < 1000


def test_the_index_that_was_damaged_is_read_undamaged(tmp_path: Path) -> None:
    (tmp_path / "x.index").write_bytes(GOOD)
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(4))
    found = read_all(read_tensorflow(tmp_path / "x.index"))
    assert_same_arrays(found, {"a": np.zeros(1, np.float32)})


# What is in the index, and what is said of it.
UNSUPPORTED: dict[str, tuple[bytes, str]] = {
    "Snappy": (one_block(block(HEADER.items()), compression=1), "it is compressed (Snappy)"),
    "another compression": (
        one_block(block(HEADER.items()), compression=9),
        "it is compressed (unknown kind 9)",
    ),
    "big-endian": (
        one_block(block([(b"", field(1, 1) + field(2, 1))])),
        "its numbers are big-endian",
    ),
    "partitioned": (
        one_block(
            block(
                [
                    *HEADER.items(),
                    (b"\0a\0\1\1\2\x80", entry((4,), size=16)),
                    (b"a", entry((8,), size=32, more=field(7, field(1, field(2, 4))))),
                ]
            )
        ),
        "'a' is a partitioned variable",
    ),
    "a resource": (damaged_entry(entry(dtype=20)), "'a' has the dtype number 20 of TensorFlow's"),
    "no dtype": (damaged_entry(entry(dtype=0)), "'a' has the dtype number 0 of TensorFlow's"),
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_is_not_supported_is_named(tmp_path: Path, what: str) -> None:
    content, reason = UNSUPPORTED[what]
    index = tmp_path / "x.index"
    index.write_bytes(content)
    with pytest.raises(ValueError, match="is not supported") as caught:
        read_tensorflow(index)
    assert str(caught.value) == (
        f"{index}: {reason}, which is not supported. Load the checkpoint with TensorFlow and save "
        "it anew without that."
    )


def test_another_large_file_is_not_taken_for_an_index(tmp_path: Path) -> None:
    path = tmp_path / "x.data-00000-of-00001"
    path.write_bytes(bytes(5_000_000))
    with pytest.raises(ValueError, match=r"has 5,000,000 bytes, but the index") as caught:
        read_tensorflow(path)
    assert str(caught.value).endswith("Pass the file that ends in .index.")


def outcome(index: Path) -> str:
    """What came of reading all: "read", or how the error begins, which must be one of ours."""
    try:
        read_all(read_tensorflow(index))
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return "read"


def test_any_damage_to_the_index_is_noticed(tmp_path: Path) -> None:
    tensors = dict(list(many_tensors().items())[-8:])
    index = write_bundle(tmp_path / "x", tensors, shards=2, keys_per_block=4)
    whole = index.read_bytes()
    generator = random.Random(0)
    unnoticed = set()
    for _ in range(2000):
        position = generator.randrange(len(whole))
        index.write_bytes(flipped(whole, position, 1 << generator.randrange(8)))
        if (text := outcome(index)) == "read":
            unnoticed.add(position)
        else:
            assert "fetch it again" in text
    # Nobody looks at the block of information on the table, nor at the footer's padding.
    in_blocks = {position for position in unnoticed if position < len(whole) - 48}
    assert max(in_blocks) - min(in_blocks) < len(block([])) + 5
    assert max(unnoticed) < len(whole) - 8
    for _ in range(2000):
        index.write_bytes(whole[: generator.randrange(len(whole))])
        assert "fetch it again" in outcome(index)


def test_any_index_with_right_checksums_is_read_or_an_error_of_ours(tmp_path: Path) -> None:
    few = {"bert/a": np.arange(6.0).reshape(2, 3), "bert/b": np.zeros((), np.int32)}
    index = write_bundle(tmp_path / "x", few)
    entries = [(b"", field(1, 1) + field(3, field(1, 1)))]
    for number, (name, values) in enumerate(few.items()):
        content = values.tobytes()
        crc = masked_crc32c(content)
        value = entry(
            values.shape,
            dtype=NUMBERS[values.dtype.name],
            begin=48 * number,
            size=len(content),
            crc=crc,
        )
        entries.append((name.encode(), value))
    contents = block(entries)
    assert index.read_bytes() == table([contents])
    generator = random.Random(0)
    outcomes = []
    for number in range(2000):
        damaged = bytearray(contents)
        for _ in range(1 + number % 3):
            damaged[generator.randrange(len(contents))] ^= 1 << generator.randrange(8)
        if number % 2:
            del damaged[generator.randrange(len(contents)) :]
        index.write_bytes(table([bytes(damaged)]))
        outcomes.append(outcome(index))
    assert not any("the checksum of the block" in text for text in outcomes)
    assert len({text.split(": ")[1][:25] for text in outcomes if ": " in text}) > 20
    assert 20 < outcomes.count("read") < 1000  # with another name, or without some


def test_any_damage_to_the_data_is_noticed(tmp_path: Path) -> None:
    index = write_bundle(tmp_path / "x", {"a": np.ones((2, 3)), "b": np.ones(5, np.int16)})
    data = tmp_path / "x.data-00000-of-00001"
    whole = data.read_bytes()
    for position in range(len(whole)):
        data.write_bytes(whole[:position])
        assert f"has {position} bytes, but '" in outcome(index)
        for bit in range(8):
            data.write_bytes(flipped(whole, position, 1 << bit))
            name = "a" if position < 48 else "b"
            assert f"the checksum of '{name}' is wrong" in outcome(index)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and sparse files are Linux's")
CRC_OF_ZEROS = 0xAA54C8A0  # of 100 million, computed byte by byte, in half a minute
IMPORT = "from eqxbert.convert.containers.tensorflow_bundle import read_tensorflow"


@on_linux
def test_opening_reads_no_tensor_and_reading_copies_none(tmp_path: Path) -> None:
    size = 100_000_000
    entries = {
        **HEADER,
        b"a": entry((5000, 5000), size=size, crc=CRC_OF_ZEROS),
        b"b": entry((5000, 5000), begin=size, size=size, crc=CRC_OF_ZEROS),
    }
    index = index_of(tmp_path / "x.index", entries)
    with (tmp_path / "x.data-00000-of-00001").open("wb") as file:
        file.truncate(2 * size)
    opening, reading_one, reading_all = costs(
        IMPORT,
        f"tensors = read_tensorflow(Path({str(index)!r})); outcome = len(tensors)",
        "outcome = tensors['b'].read().shape",
        "arrays = [tensor.read() for tensor in tensors.values()]; outcome = len(arrays)",
    )
    assert opening.outcome == "2"
    assert opening.memory < 4e6
    assert reading_one.outcome == "(5000, 5000)"
    assert 0.9 * size < reading_one.memory < 1.3 * size
    assert reading_all.outcome == "2"
    assert 1.8 * size < reading_all.memory < 2.3 * size


@on_linux
def test_no_index_takes_long_or_much_memory(tmp_path: Path) -> None:
    empty = entry((0,), size=0, crc=masked_crc32c(b""))
    # (The last character makes four bytes of each.)
    names = [f"{i:05}{'a' * 20}\N{PILE OF POO}".encode() for i in range(50_000)]
    prefix = b"a" * 490
    bombs = {
        "tensors": ({**HEADER, **dict.fromkeys(names, empty)}, "50000"),
        "names that share all but a few": (
            {**HEADER, **{prefix + b"%05d" % i: empty for i in range(50_000)}},
            "50000",
        ),
        "too many": ({**HEADER, **{b"%05d" % i: empty for i in range(50_001)}}, "50,000 tensors"),
        "parts": ({**HEADER, **{b"\0%07d" % i: b"" for i in range(300_000)}}, "0"),
        "fields": ({b"": b"\x08\x01" * 2_000_000}, "a value of 4,000,000"),
        "axes": ({**HEADER, b"a": entry([1] * 600)}, "600 axes, more than 32"),
        "data files": ({b"": field(1, 2**31), b"a": entry()}, "of-2147483648 is missing"),
    }
    paths = []
    for number, (entries, _) in enumerate(bombs.values()):
        paths.append(index_of(tmp_path / f"{number}.index", entries))
        (tmp_path / f"{number}.data-00000-of-00001").write_bytes(b"")
    paths.append(tmp_path / "blocks.index")
    paths[-1].write_bytes(table([block(HEADER.items()), *[block([])] * 150_000]))
    taken = costs(
        IMPORT,
        *(f"outcome = 0; outcome = len(read_tensorflow(Path({str(path)!r})))" for path in paths),
    )
    outcomes = [*(outcome for _, outcome in bombs.values()), "0"]
    for path, expected, cost in zip(paths, outcomes, taken, strict=True):
        assert expected in cost.outcome, path
        assert cost.seconds < 5, path
        assert cost.memory < 200 * 2**20, path
