"""From bare text to a vocabulary, batches, and a model in a folder."""

import json
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
import transformers
from helpers import tiny_config

import eqxbert
from eqxbert.cli import main
from eqxbert.text import (
    MaskedTextBatches,
    masked_text_metrics,
    pretrain as module,
    train_tokenizer,
)
from eqxbert.text.pretrain import pretrain, read_texts
from eqxbert.training import fit
from eqxbert.training.loss import model_loss

WORDS = ["parse", "write", "read", "open", "close", "the", "a", "file", "from", "string", "number"]


def sentences(number: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(number)]


@pytest.fixture(scope="module")
def tokenizer() -> eqxbert.Tokenizer:
    return train_tokenizer(sentences(200), vocab_size=80, min_frequency=1)


class TestTokenizer:
    def test_knows_the_words(self, tokenizer):
        assert tokenizer.vocab_size <= 80
        ids, types = tokenizer.encode(["Parse the file", "readers"])
        tokens = [[tokenizer.id_to_token(int(i)) for i in row] for row in ids]
        assert tokens[0] == ["[CLS]", "parse", "the", "file", "[SEP]"]
        assert tokens[1][:2] == ["[CLS]", "read"]
        assert all(token.startswith("##") for token in tokens[1][2:-1])
        assert tokenizer.pad_id == 0
        assert [row.tolist() for row in types] == [[0] * len(row) for row in ids]

    def test_transformers_reads_it(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        texts = ["Parse, the fïle!", "strings number"]
        assert theirs(texts)["input_ids"] == [row.tolist() for row in tokenizer.encode(texts)[0]]

    def test_case_may_count(self):
        tokenizer = train_tokenizer(["Open open Über"] * 3, vocab_size=60, lowercase=False)
        ids, _ = tokenizer.encode(["Open", "open", "Über"])
        assert len({tuple(row) for row in ids}) == 3
        assert tokenizer.decode(ids[2]) == "Über"

    @pytest.mark.parametrize(
        ("texts", "options", "message"),
        [
            ([], {}, "The texts have no words"),
            (["", "  "], {}, "The texts have no words"),
            (["abcdefghij"] * 3, {"vocab_size": 8}, "more than vocab_size, 8"),
        ],
    )
    def test_bad_texts(self, texts, options, message):
        with pytest.raises(ValueError, match=message):
            train_tokenizer(texts, **options)


class TestBatches:
    def test_hold_every_token_once_in_an_epoch(self, tokenizer):
        texts = [*sentences(50), " ".join(sentences(20, 1)), "a"]
        batches = MaskedTextBatches(tokenizer, texts, seq=16, batch_size=4)
        rows = {}
        for step in range(len(batches)):
            batch = batches(step)
            ids = batch["input_ids"].copy()
            for row, (places, labels) in enumerate(
                zip(batch["masked_positions"], batch["labels"], strict=True)
            ):
                chosen = labels != -100
                ids[row, places[chosen]] = labels[chosen]
            for row, segments in zip(ids, batch["segment_ids"], strict=True):
                rows[row.tobytes()] = row, segments
        found = sorted(
            tuple(row[segments == segment][1:-1])
            for row, segments in rows.values()
            for segment in range(1, segments.max() + 1)
            if np.any(segments == segment)
        )
        expected = []
        for ids in tokenizer.encode(texts)[0]:
            words = ids[1:-1]
            expected += [tuple(words[i : i + 14]) for i in range(0, len(words), 14)]
        # Pieces of fewer than four tokens are left out.
        assert found == sorted(piece for piece in expected if len(piece) >= 4)
        assert batches.tokens == sum(len(piece) + 2 for piece in found)

    def test_are_functions_of_the_step(self, tokenizer):
        one, other = (MaskedTextBatches(tokenizer, sentences(50), seq=16, seed=3) for _ in range(2))
        one(0)
        assert jax.tree.all(jax.tree.map(np.array_equal, one(7), other(7)))
        assert not np.array_equal(one(7)["input_ids"], one(8)["input_ids"])

    def test_the_parts_of_all_hosts_are_the_batch(self, tokenizer):
        options = {"seq": 16, "batch_size": 6, "seed": 3}
        whole = MaskedTextBatches(tokenizer, sentences(50), **options)
        parts = [
            MaskedTextBatches(tokenizer, sentences(50), **options, host=host, hosts=3)
            for host in range(3)
        ]
        for step in (0, 5):
            joined = jax.tree.map(lambda *x: np.concatenate(x), *(part(step) for part in parts))
            assert jax.tree.all(jax.tree.map(np.array_equal, joined, whole(step)))

    @pytest.mark.parametrize("seq", [-1, 2, 5])
    def test_of_rows_without_room(self, tokenizer, seq):
        with pytest.raises(ValueError, match=f"seq must be an integer from 6 .* got {seq}"):
            MaskedTextBatches(tokenizer, sentences(5), seq=seq)

    def test_sequences_of_a_row_do_not_see_one_another(self, tokenizer):
        """The loss of packed texts is that of each by itself."""
        texts = sentences(12)
        config = tiny_config(vocab_size=80, max_position_embeddings=32)
        model = eqxbert.BertForMaskedLM(config, key=jax.random.key(0))
        batches = MaskedTextBatches(tokenizer, texts, seq=32, batch_size=2, rate=0.3)
        batch = batches(0)
        assert batch["segment_ids"].max() > 2
        packed = float(model(**batch).loss)
        labels = np.full(batch["input_ids"].shape, -100)
        for row, (places, values) in enumerate(
            zip(batch["masked_positions"], batch["labels"], strict=True)
        ):
            labels[row, places[values != -100]] = values[values != -100]
        losses = []
        for row, segments in enumerate(batch["segment_ids"]):
            for segment in range(1, segments.max() + 1):
                here = segments == segment
                if np.any(labels[row, here] != -100):
                    count = np.sum(labels[row, here] != -100)
                    out = model(batch["input_ids"][row, here], labels=labels[row, here])
                    losses.append((count, float(out.loss)))
        total = sum(count for count, _ in losses)
        assert packed == pytest.approx(sum(c * x for c, x in losses) / total, rel=1e-5)

    def test_without_text(self, tokenizer):
        with pytest.raises(ValueError, match="no sequences"):
            MaskedTextBatches(tokenizer, ["", "a"], seq=16)


def test_metrics_are_means_over_masked_tokens(tokenizer):
    config = tiny_config(vocab_size=80, max_position_embeddings=16)
    model = eqxbert.BertForMaskedLM(config, key=jax.random.key(0))
    batches = MaskedTextBatches(tokenizer, sentences(40), seq=16, batch_size=4)
    found = masked_text_metrics(batches)(model)
    counts, losses = [], []
    for step in range(len(batches)):
        [mean] = model_loss(model, batches(step), None)
        counts.append(int(mean.weight))
        losses.append(float(mean.mean))
    assert found["loss"] == pytest.approx(np.average(losses, weights=counts), rel=1e-5)
    assert 0 <= found["accuracy"] <= 1
    assert masked_text_metrics(batches)(model) == found


SMALL = {
    "vocab_size": 80,
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "seq": 16,
    "batch_size": 8,
    "steps": 30,
    "progress": False,
}


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(sentences(120)) + "\n", encoding="utf-8")
    return path


