"""Whole checkpoints in each container and dialect, and how these are told apart."""

import functools
import io
import json
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from convert.checkpoints import (
    as_numpy,
    assert_same_arrays,
    torch_bert,
    write_checkpoint,
    write_config,
)
from convert.containers.bundles import write_bundle
from convert.dialects import (
    KINDS,
    flax_bytes,
    flax_state,
    nested,
    tensorflow_name,
    tensorflow_state,
    without_repeats,
    write,
    write_shards,
)
from helpers import max_difference, run_python, tiny_config
from parity import WITH_HEADS, reference_class
from safetensors.numpy import save_file
from tolerances import FLOAT32

import eqxbert
from eqxbert.convert import from_state_dict, inspect_checkpoint, load
from eqxbert.convert.containers.tensorflow_bundle import read_tensorflow

CLASSES = (eqxbert.BertModel, *WITH_HEADS)

every_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def reference(model_class: Any, seed: int = 0) -> Any:
    """A model of transformers. Not to be changed."""
    changes = {"is_decoder": True} if model_class is eqxbert.BertForCausalLM else {}
    return torch_bert(reference_class(model_class), seed=seed, **changes)


def base(seed: int = 0) -> Any:
    return reference(eqxbert.BertModel, seed)


def assert_is(model: Any, of: Any) -> None:
    """That a model of ours has the arrays of one of transformers, in every bit."""
    assert_same_arrays(model, without_repeats(of))


@every_kind
@pytest.mark.parametrize("model_class", CLASSES, ids=lambda c: c.__name__)
def test_every_container_holds_the_same_model(tmp_path: Path, model_class: Any, kind: str) -> None:
    theirs = reference(model_class)
    loaded = load(model_class, write(kind, tmp_path, theirs))
    assert_is(loaded.model, theirs)
    tree = from_state_dict(model_class, loaded.model.config, as_numpy(theirs))
    assert jax.tree.structure(loaded.model) == jax.tree.structure(tree)
    report = loaded.report
    assert not report.unexpected
    assert not report.initialized
    assert not report.overridden
    assert sorted(report.loaded.values()) == sorted(
        name.removeprefix("bert.") for name in without_repeats(theirs)
    )


@every_kind
def test_without_its_heads_a_model_is_the_base_model(tmp_path: Path, kind: str) -> None:
    theirs = reference(eqxbert.BertForPreTraining)
    loaded = load(eqxbert.BertModel, write(kind, tmp_path, theirs))
    assert_same_arrays(loaded.model, as_numpy(theirs.bert))
    heads = [name for name in loaded.report.unexpected if name.startswith("cls")]
    assert len(heads) == len(loaded.report.unexpected)
    assert len(heads) in (7, 9), "with or without the decoder's, which repeat others"


