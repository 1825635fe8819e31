"""From files of examples to a folder with a model."""

import functools
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from text.tasks.learning import letters, small_config
from text.tiny import write_vocabulary

import eqxbert
from eqxbert.cli import main
from eqxbert.text.tasks import SequenceClassification, finetune as module
from eqxbert.text.tasks.files import read_examples
from eqxbert.text.tasks.finetune import TASKS, finetune
from eqxbert.training import fit

RNG = np.random.default_rng(0)
NUMBERS = range(20)
HAS_CAT = [n % 2 == 0 for n in NUMBERS]
WORDS = [[*letters(RNG, 3), "cat" if has else "the"] for has in HAS_CAT]
TEXTS = [" ".join(words) for words in WORDS]


def lines(*columns: Any, header: str = "") -> str:
    rows = ["\t".join(map(str, row)) for row in zip(*columns, strict=True)]
    return "\n".join([header, *rows] if header else rows) + "\n"


def json_lines(**columns: Any) -> str:
    rows = zip(*columns.values(), strict=True)
    return "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)


ANSWERS = [[{"text": words[1], "answer_start": 2}] for words in WORDS]
FILES = {
    "classification": (
        "x.tsv",
        lines(TEXTS, ["yes" if has else "no" for has in HAS_CAT], header="text\tlabel"),
    ),
    "multi-label-classification": (
        "x.jsonl",
        json_lines(text=TEXTS, label=[["cat"] * has + ["odd"] * (n % 3) for n, has in
                                      enumerate(HAS_CAT)]),
    ),
    "regression": ("x.tsv", lines(TEXTS, [n % 2 + n / 40 for n in NUMBERS], header="text\tlabel")),
    "token-classification": (
        "x.conll",
        "\n\n".join(
            "\n".join(f"{word} {'B-animal' if word == 'cat' else 'O'}" for word in words)
            for words in WORDS
        ),
    ),
    "question-answering": (
        "x.jsonl",
        json_lines(question=["a b" for _ in NUMBERS], context=TEXTS, answers=ANSWERS),
    ),
    "multiple-choice": (
        "x.tsv",
        lines(
            TEXTS,
            ["cat" if has else "sat" for has in HAS_CAT],
            ["sat" if has else "cat" for has in HAS_CAT],
            [int(not has) for has in HAS_CAT],
            header="context\tending0\tending1\tlabel",
        ),
    ),
    "sentence-embeddings": (
        "x.jsonl",
        json_lines(text=TEXTS, text_pair=[" ".join(reversed(words)) for words in WORDS]),
    ),
    "sentence-similarity": (
        "x.tsv",
        lines(TEXTS, TEXTS[1:] + TEXTS[:1], [n / 20 for n in NUMBERS],
              header="text\ttext_pair\tlabel"),
    ),
}  # fmt: skip
SMALL = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "progress": False}
STEPS = 6  # of both epochs


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT without a head."""
    folder = tmp_path_factory.mktemp("bert")
    write_vocabulary(folder, config={"do_lower_case": False})
    eqxbert.BertModel(small_config(), key=jax.random.key(0)).save_pretrained(folder)
    return folder


def write(folder: Path, task: str = "classification", content: str | None = None) -> Path:
    name, usual = FILES[task]
    path = folder / name
    path.write_text(usual if content is None else content, encoding="utf-8")
    return path


def run(bert: Path, folder: Path, task: str = "classification", **options: Any) -> dict[str, Any]:
    """Trains on the usual examples, and measures on the same."""
    path = options.pop("train", None) or write(folder, task)
    options = {"model": bert, "dev": path, "out": folder / "out"} | SMALL | options
    return finetune(task, train=path, **options)


@pytest.fixture(scope="module")
def classifier(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a run that has ended, `x.tsv` and `out`."""
    folder = tmp_path_factory.mktemp("classifier")
    run(bert, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training fails."""
    monkeypatch.setattr(module, "fit", lambda *args, **options: pytest.fail("was trained"))


@pytest.fixture
def call_back(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has a function called with the state and the metrics after each step."""

    def set_callback(callback: Callable[[Any, Any], None], save_every: int = 500) -> None:
        monkeypatch.setattr(module, "_SAVE_EVERY", save_every)
        monkeypatch.setattr(
            module, "fit", functools.partial(fit, callbacks=[callback], log_every=1)
        )

    return set_callback


@pytest.mark.parametrize("task", TASKS)
def test_each_task_from_files_to_a_folder(bert, tmp_path, task):
    metrics = run(bert, tmp_path, task)
    out = tmp_path / "out"
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert json.loads((out / "training.json").read_text())["task"] == task
    assert not (out / "checkpoints").exists()
    assert [record["step"] for record in metrics["evaluations"]] == [STEPS // 2, STEPS]

    kind = TASKS[task]
    work, model = kind.task_class.load(out, key=jax.random.key(1), **kind.options)
    examples = read_examples(kind.task_class.example_class, tmp_path / FILES[task][0])
    measured = work.evaluator(examples)(model)
    assert measured == {name: metrics[name] for name in measured}
    main_metric = [record[work.main_metric] for record in metrics["evaluations"]]
    assert metrics[work.main_metric] == max(main_metric)
    assert len(work.predict(model, examples)) == len(examples)
    if kind.problem_type is not None:
        assert model.config.problem_type == kind.problem_type


def test_transformers_loads_a_classifier(classifier):
    out = classifier / "out"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.config.id2label == {0: "no", 1: "yes"}
    with torch.no_grad():
        expected = theirs(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    task, model = SequenceClassification.load(out, key=jax.random.key(0))
    logits = task.logits(model, [{"text": text} for text in TEXTS])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_sentence_transformers_loads_an_encoder(bert, tmp_path):
    run(bert, tmp_path, "sentence-embeddings")
    out = tmp_path / "out"
    theirs = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    encoder = eqxbert.SentenceEncoder.from_pretrained(out)
    expected = theirs.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("without_training")
def test_a_run_that_has_ended_is_not_run_again(bert, classifier):
    before = contents(classifier)
    metrics = run(bert, classifier)
    assert metrics == json.loads((classifier / "out" / "metrics.json").read_text())
    assert contents(classifier) == before


@pytest.mark.usefixtures("without_training")
def test_a_metric_that_is_nan_stays_so(bert, classifier, tmp_path):
    shutil.copytree(classifier, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "out" / "metrics.json"
    path.write_text('{"step": 6, "pearson": null, "evaluations": [{"pearson": null}]}')
    metrics = run(bert, tmp_path)
    assert np.isnan([metrics["pearson"], metrics["evaluations"][0]["pearson"]]).all()
    assert metrics["step"] == 6


@pytest.mark.parametrize("stopped_at", [1, 5])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    bert, classifier, tmp_path, call_back, stopped_at
):
    def stop(state: Any, record: Any) -> None:
        if record["step"] == stopped_at and "skipped" in record:
            raise KeyboardInterrupt

    call_back(stop, save_every=2)
    with pytest.raises(KeyboardInterrupt):
        run(bert, tmp_path)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"training.json", "checkpoints"}

    steps = []
    call_back(lambda state, record: steps.append(record["step"]), save_every=2)
    metrics = run(bert, tmp_path)
    # After the checkpoint before: of every second step, and of the end of the first epoch.
    assert steps[0] == {1: 1, 5: 5}[stopped_at]
    assert contents(out) == contents(classifier / "out")
    assert metrics == json.loads((classifier / "out" / "metrics.json").read_text())


@pytest.mark.parametrize("has_metrics", [False, True])
def test_a_run_that_was_stopped_while_it_wrote_the_model(
    bert, classifier, tmp_path, monkeypatch, call_back, has_metrics
):
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            run(bert, tmp_path)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"training.json", "checkpoints"}
    if has_metrics:  # the configuration is moved last
        for name in ("metrics.json", "model.safetensors"):
            shutil.copy(classifier / "out" / name, out)

    call_back(lambda state, record: pytest.fail("was trained"))
    run(bert, tmp_path)
    assert contents(out) == contents(classifier / "out")


@pytest.mark.usefixtures("without_training")
def test_checkpoints_that_are_left_over_are_removed(bert, classifier, tmp_path):
    shutil.copytree(classifier, tmp_path, dirs_exist_ok=True)
    (tmp_path / "out" / "checkpoints" / "6").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints" / "6" / "state").touch()
    run(bert, tmp_path)
    assert contents(tmp_path) == contents(classifier)


@pytest.mark.usefixtures("without_training")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "another run: seed is 0 there and 1 here. Give another folder"),
        ({"epochs": 3, "dev": None}, "dev is 'x.tsv, sha256 .*' there and None here; epochs is 2"),
        ({"labels": ["yes", "no"]}, r"labels is None there and \['yes', 'no'\] here"),
    ],
)
def test_the_folder_of_another_run_stays_as_it_is(bert, classifier, change, message):
    before = contents(classifier)
    with pytest.raises(ValueError, match=message):
        run(bert, classifier, **change)
    assert contents(classifier) == before


