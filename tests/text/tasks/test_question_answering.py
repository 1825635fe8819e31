"""Answers to questions: windows against transformers' fast tokenizer, answers to tokens and back on
SQuAD, the best spans against trying all of them.
"""

import collections
import logging

import numpy as np
import pytest
from text.tasks.learning import Table, learn, letters, new_model, small_config
from text.test_tokenizer import NASTY

from eqxbert.text.tasks import QuestionAnswering, QuestionExample
from eqxbert.text.tasks.files import read_examples


def task(tokenizer, **options) -> QuestionAnswering:
    config = small_config(vocab_size=tokenizer.vocab_size)
    return QuestionAnswering(
        tokenizer, config, **{"stride": 4, "max_question_length": 8, "max_length": 24} | options
    )


def real_task(real_tokenizer, **options) -> QuestionAnswering:
    config = small_config(vocab_size=30522, max_position_embeddings=512)
    return QuestionAnswering(real_tokenizer, config, **options)


def question(context: str, *answers: str, **fields) -> dict:
    found = [{"text": text, "answer_start": context.index(text)} for text in answers]
    return {"question": "the query", "context": context, "answers": found, **fields}


def marked(do: QuestionAnswering, *examples: dict) -> list[str]:
    """The tokens of each window, with the labelled ones in brackets."""
    rows = do.features(examples)
    texts = []
    for i, ids in enumerate(rows.input_ids):
        tokens = [do.tokenizer.id_to_token(int(token)) for token in ids]
        start, end = (int(rows.labels[f"{side}_positions"][i]) for side in ("start", "end"))
        tokens[start] = f"<{tokens[start]}"
        tokens[end] = f"{tokens[end]}>"
        texts.append(" ".join(tokens))
    return texts


def test_the_tokens_of_an_answer(tokenizer):
    do = task(tokenizer)
    assert marked(do, question("the cat sat", "cat sat")) == [
        "[CLS] the query [SEP] the <cat sat> [SEP]"
    ]
    assert marked(do, question("a cat, sating.", "sating")) == [
        "[CLS] the query [SEP] a cat , <sat ##ing> . [SEP]"
    ]
    assert marked(do, question("a sating", "at")) == ["[CLS] the query [SEP] a <sat> ##ing [SEP]"]
    assert marked(do, question("  cat  sat ", " cat  ")) == [
        "[CLS] the query [SEP] <cat> sat [SEP]"
    ]


def test_models_are_trained_on_the_first_answer(tokenizer):
    assert marked(task(tokenizer), question("a cat sat", "sat", "cat")) == [
        "[CLS] the query [SEP] a cat <sat> [SEP]"
    ]


def test_the_place_says_which_of_equal_words_is_meant(tokenizer):
    example = question("cat a cat") | {"answers": [{"text": "cat", "answer_start": 6}]}
    assert marked(task(tokenizer), example) == ["[CLS] the query [SEP] cat a <cat> [SEP]"]


def test_no_answer_is_the_first_token(tokenizer):
    assert marked(task(tokenizer), question("a cat")) == ["<[CLS]> the query [SEP] a cat [SEP]"]


def test_answers_as_the_library_datasets_has_them(tokenizer):
    answers = {"text": ["cat", "a"], "answer_start": [2, 0]}
    example = question("a cat") | {"answers": answers}
    assert marked(task(tokenizer), example) == ["[CLS] the query [SEP] a <cat> [SEP]"]


def test_windows_overlap_and_only_those_that_hold_the_answer_have_it(tokenizer):
    do = task(tokenizer, max_length=11, stride=2, max_question_length=2)
    assert marked(do, question("a b c d e f g h i j", "f g"), question("a", "a")) == [
        "<[CLS]> the query [SEP] a b c d e f [SEP]",
        "[CLS] the query [SEP] e <f g> h i j [SEP]",
        "[CLS] the query [SEP] <a> [SEP]",
    ]
    assert marked(do, question("a b c d e f g h i j", "e f")) == [
        "[CLS] the query [SEP] a b c d <e f> [SEP]",
        "[CLS] the query [SEP] <e f> g h i j [SEP]",
    ]
    assert marked(do, question("a b c d e f g h i j", "b c d e f g")) == [
        "<[CLS]> the query [SEP] a b c d e f [SEP]",
        "<[CLS]> the query [SEP] e f g h i j [SEP]",
    ]


