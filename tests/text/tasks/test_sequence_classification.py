"""Labels for texts: what the model gets, what is made of its scores, and that it learns."""

import logging

import numpy as np
import pytest
from text.tasks.learning import Table, learn, letters, new_model, small_config

from eqxbert.text.tasks import SequenceClassification

NAMES = {0: "no", 1: "maybe", 2: "yes"}
SCORES = {"cat": [1.0, 0.0, 0.0], "sat": [0.0, 0.0, 2.0], "hello": [-1.0, -1.0, -2.0]}


def task(tokenizer, problem_type: str | None = None, **changes) -> SequenceClassification:
    if "num_labels" not in changes:
        changes = {"id2label": NAMES} | changes
    return SequenceClassification(tokenizer, small_config(problem_type=problem_type, **changes))


def test_texts_are_encoded_as_by_the_tokenizer(tokenizer):
    batch = task(tokenizer).train_batches([{"text": "the cat", "label": "yes"}], batch_size=2)(0)
    inputs = tokenizer(["the cat"] * 2)
    for name, values in inputs.items():
        np.testing.assert_array_equal(batch[name][:, :4], values)
        assert batch[name].shape == (2, 8)
    assert batch["labels"].tolist() == [2, 2]
    assert batch["labels"].dtype == np.int32


def test_pairs_are_encoded_as_by_the_tokenizer(tokenizer):
    examples = [{"text": "the cat", "text_pair": "sat", "label": 0}]
    batch = task(tokenizer).train_batches(examples, batch_size=1)(0)
    for name, values in tokenizer(["the cat"], ["sat"]).items():
        np.testing.assert_array_equal(batch[name][:, : values.shape[1]], values)
    assert batch["token_type_ids"].sum() == 2


def test_long_texts_are_cut_off(tokenizer, caplog):
    do = SequenceClassification(tokenizer, small_config(id2label=NAMES), max_length=10)
    texts = ["the " * 40, "the " * 8, "the " * 7]
    with caplog.at_level(logging.INFO, logger="eqxbert"):
        rows = do.features([{"text": text, "label": 0} for text in texts])
    assert rows.lengths.tolist() == [10, 10, 9]
    assert rows.input_ids[0][-1] == tokenizer.token_to_id("[SEP]")
    assert "2 of 3 texts have all of the 10 tokens there may be" in caplog.text


@pytest.mark.parametrize(
    ("problem_type", "changes", "label", "encoded"),
    [
        (None, {}, "maybe", 1),
        ("single_label_classification", {}, 1, 1),
        ("multi_label_classification", {}, ["yes", 0], [1, 0, 1]),
        ("multi_label_classification", {}, [], [0, 0, 0]),
        (None, {"num_labels": 1}, 2.5, [2.5]),
        ("regression", {"num_labels": 1}, "2.5", [2.5]),  # as a table has it
        ("regression", {"num_labels": 1}, [2.5], [2.5]),
        ("regression", {"num_labels": 3}, [1, 2, 3.5], [1, 2, 3.5]),
    ],
)
def test_labels(tokenizer, problem_type, changes, label, encoded):
    do = task(tokenizer, problem_type, **changes)
    labels = do.features([{"text": "a", "label": label}] * 2).labels["labels"]
    assert isinstance(labels, np.ndarray)
    assert labels.tolist() == [encoded, encoded]
    assert labels.dtype == (np.int32 if isinstance(encoded, int) else np.float32)
    # The model accepts them, and its loss is that of the evaluation.
    batch = do.train_batches([{"text": "a", "label": label}], batch_size=2)(0)
    model = new_model(do)
    metrics = do.evaluator([{"text": "a", "label": label}] * 2)(model)
    assert metrics["loss"] == pytest.approx(float(model(**batch).loss), rel=1e-4)


