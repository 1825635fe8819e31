"""Examples as users give them, right and wrong."""

import numpy as np
import pytest

from eqxbert.text.tasks import TextExample, WordsExample
from eqxbert.text.tasks.examples import as_examples, class_names, class_number


def test_objects_and_dictionaries():
    given = [TextExample("a", label=1), {"text": "b", "text_pair": "c"}]
    found = as_examples(TextExample, given)
    assert [(e.text, e.text_pair, e.label) for e in found] == [("a", None, 1), ("b", "c", None)]
    assert [e.source for e in found] == ["examples[0]", "examples[1]"]
    assert given[0].source is None  # what is given stays as it is


def test_any_iterable_will_do():
    rows = ({"text": text} for text in "ab")
    assert [e.text for e in as_examples(TextExample, rows)] == ["a", "b"]


def test_a_source_that_is_known_stays():
    found = as_examples(TextExample, [TextExample("a", source="x.tsv, line 3"), {"text": "b"}])
    assert [e.source for e in found] == ["x.tsv, line 3", "examples[1]"]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ("some text", "a sequence of TextExample or of dictionaries, got str: 'some text'"),
        ({"text": "a"}, "a sequence of TextExample or of dictionaries, got dict"),
        (["a"], r"examples\[0\] must be a TextExample, or a dictionary of text, text_pair, label"),
        ([{"text": "a"}, ("b", 1)], r"examples\[1\] must be a TextExample, .* got tuple"),
        ([WordsExample(["a"])], r"examples\[0\] must be a TextExample, .* got WordsExample"),
        ([{"sentence": "a"}], r"examples\[0\] has no text. It has sentence."),
        (
            [{"text": "a", "lable": 1}],
            r"examples\[0\] has lable, but a TextExample only text, text_pair, label.",
        ),
    ],
)
def test_what_is_no_example(examples, message):
    with pytest.raises(ValueError, match=message):
        as_examples(TextExample, examples)


LABELS = {"no": 0, "yes": 1, "perhaps": 2}


@pytest.mark.parametrize(
    ("label", "number"),
    [("no", 0), ("yes", 1), (1, 1), (np.int64(2), 2), ("1", 1)],
)
def test_a_class_by_its_name_or_number(label, number):
    assert class_number(label, LABELS, "here") == number


@pytest.mark.parametrize("label", ["maybe", "", 3, -1, "3", "-1", "²", 1.0, True, None, ["no"]])
def test_a_label_that_is_no_class(label):
    message = r"^x.tsv, line 3 has the label .* no, yes, perhaps; or .* 2\.$"
    with pytest.raises(ValueError, match=message):
        class_number(label, LABELS, "x.tsv, line 3")


def test_numbers_that_are_names_are_nothing_else():
    stars = {"1": 0, "2": 1, "3": 2}
    for label in (3, np.int64(3), "3"):
        assert class_number(label, stars, "here") == 2
    for label in (0, "0", 4):
        with pytest.raises(ValueError, match=r"label .*The model's labels are 1, 2, 3\.$"):
            class_number(label, stars, "here")


def test_many_classes_are_not_all_listed():
    with pytest.raises(ValueError, match=r"labels are n0, .*, n19, \.\.\.; or their .* 0 to 98"):
        class_number("x", {f"n{i}": i for i in range(99)}, "here")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "b"], ["a", "b"]),
        ([1, 0, 1], ["0", "1"]),
        (["2", "0"], ["0", "1", "2"]),
        (["10", "9", 2], [str(i) for i in range(11)]),
        (["a", "1"], ["1", "a"]),
    ],
)
def test_names_of_the_classes_that_occur(labels, names):
    assert class_names(labels) == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "There are no labels"),
        (["a", 1], "names, or all of them numbers from 0 on; they are 'a', 1"),
        ([1.5], "they are 1.5"),
        ([-1, 1], "they are -1, 1"),
        (["a", ""], "they are 'a', ''"),
        ([{"a": 1}, "b"], r"they are \{'a': 1\}, 'b'"),
        (["a", "\ud800"], "a label is not valid Unicode"),
        ([0, "10000"], "numbers of classes, counted from 0; 10000 would mean as many"),
    ],
)
def test_labels_that_name_no_classes(labels, message):
    with pytest.raises(ValueError, match=message):
        class_names(labels)
