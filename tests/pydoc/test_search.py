"""The model that comes with the package: that it is whole, that it is read by others, and that it
finds things.
"""

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from safetensors.numpy import load_file

import eqxbert
from eqxbert.cli import main
from eqxbert.pydoc import MODEL, SearchIndex, search
from eqxbert.pydoc.corpus import lookup, standard_library
from eqxbert.pydoc.search import INDEX_FILE, load_encoder
from eqxbert.text import fill_mask


def test_it_is_small_and_in_half_precision():
    size = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    assert size < 12e6
    arrays = load_file(MODEL / "model.safetensors")
    assert {str(array.dtype) for array in arrays.values()} == {"float16"}
    assert all(np.all(np.isfinite(array)) for array in arrays.values())


def test_others_read_it():
    texts = ["parse json from a string", "return a new [MASK] object"]
    theirs = sentence_transformers.SentenceTransformer(
        str(MODEL), device="cpu", model_kwargs={"dtype": torch.float32}
    )
    np.testing.assert_allclose(theirs.encode(texts), load_encoder().encode(texts), atol=1e-5)
    reference = transformers.AutoModelForMaskedLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    with torch.no_grad():
        expected = reference(**tokenizer(texts[1], return_tensors="pt")).logits[0].numpy()
    model = eqxbert.BertForMaskedLM.from_pretrained(MODEL)
    found = model(**eqxbert.Tokenizer.from_pretrained(MODEL)(texts[1])).logits
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("parse json from a string", "json.loads"),
        ("delete a directory tree", "shutil.rmtree"),
        ("compress data", "zlib.compress"),
    ],
)
def test_functions_are_found(query, name):
    found = search(query, top_k=10)
    assert name in [entry.name for entry, _ in found]
    similarities = [similarity for _, similarity in found]
    assert similarities == sorted(similarities, reverse=True)
    assert all(-1 <= similarity <= 1 for similarity in similarities)
    for entry, _ in found:
        assert entry == lookup(entry.name)


def test_words_are_filled_in():
    model = eqxbert.BertForMaskedLM.from_pretrained(MODEL)
    tokenizer = eqxbert.Tokenizer.from_pretrained(MODEL)
    [words] = fill_mask(model, tokenizer, "raise an [MASK] if the key is not found", top_k=5)
    assert {"exception", "error"} & {word.token for word in words}


def test_commands(capsys):
    assert main(["search", "parse json from a string", "--top-k", "3"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    similarities, names, summaries = zip(*rows, strict=True)
    assert sorted(map(float, similarities), reverse=True) == [*map(float, similarities)]
    assert all(names)
    assert all(summaries)
    assert main(["fill-mask", "return a new [MASK] object", "--top-k", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", " "], "The query is empty"),
        (["search", "x", "--top-k", "0"], "top_k must be at least 1, got 0"),
        (["fill-mask", "no gap"], "has no [MASK]"),
        (["fill-mask", "[MASK]", "--model", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_commands(capsys, arguments, message):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_the_index_is_that_of_the_model(tmp_path):
    """Made anew from some entries, it has the vectors that are in the file."""
    stored = SearchIndex.load(MODEL / INDEX_FILE)
    library = {entry.name: entry for entry in standard_library()}
    entries = [library[name] for name in stored.names if name in library][:400:20]
    made = SearchIndex.create(load_encoder(), entries)
    rows = [stored.names.index(name) for name in made.names]
    difference = np.abs(made.vectors.astype(int) - stored.vectors[rows])
    # Documentation differs a little between versions of Python.
    assert np.mean(difference.max(axis=1) <= 1) > 0.5
    made.save(tmp_path / "index.npz")
    again = SearchIndex.load(tmp_path / "index.npz")
    assert again.names == made.names
    np.testing.assert_array_equal(again.vectors, made.vectors)
