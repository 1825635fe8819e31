"""Words for gaps, compared with transformers' pipeline."""

import numpy as np
import pytest
import torch
import transformers
from text.tiny import VOCABULARY, write_vocabulary

import eqxbert
from eqxbert.text import fill_mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY) + 7,  # more than the tokenizer's, as is usual
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return write_vocabulary(folder, config={"do_lower_case": False})


@pytest.fixture(scope="module")
def loaded(folder):
    model = eqxbert.BertForMaskedLM.from_pretrained(folder)
    return model, eqxbert.Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["the cat [MASK]", "[MASK] sat", "the [MASK] sat [MASK] , un[MASK]"]
)
def test_as_transformers(folder, loaded, text):
    reference = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**inputs).logits[0].softmax(-1).numpy()
    places = np.flatnonzero(inputs["input_ids"][0].numpy() == tokenizer.mask_token_id)
    found = fill_mask(*loaded, text, top_k=4)
    assert len(found) == len(places) == text.count("[MASK]")
    for gap, place in zip(found, places, strict=True):
        row = expected[place, : len(VOCABULARY)]
        best = np.argsort(-row)[:4]
        assert [word.token for word in gap] == [VOCABULARY[i] for i in best]
        np.testing.assert_allclose([w.probability for w in gap], row[best], rtol=1e-4)


def test_the_texts(loaded):
    """Pieces of words are joined to what is before them, and other gaps stay."""
    first, second = fill_mask(*loaded, "the [MASK] sat [MASK].", top_k=len(VOCABULARY))
    texts = {word.token: word.text for word in first}
    assert texts["cat"] == "the cat sat [MASK]."
    assert texts["##ing"] == "theing sat [MASK]."
    assert {word.token: word.text for word in second}["un"] == "the [MASK] sat un."
    assert sum(word.probability for word in first) <= 1 + 1e-5


@pytest.mark.parametrize(
    ("text", "top_k", "message"),
    [
        ("no gap", 5, r"has no \[MASK\]: 'no gap'"),
        ("", 5, r"has no \[MASK\]"),
        ("a [MASK]", 0, "top_k is 0, expected 1 to"),
        ("a [MASK]", 10**6, "top_k is 1000000, expected 1 to"),
        ("a " * 20 + "[MASK]", 5, "has 23 tokens, but the model takes 16 at most"),
    ],
)
def test_bad_input(loaded, text, top_k, message):
    with pytest.raises(ValueError, match=message):
        fill_mask(*loaded, text, top_k=top_k)