class TestPretrain:
    def test_from_files_to_a_folder(self, text_file, tmp_path):
        out = tmp_path / "model"
        metrics = pretrain([text_file], out=out, dev=text_file, **SMALL)
        assert metrics["step"] == 30
        assert {"loss", "accuracy"} < {*metrics}
        assert json.loads((out / "metrics.json").read_text()) == metrics
        assert not (out / "checkpoints").exists()
        model = eqxbert.BertForMaskedLM.from_pretrained(out)
        tokenizer = eqxbert.Tokenizer.from_pretrained(out)
        assert tokenizer.vocab_size == model.config.vocab_size
        assert transformers.AutoModelForMaskedLM.from_pretrained(out).config.hidden_size == 16
        again = pretrain([text_file], out=out, dev=text_file, **SMALL)
        assert again == metrics

        # The same, going on from there; and another run is not mixed with it.
        options = SMALL | {"steps": 5}
        more = pretrain([text_file], out=tmp_path / "more", model=out, dev=text_file, **options)
        assert more["step"] == 5
        with pytest.raises(ValueError, match="holds another run: steps is 30 there and 5 here"):
            pretrain([text_file], out=out, dev=text_file, **options)

    def test_a_run_that_was_stopped_goes_on_with_its_vocabulary(
        self, text_file, tmp_path, monkeypatch
    ):
        """Of the same texts, `tokenizers` makes other vocabularies each time."""

        def fit_and_stop(*args: Any, **options: Any) -> Any:
            def stop(state: Any, record: Any) -> None:
                raise KeyboardInterrupt

            return fit(*args, **options | {"callbacks": [stop], "save_every": 2})

        out = tmp_path / "model"
        with monkeypatch.context() as patch:
            patch.setattr(module, "fit", fit_and_stop)
            with pytest.raises(KeyboardInterrupt):
                pretrain([text_file], out=out, **SMALL)
        before = (out / "tokenizer.json").read_bytes()
        monkeypatch.setattr(module, "train_tokenizer", lambda *_, **__: pytest.fail("made again"))
        assert pretrain([text_file], out=out, **SMALL)["step"] == 30
        assert (out / "tokenizer.json").read_bytes() == before
        assert {path.name for path in out.iterdir()} >= {"config.json", "metrics.json"}

    def test_the_best_evaluation_is_not_one_that_is_nan(self, text_file, tmp_path, monkeypatch):
        losses = iter([math.nan, 1.0, 2.0])
        metrics = lambda model: {"loss": next(losses), "accuracy": 0.0}  # noqa: E731
        monkeypatch.setattr(module, "masked_text_metrics", lambda batches: metrics)
        monkeypatch.setattr(module, "_EVALUATE_EVERY", 10)
        found = pretrain([text_file], out=tmp_path / "model", dev=text_file, **SMALL)
        assert (found["step"], found["loss"]) == (20, 1.0)

    def test_command(self, text_file, tmp_path, capsys):
        out = tmp_path / "model"
        arguments = ["pretrain", "--train", text_file, "--out", out, "--steps", 2, "--seq", 16]
        arguments += ["--vocab-size", 80, "--hidden-size", 8, "--layers", 1, "--heads", 2]
        assert main([str(argument) for argument in arguments]) == 0
        assert f"Written to {out}." in capsys.readouterr().out
        command = ["fill-mask", "read the [MASK]", "--model", str(out), "--top-k", "3"]
        assert main(command) == 0
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert len(rows) == 3
        assert all(text.startswith("read the") for _, text in rows)
        probabilities = [float(probability) for probability, _ in rows]
        assert probabilities == sorted(probabilities, reverse=True)

    @pytest.mark.parametrize(
        ("content", "options", "message"),
        [
            (b"", {}, "has no text"),
            (b" \n\n \n", {}, "has no text"),
            (b"\xff\xfe", {}, "is not UTF-8"),
            (b"read the file", {"steps": 0}, "steps"),
            (b"read the file", {"heads": 3}, "must be a multiple of"),
            (b"read the file", {"rate": 2}, "rate must be above 0"),
            (b"read the file", {"seq": 2}, "seq must be an integer from 6"),
            (b"read the file", {"accumulate": 3}, "batch of 8 rows cannot be .* 3 equal parts"),
            (b"read the file", {"accumulate": 0}, "accumulate must be an integer from 1"),
            (b"read the file", {"dev": "."}, r"\. is a folder; the name of a file is needed"),
        ],
    )
    def test_bad_input_leaves_nothing_behind(self, tmp_path, content, options, message):
        path, out = tmp_path / "texts.txt", tmp_path / "model"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            pretrain([path], out=out, **SMALL | options)
        assert not out.exists()

    def test_a_model_that_is_not_finite_is_not_written(self, text_file, tmp_path):
        """Here in a place that no text comes to, so that all losses are finite."""
        pretrain([text_file], out=tmp_path / "model", **SMALL | {"steps": 1})
        model = eqxbert.BertForMaskedLM.from_pretrained(tmp_path / "model")

        def types(model: eqxbert.BertForMaskedLM) -> jax.Array:
            return model.bert.embeddings.token_type.weight

        damaged = eqx.tree_at(types, model, types(model).at[1].set(np.nan))
        damaged.save_pretrained(tmp_path / "model")
        out, options = tmp_path / "more", SMALL | {"steps": 2}
        message = r"^bert\.embeddings\.token_type\.weight has NaN .* The model is not written"
        with pytest.raises(FloatingPointError, match=message):
            pretrain([text_file], out=out, model=tmp_path / "model", **options)
        assert {path.name for path in out.iterdir()} == {"training.json", "checkpoints"}


def test_texts_are_parted_by_empty_lines(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\r\ntwo\r\n\r\n \nthree\n\n\n".encode())
    assert read_texts(path) == ["one\ntwo", "three"]
