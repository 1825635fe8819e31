"""Token ids against transformers' tokenizer, with the real vocabulary of MiniLM."""

from pathlib import Path

import numpy as np
import pytest
import transformers
from helpers import tiny_config
from text.tiny import POSITIONS, VOCABULARY

import eqxbert

NASTY = {
    "plain": "The quick brown fox, jumped over 13 lazy dogs!",
    "accents": "Crème brûlée, naïve façade, Ångström, İstanbul, ß, ǅ, cafe\u0301",
    "chinese": "我爱北京天安门, mixed漢字text and ひらがな カタカナ 한국어",
    "emoji": "family 👨\u200d👩\u200d👧 flag 🇩🇪 heart ❤\ufe0f",
    "control characters": "a\x00b\x01c\x7fd\ufffde\u200bf\u00adg\tH\r\ni",
    "unicode spaces": "a\u00a0b\u2003c\u3000d\u2028e\x85f",
    "right to left": "שלום עולם مرحبا بالعالم",
    "longest word that is split": "a" * 100,
    "word too long to be split": "a" * 101 + " b",
    "special tokens inside": "x [MASK] y[SEP]z [CLS] [PAD] [UNK] [mask] [ MASK ]",
    "looks like a piece": "##ing un##able [unused1]",
    "punctuation": "don't... (well-known) $5.00—“quotes” …¡hola! a_b ~^`",
    "empty": "",
    "whitespace only": " \t\n ",
    "long": "lorem ipsum " * 400,
}


@pytest.fixture(scope="module")
def tokenizer(minilm: Path) -> eqxbert.Tokenizer:
    return eqxbert.Tokenizer.from_pretrained(minilm)


@pytest.fixture(scope="module")
def reference(minilm: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(minilm)


@pytest.mark.parametrize("name", NASTY)
def test_ids_equal_transformers(tokenizer, reference, name):
    [ids], [type_ids] = tokenizer.encode([NASTY[name]], max_length=512)
    expected = reference(NASTY[name], truncation=True, max_length=512)
    assert ids.tolist() == expected["input_ids"]
    assert type_ids.tolist() == [0] * len(ids)


def test_a_batch_is_padded_on_the_right_as_transformers_pads_it(tokenizer, reference):
    texts = list(NASTY.values())
    ours = tokenizer(texts)
    expected = reference(texts, padding=True, truncation=True, return_tensors="np")
    assert ours.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    for name, array in ours.items():
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("max_length", [None, 5, 12, 511])
def test_pairs_equal_transformers(tokenizer, reference, max_length):
    texts = list(NASTY.values())
    pairs = texts[3:] + texts[:3]
    ours = tokenizer(texts, pairs, max_length=max_length)
    expected = reference(
        texts, pairs, padding=True, truncation=True, max_length=max_length, return_tensors="np"
    )
    assert ours["token_type_ids"].any()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("max_length", [3, 4, 17, 512])
def test_truncation_keeps_the_last_special_token(tokenizer, reference, max_length):
    ids, _ = tokenizer.encode([NASTY["long"], "one"], max_length=max_length)
    expected = reference(NASTY["long"], truncation=True, max_length=max_length)["input_ids"]
    assert ids[0].tolist() == expected
    assert len(ids[0]) == max_length
    assert len(ids[1]) == 3, "what fits is left as it is"


def test_a_limit_for_one_call_does_not_outlive_it(tokenizer):
    tokenizer.encode([NASTY["long"]], max_length=4)
    [ids], _ = tokenizer.encode([NASTY["long"]])
    assert len(ids) == tokenizer.max_length == 512


def test_more_texts_than_are_tokenised_at_once(tokenizer):
    """They come in slices of 1,024: none is lost, and the order stays."""
    texts = ["a " * (i % 7) for i in range(2500)]
    ids, type_ids = tokenizer.encode(texts)
    assert [len(row) - 2 for row in ids] == [i % 7 for i in range(2500)]
    assert len(type_ids) == 2500


def test_a_single_text_has_no_batch_axis(tokenizer):
    single, batch = tokenizer("a nice text"), tokenizer(["a nice text"])
    for name, array in single.items():
        assert array.shape == (5,)
        np.testing.assert_array_equal(array, batch[name][0])


def test_a_single_pair_has_no_batch_axis(tokenizer):
    single, batch = tokenizer("a text", "a pair"), tokenizer(["a text"], ["a pair"])
    assert single["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    for name, array in single.items():
        np.testing.assert_array_equal(array, batch[name][0])


def test_no_texts_give_empty_arrays(tokenizer):
    assert {name: array.shape for name, array in tokenizer([]).items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (0, 0)
    )


@pytest.mark.parametrize("container", [list, tuple, np.array])
def test_any_sequence_of_strings_will_do(tokenizer, container):
    ours = tokenizer(container(["one text", "another"]))
    np.testing.assert_array_equal(ours["input_ids"][0], [101, 2028, 3793, 102])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("name", ["plain", "accents", "chinese", "punctuation", "empty"])
def test_decoding_equals_transformers(tokenizer, reference, name, skip):
    ids = reference(NASTY[name])["input_ids"]
    expected = reference.decode(ids, skip_special_tokens=skip)
    assert tokenizer.decode(ids, skip_special_tokens=skip) == expected
    assert tokenizer.decode(np.array(ids), skip_special_tokens=skip) == expected


def test_tokens_and_their_ids(tokenizer, reference):
    assert tokenizer.vocab_size == len(reference) == 30522
    assert tokenizer.pad_id == reference.pad_token_id == 0
    assert tokenizer.mask_id == reference.mask_token_id == 103
    assert tokenizer.token_to_id("world") == 2088
    assert tokenizer.id_to_token(2088) == "world"
    with pytest.raises(KeyError, match="no token 'wörld'"):
        tokenizer.token_to_id("wörld")
    with pytest.raises(KeyError, match="no id 30522; it has 30522 tokens"):
        tokenizer.id_to_token(30522)


def test_lowercasing_comes_first_and_leaves_the_original_alone(tiny_bert):
    cased = eqxbert.Tokenizer.from_pretrained(tiny_bert)
    lower = cased.lowercased()
    assert cased("The")["input_ids"].tolist() == [2, VOCABULARY.index("The"), 3]
    assert lower("The")["input_ids"].tolist() == [2, VOCABULARY.index("the"), 3]
    assert lower.max_length == cased.max_length
    assert lower.special_tokens == cased.special_tokens


@pytest.mark.parametrize("texts", ["one text", ["one text", "another, longer text"]])
def test_a_model_takes_what_the_tokenizer_gives(tokenizer, key, texts):
    config = tiny_config(vocab_size=tokenizer.vocab_size)
    model = eqxbert.BertModel(config, key=key)
    hidden = model(**tokenizer(texts)).last_hidden_state
    assert hidden.shape == (*np.shape(texts), 4 if isinstance(texts, str) else 6, 12)
    assert np.isfinite(np.asarray(hidden)).all()


def test_a_text_that_is_too_long_for_the_model_is_cut(tiny_bert):
    """The vocabulary's own settings know no limit, hence the call names one."""
    tokenizer = eqxbert.Tokenizer.from_pretrained(tiny_bert)
    assert tokenizer.max_length is None
    model = eqxbert.BertModel.from_pretrained(tiny_bert)
    inputs = tokenizer("the cat " * 100, max_length=POSITIONS)
    assert model(**inputs).last_hidden_state.shape == (POSITIONS, 12)
