"""Files of examples, right and wrong."""

import json
import logging
import re
from pathlib import Path

import pytest
from text.tasks.learning import small_config

from eqxbert.text.tasks import (
    ChoiceExample,
    PairExample,
    QuestionAnswering,
    QuestionExample,
    TextExample,
    WordsExample,
)
from eqxbert.text.tasks.files import read_examples


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def squad(*questions: dict, context: str = "the cat sat") -> str:
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]})


class TestJsonLines:
    def test_of_texts(self, tmp_path):
        lines = ['{"text": "a", "label": "no"}', "", '{"label": 1, "text_pair": "c", "text": "b"}']
        path = write(tmp_path, "x.jsonl", "\n".join(lines))
        assert read_examples(TextExample, path) == [
            TextExample("a", None, "no", source=f"{path}, line 1"),
            TextExample("b", "c", 1, source=f"{path}, line 3"),
        ]

    @pytest.mark.parametrize(
        ("kind", "values"),
        [
            (TextExample, {"text": "a", "text_pair": "b", "label": ["x", 1]}),
            (TextExample, {"text": "a", "text_pair": None, "label": 0.5}),
            (PairExample, {"text": "a", "text_pair": "b", "label": -0.5}),
            (WordsExample, {"words": ["a", "b"], "labels": ["O", 1]}),
            (ChoiceExample, {"context": "a", "endings": ["b", "c"], "label": 1}),
            (
                QuestionExample,
                {
                    "question": "a",
                    "context": "b",
                    "answers": [{"text": "b", "answer_start": 0}],
                    "id": "q1",
                },
            ),
        ],
    )
    def test_has_the_fields_of_any_class(self, tmp_path, kind, values):
        path = write(tmp_path, "x.jsonl", json.dumps(values) + "\n")
        assert read_examples(kind, path) == [kind(**values, source=f"{path}, line 1")]

    def test_text_is_utf8_with_or_without_a_mark_and_lines_end_with_newlines_alone(self, tmp_path):
        content = '\ufeff{"text": "ü\u2028\x85 \\n"}\r\n{"text": "\x0b"}'.replace("\x0b", "b")
        path = write(tmp_path, "x.jsonl", content)
        assert [e.text for e in read_examples(TextExample, path)] == ["ü\u2028\x85 \n", "b"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 2 is not valid JSON: "),
            ("[" * 100_000, "line 2 is not valid JSON: "),
            ("[1]", "line 2 holds a JSON list, not an object"),
            ("null", "line 2 holds a JSON NoneType, not an object"),
            ('{"label": 1}', "line 2 has no text, but label. There must be text; there may be "),
            ('{"text": null}', r"line 2 has no text \(text is null\), but nothing\."),
            ("{}", "line 2 has no text, but nothing"),
        ],
    )
    def test_lines_that_are_none(self, tmp_path, line, message):
        path = write(tmp_path, "x.jsonl", f'{{"text": "a"}}\n{line}\n')
        with pytest.raises(ValueError, match=f"{path}, {message}"):
            read_examples(TextExample, path)

    def test_all_missing_fields_are_named(self, tmp_path):
        path = write(tmp_path, "x.jsonl", '{"label": 1}')
        with pytest.raises(ValueError, match="has no context and no endings, but label"):
            read_examples(ChoiceExample, path)


