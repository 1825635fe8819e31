"""Folders that `SentenceEncoder.save_pretrained` writes, for this library and the original."""

import pytest
import torch
from helpers import max_difference
from sentence_transformers.base.modules import Dense, Normalize
from text.comparison import TEXTS, assert_same_vectors, read_by_the_original
from text.tiny import HIDDEN, edit_json
from tolerances import FLOAT32

import eqxbert

HEADS = {
    "none": [],
    "normalize": [Normalize()],
    "several": [
        Dense(2 * HIDDEN, 15, use_residual=True),
        Dense(15, 7, bias=False, activation_function=torch.nn.Identity()),
        Dense(7, 7, activation_function=torch.nn.GELU(), use_residual=True),
        Normalize(),
    ],
}


@pytest.mark.parametrize(
    ("modes", "head"),
    [
        (["mean"], "none"),
        (["lasttoken"], "normalize"),
        (["cls", "mean"], "several"),
        (["mean", "cls"], "none"),
    ],
    ids=str,
)
def test_what_is_written_reads_back(save_sentence_model, tmp_path, modes, head):
    head = HEADS[head]
    folder = save_sentence_model(*head, pooling_mode=modes, prompts={"query": "query: "})
    encoder = eqxbert.SentenceEncoder.from_pretrained(folder, max_seq_length=9)
    encoder.save_pretrained(tmp_path / "saved")
    again = eqxbert.SentenceEncoder.from_pretrained(tmp_path / "saved")
    assert again.max_seq_length == 9
    assert again.prompts == encoder.prompts
    assert again.similarity_fn_name == encoder.similarity_fn_name
    for options in ({}, {"prompt_name": "query"}):
        expected = encoder.encode(TEXTS, **options)
        assert max_difference(again.encode(TEXTS, **options), expected) == 0
        assert_same_vectors(tmp_path / "saved", expected.shape[1], **options)


def test_all_settings_are_written(save_sentence_model, tmp_path):
    folder = save_sentence_model(
        include_prompt=False,
        prompts={"query": "query: ", "ü": "漢"},
        default_prompt_name="query",
        similarity_fn_name="manhattan",
    )
    encoder = eqxbert.SentenceEncoder.from_pretrained(folder)
    encoder.save_pretrained(tmp_path / "saved")
    again = eqxbert.SentenceEncoder.from_pretrained(tmp_path / "saved")
    assert again.prompts["ü"] == "漢"
    assert again.default_prompt_name == "query"
    assert again.similarity_fn_name == "manhattan"
    assert again.model.pooling.include_prompt is False
    assert_same_vectors(tmp_path / "saved")
    reference = read_by_the_original(tmp_path / "saved")
    assert reference.prompts["ü"] == "漢"
    assert reference.similarity_fn_name == "manhattan"


def test_a_lowercasing_encoder_stays_one(copy, tmp_path):
    edit_json(copy / "sentence_bert_config.json", do_lower_case=True)
    encoder = eqxbert.SentenceEncoder.from_pretrained(copy)
    encoder.save_pretrained(tmp_path / "saved")
    vectors = assert_same_vectors(tmp_path / "saved")
    assert max_difference(vectors, encoder.encode(TEXTS)) <= FLOAT32


def test_a_new_dense_with_any_activation_can_be_written(sentence_model, tmp_path, key):
    """Of the names that transformers has for the same activation, any will do."""
    encoder = eqxbert.SentenceEncoder.from_pretrained(sentence_model)
    dense = eqxbert.text.Dense(HIDDEN, 7, activation="swish", key=key)
    model = eqxbert.text.SentenceModel(encoder.model.bert, encoder.model.pooling, (dense,))
    eqxbert.SentenceEncoder(model, encoder.tokenizer).save_pretrained(tmp_path / "saved")
    assert_same_vectors(tmp_path / "saved", 7)


def test_an_activation_that_pytorch_lacks_is_an_error_that_names_it(sentence_model, tmp_path, key):
    encoder = eqxbert.SentenceEncoder.from_pretrained(sentence_model)
    dense = eqxbert.text.Dense(HIDDEN, 7, activation="quick_gelu", key=key)
    model = eqxbert.text.SentenceModel(encoder.model.bert, encoder.model.pooling, (dense,))
    with pytest.raises(ValueError, match="quick_gelu"):
        eqxbert.SentenceEncoder(model, encoder.tokenizer).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