@every_kind
def test_the_log_gets_one_line(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    write(kind, tmp_path, base())
    with caplog.at_level(logging.DEBUG, "eqxbert"):
        report = load(eqxbert.BertModel, tmp_path).report
    [record] = [record for record in caplog.records if record.name == "eqxbert"]
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"BertModel from {tmp_path}: {report.summary()}"
    assert "arrays loaded: 39" in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("kind", ["torch zip", "torch legacy", "flax", "tensorflow"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_the_one_asked_for(tmp_path: Path, kind: str, dtype: Any) -> None:
    model = eqxbert.BertModel.from_pretrained(write(kind, tmp_path, base()), dtype=dtype)
    expected = {name: array.astype(jnp.dtype(dtype)) for name, array in as_numpy(base()).items()}
    assert_same_arrays(model, expected)


@pytest.mark.parametrize("kind", ["torch zip", "torch legacy", "flax"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_of_the_checkpoint_can_stay(tmp_path: Path, kind: str, dtype: str) -> None:
    theirs = torch_bert().to(getattr(torch, dtype))
    state = {
        name: array.float().numpy().astype(jnp.dtype(dtype))
        for name, array in theirs.state_dict().items()
    }
    if kind == "flax":
        write_config(tmp_path)
        tree = nested({n: a.astype(jnp.dtype(dtype)) for n, a in flax_state(base()).items()})
        (tmp_path / "flax_model.msgpack").write_bytes(flax_bytes(tree))
    else:
        write(kind, tmp_path, theirs)
    assert_same_arrays(eqxbert.BertModel.from_pretrained(tmp_path, dtype="auto"), state)


# Real files


@pytest.fixture(scope="module")
def checkpoints(data: Path) -> Path:
    return data / "checkpoints"


@pytest.mark.parametrize("model_class", [eqxbert.BertModel, eqxbert.BertForPreTraining])
def test_a_checkpoint_of_googles(checkpoints: Path, model_class: Any) -> None:
    folder = checkpoints / "tf1-tiny"
    loaded = load(model_class, folder)
    values = json.loads((folder / "bert_config.json").read_text())
    theirs = reference_class(model_class)(transformers.BertConfig(**values)).eval()
    raw = {n: t.read() for n, t in read_tensorflow(folder / "bert_model.ckpt.index").items()}
    expected = {}
    for name in without_repeats(theirs):
        array = raw.pop(tensorflow_name(name))
        transposed = tensorflow_name(name).endswith("kernel")
        expected[name] = np.ascontiguousarray(array.T) if transposed else array
    assert_same_arrays(loaded.model, expected)
    leftovers = {name for name in raw if name.endswith(("/adam_m", "/adam_v", "global_step"))}
    assert set(loaded.report.ignored) == leftovers
    assert set(loaded.report.unexpected) == raw.keys() - leftovers

    missing = theirs.load_state_dict(
        {n: torch.tensor(a) for n, a in expected.items()}, strict=False
    )
    assert not missing.unexpected_keys
    ids = np.arange(10, dtype=np.int32).reshape(2, 5)
    with torch.no_grad():
        outputs = theirs(torch.tensor(ids).long()).to_tuple()
    for ours, output in zip(jax.tree.leaves(loaded.model(ids)), outputs, strict=True):
        assert max_difference(ours, output) < FLOAT32


@pytest.mark.parametrize("name", ["torch-legacy-pickle-tiny", "torch-legacy-pickle-small"])
def test_checkpoints_of_the_first_pytorch(checkpoints: Path, name: str) -> None:
    theirs = transformers.BertModel.from_pretrained(checkpoints / name).eval()
    ours = eqxbert.BertModel.from_pretrained(checkpoints / name)
    assert_same_arrays(ours, as_numpy(theirs))
    ids = np.arange(4, 24, dtype=np.int32).reshape(2, 10)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids).long())
    found = ours(ids)
    assert max_difference(found.last_hidden_state, expected.last_hidden_state) < FLOAT32
    assert max_difference(found.pooler_output, expected.pooler_output) < FLOAT32


# Names of heads in TensorFlow


@pytest.mark.parametrize(
    ("model_class", "weights", "bias", "place"),
    [
        (eqxbert.BertForSequenceClassification, "output_weights", "output_bias", "classifier"),
        (
            eqxbert.BertForQuestionAnswering,
            "cls/squad/output_weights",
            "cls/squad/output_bias",
            "qa_outputs",
        ),
        (
            eqxbert.BertForNextSentencePrediction,
            "cls/seq_relationship/output_weights",
            "cls/seq_relationship/output_bias",
            "nsp_head",
        ),
    ],
)
def test_heads_of_tensorflow_are_not_transposed(
    model_class: Any, weights: str, bias: str, place: str
) -> None:
    theirs = torch_bert(reference_class(model_class), num_labels=2)
    state = tensorflow_state(theirs)
    assert state[weights].shape == (2, 12)
    model = from_state_dict(model_class, tiny_config(num_labels=2), state)
    assert_is(model, theirs)
    assert np.array_equal(getattr(model, place).weight, state[weights])
    assert np.array_equal(getattr(model, place).bias, state[bias])


def test_a_square_head_of_tensorflow_is_not_transposed() -> None:
    """Twelve labels, as many as the hidden size: no shape would tell."""
    theirs = torch_bert(transformers.BertForSequenceClassification, num_labels=12)
    model = from_state_dict(
        eqxbert.BertForSequenceClassification, tiny_config(num_labels=12), tensorflow_state(theirs)
    )
    assert_is(model, theirs)


# Containers are known by what is in them


FILES = ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
SINGLE = {
    "safetensors": "model.safetensors",
    "flax safetensors": "model.safetensors",
    "torch zip": "pytorch_model.bin",
    "torch legacy": "pytorch_model.bin",
    "flax": "flax_model.msgpack",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", SINGLE)
def test_the_name_of_a_file_says_nothing(tmp_path: Path, kind: str, name: str) -> None:
    write(kind, tmp_path, base())
    (tmp_path / SINGLE[kind]).rename(tmp_path / name)
    assert_is(eqxbert.BertModel.from_pretrained(tmp_path), base())


def test_shards_may_be_in_several_formats(tmp_path: Path) -> None:
    state = base().state_dict()
    names = list(state)

    def save(path: Path, part: list[str]) -> None:
        arrays = {name: state[name] for name in part}
        if names[0] in part:
            torch.save(arrays, path)
        else:
            save_file({name: array.numpy() for name, array in arrays.items()}, path)

    write_shards(tmp_path, "pytorch_model.bin", [names[:9], names[9:]], save)
    write_config(tmp_path)
    assert_is(eqxbert.BertModel.from_pretrained(tmp_path), base())


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("kind", SINGLE)
def test_the_file_can_be_named(tmp_path: Path, kind: str, as_text: bool) -> None:
    """Then it may have any name, and others may lie beside it."""
    write_checkpoint(tmp_path, as_numpy(base(seed=1)))
    write(kind, tmp_path / "other", base())
    path = tmp_path / "step 1000.weights"
    (tmp_path / "other" / SINGLE[kind]).rename(path)
    loaded = load(eqxbert.BertModel, str(path) if as_text else path)
    assert_is(loaded.model, base())
    assert inspect_checkpoint(eqxbert.BertModel, path).problem is None


@pytest.mark.parametrize("kind", ["safetensors shards", "torch shards", "flax shards"])
def test_the_index_can_be_named(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path, base())
    [index] = tmp_path.glob("*.index.json")
    write_checkpoint(tmp_path, as_numpy(base(seed=1)))
    assert_is(eqxbert.BertModel.from_pretrained(index), base())
    assert_is(eqxbert.BertModel.from_pretrained(tmp_path), base(seed=1))


def test_checkpoints_of_tensorflow_can_be_named_in_its_manner(tmp_path: Path) -> None:
    write("tensorflow", tmp_path, base())
    for step in (0, 1):
        write_bundle(tmp_path / f"model.ckpt-{step}", tensorflow_state(base(seed=step)))
    for step in (0, 1):
        for name in (f"model.ckpt-{step}", f"model.ckpt-{step}.index"):
            assert_is(eqxbert.BertModel.from_pretrained(tmp_path / name), base(seed=step))
            assert_is(eqxbert.BertModel.from_pretrained(str(tmp_path / name)), base(seed=step))


def test_of_several_checkpoints_of_tensorflow_none_is_taken(tmp_path: Path) -> None:
    write("tensorflow", tmp_path, base())
    write_bundle(tmp_path / "model.ckpt-1", tensorflow_state(base()))
    with pytest.raises(ValueError, match="has several TensorFlow checkpoints") as caught:
        eqxbert.BertModel.from_pretrained(tmp_path)
    for part in (str(tmp_path), "bert_model.ckpt.index, model.ckpt-1.index", "Give the path"):
        assert part in str(caught.value)


def test_a_checkpoint_of_tensorflow_may_have_any_name(tmp_path: Path) -> None:
    write("tensorflow", tmp_path, base())
    for path in list(tmp_path.glob("bert_model.ckpt.*")):
        path.rename(tmp_path / path.name.replace("bert_model.ckpt", "model.ckpt-1000"))
    assert_is(eqxbert.BertModel.from_pretrained(tmp_path), base())


def test_the_data_of_tensorflow_are_not_the_checkpoint(tmp_path: Path) -> None:
    write("tensorflow", tmp_path, base())
    with pytest.raises(ValueError, match=r"TensorFlow 1's checkpoints \(by their \.index\)"):
        eqxbert.BertModel.from_pretrained(tmp_path / "bert_model.ckpt.data-00000-of-00001")


def test_the_order_of_preference(tmp_path: Path) -> None:
    order = (
        "safetensors, no format",
        "safetensors shards",
        "torch zip",
        "torch shards",
        "flax",
        "flax shards",
        "tensorflow",
    )
    files = {}
    for seed, kind in reversed(list(enumerate(order))):
        before = {*tmp_path.iterdir(), tmp_path / "config.json"}
        write(kind, tmp_path, base(seed))
        files[kind] = set(tmp_path.iterdir()) - before
    for seed, kind in enumerate(order):
        assert_is(eqxbert.BertModel.from_pretrained(tmp_path), base(seed))
        for path in files[kind]:
            path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        eqxbert.BertModel.from_pretrained(tmp_path)


# What is no container


def a_zip(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr(name, "?")
    return data.getvalue()


BAD = {
    "empty": (b"", "is empty; fetch it again"),
    "git": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 440473133\n",
        "git's pointer to it; fetch it with `git lfs pull`",
    ),
    "web page": (b"<!DOCTYPE html>\n<html><title>Sign in</title></html>", "is a web page"),
    "web page after spaces": (b"\n\n  <html>", "is a web page"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(500), "is in Keras's HDF5 format, which is not read"),
    "JSON": (b'{"error": "Entry not found"}', "begins with b'{\"error\"'|safetensors"),
    "text": (b"Entry not found", "begins with b'Entry no'|safetensors"),
    "zeros": (bytes(600), r"begins with b'\\x00\\x00|safetensors"),
    "short": (b"ab", "begins with b'ab'|safetensors"),
    "gzip": (b"\x1f\x8b\x08" + bytes(30), r"begins with b'\\x1f\\x8b|safetensors"),
    "text pickle": (b"cos\nsystem\n(S'exit 1'\ntR.", r"begins with b'cos\\n|safetensors"),
    "another zip": (a_zip("a/b.txt"), "zip file without the entry data.pkl"),
}


@pytest.mark.parametrize("name", [*FILES, "bert_model.ckpt.index"])
@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_container_is_refused(tmp_path: Path, bad: str, name: str) -> None:
    content, message = BAD[bad]
    write_config(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        eqxbert.BertModel.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name} ({len(content):,} bytes) ")


def test_weights_in_kerass_format_only(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"tf_model\.h5 only, Keras's format.*from_tf=True"):
        eqxbert.BertModel.from_pretrained(tmp_path)
    write("torch zip", tmp_path, base())
    assert_is(eqxbert.BertModel.from_pretrained(tmp_path), base())


def test_a_folder_without_weights_says_what_is_read(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        eqxbert.BertModel.from_pretrained(tmp_path)
    for part in (*FILES, "an index of their shards", "bert_model.ckpt.index", "give its path"):
        assert part in str(caught.value)
    assert "It has config.json, weights.bin." in str(caught.value)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "flax_model.msgpack"])
@pytest.mark.parametrize(
    "shard", ["../outside/x", "a/../../outside/x", "{absolute}", "..\\outside\\x", "C:x"]
)
def test_an_index_must_not_lead_out_of_its_folder(tmp_path: Path, file: str, shard: str) -> None:
    """The file it leads to is there and whole, so only the check can stop it from being read."""
    write("torch zip", tmp_path / "outside", base())
    (tmp_path / "outside" / "pytorch_model.bin").rename(tmp_path / "outside" / "x")
    shard = shard.replace("{absolute}", str(tmp_path / "outside" / "x"))
    (tmp_path / "model").mkdir()
    write_config(tmp_path / "model")
    index = {"weight_map": dict.fromkeys(base().state_dict(), shard)}
    (tmp_path / "model" / f"{file}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is not a file in its folder") as caught:
        eqxbert.BertModel.from_pretrained(tmp_path / "model")
    assert repr(shard) in str(caught.value)


@pytest.mark.parametrize("kind", ["torch shards", "flax shards"])
def test_absent_shards_are_named(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path, base())
    lost = sorted(tmp_path.glob("*-00002-of-00003.*"))[0]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=f"not there: {lost.name}") as caught:
        eqxbert.BertModel.from_pretrained(tmp_path)
    assert ".index.json" in str(caught.value)


# Some files beside the weights are pickles too, and nobody needs them.
HOSTILE = b"cos\nsystem\n(S'exit 1'\ntR."
BESIDE = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt")

OPENED = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" else None)
import eqxbert
from eqxbert.convert import convert_checkpoint, inspect_checkpoint
for folder in {folders!r}:
    model = eqxbert.BertModel.from_pretrained(folder)
    inspect_checkpoint(eqxbert.BertModel, folder)
    convert_checkpoint(eqxbert.BertModel, folder, folder + "-new")
    print(len(model.encoder.layers))
print(*(path for path in opened if str(path).startswith({root!r})), sep="\\n")
"""


def test_other_pickles_in_a_folder_are_not_even_opened(tmp_path: Path) -> None:
    folders = []
    for kind in ("torch zip", "torch shards", "tensorflow"):
        folder = write(kind, tmp_path / kind, base())
        folders.append(str(folder))
        for name in BESIDE:
            (folder / name).write_bytes(HOSTILE)
    result = run_python(OPENED.format(folders=folders, root=str(tmp_path)))
    assert result.returncode == 0, result.stderr
    *_, layers = result.stdout.splitlines()[:3]
    assert layers == "2"
    opened = {Path(path).name for path in result.stdout.splitlines()[3:]}
    assert {"config.json", "pytorch_model.bin", "bert_model.ckpt.index"} <= opened
    assert not opened & set(BESIDE)
    for folder in folders:
        assert not set(os.listdir(f"{folder}-new")) & set(BESIDE)


# What else may be in a file


PREFIXES = (
    "bert.",
    "module.",
    "module.bert.",
    "_orig_mod.",
    "_orig_mod.module.bert.",
    "model.",
    "model.bert.",
    "0.auto_model.",
    "0.model.",
    "base_model.model.",
    "base_model.model.bert.",
    "state_dict.model.bert.",
)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_whatever_wrapped_a_model(tmp_path: Path, prefix: str, kind: str) -> None:
    write_config(tmp_path)
    state = {prefix + name: array for name, array in base().state_dict().items()}
    if kind == "torch":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file({name: array.numpy() for name, array in state.items()}, tmp_path / FILES[0])
    loaded = load(eqxbert.BertModel, tmp_path)
    assert_is(loaded.model, base())
    assert loaded.report.loaded.keys() == state.keys()


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_a_checkpoint_of_training(tmp_path: Path, key: str, legacy: bool) -> None:
    """The model under some key; beside it the optimizer's moments, of the same shapes."""
    theirs = reference(eqxbert.BertForSequenceClassification)
    state = {f"module.{name}": array for name, array in theirs.state_dict().items()}
    parameter = torch.nn.Parameter(torch.ones(33, 12))
    parameter.grad = torch.ones(33, 12)
    optimizer = torch.optim.AdamW([parameter])
    optimizer.step()
    checkpoint = {
        key: state,
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "loss": 0.25,
        "arguments": {"name": "bert", "layers": [1, 2]},
    }
    write_config(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    loaded = load(eqxbert.BertForSequenceClassification, tmp_path)
    assert_is(loaded.model, theirs)
    assert all(name.startswith("optimizer.") for name in loaded.report.unexpected)
    assert len(loaded.report.unexpected) == 3  # two moments, and the step


@pytest.mark.parametrize("outer", ["params", "model/params"])
def test_a_training_state_of_flax(tmp_path: Path, outer: str) -> None:
    theirs = reference(eqxbert.BertForMaskedLM)
    params = nested(flax_state(theirs))
    tree = {
        "step": 7,
        "opt_state": {"0": {"count": np.array(7, np.int32), "mu": params, "nu": params}, "1": {}},
    }
    place = tree
    *path, last = outer.split("/")
    for part in path:
        place = place.setdefault(part, {})
    place[last] = params
    write_config(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(flax_bytes(tree))
    loaded = load(eqxbert.BertForMaskedLM, tmp_path)
    assert_is(loaded.model, theirs)
    assert loaded.report.unexpected
    assert all(name.startswith("opt_state/") for name in loaded.report.unexpected)
    assert len(loaded.report.loaded) == len(without_repeats(theirs))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tensorflow"])
def test_of_an_encoder_decoder_the_encoder_is_taken(tmp_path: Path, kind: str) -> None:
    decoder = torch_bert(
        transformers.BertLMHeadModel, seed=1, is_decoder=True, add_cross_attention=True
    )
    both = transformers.EncoderDecoderModel(encoder=torch_bert(), decoder=decoder)
    loaded = load(eqxbert.BertModel, write(kind, tmp_path, both))
    assert_is(loaded.model, base())
    assert loaded.report.unexpected
    assert all(name.startswith("decoder") for name in loaded.report.unexpected)


def test_the_report_tells_the_fate_of_every_name(tmp_path: Path) -> None:
    """Of a checkpoint of Google's, with an optimizer's leftovers and arrays of nobody's."""
    state = tensorflow_state(reference(eqxbert.BertForPreTraining))
    leftovers = {
        "global_step": np.array(7, np.int64),
        "beta1_power": np.array(0.5, np.float32),
        **{f"{name}/adam_m": array for name, array in state.items()},
        **{f"{name}/adam_v": array for name, array in state.items()},
    }
    strange = {"teacher/weights": np.zeros(3, np.float32)}
    write("tensorflow", tmp_path, base())
    write_bundle(tmp_path / "bert_model.ckpt", state | leftovers | strange)
    report = load(eqxbert.BertForPreTraining, tmp_path).report
    assert report.loaded == {
        tensorflow_name(name): name.removeprefix("bert.")
        for name in without_repeats(reference(eqxbert.BertForPreTraining))
    }
    assert set(report.ignored) == set(leftovers)
    assert report.unexpected == ("teacher/weights",)
    assert "buffers ignored: 94" in report.summary()
    assert "\n  teacher/weights" in str(report)
    assert "... and 54 more" in str(report)