def test_long_questions_are_cut_off(tokenizer):
    do = task(tokenizer, max_question_length=3)
    example = question("a cat", "cat") | {"question": "the sating cat query"}
    assert marked(do, example) == ["[CLS] the sat ##ing [SEP] a <cat> [SEP]"]
    example |= {"question": "the cat query"}
    assert marked(do, example) == ["[CLS] the cat query [SEP] a <cat> [SEP]"]


@pytest.mark.parametrize(("max_length", "stride"), [(384, 128), (64, 0), (40, 10)])
def test_windows_equal_those_of_transformers(real_tokenizer, reference, max_length, stride):
    texts = [text for text in NASTY.values() if text.strip()]
    questions = [text for text in texts if len(reference.tokenize(text)) <= 25]
    pairs = [(a, b) for a in questions[:4] for b in texts]
    do = real_task(real_tokenizer, max_length=max_length, stride=stride, max_question_length=25)
    rows = do.features([{"question": a, "context": b, "answers": []} for a, b in pairs])
    theirs = reference(
        *zip(*pairs, strict=True),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
    )
    assert [ids.tolist() for ids in rows.input_ids] == theirs["input_ids"]
    assert [types.tolist() for types in rows.token_type_ids] == theirs["token_type_ids"]


def test_every_answer_of_squad_comes_back(data, real_tokenizer, reference):
    """From characters to tokens to characters: the text is the answer, but where the answer is, at
    its beginning or its end, a part of a token.
    """
    examples = read_examples(QuestionExample, data / "qa-squad" / "dev.json")
    assert len(examples) == 4961
    do = real_task(real_tokenizer)
    # Each answer as if it were the first.
    several = [
        QuestionExample(e.question, e.context, [answer])
        for e in examples
        for answer in {str(answer): answer for answer in e.answers or ()}.values()
    ]
    rows = do.features(several)
    theirs = reference(
        [e.question for e in several],
        [e.context for e in several],
        truncation="only_second",
        max_length=384,
        stride=128,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert [ids.tolist() for ids in rows.input_ids] == theirs["input_ids"]
    windows = collections.Counter(theirs["overflow_to_sample_mapping"])
    parts, whole, unlabelled = [], 0, collections.Counter()
    for i, number in enumerate(theirs["overflow_to_sample_mapping"]):
        start, end = (int(rows.labels[f"{side}_positions"][i]) for side in ("start", "end"))
        if (start, end) == (0, 0):
            unlabelled[number] += 1
            continue
        [answer], context = several[number].answers, several[number].context
        offsets = theirs["offset_mapping"][i]
        assert theirs.sequence_ids(i)[start] == theirs.sequence_ids(i)[end] == 1
        found = context[offsets[start][0] : offsets[end][1]]
        if found == answer["text"]:
            whole += 1
            continue
        first, last = answer["answer_start"], answer["answer_start"] + len(answer["text"])
        assert offsets[start][0] <= first < offsets[start][1]
        assert offsets[end][0] < last <= offsets[end][1]
        parts.append((answer["text"], found))
    # "gold" of "golden", "1855" cut to "185", "20,980" of "£20,980": slips of the annotators.
    assert whole > 9000
    assert len({*parts}) < 60
    assert all(text in found for text, found in parts)
    # A window without the answer is one of several, of which another one has it.
    assert all(count < windows[number] for number, count in unlabelled.items())


def all_spans(task, starts, ends, context_range, offsets, context) -> list[tuple[float, str]]:
    """Every span of a row, by trying all pairs of tokens."""
    spans = []
    for first in context_range:
        for last in context_range:
            if first <= last < first + task.max_answer_length:
                text = context[offsets[first][0] : offsets[last][1]]
                spans.append((float(starts[first] + ends[last]), text))
    return sorted(spans, reverse=True)


@pytest.mark.parametrize("max_answer_length", [1, 3, 100])
def test_the_best_spans_are_the_best_of_all(tokenizer, reference, max_answer_length):
    do = task(tokenizer, max_length=40, max_answer_length=max_answer_length)
    rng = np.random.default_rng(0)
    scores = {
        token: rng.normal(size=2).tolist() for token in [*"abcdefghij", "[CLS]", "the", "[SEP]"]
    }
    model = Table.of(do, scores)
    context = " ".join("cghdbjeaf")
    offsets = [(i, i + 1) for i in range(0, len(context), 2)]
    starts = np.array([scores[context[i]][0] for i, _ in offsets], np.float32)
    ends = np.array([scores[context[i]][1] for i, _ in offsets], np.float32)
    expected = all_spans(do, starts, ends, range(len(offsets)), offsets, context)
    example = {"question": "the", "context": context}
    for number in (1, 5, 1000):
        [found] = do.predict_best(model, [example], number)
        assert [answer.text for answer in found] == [text for _, text in expected[:number]]
        np.testing.assert_allclose(
            [answer.score for answer in found], [s for s, _ in expected[:number]], rtol=1e-5
        )
        assert all(context[answer.start : answer.end] == answer.text for answer in found)
    assert do.predict(model, [example])[0].text == expected[0][1]


def test_answers_come_from_all_windows_and_from_contexts_alone(tokenizer):
    do = task(tokenizer, max_length=12, stride=2, max_question_length=2)
    # The question, and special tokens, have higher scores.
    model = Table.of(
        do, {"cat": [1, 2], "sat": [2, 1], "the": [9, 9], "[SEP]": [9, 9], "[CLS]": [9, 9]}
    )
    far = " ".join([*"abcdefghijklmnopqrst", "cat", "b"])
    twice = " ".join(["sat", *"abcdefghijklmnop", "cat"])  # too far from each other
    examples = [
        {"question": "the", "context": far},
        {"question": "the", "context": "a sat cat b"},
        {"question": "the", "context": twice},
    ]
    answers = do.predict(model, examples)
    assert [answer.text for answer in answers] == ["cat", "sat cat", "cat"]
    assert [answer.start for answer in answers] == [40, 2, len(twice) - 3]
    assert [answer.score for answer in answers] == [3, 4, 3]
    # What two windows have in common is one answer.
    [best] = do.predict_best(model, [{"question": "the", "context": far}], 1000)
    assert len({(answer.start, answer.end) for answer in best}) == len(best)


def test_no_answer_where_the_first_token_exceeds_the_threshold(tokenizer):
    scores = {"cat": [1, 1], "[CLS]": [2, 2]}
    example = {"question": "the", "context": "a cat"}
    for threshold, text in {None: "cat", 1.9: "", 2.1: "cat"}.items():
        do = task(tokenizer, no_answer_threshold=threshold)
        assert do.predict(Table.of(do, scores), [example])[0].text == text
    do = task(tokenizer, no_answer_threshold=0)
    [best] = do.predict_best(Table.of(do, scores), [example], 2)
    assert [(answer.text, answer.score) for answer in best] == [("", 4), ("cat", 2)]


def test_no_answer_counts_as_in_the_window_that_is_least_sure_of_it(tokenizer):
    """That is the one which holds the answer."""
    do = task(tokenizer, no_answer_threshold=0)
    _, [window] = do._features([QuestionExample("the", "a b c")])
    # [CLS] the [SEP] a b c [SEP]
    unsure = np.array([[2, 2], *[[0, 0]] * 2, [3, 3], *[[0, 0]] * 3], np.float32)
    sure = np.where(np.arange(7)[:, None] == 0, np.float32(9), unsure)
    windows = [window, window]
    for outputs, text in (([unsure, sure], "a"), ([sure, unsure], "a"), ([sure, sure], "")):
        [[best]] = do._best(["a b c"], windows, enumerate(outputs), 1)
        assert best.text == text


def test_metrics(tokenizer):
    do = task(tokenizer, max_length=12, stride=2, max_question_length=2)
    model = Table.of(do, {"cat": [0, 1], "sat": [1, 0]})
    examples = [
        question("a cat.", "cat"),
        question("a the sat b cat", "sat b", "the sat b cat"),  # found: "sat b cat"
        question(" ".join([*"abcdefghijk", "sat"]), "sat"),  # in several windows
        question("a cat b", "b"),
    ]
    found = do.evaluator(examples)(model)
    assert found["exact_match"] == pytest.approx(3 / 4)
    assert found["f1"] == pytest.approx(3 / 4)
    del examples[1]["answers"][1]
    found = do.evaluator(examples)(model)
    assert found["exact_match"] == pytest.approx(2 / 4)
    assert found["f1"] == pytest.approx((2 + 2 * 2 / 5) / 4)
    assert do.main_metric == "f1"


def test_a_warning_if_answers_must_be_given_where_there_are_none(tokenizer, caplog):
    examples = [question("a cat.", "cat"), question("the sat"), question("b")]

    def warnings_of(**options: float) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "eqxbert"):
            task(tokenizer, **options).evaluator(examples)
        return [record.getMessage() for record in caplog.records]

    (message,) = warnings_of()
    assert message.startswith("2 of 3 questions have no answer, but the model is always to give")
    assert warnings_of(no_answer_threshold=0.0) == []
    del examples[1:]
    assert warnings_of() == []