@pytest.mark.usefixtures("without_training")
def test_other_examples_make_another_run(bert, classifier, tmp_path):
    shutil.copytree(classifier, tmp_path, dirs_exist_ok=True)
    path = write(tmp_path, content=FILES["classification"][1] + "a\tno\n")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"train is 'x.tsv, sha256 .*; dev is 'x.tsv, sha256"):
        run(bert, tmp_path, train=path)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("without_training")
@pytest.mark.parametrize(
    "name",
    ["config.json", "modules.json", "vocab.txt", "tokenizer.json", "metrics.json",
     "pytorch_model.bin", "model-00001-of-00002.safetensors", "checkpoints/mine"],
)  # fmt: skip
def test_a_folder_with_another_model_stays_as_it_is(bert, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(ValueError, match=f"it has {name.split('/')[0]}, but no training.json"):
        run(bert, tmp_path)
    assert contents(tmp_path / "out") == {name: b"{}"}


@pytest.mark.usefixtures("without_training")
def test_a_model_is_not_replaced_by_what_is_made_of_it(bert, tmp_path):
    before = contents(bert)
    with pytest.raises(ValueError, match=r"it has config\.json and .*, but no training\.json"):
        run(bert, tmp_path, out=bert)
    assert contents(bert) == before


def test_other_files_in_the_folder_stay(bert, classifier, tmp_path):
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    (tmp_path / "out" / "training.json").write_text('{"seed": 3}')  # of a run without a checkpoint
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run(bert, tmp_path)
    assert contents(tmp_path / "out") == contents(classifier / "out") | {"notes.txt": b"mine"}


def test_the_best_epoch_is_written(bert, tmp_path, monkeypatch, call_back):
    accuracies = itertools.chain([0.5, 0.9, float("nan"), 0.9])
    monkeypatch.setattr(
        SequenceClassification,
        "evaluator",
        lambda self, examples: lambda model: {"accuracy": next(accuracies)},
    )
    models = {}
    call_back(lambda s, record: models.update({record["step"]: jax.tree.map(np.array, s.model)}))
    metrics = run(bert, tmp_path, epochs=4)
    assert (metrics["step"], metrics["accuracy"]) == (6, 0.9)
    accuracies = [record["accuracy"] for record in metrics["evaluations"]]
    np.testing.assert_array_equal(accuracies, [0.5, 0.9, np.nan, 0.9])
    written = eqxbert.BertForSequenceClassification.from_pretrained(tmp_path / "out")
    equal = jax.tree.map(np.array_equal, models[6], written)
    assert jax.tree.all(equal)
    assert not jax.tree.all(jax.tree.map(np.array_equal, models[12], written))


def test_a_model_that_is_not_finite_is_not_written(bert, tmp_path):
    """Here in a place that no text comes to, so that all losses are finite."""
    model = tmp_path / "model"
    shutil.copytree(bert, model)
    whole = eqxbert.BertModel.from_pretrained(model)

    def positions(model: eqxbert.BertModel) -> jax.Array:
        return model.embeddings.position.weight

    eqx.tree_at(positions, whole, positions(whole).at[-1].set(np.inf)).save_pretrained(model)
    message = r"^bert\.embeddings\.position\.weight has NaN or infinity .* is not written"
    with pytest.raises(FloatingPointError, match=message):
        run(model, tmp_path, dev=None)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"training.json", "checkpoints"}