@pytest.mark.parametrize(
    ("problem_type", "changes", "label", "message"),
    [
        (None, {}, "perhaps", r"\[0\] has the label 'perhaps'. .* labels are no, maybe, yes; or"),
        (None, {}, 3, "has the label 3. .* or their numbers, 0 to 2"),
        (None, {}, -100, "has the label -100"),
        (None, {}, 1.0, "has the label 1.0"),
        (None, {}, ["yes"], r"has the label \['yes'\]"),
        (None, {}, None, "has no label; training and evaluation need one"),
        ("multi_label_classification", {}, "yes", "the label 'yes', expected a list of classes"),
        ("multi_label_classification", {}, ["yes", "x"], "has the label 'x'"),
        ("regression", {"num_labels": 1}, "high", "the label 'high', expected a number"),
        ("regression", {"num_labels": 1}, [1.0, 2.0], r"\[1.0, 2.0\], expected a number"),
        ("regression", {"num_labels": 2}, 1.0, "expected 2 numbers"),
        ("regression", {"num_labels": 2}, [1.0], "expected 2 numbers"),
        ("regression", {"num_labels": 1}, float("nan"), "has the label nan, expected a number"),
        ("regression", {"num_labels": 1}, "inf", "has the label 'inf', expected a number"),
        ("regression", {"num_labels": 1}, 1e39, r"has the label 1e\+39, expected a number"),
        ("regression", {"num_labels": 1}, 10**400, "expected a number"),
    ],
)
def test_labels_that_are_none(tokenizer, problem_type, changes, label, message):
    do = task(tokenizer, problem_type, **changes)
    with pytest.raises(ValueError, match=message):
        do.features([{"text": "a", "label": label}])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "There are no examples"),
        ([{"text": "a", "label": 0}, {"text": "b\ud800", "label": 0}], r"\[1\]: text is not valid"),
        (
            [{"text": "a", "label": 0}, {"text": "a", "text_pair": "b", "label": 0}],
            r"examples\[1\] has a text_pair, but examples\[0\] has no one|has a text_pair",
        ),
        (
            [{"text": "a", "text_pair": "b", "label": 0}, {"text": "a", "label": 0}],
            r"examples\[1\] has no text_pair, but examples\[0\] has",
        ),
    ],
)
def test_examples_that_do_not_go_together(tokenizer, examples, message):
    with pytest.raises(ValueError, match=message):
        task(tokenizer).features(examples)


def test_predictions_are_in_the_order_of_the_examples(tokenizer):
    do = task(tokenizer)
    # Of several lengths, so that they are computed in another order.
    texts = ["sat " + "a " * 30, "cat", "hello hello", "sat sat cat", "cat " * 9]
    examples = [{"text": text} for text in texts]
    model = Table.of(do, SCORES)
    np.testing.assert_allclose(
        do.logits(model, examples),
        [[0, 0, 2], [1, 0, 0], [-2, -2, -4], [1, 0, 4], [9, 0, 0]],
    )
    assert do.predict(model, examples) == ["yes", "no", "no", "yes", "no"]
    assert do.predict(model, []) == []


def test_predictions_of_several_classes(tokenizer):
    do = task(tokenizer, "multi_label_classification")
    examples = [{"text": text} for text in ("cat sat", "sat", "hello", "a")]
    assert do.predict(Table.of(do, SCORES), examples) == [["no", "yes"], ["yes"], [], []]


def test_predictions_of_numbers(tokenizer):
    do = task(tokenizer, num_labels=1)
    examples = [{"text": text} for text in ("cat cat", "sat")]
    assert do.predict(Table.of(do, {"cat": [1.5], "sat": [-1.0]}), examples) == [3.0, -1.0]
    do = task(tokenizer, "regression", num_labels=2)
    table = Table.of(do, {"cat": [1.5, 2.0], "sat": [-1.0, 0.0]})
    assert do.predict(table, examples) == [[3.0, 4.0], [-1.0, 0.0]]


def test_metrics_of_classes(tokenizer):
    do = task(tokenizer, id2label={0: "no", 1: "yes"})
    model = Table.of(do, {"cat": [1.0, 0.0], "sat": [0.0, 1.0]})
    rows = [("cat", "no"), ("sat", "yes"), ("sat", "no"), ("cat", "yes"), ("sat", "yes")]
    found = do.evaluator([{"text": t, "label": label} for t, label in rows])(model)
    right, wrong = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    assert found == {
        "loss": pytest.approx((3 * right + 2 * wrong) / 5, rel=1e-5),
        "accuracy": pytest.approx(3 / 5),
        "f1": pytest.approx(2 * 2 / (3 + 3)),  # of "yes"
        "matthews": pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2)),
    }
    assert do.main_metric == "accuracy"


def test_f1_of_three_classes_is_the_mean(tokenizer):
    do = task(tokenizer)
    rows = [("cat", "no"), ("sat", "no"), ("sat", "yes")]
    found = do.evaluator([{"text": t, "label": label} for t, label in rows])(Table.of(do, SCORES))
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)  # "maybe" does not occur