class TestTables:
    def test_of_texts(self, tmp_path):
        path = write(tmp_path, "x.tsv", 'label\ttext\nno\t"a \n\nyes\t\n\t c\n')
        assert read_examples(TextExample, path) == [
            TextExample('"a ', None, "no", source=f"{path}, line 2"),
            TextExample("", None, "yes", source=f"{path}, line 4"),
            TextExample(" c", None, None, source=f"{path}, line 5"),
        ]

    def test_of_pairs_from_windows(self, tmp_path):
        content = "\ufefftext\ttext_pair\tlabel\r\na\tb\t0.5\r\nc\t\t-1\r\n"
        path = write(tmp_path, "x.tsv", content)
        assert read_examples(PairExample, path) == [
            PairExample("a", "b", "0.5", source=f"{path}, line 2"),
            PairExample("c", "", "-1", source=f"{path}, line 3"),
        ]

    def test_of_choices(self, tmp_path):
        endings = "\t".join(f"ending{number}" for number in (10, *range(10)))
        cells = "\t".join(map(str, (10, *range(10))))
        path = write(tmp_path, "x.tsv", f"{endings}\tcontext\tlabel\n{cells}\ta\t2\n")
        assert read_examples(ChoiceExample, path) == [
            ChoiceExample("a", [str(n) for n in range(11)], "2", source=f"{path}, line 2")
        ]

    @pytest.mark.parametrize(
        ("kind", "content", "message"),
        [
            (TextExample, "text\tlabel\na\n", "line 2 has 1 columns, but line 1, .* has 2: text, "),
            (TextExample, "text\na\tb\n", "line 2 has 2 columns, but line 1, .* has 1: text"),
            (TextExample, "text\ttext\na\tb\n", "line 1 names a column twice: text, text"),
            (TextExample, "sentence\na\n", "line 2 has no text, but sentence"),
            (PairExample, "text\na\n", "line 2 has no text_pair, but text"),
            (ChoiceExample, "context\tlabel\na\t0\n", "line 2 has no endings, but context, label"),
            (
                ChoiceExample,
                "context\tending1\tending2\tlabel\na\tb\tc\t1\n",
                "line 1 names the endings ending1, ending2; they must be numbered from ending0 on",
            ),
            (
                ChoiceExample,
                "context\tending0\tending00\na\tb\tc\n",
                "line 1 .* ending0, ending00;",
            ),
        ],
    )
    def test_tables_that_are_none(self, tmp_path, kind, content, message):
        path = write(tmp_path, "x.tsv", content)
        with pytest.raises(ValueError, match=f"{path}, {message}"):
            read_examples(kind, path)


class TestConll:
    def test_of_words(self, tmp_path):
        lines = ["-DOCSTART- -X- O O", "", "EU NNP B-ORG", "-  :  O", " ", "", "a O", "", ""]
        path = write(tmp_path, "x.conll", "\n".join(lines))
        assert read_examples(WordsExample, path) == [
            WordsExample(["EU", "-"], ["B-ORG", "O"], source=f"{path}, lines 3 to 4"),
            WordsExample(["a"], ["O"], source=f"{path}, lines 7 to 7"),
        ]

    def test_with_tabs_from_windows(self, tmp_path):
        path = write(tmp_path, "x.txt", "\ufeffNew York\tB-x \r\n\u00a0\tI-x\r\n\t\r\nb\tO")
        first, second = read_examples(WordsExample, path)
        assert (first.words, first.labels) == (["New York", "\u00a0"], ["B-x", "I-x"])
        assert (second.words, second.labels) == (["b"], ["O"])

    @pytest.mark.parametrize("line", ["word", "word\t", "\tO", "word ", "\t\tO"])
    def test_lines_that_are_none(self, tmp_path, line):
        path = write(tmp_path, "x.conll", f"a O\n{line}\n")
        with pytest.raises(ValueError, match=f"{path}, line 2 must have a word and a label"):
            read_examples(WordsExample, path)

    def test_of_json_lines(self, tmp_path):
        """They would be read as words and labels: `{"words":` and `"labels":["O"]}`."""
        lines = ['{"words": ["a"], "labels":["O"]}', '{"words": ["b"], "labels":["B-x"]}']
        path = write(tmp_path, "x.txt", "\n".join(lines))
        message = f"{path}, line 1 is a JSON object, .* must end in .jsonl"
        with pytest.raises(ValueError, match=message):
            read_examples(WordsExample, path)
        path = write(tmp_path, "x.txt", "{ O\n{} O\n")  # which are words
        (example,) = read_examples(WordsExample, path)
        assert example.words == ["{", "{}"]


class TestSquad:
    def test_of_both_versions(self, tmp_path):
        answers = [{"text": "cat", "answer_start": 4}]
        questions = (
            {"question": "who?", "id": "q1", "answers": answers},
            {"question": "why?", "is_impossible": True, "plausible_answers": answers, "id": 2},
            {"question": "when?"},
        )
        path = write(tmp_path, "x.json", squad(*questions))
        assert read_examples(QuestionExample, path) == [
            QuestionExample("who?", "the cat sat", answers, "q1", source=f"{path}, question 'q1'"),
            QuestionExample("why?", "the cat sat", [], "2", source=f"{path}, question '2'"),
            QuestionExample("when?", "the cat sat", None, "", source=f"{path}, question 'when?'"),
        ]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is not valid JSON"),
            ("[]", "holds a JSON list"),
            ("{}", "is not in SQuAD's format, .* KeyError"),
            ('{"data": {"paragraphs": []}}', "is not in SQuAD's format"),
            ('{"data": [{"paragraphs": [{"qas": [{"question": "a"}]}]}]}', "is not .*'context'"),
            ('{"data": [{"paragraphs": [{"context": "a", "qas": [[]]}]}]}', "is not in SQuAD's"),
            ('{"data": []}', "has no examples"),
        ],
    )
    def test_files_that_are_none(self, tmp_path, content, message):
        path = write(tmp_path, "x.json", content)
        with pytest.raises(ValueError, match=f"{path} {message}"):
            read_examples(QuestionExample, path)