def test_a_model_whose_loss_is_not_finite_is_not_written(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(
        SequenceClassification,
        "evaluator",
        lambda self, examples: lambda model: {"accuracy": 0.5, "loss": float("nan")},
    )
    with pytest.raises(FloatingPointError, match=r"^The loss of the model is nan in the end"):
        run(bert, tmp_path)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"training.json", "checkpoints"}


def test_questions_may_have_no_answer(bert, tmp_path):
    """With this threshold, none has one."""
    empty = json_lines(question=["a b"] * 8, context=TEXTS[:8], answers=[[]] * 8)
    path = write(tmp_path, "question-answering", empty)
    options = {"train": path, "epochs": 1, "learning_rate": 1e-5}
    metrics = run(bert, tmp_path, "question-answering", no_answer_threshold=-100, **options)
    assert metrics["exact_match"] == 1
    metrics = run(bert, tmp_path, "question-answering", out=tmp_path / "other", **options)
    assert metrics["exact_match"] < 1  # (an article alone is no word, hence right)


class TestNamesOfATrainedHead:
    """`Task.load` with other names than those that the head was trained for."""

    def load(self, folder: Path, **changes: Any) -> Any:
        return SequenceClassification.load(folder, key=jax.random.key(0), changes=changes)

    def test_are_not_changed(self, classifier):
        for changes in ({"id2label": {0: "yes", 1: "no"}}, {"label2id": {"yes": 0, "no": 1}}):
            with pytest.raises(ValueError, match=r"yes, no, but the head of .* for no, yes, in"):
                self.load(classifier / "out", **changes)
        task, _ = self.load(classifier / "out", id2label={0: "no", 1: "yes"})
        assert dict(task.config.id2label) == {0: "no", 1: "yes"}

    def test_may_be_given_if_it_had_none(self, tmp_path, bert):
        model = tmp_path / "model"
        shutil.copytree(bert, model)
        config = small_config(num_labels=2)
        head = eqxbert.BertForSequenceClassification(config, key=jax.random.key(0))
        head.save_pretrained(model)
        task, _ = self.load(model, id2label={0: "yes", 1: "no"})
        assert dict(task.config.id2label) == {0: "yes", 1: "no"}

    def test_are_free_for_a_new_head(self, bert):
        task, _ = self.load(bert, id2label={0: "yes", 1: "no"})
        assert dict(task.config.id2label) == {0: "yes", 1: "no"}


