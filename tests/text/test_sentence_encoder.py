"""The options of `SentenceEncoder`, on a tiny model, against sentence-transformers."""

import shutil
import string
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import max_difference
from sentence_transformers import SentenceTransformer
from text.tiny import HIDDEN, POSITIONS, edit_json
from tolerances import FLOAT32

import eqxbert

TEXTS = [
    "the cat sat",
    "",
    "Hello world, hello cat!",
    "un" * 30,
    "sat",
    "a [PAD] b [MASK] c",
    "the the the the the the the",
    "x y z " * 40,
    "é 漢",
]


@pytest.fixture(scope="module")
def folder(save_sentence_model) -> Path:
    return save_sentence_model(prompts={"query": "query: the ", "passage": ""})


@pytest.fixture(scope="module")
def encoder(folder: Path) -> eqxbert.SentenceEncoder:
    return eqxbert.SentenceEncoder.from_pretrained(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt": "hello: "},
        {"prompt": ""},
        {"prompt_name": "query"},
        {"prompt_name": "passage"},
        {"truncate_dim": 5},
        {"truncate_dim": 1},
        {"truncate_dim": HIDDEN + 3},
    ],
    ids=str,
)
def test_options_equal_sentence_transformers(encoder, reference, options):
    ours = encoder.encode(TEXTS, **options)
    assert ours.dtype == np.float32
    assert max_difference(ours, reference.encode(TEXTS, **options)) <= FLOAT32


@pytest.mark.parametrize("truncate_dim", [None, 5])
def test_vectors_are_scaled_after_they_are_truncated(encoder, reference, truncate_dim):
    ours = encoder.encode(TEXTS, normalize=True, truncate_dim=truncate_dim)
    expected = reference.encode(TEXTS, normalize_embeddings=True, truncate_dim=truncate_dim)
    assert max_difference(ours, expected) <= FLOAT32
    assert max_difference(np.linalg.norm(ours, axis=-1), np.ones(len(TEXTS))) <= FLOAT32


def test_a_prompt_changes_the_vectors(encoder):
    plain = encoder.encode(TEXTS)
    assert max_difference(encoder.encode(TEXTS, prompt_name="query"), plain) > 0.1
    assert max_difference(encoder.encode(TEXTS, prompt="query: the "), plain) > 0.1
    assert max_difference(encoder.encode(TEXTS, prompt_name="passage"), plain) == 0


def test_token_vectors_equal_sentence_transformers(encoder, reference):
    ours = encoder.encode(TEXTS, output_value="token_embeddings")
    assert all(array.flags.owndata and array.flags.writeable for array in ours)
    expected = reference.encode(TEXTS, output_value="token_embeddings")
    assert [len(rows) for rows in ours] == [len(rows) for rows in expected]
    assert min(len(rows) for rows in ours) == 2
    for rows, expected_rows in zip(ours, expected, strict=True):
        assert rows.dtype == np.float32
        assert max_difference(rows, expected_rows) <= FLOAT32


@pytest.mark.parametrize("output_value", ["sentence_embedding", "token_embeddings"])
def test_a_single_text_gives_a_single_result(encoder, output_value):
    single = encoder.encode("the cat sat", output_value=output_value)
    [batch] = encoder.encode(["the cat sat"], output_value=output_value)
    assert single.shape == {"sentence_embedding": (HIDDEN,)}.get(output_value, (5, HIDDEN))
    assert max_difference(single, batch) == 0


@pytest.mark.parametrize("size", [None, 5])
def test_no_texts_give_no_vectors_of_the_right_size(encoder, size):
    vectors = encoder.encode([], truncate_dim=size)
    assert vectors.shape == (0, size or HIDDEN)
    assert vectors.dtype == np.float32
    assert encoder.encode([], output_value="token_embeddings") == []


@pytest.mark.parametrize("container", [tuple, np.array, lambda texts: np.array(texts, object)])
@pytest.mark.parametrize("prompt", [None, "hello: "])
def test_any_sequence_of_strings_will_do(encoder, container, prompt):
    texts = TEXTS[:3]
    expected = encoder.encode(texts, prompt=prompt)
    assert max_difference(encoder.encode(container(texts), prompt=prompt), expected) == 0


def test_a_text_of_any_length_counts_as_far_as_the_model_reaches(encoder, reference):
    text = "the cat sat, " * 8000
    assert len(text) > 100_000
    assert encoder.max_seq_length == POSITIONS
    ours = encoder.encode([text], output_value="token_embeddings")[0]
    assert ours.shape == (POSITIONS, HIDDEN)
    assert max_difference(encoder.encode([text]), reference.encode([text])) <= FLOAT32


