"""Examples of a task, given as objects or dictionaries, and the names of their classes."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..tokenizer import check_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """An example of some task.

    - `source`: where it is from, for messages.
    """

    source: str | None = None

    # What examples hold is users' data. The tasks check it, in messages that name the source.
    __no_type_check__: ClassVar[bool] = True


E = TypeVar("E", bound=Example)


def as_examples(kind: type[E], examples: Iterable[Any]) -> list[E]:
    """Examples as objects of one class, each with a `source` to name it by in messages.

    **Arguments:**

    - `kind`: the class, one for data.
    - `examples`: objects of it, or dictionaries of its fields.

    **Raises:** `ValueError` that names the first one that is neither, lacks a field, or has one
    that the class does not know.
    """
    if isinstance(examples, str | bytes | Mapping) or not isinstance(examples, Iterable):
        raise ValueError(
            f"Examples must be a sequence of {kind.__name__} or of dictionaries, got "
            f"{type(examples).__name__}: {examples!r:.100}."
        )
    return [_as_example(kind, value, f"examples[{i}]") for i, value in enumerate(examples)]


def _as_example(kind: type[E], value: Any, source: str) -> E:
    if isinstance(value, kind):
        return value if value.source else dataclasses.replace(value, source=source)
    fields = dataclasses.fields(kind)
    known = [field.name for field in fields]  # `source` is the first
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{source} must be a {kind.__name__}, or a dictionary of {', '.join(known[1:])}; got "
            f"{type(value).__name__}: {value!r:.100}."
        )
    source = value.get("source") or source
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in value]:
        raise ValueError(
            f"{source} has no {' and no '.join(missing)}. It has {', '.join(map(str, value))}."
        )
    if unknown := [str(name) for name in value if name not in known]:
        raise ValueError(
            f"{source} has {', '.join(unknown)}, but a {kind.__name__} only {', '.join(known[1:])}."
        )
    return kind(**{**value, "source": source})


def check_labelled(examples: Sequence[Example], field: str) -> None:
    """Checks that there are examples, and that `field` is None in none of them.

    **Raises:** `ValueError` that names the first one in which it is.
    """
    if not examples:
        raise ValueError("There are no examples.")
    for example in examples:
        if getattr(example, field) is None:
            raise ValueError(
                f"{example.source} has no {field}; training and evaluation need one in each."
            )


def check_strings(example: Example, field: str) -> Sequence[str]:
    """The field, which must be a list of strings.

    **Raises:** `ValueError` that names the example and the string that is none.
    """
    strings = getattr(example, field)
    if isinstance(strings, str | bytes) or not isinstance(strings, Sequence | np.ndarray):
        raise ValueError(
            f"{example.source}: {field} must be a list of strings, got {type(strings).__name__}: "
            f"{strings!r:.100}."
        )
    for i, string in enumerate(strings):
        check_text(f"{example.source}: {field}[{i}]", string)
    return list(strings)


def class_number(label: Any, label2id: Mapping[str, int], source: str) -> int:
    """The number of a class that is given by its name or, unless there are numbers among the names,
    by its number.

    **Raises:** `ValueError` if there is no such class.
    """
    name = str(label) if is_class_number(label) else label
    if isinstance(name, str) and name in label2id:
        return label2id[name]
    has_numbers = any(map(is_class_number, label2id))
    if is_class_number(label) and not has_numbers and int(label) < len(label2id):
        return int(label)
    names = sorted(label2id, key=label2id.__getitem__)
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    numbers = "" if has_numbers else f"; or their numbers, 0 to {len(names) - 1}"
    raise ValueError(f"{source} has the label {label!r}. The model's labels are {shown}{numbers}.")


# More classes than these are taken for numbers of something else.
_MAX_CLASSES = 10_000


def class_names(labels: Iterable[Any]) -> list[str]:
    """Names for the classes that occur, in the order of the alphabet. If all are numbers from 0 on:
    of these and those in between, in their order.

    **Raises:** `ValueError` if there are none, if they are neither names nor numbers, or if the
    numbers are too great for those of classes.
    """
    found = list(labels)
    if not found:
        raise ValueError("There are no labels.")
    if all(map(is_class_number, found)):
        highest = max(map(int, found))
        if highest >= _MAX_CLASSES:
            raise ValueError(
                f"Labels are the numbers of classes, counted from 0; {highest} would mean as many. "
                "Are these numbers to be predicted (regression)?"
            )
        return [str(number) for number in range(highest + 1)]
    for label in found:
        if not isinstance(label, str) or not label:
            shown = ", ".join(list(dict.fromkeys(f"{x!r:.100}" for x in found))[:5])
            raise ValueError(
                f"Labels must be names, or all of them numbers from 0 on; they are {shown}."
            )
        check_text("a label", label)
    return sorted(set(found))


def is_class_number(label: Any) -> bool:
    """Whether a label is the number of a class, which in some files is written as text."""
    if isinstance(label, str):
        return label.isascii() and label.isdigit()
    is_integer = isinstance(label, int | np.integer) and not isinstance(label, bool)
    return is_integer and int(label) >= 0
