"""Choices among endings: one more axis."""

import numpy as np
import pytest
from text.tasks.learning import Table, learn, letters, new_model, small_config

from eqxbert.text.tasks import MultipleChoice


def task(tokenizer, **options) -> MultipleChoice:
    return MultipleChoice(tokenizer, small_config(architectures=("choices",)), **options)


def test_each_ending_is_paired_with_the_context(tokenizer):
    examples = [
        {"context": "the cat", "endings": ["sat", "a b c"], "label": 1},
        {"context": "hello", "endings": ["world", ""], "label": 0},
    ]
    rows = task(tokenizer).features(examples)
    batch = rows.batch(np.array([1, 0]))
    assert batch["input_ids"].shape == (2, 2, 8)
    assert batch["labels"].tolist() == [0, 1]
    pairs = [[("hello", "world"), ("hello", "")], [("the cat", "sat"), ("the cat", "a b c")]]
    for i, row in enumerate(pairs):
        for choice, (context, ending) in enumerate(row):
            for name, values in tokenizer(context, ending).items():
                padded = batch[name][i, choice]
                assert padded[: len(values)].tolist() == values.tolist()
                assert not padded[len(values) :].any()


def test_long_pairs_are_cut_off(tokenizer):
    rows = task(tokenizer, max_length=8).features(
        [{"context": "the " * 9, "endings": ["sat", "cat " * 9], "label": 1}]
    )
    assert [len(ids) for ids in rows.input_ids] == [8, 8]
    [second], _ = tokenizer.encode(["the " * 9], ["cat " * 9], max_length=8)
    assert rows.input_ids[1].tolist() == second.tolist()


def test_predictions_are_in_the_order_of_the_examples(tokenizer):
    do = task(tokenizer)
    examples = [
        {"context": "a " * 30, "endings": ["a", "cat", "b"]},
        {"context": "a", "endings": ["sat sat", "cat", "b"]},
        {"context": "cat", "endings": ["a", "b", "sat"]},
    ]
    model = Table.of(do, {"cat": [2], "sat": [1.5]})
    np.testing.assert_allclose(do.logits(model, examples), [[0, 2, 0], [3, 2, 0], [2, 2, 3.5]])
    assert do.predict(model, examples) == [1, 0, 2]
    assert do.predict(model, []) == []


def test_metrics(tokenizer):
    do = task(tokenizer)
    model = Table.of(do, {"cat": [2]})
    examples = [
        {"context": "a", "endings": ["cat", "b"], "label": 0},
        {"context": "a", "endings": ["cat", "b"], "label": "1"},  # as a table has it
        {"context": "a", "endings": ["b", "cat"], "label": np.int64(1)},
    ]
    found = do.evaluator(examples)(model)
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    assert found == {
        "loss": pytest.approx((2 * right + wrong) / 3, rel=1e-5),
        "accuracy": pytest.approx(2 / 3),
    }
    assert do.main_metric == "accuracy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, r"examples\[1\] has the label 2, expected the number of the .* 0 to 1"),
        ({"label": -1}, "has the label -1"),
        ({"label": None}, "has no label; training"),
        ({"endings": ["a"]}, r"examples\[1\] has 1 endings, but examples\[0\] has 2"),
        ({"endings": []}, "has 0 endings"),
        ({"endings": "ab"}, "endings must be a list of strings, got str: 'ab'"),
        ({"endings": ["a", 3]}, r"endings\[1\] must be a string, got int"),
        ({"context": "a\ud800"}, r"examples\[1\]: context is not valid Unicode"),
    ],
)
def test_examples_that_are_none(tokenizer, change, message):
    example = {"context": "a", "endings": ["b", "c"], "label": 1}
    with pytest.raises(ValueError, match=message):
        task(tokenizer).features([example, example | change])


def test_no_endings(tokenizer):
    with pytest.raises(ValueError, match="has 0 endings"):
        task(tokenizer).predict(None, [{"context": "a", "endings": []}])


def test_a_model_learns_to_choose(tokenizer):
    do = task(tokenizer)
    rng = np.random.default_rng(0)

    def questions(number: int) -> list[dict]:
        examples = []
        for _ in range(number):
            endings = [letters(rng, 3) for _ in range(3)]
            label = int(rng.integers(3))
            endings[label][int(rng.integers(3))] = "sat"
            texts = [" ".join(ending) for ending in endings]
            examples.append({"context": "hello world", "endings": texts, "label": label})
        return examples

    train, dev = questions(200), questions(64)
    assert do.evaluator(dev)(new_model(do))["accuracy"] < 0.6
    _, metrics = learn(do, train, dev)
    assert metrics["accuracy"] > 0.9