def test_without_dev_the_last_epoch_is_written(bert, tmp_path, call_back):
    models = {}
    call_back(lambda s, record: models.update({record["step"]: jax.tree.map(np.array, s.model)}))
    assert run(bert, tmp_path, dev=None) == {"step": STEPS}
    written = eqxbert.BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert jax.tree.all(jax.tree.map(np.array_equal, models[STEPS], written))


class TestLabels:
    def names(self, folder: Path) -> list[str]:
        return list(eqxbert.BertConfig.from_pretrained(folder / "out").id2label.values())

    def test_are_those_of_both_files(self, bert, tmp_path):
        dev = tmp_path / "dev.tsv"
        dev.write_text("text\tlabel\na\tmaybe\n")
        run(bert, tmp_path, dev=dev, epochs=1)
        assert self.names(tmp_path) == ["maybe", "no", "yes"]

    def test_are_in_the_order_that_is_given(self, bert, tmp_path):
        run(bert, tmp_path, labels=["yes", "perhaps", "no"], epochs=1)
        assert self.names(tmp_path) == ["yes", "perhaps", "no"]

    def test_are_those_of_a_model_that_was_trained_for_them(self, classifier, tmp_path):
        path = write(tmp_path, content="text\tlabel\na\tyes\n")
        run(classifier / "out", tmp_path, train=path, epochs=1)
        assert self.names(tmp_path) == ["no", "yes"]

    def test_may_be_named_if_they_had_no_names(self, bert, tmp_path):
        model = tmp_path / "model"
        shutil.copytree(bert, model)
        eqxbert.BertForSequenceClassification(
            small_config(num_labels=2), key=jax.random.key(0)
        ).save_pretrained(model)
        run(model, tmp_path, labels=["yes", "no"], epochs=1)
        assert self.names(tmp_path) == ["yes", "no"]

    @pytest.mark.usefixtures("without_training")
    def test_must_be_those_of_a_model_that_was_trained_for_them(self, classifier, tmp_path):
        with pytest.raises(ValueError, match=r"given are yes, no, but .* was trained for no, yes"):
            run(classifier / "out", tmp_path, labels=["yes", "no"])
        path = write(tmp_path, content="text\tlabel\na\tyes\nb\tmaybe\n")
        with pytest.raises(ValueError, match=r"line 3 has the label 'maybe'\. .* are no, yes;"):
            run(classifier / "out", tmp_path, train=path)
        path = write(tmp_path, "regression")
        with pytest.raises(ValueError, match="was trained for no, yes, not for a number"):
            run(classifier / "out", tmp_path, "regression", train=path)
        assert not (tmp_path / "out").exists()


