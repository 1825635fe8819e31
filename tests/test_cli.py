"""The command line, as a shell user meets it."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
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
