"""Named entities, marked by labels of words: "B-person" begins one, "I-person" goes on with it, "O"
is outside of any (IOB2; [Ramshaw & Marcus, 1995](https://aclanthology.org/W95-0107)).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .metrics import f1


class Entity(NamedTuple):
    """An entity in a list of words.

    - `type`: such as "person".
    - `start`, `end`: its first word, and the one after its last.
    """

    type: str
    start: int
    end: int


def entities(labels: Sequence[str], *, strict: bool = False) -> list[Entity]:
    """The entities that the labels of some words mark.

    **Arguments:**

    - `labels`: one for each word.
    - `strict`: what becomes of an "I-" that goes on with nothing, or with an entity of another
        type. If False, it begins an entity, as for `conlleval` and for seqeval's default mode. If
        True, it is outside of any, as in seqeval's mode "strict" for IOB2.

    **Raises:** `ValueError` for a label that is neither "O" nor begins with "B-" or "I-".
    """
    found: list[Entity] = []
    start, current = 0, None  # of the entity that goes on, if any
    for i, label in enumerate([*labels, "O"]):
        prefix, _, kind = label.partition("-")
        if not is_iob(label):
            raise ValueError(
                f'Entities are marked by labels "B-type", "I-type" and "O", got {label!r}.'
            )
        if prefix == "I" and kind == current:
            continue
        if current is not None:
            found.append(Entity(current, start, i))
        begins = prefix == "B" or (prefix == "I" and not strict)
        start, current = i, kind if begins else None
    return found


def entity_scores(
    predictions: Iterable[Sequence[str]],
    labels: Iterable[Sequence[str]],
    *,
    strict: bool = False,
) -> dict[str, float]:
    """How many entities are right, in all: those of the right type, and of exactly those words.

    **Arguments:**

    - `predictions`, `labels`: for each sentence, a label for each of its words.
    - `strict`: see `entities`.

    **Returns:** `precision`, `recall` and `f1`, from 0 to 1; 0 where nothing is predicted, or there
    are no entities.
    """
    right = predicted = labelled = 0
    for ours, gold in zip(predictions, labels, strict=True):
        if len(ours) != len(gold):
            raise ValueError(
                f"There are {len(ours)} predictions for a sentence of {len(gold)} words."
            )
        found, wanted = set(entities(ours, strict=strict)), set(entities(gold, strict=strict))
        right += len(found & wanted)
        predicted += len(found)
        labelled += len(wanted)
    return {
        "precision": right / max(predicted, 1),
        "recall": right / max(labelled, 1),
        "f1": f1(right, predicted, labelled),
    }


def is_iob(label: str) -> bool:
    """Whether a label is one by which entities are marked."""
    return label == "O" or label[:2] in ("B-", "I-")
