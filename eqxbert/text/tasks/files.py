"""Files of examples: JSON lines, tables, CoNLL's columns, SQuAD's JSON."""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ...files import parse_json
from .examples import E
from .multiple_choice import ChoiceExample
from .question_answering import QuestionExample
from .token_classification import WordsExample

logger = logging.getLogger("eqxbert")

Row = tuple[str, dict[str, Any]]
"""Where an example is from, and its fields."""


def read_examples(
    kind: type[E], path: str | PathLike[str], *, labels: str | None = None
) -> list[E]:
    """The examples in a file, which is told by the ending of its name:

    - `.jsonl`: on each line an object, with the fields of the class.
    - `.tsv`: a table whose first line names the columns after the fields of the class. Columns are
        separated by tabs; nothing is quoted. Endings of a `ChoiceExample` are in columns `ending0`,
        `ending1`, and so on. Not for other lists: words, answers, several labels.
    - `.conll`, `.txt`, of `WordsExample`: on each line a word and its label, the first and the last
        of the columns, which are separated by tabs or, where there are none, spaces. Empty lines
        part texts; lines that begin with "-DOCSTART-" count as empty.
    - `.json`, of `QuestionExample`: SQuAD's format, version 1.1 or 2.0.

    Text is UTF-8. Columns and members that the class does not know are not used; a warning names
    them.

    **Arguments:**

    - `kind`: the class of the examples.
    - `path`: the file.
    - `labels`: the field with the labels, if each example must have one.

    **Raises:** `ValueError` that names the line of what is not as described, or lacks a field;
    `FileNotFoundError`.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _read_json_lines}
    if kind is WordsExample:
        readers |= {".conll": _read_conll, ".txt": _read_conll}
    elif kind is QuestionExample:
        readers |= {".json": _read_squad}
    elif kind is ChoiceExample:
        readers |= {".tsv": _read_choices}
    else:
        readers |= {".tsv": _read_table}
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: the name of a file of examples must end in {' or '.join(readers)} here."
        )
    fields = [field for field in dataclasses.fields(kind) if field.name != "source"]
    needed = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING or field.name == labels
    ]
    examples, unused = [], {}
    for source, row in readers[path.suffix](path):
        if missing := [name for name in needed if row.get(name) is None]:
            there = [name for name, value in row.items() if value is not None]
            nulls = "".join(f" ({name} is null)" for name in missing if name in row)
            raise ValueError(
                f"{source} has no {' and no '.join(missing)}{nulls}, but "
                f"{', '.join(there) or 'nothing'}. There must be {', '.join(needed)}; there may be "
                f"{', '.join(f.name for f in fields if f.name not in needed) or 'no more'}."
            )
        known = {field.name: row.pop(field.name) for field in fields if field.name in row}
        unused |= row
        examples.append(kind(**known, source=source))
    if not examples:
        raise ValueError(f"{path} has no examples.")
    if unused:
        logger.warning("%s: not used: %s", path, ", ".join(unused))
    return examples


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file and what to call them. Lines end with newlines alone (unlike those of
    `str.splitlines`), of Unix or Windows.
    """
    for number, line in enumerate(_text(path).split("\n"), start=1):
        yield f"{path}, line {number}", line.removesuffix("\r")


def _read_json_lines(path: Path) -> Iterator[Row]:
    for source, line in _lines(path):
        if line.strip():
            yield source, parse_json(line, source)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_table(path: Path) -> Iterator[Row]:
    lines = _lines(path)
    _, header = next(lines)
    columns = header.split("\t")
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}, line 1 names a column twice: {', '.join(columns)}.")
    for source, line in lines:
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise ValueError(
                f"{source} has {len(cells)} columns, but line 1, which must name them, has "
                f"{len(columns)}: {', '.join(columns)}."
            )
        row: dict[str, Any] = dict(zip(columns, cells, strict=True))
        if row.get("label") == "":
            del row["label"]
        yield source, row


def _read_choices(path: Path) -> Iterator[Row]:
    for source, row in _read_table(path):
        endings = sorted(
            (name for name in row if re.fullmatch(r"ending\d+", name)),
            key=lambda name: int(name.removeprefix("ending")),
        )
        if endings != [f"ending{number}" for number in range(len(endings))]:
            raise ValueError(
                f"{path}, line 1 names the endings {', '.join(endings)}; they must be numbered "
                "from ending0 on."
            )
        if endings:
            row["endings"] = [row.pop(name) for name in endings]
        yield source, row


def _read_conll(path: Path) -> Iterator[Row]:
    words: list[Sequence[str]] = []
    start = 1
    for number, (source, line) in enumerate([*_lines(path), ("", "")], start=1):
        if line.startswith("{") and _is_json(line):
            raise ValueError(
                f"{source} is a JSON object, expected a word and a label. The name of a file of "
                "JSON lines must end in .jsonl."
            )
        if line.strip(" \t") and not line.startswith("-DOCSTART-"):
            columns = line.strip(" ").split("\t" if "\t" in line else " ")
            if len(columns) < 2 or not columns[0] or not columns[-1]:
                raise ValueError(f"{source} must have a word and a label, got {line!r}.")
            start = start if words else number
            words.append(columns)
        elif words:
            texts, labels = [row[0] for row in words], [row[-1] for row in words]
            yield f"{path}, lines {start} to {number - 1}", {"words": texts, "labels": labels}
            words = []


def _read_squad(path: Path) -> Iterator[Row]:
    values = parse_json(_text(path), path)
    try:
        for article in values["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [] if question.get("is_impossible") else question.get("answers")
                    row = {"context": paragraph["context"], "question": question["question"]}
                    row |= {"id": str(question.get("id", "")), "answers": answers}
                    yield f"{path}, question {row['id'] or row['question']!r}", row
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not in SQuAD's format, data > paragraphs > context and qas > question and "
            f"answers: {error!r}."
        ) from error