def test_labels_may_be_needed(tmp_path):
    path = write(tmp_path, "x.tsv", "text\tclass\na\tno\n")
    assert read_examples(TextExample, path) == [TextExample("a", source=f"{path}, line 2")]
    message = (
        f"{path}, line 2 has no label, but text, class. There must be text, label; there may be "
        "text_pair."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        read_examples(TextExample, path, labels="label")


def test_columns_that_are_not_used_are_named_in_a_warning(tmp_path, caplog):
    path = write(tmp_path, "x.tsv", "id\ttext\tsource\n1\ta\tweb\n2\tb\tweb\n")
    with caplog.at_level(logging.WARNING, "eqxbert"):
        first, _ = read_examples(TextExample, path)
    assert [record.getMessage() for record in caplog.records] == [f"{path}: not used: id, source"]
    assert first == TextExample("a", source=f"{path}, line 2")


@pytest.mark.parametrize(
    ("kind", "name", "endings"),
    [
        (TextExample, "x.csv", ".jsonl or .tsv"),
        (TextExample, "x", ".jsonl or .tsv"),
        (TextExample, "x.conll", ".jsonl or .tsv"),
        (WordsExample, "x.tsv", ".jsonl or .conll or .txt"),
        (QuestionExample, "x.tsv", ".jsonl or .json"),
        (ChoiceExample, "x.json", ".jsonl or .tsv"),
        (PairExample, "x.txt", ".jsonl or .tsv"),
    ],
)
def test_other_files(tmp_path, kind, name, endings):
    path = write(tmp_path, name, "a")
    with pytest.raises(ValueError, match=f"{path}: the name .* must end in {endings} here"):
        read_examples(kind, path)


@pytest.mark.parametrize("content", ["", "\ufeff", "\r\n\r\n", "text\tlabel\n"])
@pytest.mark.parametrize(("kind", "name"), [(TextExample, "x.tsv"), (WordsExample, "x.conll")])
def test_without_examples(tmp_path, kind, name, content):
    if kind is WordsExample:
        content = content.replace("text\tlabel", "-DOCSTART- O")
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=f"{path} has no examples"):
        read_examples(kind, path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.tsv"])
def test_text_that_is_not_utf8(tmp_path, name):
    path = write(tmp_path, name, "text\nä\n".encode("utf-16"))
    with pytest.raises(ValueError, match=f"{path} is not UTF-8 text"):
        read_examples(TextExample, path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_examples(TextExample, tmp_path / "x.tsv")


class TestRealFiles:
    def test_entities(self, data):
        train = read_examples(WordsExample, data / "ner-wnut17" / "wnut17train.conll")
        dev = read_examples(WordsExample, data / "ner-wnut17" / "emerging.dev.conll")
        assert (len(train), len(dev)) == (3394, 1009)
        kinds = ("corporation", "creative-work", "group", "location", "person", "product")
        labels = {"O", *(f"{side}-{kind}" for side in "BI" for kind in kinds)}
        assert {label for e in [*train, *dev] for label in e.labels or ()} == labels
        assert all(len(e.words) == len(e.labels or ()) for e in [*train, *dev])

    def test_questions(self, data, tokenizer):
        examples = read_examples(QuestionExample, data / "qa-squad" / "dev.json")
        values = json.loads((data / "qa-squad" / "dev.json").read_text())
        paragraphs = [p for article in values["data"] for p in article["paragraphs"]]
        assert len(examples) == sum(len(paragraph["qas"]) for paragraph in paragraphs) > 100
        task = QuestionAnswering(tokenizer, small_config())
        features = task.features(examples[:50])  # which checks where the answers are
        assert len(features) >= 50

    def test_choices(self, data, tmp_path):
        table = (data / "multiple-choice-codah" / "dev.tsv").read_text(encoding="utf-8")
        header = "\t".join(["category", "context", *(f"ending{i}" for i in range(4)), "label"])
        path = write(tmp_path, "dev.tsv", f"{header}\n{table}")
        examples = read_examples(ChoiceExample, path)
        assert len(examples) == table.count("\n") + (not table.endswith("\n"))
        assert {len(example.endings) for example in examples} == {4}
        assert {str(example.label) for example in examples} == {"0", "1", "2", "3"}
