"""Labels for words: their alignment with pieces, against transformers' fast tokenizer and on
WNUT-17; and back.
"""

import logging

import numpy as np
import pytest
from text.tasks.learning import Table, learn, letters, new_model, small_config
from text.test_tokenizer import NASTY

from eqxbert.text.tasks import TokenClassification, WordsExample
from eqxbert.text.tasks.files import read_examples

NAMES = {0: "O", 1: "B-x", 2: "I-x"}


def task(tokenizer, *, id2label=NAMES, **options) -> TokenClassification:
    config = small_config(
        id2label=id2label, vocab_size=max(tokenizer.vocab_size, 100), architectures=("tokens",)
    )
    return TokenClassification(tokenizer, config, **options)


def pieces_of(do: TokenClassification, words: list[str], labels: list) -> list[tuple[str, int]]:
    """Each token with its label."""
    rows = do.features([{"words": words, "labels": labels}])
    tokens = [do.tokenizer.id_to_token(int(i)) for i in rows.input_ids[0]]
    return list(zip(tokens, rows.labels["labels"][0].tolist(), strict=True))


def test_the_first_piece_of_a_word_has_its_label(tokenizer):
    do = task(tokenizer)
    assert pieces_of(do, ["the", "sating", "cat"], ["O", "B-x", 2]) == [
        ("[CLS]", -100),
        ("the", 0),
        ("sat", 1),
        ("##ing", -100),
        ("cat", 2),
        ("[SEP]", -100),
    ]


def test_words_of_several_tokens_and_of_none(tokenizer):
    do = task(tokenizer)
    words = ["cat-sat", "", "\u200d", "a b", "[SEP]", "ñandú"]
    assert pieces_of(do, words, ["B-x", "O", "O", "I-x", "O", "B-x"]) == [
        ("[CLS]", -100),
        ("cat", 1),
        ("-", -100),
        ("sat", -100),
        ("a", 2),
        ("b", -100),
        ("[SEP]", 0),
        ("[UNK]", 1),
        ("[SEP]", -100),
    ]


@pytest.mark.parametrize("max_length", [512, 12, 7])
def test_alignment_equals_that_of_transformers_word_ids(real_tokenizer, reference, max_length):
    """Where nothing, or no part of a word, is cut off; the rest of a word goes with it."""
    texts = [text.split(" ") for text in NASTY.values()]
    names = {i: f"L{i}" for i in range(2000)}
    config = small_config(vocab_size=30522, id2label=names, max_position_embeddings=512)
    do = TokenClassification(real_tokenizer, config, max_length=max_length)
    rows = do.features([{"words": w, "labels": list(range(len(w)))} for w in texts])
    for i, words in enumerate(texts):
        theirs = reference(words, is_split_into_words=True)
        word_ids = theirs.word_ids()
        end = len(word_ids) - 1
        if len(word_ids) > max_length:
            end = max_length - 1
            while word_ids[end] == word_ids[end - 1]:
                end -= 1
        expected = [theirs["input_ids"][place] for place in [*range(end), -1]]
        labels = [
            word if word is not None and word != before else -100
            for before, word in zip([None, *word_ids], word_ids[:end], strict=False)
        ]
        assert rows.input_ids[i].tolist() == expected
        assert rows.labels["labels"][i].tolist() == [*labels, -100]
        assert rows.token_type_ids[i].tolist() == [0] * len(expected)


def test_texts_are_cut_off_between_words(tokenizer, caplog):
    do = task(tokenizer, max_length=6)
    words = ["the", "cat", "sating", "hello", "zzz"]  # of 1, 1, 2, 1 and 3 pieces
    with caplog.at_level(logging.WARNING, logger="eqxbert"):
        assert [token for token, _ in pieces_of(do, words, ["O"] * 5)] == [
            "[CLS]",
            "the",
            "cat",
            "sat",
            "##ing",
            "[SEP]",
        ]
    assert "1 of 1 texts have more than 6 tokens: 2 words at their ends were cut off" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="eqxbert"):
        found = pieces_of(do, ["the", "cat", "hello", "sating"], ["O"] * 4)
        assert [token for token, _ in found] == ["[CLS]", "the", "cat", "hello", "[SEP]"]
        pieces_of(do, ["the", "cat", "hello", "sat"], ["O"] * 4)
    assert "1 words at their ends" in caplog.text
    assert caplog.text.count("texts have more") == 1  # what fits is left as it is


def test_a_word_that_is_too_long_leaves_nothing(tokenizer):
    do = task(tokenizer, max_length=6)
    assert pieces_of(do, ["zzzzz", "a"], ["O", "O"]) == [("[CLS]", -100), ("[SEP]", -100)]


def test_predictions_go_back_to_words(tokenizer):
    do = task(tokenizer, max_length=8)
    model = Table.of(do, {"cat": [0, 1, 0], "##ing": [0, 9, 0], "sat": [0, 0, 1], "the": [1, 0, 0]})
    examples = [
        {"words": ["the", "cat", "sating"]},
        {"words": ["sat"]},
        {"words": []},
        {"words": ["", "sat", "\u200d", "cat"]},
        {"words": ["cat", *["the"] * 20]},
    ]
    assert do.predict(model, examples) == [
        ["O", "B-x", "I-x"],
        ["I-x"],
        [],
        [None, "I-x", None, "B-x"],
        ["B-x", *["O"] * 5, *[None] * 15],
    ]