def test_metrics_of_several_classes(tokenizer):
    do = task(tokenizer, "multi_label_classification")
    rows = [("cat sat", ["no", "yes"]), ("cat", ["no", "yes"]), ("hello", []), ("sat", ["no"])]
    found = do.evaluator([{"text": t, "label": x} for t, x in rows])(Table.of(do, SCORES))
    assert found["accuracy"] == pytest.approx(2 / 4)
    assert found["f1"] == pytest.approx(2 * 3 / (4 + 5))
    assert found["f1_macro"] == pytest.approx((2 * 2 / (2 + 3) + 2 * 1 / (2 + 2)) / 2)
    assert do.main_metric == "f1"


def test_metrics_of_numbers(tokenizer):
    do = task(tokenizer, num_labels=1)
    rows = [("cat", 1.0), ("cat cat", 2.0), ("cat cat cat", 9.0)]
    found = do.evaluator([{"text": t, "label": x} for t, x in rows])(Table.of(do, {"cat": [1.0]}))
    assert found == {
        "loss": pytest.approx(36 / 3),
        "pearson": pytest.approx(np.corrcoef([1, 2, 3], [1, 2, 9])[0, 1]),
        "spearman": pytest.approx(1),
    }
    assert do.main_metric == "pearson"


def test_a_model_with_other_labels(tokenizer):
    do = task(tokenizer)
    other = new_model(task(tokenizer, id2label={0: "yes", 1: "maybe", 2: "no"}))
    message = "The model's labels are yes, maybe, no, but those of the task are no, maybe, yes"
    with pytest.raises(ValueError, match=message):
        do.predict(other, [{"text": "a"}])
    with pytest.raises(ValueError, match=message):
        do.evaluator([{"text": "a", "label": 0}])(other)


def test_limits(tokenizer, real_tokenizer):
    assert task(tokenizer).max_length == 64
    for max_length in (4, 65):
        with pytest.raises(ValueError, match=rf"max_length is {max_length}, expected 5 to 64"):
            SequenceClassification(tokenizer, small_config(), max_length=max_length)
    with pytest.raises(ValueError, match="The tokenizer has 30522 tokens, but the model only"):
        SequenceClassification(real_tokenizer, small_config())


def test_the_tokenizers_limit_counts_as_well(real_tokenizer):
    config = small_config(vocab_size=30522, max_position_embeddings=1024)
    assert SequenceClassification(real_tokenizer, config).max_length == 512


def classified(rng: np.random.Generator, number: int) -> list[dict]:
    rows = []
    for _ in range(number):
        is_yes = bool(rng.integers(2))
        words = [*letters(rng, 4), "sat" if is_yes else "cat"]
        rows.append({"text": " ".join(rng.permutation(words)), "label": ["no", "yes"][is_yes]})
    return rows


def test_a_model_learns_classes(tokenizer):
    do = task(tokenizer, id2label={0: "no", 1: "yes"})
    rng = np.random.default_rng(0)
    train, dev = classified(rng, 200), classified(rng, 64)
    assert do.evaluator(dev)(new_model(do))["accuracy"] < 0.7
    model, metrics = learn(do, train, dev)
    assert metrics["accuracy"] > 0.9
    assert do.predict(model, [{"text": "sat a b"}, {"text": "c cat d"}]) == ["yes", "no"]


def test_a_model_learns_whether_two_texts_are_alike(tokenizer):
    do = task(tokenizer, num_labels=1)
    rng = np.random.default_rng(0)

    def rated(number: int) -> list[dict]:
        rows = []
        for _ in range(number):
            cats, words = int(rng.integers(4)), letters(rng, 4)
            words[:cats] = ["cat"] * cats
            pair = {"text": " ".join(rng.permutation(words)), "text_pair": "hello world"}
            rows.append({**pair, "label": cats / 2})
        return rows

    _, metrics = learn(do, rated(200), rated(64))
    assert metrics["pearson"] > 0.9
    assert metrics["spearman"] > 0.9


def test_a_model_learns_several_classes(tokenizer):
    do = task(tokenizer, "multi_label_classification", id2label={0: "cat", 1: "sat"})
    rng = np.random.default_rng(0)

    def labelled(number: int) -> list[dict]:
        rows = []
        for _ in range(number):
            label = [name for name in ("cat", "sat") if rng.integers(2)]
            words = [*label, *letters(rng, 5 - len(label))]
            rows.append({"text": " ".join(rng.permutation(words)), "label": label})
        return rows

    _, metrics = learn(do, labelled(200), labelled(64))
    assert metrics["f1"] > 0.9
    assert metrics["accuracy"] > 0.8
