"""The command line, as a shell user meets it."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import transformers
from convert.checkpoints import as_numpy, assert_same_arrays, torch_bert, write_config
from convert.dialects import KINDS, write
from helpers import max_difference

import eqxbert
from eqxbert.cli import main

TEXTS = ["A dog runs.", "Ein Hund läuft.", "Stocks fell."]


@pytest.fixture(scope="module")
def expected(minilm) -> np.ndarray:
    vectors = eqxbert.SentenceEncoder.from_pretrained(minilm).encode(TEXTS)
    assert isinstance(vectors, np.ndarray)
    return vectors


@pytest.fixture
def stdin(monkeypatch):
    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


def test_embed_arguments_to_json_lines(minilm, expected, capsys):
    assert main(["embed", str(minilm), *TEXTS]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert np.array_equal(np.asarray([row["embedding"] for row in rows], np.float32), expected)


def test_embed_files_to_npy(minilm, expected, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:2]), encoding="utf-8")
    (tmp_path / "b.txt").write_text(TEXTS[2] + "\n", encoding="utf-8")
    files = ["-f", str(tmp_path / "a.txt"), "-f", str(tmp_path / "b.txt")]
    assert main(["embed", str(minilm), *files, "-o", str(tmp_path / "out.npy")]) == 0
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    assert capsys.readouterr().out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "b.txt", "out.npy"}


def test_embed_standard_input_with_options(minilm, expected, stdin, tmp_path):
    stdin("\n".join(TEXTS).encode())
    output = tmp_path / "out.jsonl"
    options = ["--normalize", "--truncate-dim", "8", "-o", str(output)]
    assert main(["embed", str(minilm), *options]) == 0
    rows = [json.loads(line)["embedding"] for line in output.read_text("utf-8").splitlines()]
    cut = expected[:, :8]
    assert max_difference(rows, cut / np.linalg.norm(cut, axis=1, keepdims=True)) < 1e-6


def test_similarity(minilm, capsys):
    assert main(["similarity", str(minilm), "A puppy is running.", *TEXTS]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text in lines] == TEXTS
    scores = [float(score) for score, _ in lines]
    assert scores[0] > 0.7 > 0.3 > scores[2]


def test_inspect(minilm, capsys):
    assert main(["inspect", str(minilm)]) == 0
    out = capsys.readouterr().out
    assert "hidden_size" in out
    assert "embeddings.word.weight" in out
    assert "30522 x 384" in out
    assert "encoder.layers.{0..5}.attention.query.weight" in out
    assert "22,713,216 parameters, 86.6 MiB" in out
    assert "arrays loaded: 103, buffers ignored: 1" in out


def test_inspect_says_what_is_wrong(minilm, tmp_path, capsys):
    config = json.loads((minilm / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    (tmp_path / "model.safetensors").symlink_to(minilm / "model.safetensors")
    assert main(["inspect", str(tmp_path)]) == 0
    assert "16 missing from the checkpoint" in capsys.readouterr().out


def test_convert(minilm, expected, tmp_path, capsys):
    target = tmp_path / "converted"
    assert main(["convert", str(minilm), str(target), "--dtype", "bfloat16"]) == 0
    assert "arrays loaded: 103" in capsys.readouterr().out
    model = eqxbert.BertModel.from_pretrained(target, dtype="auto")
    assert model.embeddings.word.weight.dtype == "bfloat16"
    tokenizer = eqxbert.Tokenizer.from_pretrained(target)
    assert tokenizer("A dog runs.")["input_ids"].tolist()[0] == 101


@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForSequenceClassification"])
@pytest.mark.parametrize("kind", KINDS)
def test_convert_from_every_container(kind, name, tmp_path, capsys):
    theirs = getattr(transformers, name)
    reference = torch_bert(theirs)
    old, new = write(kind, tmp_path / "old", reference), tmp_path / "new"
    (old / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    assert main(["convert", str(old), str(new)]) == 0
    out = capsys.readouterr().out
    assert f"arrays loaded: {46 if name == 'BertForPreTraining' else 41}" in out
    assert out.endswith(f"Written to {new}.\n")
    assert sorted(path.name for path in new.iterdir()) == [
        "config.json",
        "model.safetensors",
        "vocab.txt",
    ]
    found, info = theirs.from_pretrained(new, output_loading_info=True)
    assert not any(info.values())
    assert_same_arrays(as_numpy(found), as_numpy(reference))


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_of_every_container(kind, tmp_path, capsys):
    write(kind, tmp_path, torch_bert(transformers.BertForTokenClassification))
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "encoder.layers.{0..1}.feed_forward.intermediate.weight    20 x 12  float32" in out
    assert "classifier.weight" in out
    if kind == "tensorflow":  # Google's configuration does not say what the head is
        assert "As a BertModel\n" in out
    else:
        assert "As a BertForTokenClassification\n  arrays loaded: 39" in out


def test_the_model_may_be_the_path_of_its_weights(tmp_path, capsys):
    reference = torch_bert()
    write("safetensors", tmp_path / "old", torch_bert(seed=1))
    write("torch zip", tmp_path / "old", reference)
    for path in ("old/pytorch_model.bin", "tf/bert_model.ckpt", "tf/bert_model.ckpt.index"):
        write("tensorflow", tmp_path / "tf", reference)
        assert main(["inspect", str(tmp_path / path)]) == 0
        assert main(["convert", str(tmp_path / path), str(tmp_path / "new")]) == 0
        found = transformers.BertModel.from_pretrained(tmp_path / "new")
        assert_same_arrays(as_numpy(found), as_numpy(reference))


def test_convert_a_checkpoint_of_googles(data, tmp_path, capsys):
    source = data / "checkpoints" / "tf1-tiny"
    assert main(["convert", str(source), str(tmp_path / "new")]) == 0
    assert "\nignored:\n" in capsys.readouterr().out
    found, info = transformers.BertForPreTraining.from_pretrained(
        tmp_path / "new", output_loading_info=True
    )
    assert not any(info.values())
    ours = eqxbert.BertForPreTraining.from_pretrained(source)
    expected = eqxbert.convert.to_state_dict(ours)
    assert_same_arrays({name: as_numpy(found)[name] for name in expected}, expected)
    assert (tmp_path / "new" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    assert main(["inspect", str(tmp_path / "new")]) == 0


def test_convert_says_what_was_not_used(tmp_path, capsys, caplog):
    theirs = torch_bert(transformers.BertForMaskedLM)
    theirs.config.tie_word_embeddings = False
    theirs.cls.predictions.decoder.weight = type(theirs.cls.predictions.decoder.weight)(
        theirs.bert.embeddings.word_embeddings.weight.detach() + 1
    )
    write("torch zip", tmp_path / "old", theirs)
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(
        json.dumps(config | {"tie_word_embeddings": True})
    )
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "of these, not equal and not used: 1" in out
    assert (
        "not equal to what they are tied to, and not used:\n  cls.predictions.decoder.weight" in out
    )
    assert "not equal to the word embeddings" in caplog.text


@pytest.mark.parametrize("command", ["inspect", "convert"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no model.safetensors"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n", "Keras's HDF5"),
        (b"\x80\x02cposix\nsystem\nX\x06\x00\x00\x00exit 1\x85R.", "pytorch_model.bin"),
        (b"PK\3\4" + bytes(60), "is not a valid PyTorch checkpoint"),
        (b"\x81\xa6params", "is not a valid Flax checkpoint"),
    ],
)
def test_bad_weights_are_one_message_and_status_1(command, content, message, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    write_config(tmp_path / "old")
    if content is not None:
        (tmp_path / "old" / "pytorch_model.bin").write_bytes(content)
    target = [str(tmp_path / "new")] if command == "convert" else []
    assert main([command, str(tmp_path / "old"), *target]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("eqxbert: error: ")
    assert message in captured.err
    assert not (tmp_path / "new").exists()


def test_convert_writes_to_folders_only(tmp_path, capsys):
    write("safetensors", tmp_path / "old", torch_bert())
    (tmp_path / "new").write_text("a file")
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 1
    assert "is a file; the model needs a folder" in capsys.readouterr().err
    assert (tmp_path / "new").read_text() == "a file"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "/no/such/folder", "x"], "There is no folder '/no/such/folder'"),
        (["inspect", "/no/such/folder"], "There is no folder '/no/such/folder'"),
        (["embed", "MINILM", "x", "-o", "vectors.csv"], "must end in .npy or .jsonl"),
        (["embed", "MINILM", "-f", "/no/such/file"], "/no/such/file"),
        (["embed", "MINILM", "x", "--prompt-name", "query"], "no prompt 'query'"),
    ],
)
def test_errors_are_one_message_and_status_1(arguments, message, minilm, capsys):
    assert main([str(minilm) if a == "MINILM" else a for a in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("eqxbert: error: ")
    assert message in captured.err


def test_input_that_is_not_text(minilm, stdin, capsys):
    stdin(b"\xff\xfe\x00")
    assert main(["embed", str(minilm)]) == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_a_failed_write_leaves_no_file(minilm, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", fail)
    assert main(["embed", str(minilm), "x", "-o", str(tmp_path / "out.npy")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["embed"], ["convert", "only-one"]])
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: eqxbert" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(minilm):
    embed = f'"{sys.executable}" -m eqxbert.cli embed "{minilm}" a b c d'
    env = {k: v for k, v in os.environ.items() if k != "EQXBERT_TYPECHECK"}
    run = subprocess.run(
        ["bash", "-c", f"{embed} | head -c 1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "{", "")
