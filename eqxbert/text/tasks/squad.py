"""How answers to questions are judged: as SQuAD judges them ([Rajpurkar et al.,
2016](https://arxiv.org/abs/1606.05250)), up to case, punctuation, articles and spaces.
"""

import collections
import re
import string
from collections.abc import Sequence

from .metrics import f1

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """The text in lower case, without punctuation (that of ASCII) and articles, its words separated
    by single spaces.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers, else 0. Without answers, "" is right."""
    normalized = normalize_answer(prediction)
    return float(any(normalized == normalize_answer(answer) for answer in answers or [""]))


def answer_f1(prediction: str, answers: Sequence[str]) -> float:
    """The F1 of the prediction's words, by the answer with which it is highest. Where either has no
    words, 1 if both have none, else 0.
    """
    return max(_word_f1(prediction, answer) for answer in answers or [""])


def _word_f1(prediction: str, answer: str) -> float:
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    shared = collections.Counter(predicted) & collections.Counter(wanted)
    return f1(shared.total(), len(predicted), len(wanted))
