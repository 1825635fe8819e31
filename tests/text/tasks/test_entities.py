"""Entities. What is expected of sequences that break the rules is what seqeval 1.2.2 gives, by
default and in its strict mode for IOB2.
"""

import pytest

from eqxbert.text.tasks import Entity, entities, entity_scores

# Labels; entities by default; entities in the strict mode, if these are others.
CASES = {
    "nothing": ("O O", [], None),
    "no words": ("", [], None),
    "one word": ("O B-a O", [("a", 1, 2)], None),
    "to the end": ("O B-a I-a", [("a", 1, 3)], None),
    "from the beginning": ("B-a I-a O", [("a", 0, 2)], None),
    "one after the other": ("B-a B-a I-a B-b", [("a", 0, 1), ("a", 1, 3), ("b", 3, 4)], None),
    "hyphens in the type": ("B-creative-work I-creative-work", [("creative-work", 0, 2)], None),
    "types that begin alike": ("B-a I-a-b", [("a", 0, 1), ("a-b", 1, 2)], [("a", 0, 1)]),
    "inside of nothing": ("O I-a I-a O", [("a", 1, 3)], []),
    "inside at the beginning": ("I-a O", [("a", 0, 1)], []),
    "inside of another type": ("B-a I-b I-b", [("a", 0, 1), ("b", 1, 3)], [("a", 0, 1)]),
    "back again": (
        "B-a I-b I-a",
        [("a", 0, 1), ("b", 1, 2), ("a", 2, 3)],
        [("a", 0, 1)],
    ),
    "begins after inside of nothing": ("I-a B-a", [("a", 0, 1), ("a", 1, 2)], [("a", 1, 2)]),
    "interrupted": ("B-a O I-a", [("a", 0, 1), ("a", 2, 3)], [("a", 0, 1)]),
}


@pytest.mark.parametrize("name", CASES)
def test_entities(name):
    labels, expected, strictly = CASES[name]
    strictly = expected if strictly is None else strictly
    assert entities(labels.split()) == [Entity(*entity) for entity in expected]
    assert entities(labels.split(), strict=True) == [Entity(*entity) for entity in strictly]


@pytest.mark.parametrize("label", ["a", "S-a", "E-a", "", "B", "o", "LABEL_0"])
def test_labels_that_mark_no_entities(label):
    with pytest.raises(ValueError, match='marked by labels "B-type", "I-type" and "O", got'):
        entities(["O", label])


def test_an_entity_counts_if_type_and_words_are_right():
    gold = [["B-a", "I-a", "O", "B-b", "O"], ["B-a", "O"]]
    found = [
        ["B-a", "I-a", "O", "B-a", "O"],  # right; the wrong type
        ["B-a", "I-a"],  # a word too many
    ]
    scores = entity_scores(found, gold)
    assert scores == {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3}
    one_more = entity_scores([*found, ["B-a"]], [*gold, ["O"]])
    assert one_more == {"precision": 1 / 4, "recall": 1 / 3, "f1": pytest.approx(2 / 7)}
    one_less = entity_scores([*found, ["O"]], [*gold, ["B-a"]])
    assert one_less == {"precision": 1 / 3, "recall": 1 / 4, "f1": pytest.approx(2 / 7)}


def test_the_same_place_in_another_sentence_is_not_right():
    assert entity_scores([["B-a"], ["O"]], [["O"], ["B-a"]])["f1"] == 0


def test_strict_counts_what_is_strictly_right():
    gold, found = [["O", "B-a"]], [["O", "I-a"]]
    assert entity_scores(found, gold)["f1"] == 1
    assert entity_scores(found, gold, strict=True)["f1"] == 0


def test_no_entities():
    assert entity_scores([["O"]], [["O"]]) == {"precision": 0, "recall": 0, "f1": 0}
    assert entity_scores([], []) == {"precision": 0, "recall": 0, "f1": 0}


def test_as_many_predictions_as_words():
    with pytest.raises(ValueError, match="1 predictions for a sentence of 2 words"):
        entity_scores([["O"]], [["O", "O"]])