ONE = {"text": "a", "label": "yes"}


@pytest.mark.usefixtures("without_training")
@pytest.mark.parametrize(
    ("task", "content", "options", "message"),
    [
        ("classification", "", {}, "x.tsv has no examples"),
        ("classification", "text\tlabel\na\t\n", {}, "line 2 has no label, but text. There must"),
        ("classification", "text\tclass\na\tx\n", {}, "x.tsv, line 2 has no label, but text, cl"),
        ("classification", "text\tlabel\na\tx\nb\tx\n", {}, "The only label is 'x': there is noth"),
        ("classification", "text\tlabel\na\t1\nb\t1\n", {}, "The only label is '1': there is noth"),
        ("classification", "text\tlabel\na\tx\n", {"labels": ["x"]}, "The only label is 'x'"),
        (
            "classification",
            None,
            {"labels": ["no", "?"]},
            "line 2 has the label 'yes'. The model's",
        ),
        ("classification", None, {"no_answer_threshold": 0.0}, "the task has no questions"),
        ("classification", None, {"train": "."}, r"\. is a folder; the name of a file is needed"),
        ("classification", None, {"dev": "."}, r"\. is a folder; the name of a file is needed"),
        ("token-classification", "a O\nb O", {}, "The only label is 'O': there is nothing to tell"),
        ("classification", "text\tlabel\na\t2\n", {"labels": ["a", "b"]}, "line 2 has the label"),
        ("classification", "text\tlabel\na\t-1\nb\t0\n", {"labels": ["a", "b"]}, "label '-1'"),
        ("classification", None, {"labels": "yes,no"}, "labels must be a sequence of strings"),
        ("classification", None, {"labels": []}, r"labels must be names, all different, got \[\]"),
        ("classification", None, {"labels": ["a", "a"]}, "labels must be names, all different"),
        ("classification", None, {"labels": ["a", ""]}, "labels must be names, all different"),
        ("classification", None, {"epochs": 0}, "epochs must be an integer from 1"),
        ("classification", None, {"batch_size": 0}, "batch_size must be an integer from 1"),
        ("classification", None, {"learning_rate": 0.0}, "learning_rate must be positive"),
        ("classification", None, {"warmup": -1}, "warmup must be"),
        ("classification", None, {"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ("classification", None, {"seed": -1}, "seed must be an integer from 0"),
        ("classification", None, {"max_length": 65}, "max_length is 65, expected 5 to 64"),
        ("classification", None, {"dtype": "int32"}, "dtype must be one of floating point"),
        ("classification", None, {"out": ""}, "name of the folder to write is empty"),
        ("regression", "text\tlabel\na\tnan\n", {}, "line 2 has the label 'nan', expected a num"),
        ("regression", "text\tlabel\na\t1\nb\tinf\n", {}, "line 3 has the label 'inf', expected"),
        ("regression", "text\tlabel\na\t1e39\n", {}, "line 2 has the label '1e39', expected"),
        ("regression", "text\tlabel\na\tgood\n", {}, "line 2 has the label 'good', expected"),
        ("regression", None, {"labels": ["a"]}, r"labels are given \(a\), but the task has no cl"),
        ("multiple-choice", None, {"labels": ["a"]}, r"labels are given \(a\), but"),
        (
            "multiple-choice",
            "context\tending0\tending1\tlabel\na\tb\tc\t2\n",
            {},
            "line 2 has the label '2', expected the number of the right ending, 0 to 1",
        ),
        (
            "multi-label-classification",
            json.dumps(ONE),
            {},
            "line 1 has the label 'yes', expected a list of classes",
        ),
        (
            "multi-label-classification",
            json.dumps(ONE | {"label": []}),
            {},
            "There are no labels",
        ),
        (
            "multi-label-classification",
            json.dumps(ONE | {"label": [{"a": 1}]}),
            {},
            "Labels must be names, or all of them numbers from 0 on; they are {'a': 1}",
        ),
        (
            "token-classification",
            "a O\nb B-x",
            {"labels": ["O", "B-y"]},
            "lines 1 to 2 has the label 'B-x'. The model's labels are O, B-y",
        ),
        (
            "question-answering",
            json.dumps({"question": "a", "context": "b", "answers": [{"text": "c"}]}),
            {},
            "line 1: an answer must have a text and an answer_start",
        ),
        (
            "sentence-similarity",
            "text\ttext_pair\tlabel\na\tb\t5\n",
            {},
            "line 2 has the label '5', expected a similarity from -1 to 1",
        ),
        ("sentence-embeddings", None, {"group_by_length": True}, "Pairs are not grouped by length"),
        ("sentiment", None, {}, "no task 'sentiment'; there are classification, multi-label"),
    ],
)
def test_what_is_wrong_leaves_nothing_behind(
    bert, tmp_path, monkeypatch, task, content, options, message
):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, task if task in TASKS else "classification", content)
    with pytest.raises(ValueError, match=message):
        run(bert, tmp_path, task, **{"train": path} | options)
    assert {file.name for file in tmp_path.iterdir()} == {path.name}


@pytest.mark.usefixtures("without_training")
@pytest.mark.parametrize("argument", ["train", "dev", "model"])
def test_what_is_not_there_leaves_nothing_behind(bert, tmp_path, argument):
    options: dict[str, Any] = {argument: tmp_path / "missing"}
    with pytest.raises(FileNotFoundError, match="missing"):
        run(bert, tmp_path, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_training")
def test_a_file_in_place_of_the_folder_stays(bert, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out is a file; the model needs a folder"):
        run(bert, tmp_path)
    assert (tmp_path / "out").read_text() == "mine"


class TestCommand:
    def arguments(self, bert: Path, folder: Path, *more: str) -> list[str]:
        path, out = str(write(folder)), str(folder / "out")
        required = ["--model", str(bert), "--train", path, "--dev", path, "--out", out]
        small = ["--epochs", "2", "--batch-size", "8", "--learning-rate", "5e-3"]
        return ["finetune", "classification", *required, *small, *more]

    def test_does_the_same(self, bert, classifier, tmp_path, capsys):
        assert main(self.arguments(bert, tmp_path)) == 0
        *rows, last = capsys.readouterr().out.splitlines()
        metrics = json.loads((classifier / "out" / "metrics.json").read_text())
        del metrics["evaluations"]
        assert rows == [f"{name}\t{value}" for name, value in metrics.items()]
        assert last == f"Written to {tmp_path / 'out'}."
        assert contents(tmp_path / "out") == contents(classifier / "out")

    @pytest.mark.usefixtures("without_training")
    def test_passes_the_threshold_on(self, bert, tmp_path, capsys):
        assert main(self.arguments(bert, tmp_path, "--no-answer-threshold", "0.5")) == 1
        message = capsys.readouterr().err
        assert "no_answer_threshold is 0.5, but the task has no questions" in message

    @pytest.mark.usefixtures("without_training")
    def test_says_what_is_wrong(self, bert, tmp_path, capsys):
        assert main(self.arguments(bert, tmp_path, "--labels", "no, maybe")) == 1
        message = capsys.readouterr().err
        assert "line 2 has the label 'yes'. The model's labels are no, maybe;" in message
        assert not (tmp_path / "out").exists()
