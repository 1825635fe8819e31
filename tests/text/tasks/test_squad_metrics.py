"""SQuAD's measures, worked out by hand after its official script's rules."""

import pytest

from eqxbert.text.tasks import answer_f1, exact_match
from eqxbert.text.tasks.squad import normalize_answer


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The Denver Broncos", "denver broncos"),
        ("an apple, a day!", "apple day"),
        ("U.S.A.", "usa"),  # punctuation goes before articles
        ("a.", ""),
        ("The-the", "thethe"),
        ("theatre", "theatre"),
        ("  two \t\n words ", "two words"),
        ("Beyoncé's “song”", "beyoncés “song”"),  # other punctuation stays
        ("A\u00a0B", "b"),
    ],
)
def test_normalized(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "answers", "is_exact", "f1"),
    [
        ("the Broncos", ["Broncos!"], 1, 1),
        ("Denver Broncos", ["Broncos"], 0, 2 / 3),
        ("Denver Broncos", ["Broncos", "Denver Broncos"], 1, 1),
        ("Broncos Denver", ["Denver Broncos"], 0, 1),  # the order of words does not count
        ("a b b", ["b"], 0, 2 / 3),
        ("x b b", ["b b c"], 0, 2 / 3),  # each word counts as often as both have it
        ("x", ["y"], 0, 0),
        ("", ["y"], 0, 0),
        ("x", ["the"], 0, 0),
        ("", [], 1, 1),
        ("x", [], 0, 0),
        ("the", [], 1, 1),
    ],
)
def test_measures(prediction, answers, is_exact, f1):
    assert exact_match(prediction, answers) == is_exact
    assert answer_f1(prediction, answers) == pytest.approx(f1)