def test_the_loss_is_the_models(tokenizer):
    do = task(tokenizer, max_length=8, stride=1, max_question_length=1)
    examples = [question("a cat sat b", "sat"), question("a b c d e f g", "f")]
    examples = [example | {"question": "the"} for example in examples]
    rows = do.features(examples)
    assert rows.lengths.tolist() == [8, 8, 8]  # of padding, the model's loss has scores as well
    model = new_model(do)
    expected = float(model(**rows.batch(np.arange(3))).loss)
    assert do.evaluator(examples)(model)["loss"] == pytest.approx(expected, rel=1e-4)


def test_the_loss_does_not_depend_on_padding(tokenizer):
    do = task(tokenizer)
    model = new_model(do)
    one, other = question("a cat", "cat"), question("a b c d e f g", "f")
    together = do.evaluator([one, other])(model)["loss"]
    alone = [do.evaluator([example])(model)["loss"] for example in (one, other)]
    assert together == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": None}, r"examples\[0\] has no answers; training and evaluation need one"),
        (
            {"answers": [{"text": "sat", "answer_start": 1}]},
            "'sat', but at 1 the context says ' ca",
        ),
        (
            {"answers": [{"text": "cat", "answer_start": -3}]},
            "'cat', but at -3 the context says ''",
        ),
        (
            {"answers": [{"text": "cat", "answer_start": 90}]},
            "'cat', but at 90 the context says ''",
        ),
        ({"answers": [{"text": "", "answer_start": 1}]}, "the answer is '', but at 1"),
        ({"answers": [{"text": " ", "answer_start": 1}]}, "the answer is ' ', but at 1"),
        ({"answers": [{"text": "cat"}]}, "an answer must have a text and an answer_start, got"),
        ({"answers": ["cat"]}, r"an answer must have a text and an answer_start, got \['cat'\]"),
        ({"answers": 3}, "an answer must have a text and an answer_start, got 3"),
        ({"answers": {"text": ["cat"]}}, "an answer must have a text and an answer_start"),
        ({"answers": {"text": ["cat"], "answer_start": []}}, "an answer must have"),
        ({"answers": [{"text": "cat", "answer_start": float("inf")}]}, "an answer must have"),
        ({"context": ""}, "there is no text in the context"),
        ({"context": " \t"}, "there is no text in the context"),
        ({"context": "a\ud800"}, "context is not valid Unicode"),
        ({"question": "a\ud800"}, "question is not valid Unicode"),
    ],
)
def test_examples_that_are_none(tokenizer, change, message):
    with pytest.raises(ValueError, match=message):
        task(tokenizer).features([question("a cat", "cat") | change])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 13}, "stride is 13, expected 0 to 12: of max_length 24, a question of 8"),
        ({"stride": -1}, "stride is -1, expected 0 to 12"),
        ({"max_question_length": 21}, "stride is 4, expected 0 to -1"),
        ({"max_question_length": 0}, "max_question_length must be at least 1, got 0"),
        ({"max_answer_length": 0}, "max_answer_length must be at least 1, got 0"),
    ],
)
def test_options_out_of_range(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        task(tokenizer, **options)


def test_a_window_is_no_longer_than_the_model_allows(tokenizer, real_tokenizer):
    assert task(tokenizer, max_length=384).max_length == 64
    assert task(tokenizer, max_length=None).max_length == 64
    assert real_task(real_tokenizer).max_length == 384


@pytest.mark.parametrize(
    ("max_length", "question", "stride"),
    [(384, 64, 128), (512, 64, 128), (256, 64, 94), (64, 16, 22), (8, 2, 1), (5, 1, 0)],
)
def test_questions_and_overlaps_are_shorter_in_short_windows(
    real_tokenizer, max_length, question, stride
):
    do = real_task(real_tokenizer, max_length=max_length)
    assert (do.max_question_length, do.stride) == (question, stride)


def test_a_model_learns_to_find_answers(tokenizer):
    do = task(tokenizer)
    rng = np.random.default_rng(0)

    def questions(number: int) -> list[dict]:
        examples = []
        for _ in range(number):
            words = letters(rng, int(rng.integers(10, 30)))
            place = int(rng.integers(len(words) - 1))
            words[place : place + 2] = ["cat", "sating"]
            examples.append(question(" ".join(words), "cat sating"))
        return examples

    train, dev = questions(200), questions(40)
    assert do.evaluator(dev)(new_model(do))["exact_match"] < 0.3
    _, metrics = learn(do, train, dev)
    assert metrics["exact_match"] > 0.9
    assert metrics["f1"] > 0.9