def test_vectors_come_in_the_order_of_the_texts(encoder):
    rng = np.random.default_rng(0)
    texts = ["cat " * n for n in range(38)]
    vectors = encoder.encode(texts)
    order = rng.permutation(38)
    shuffled = encoder.encode([texts[i] for i in order])
    assert max_difference(shuffled, vectors[order]) <= FLOAT32
    assert min(np.abs(vectors[1:] - vectors[:-1]).max(axis=-1)) > 10 * FLOAT32


@pytest.mark.parametrize("tokens_per_batch", [1, 16, 100, 100_000])
def test_a_vector_does_not_depend_on_its_company(encoder, tokens_per_batch):
    alone = np.stack([encoder.encode(text) for text in TEXTS])
    together = encoder.encode(TEXTS, tokens_per_batch=tokens_per_batch)
    assert max_difference(together, alone) <= FLOAT32


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_equals_sentence_transformers(folder, reference, tmp_path, name):
    a, b = reference.encode(TEXTS[:4]), reference.encode(TEXTS[3:])
    a[0] = 0  # no direction
    encoder = with_similarity(folder, tmp_path, name)
    reference = SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    assert encoder.similarity_fn_name == reference.similarity_fn_name == name
    assert max_difference(encoder.similarity(a, b), reference.similarity(a, b)) <= FLOAT32
    assert encoder.similarity(a[1], b).shape == (1, len(b))
    assert encoder.similarity(a, b[:0]).shape == (len(a), 0)
    assert encoder.similarity(a[:0], b).shape == (0, len(b))
    assert max_difference(encoder.similarity(a[1], b[2]), reference.similarity(a[1], b[2])) <= (
        FLOAT32
    )


def with_similarity(folder: Path, tmp_path: Path, name: str) -> eqxbert.SentenceEncoder:
    shutil.copytree(folder, tmp_path / "model")
    edit_json(tmp_path / "model" / "config_sentence_transformers.json", similarity_fn_name=name)
    return eqxbert.SentenceEncoder.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("show", [True, False])
def test_progress_is_shown_if_asked_for(encoder, capsys, show):
    encoder.encode(TEXTS, show_progress_bar=show)
    shown = capsys.readouterr().err
    assert (f"{len(TEXTS)}/{len(TEXTS)}" in shown) == show
    assert bool(shown) == show


def test_progress_is_not_shown_outside_a_terminal(encoder, capsys):
    encoder.encode(TEXTS)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("truncate_dim", [0, -1])
def test_truncating_to_nothing_is_an_error(encoder, truncate_dim):
    with pytest.raises(ValueError, match=rf"truncate_dim must be .*, got {truncate_dim}"):
        encoder.encode(TEXTS, truncate_dim=truncate_dim)


def test_an_unknown_prompt_is_an_error_that_names_the_known_ones(encoder):
    with pytest.raises(ValueError, match=r"no prompt 'qeury'.*'passage', 'query'"):
        encoder.encode(TEXTS, prompt_name="qeury")


def test_two_prompts_are_an_error(encoder):
    with pytest.raises(ValueError, match="not both"):
        encoder.encode(TEXTS, prompt="a", prompt_name="query")


@pytest.mark.parametrize("max_seq_length", [2, 1, 0, -3])
def test_a_limit_that_leaves_no_room_for_text_is_an_error(folder, max_seq_length):
    with pytest.raises(ValueError, match=rf"max_(seq_)?length .*{max_seq_length}"):
        eqxbert.SentenceEncoder.from_pretrained(folder, max_seq_length=max_seq_length).encode("a")


def test_a_default_prompt_that_is_not_there_is_an_error(encoder):
    with pytest.raises(ValueError, match=r"default_prompt_name is 'query'.*\['passage'\]"):
        eqxbert.SentenceEncoder(
            encoder.model,
            encoder.tokenizer,
            prompts={"passage": ""},
            default_prompt_name="query",
        )


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(encoder, minilm):
    tokenizer = eqxbert.Tokenizer.from_pretrained(minilm)
    with pytest.raises(ValueError, match=r"has 30522 tokens, but the model only \d+"):
        eqxbert.SentenceEncoder(encoder.model, tokenizer)


def test_no_text_has_an_id_that_the_model_lacks(encoder):
    """Inside of a program, such an id would make the whole vector NaN."""
    characters = "".join(map(chr, range(1, 0x3000))) + string.printable
    texts = [characters[i : i + 30] for i in range(0, len(characters), 30)]
    assert np.isfinite(encoder.encode(texts)).all()


def test_the_model_is_a_tree_of_arrays(encoder):
    """So it can be trained: a gradient reaches every array that has an influence."""

    def loss(model):
        inputs = encoder.tokenizer(TEXTS[:3], max_length=POSITIONS)
        return model(**inputs).sum()

    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(encoder.model))
    gradients = jax.tree.leaves(jax.grad(loss)(encoder.model))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert sum(np.abs(gradient).max() > 0 for gradient in gradients) > 0.8 * len(gradients)