def test_metrics(tokenizer):
    do = task(tokenizer, max_length=8)
    assert do.main_metric == "f1"
    model = Table.of(do, {"cat": [0, 1, 0], "sat": [0, 0, 1], "the": [1, 0, 0]})
    examples = [
        {"words": ["the", "cat", "sat"], "labels": ["O", "B-x", "I-x"]},  # right
        {"words": ["cat", "the"], "labels": ["B-x", "I-x"]},  # a word less
        # The last two are cut off: one is wrong, the other as well though it is outside.
        {"words": [*["the"] * 6, "cat", "the"], "labels": [*["O"] * 6, "B-x", "O"]},
        {"words": ["", "cat"], "labels": ["B-x", "O"]},  # not seen; one too many
    ]
    found = do.evaluator(examples)(model)
    one, three = np.log(np.e + 2) - 1, np.log(np.e + 2)
    assert found == {
        "loss": pytest.approx((10 * one + 2 * three) / 12, rel=1e-5),
        "accuracy": pytest.approx((3 + 1 + 6 + 0) / 15),
        "precision": pytest.approx(1 / 3),
        "recall": pytest.approx(1 / 4),
        "f1": pytest.approx(2 / 7),
    }


def test_labels_that_mark_no_entities_have_their_accuracy_alone(tokenizer):
    do = task(tokenizer, id2label={0: "noun", 1: "verb"})
    model = Table.of(do, {"cat": [1, 0], "sat": [0, 1]})
    found = do.evaluator([{"words": ["cat", "sat"], "labels": ["noun", "noun"]}])(model)
    assert found.keys() == {"loss", "accuracy"}
    assert found["accuracy"] == 0.5
    assert do.main_metric == "accuracy"


def test_the_loss_is_the_models(tokenizer):
    do = task(tokenizer)
    examples = [
        {"words": ["the", "sating"], "labels": ["O", "B-x"]},
        {"words": ["cat", "cat", "a"], "labels": ["I-x", "O", "O"]},
    ]
    model = new_model(do)
    batch = do.features(examples).batch(np.array([0, 1]))
    found = do.evaluator(examples)(model)
    assert found["loss"] == pytest.approx(float(model(**batch).loss), rel=1e-4)


def test_no_word_has_a_piece(tokenizer):
    do = task(tokenizer)
    found = do.evaluator([{"words": [""], "labels": ["O"]}])(new_model(do))
    assert found["loss"] == found["accuracy"] == 0


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"words": ["a"], "labels": ["B-y"]}, r"\[0\] has the label 'B-y'. .* O, B-x, I-x"),
        ({"words": ["a"], "labels": [3]}, "has the label 3"),
        ({"words": ["a", "b"], "labels": ["O"]}, "has 2 words, but 1 labels"),
        ({"words": ["a"]}, "has no labels; training and evaluation need one"),
        ({"words": "ab", "labels": ["O", "O"]}, "words must be a list of strings, got str: 'ab'"),
        ({"words": ["O"], "labels": "O"}, "labels must be a list, got 'O'"),
        ({"words": ["a", 3], "labels": ["O", "O"]}, r"words\[1\] must be a string, got int: 3"),
        ({"words": ["a\ud800"], "labels": ["O"]}, r"words\[0\] is not valid Unicode"),
        ({"text": ["a"]}, r"examples\[0\] has no words"),
    ],
)
def test_examples_that_are_none(tokenizer, example, message):
    with pytest.raises(ValueError, match=message):
        task(tokenizer).features([example])


def test_a_model_learns_entities(tokenizer):
    do = task(tokenizer)
    rng = np.random.default_rng(0)

    def sentences(number: int) -> list[WordsExample]:
        examples = []
        for _ in range(number):
            words, labels, place = letters(rng, 5), ["O"] * 5, int(rng.integers(4))
            words[place], labels[place] = "sating", "B-x"
            if rng.integers(2):
                words[place + 1], labels[place + 1] = "worlding", "I-x"
            examples.append(WordsExample(words, labels))
        return examples

    train, dev = sentences(200), sentences(64)
    assert do.evaluator(dev)(new_model(do))["f1"] < 0.3
    model, metrics = learn(do, train, dev)
    assert metrics["f1"] > 0.9
    found = do.predict(model, [{"words": ["a", "sating", "worlding", "c"]}])
    assert found == [["O", "B-x", "I-x", "O"]]


def test_wnut_17(data, real_tokenizer, reference, caplog):
    """Every word of a real data set, which has emoji and words that the tokenizer makes nothing of,
    has the place that transformers gives it.
    """
    folder = data / "ner-wnut17"
    examples = read_examples(WordsExample, folder / "wnut17train.conll")
    examples += read_examples(WordsExample, folder / "emerging.dev.conll")
    assert len(examples) == 3394 + 1009
    assert sum(len(example.words) for example in examples) == 62730 + 15733
    labels = sorted({label for example in examples for label in example.labels or ()})
    assert len(labels) == 13
    config = small_config(
        vocab_size=30522, id2label=dict(enumerate(labels)), max_position_embeddings=512
    )
    do = TokenClassification(real_tokenizer, config)
    assert do.main_metric == "f1"
    rows = do.features(examples)
    theirs = reference([list(example.words) for example in examples], is_split_into_words=True)
    assert [ids.tolist() for ids in rows.input_ids] == theirs["input_ids"]
    missing = 0
    for i, example in enumerate(examples):
        place = {}
        for token, word in enumerate(theirs.word_ids(i)):
            if word is not None:
                place.setdefault(word, token)
        expected = np.full(len(theirs["input_ids"][i]), -100)
        for word, token in place.items():
            expected[token] = labels.index(example.labels[word])
        np.testing.assert_array_equal(rows.labels["labels"][i], expected)
        missing += len(example.words) - len(place)
    assert missing < 20
    assert "cut off" not in caplog.text
