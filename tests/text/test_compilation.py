"""How many programs a corpus compiles, counted as XLA reports them."""

import threading
from collections.abc import Iterator

import jax
import jax.monitoring
import numpy as np
import pytest
from helpers import tiny_config
from text.tiny import VOCABULARY, write_vocabulary

import eqxbert
from eqxbert.text import Pooling, SentenceModel, batching

TEXTS = 5183


@pytest.fixture
def encoder(tmp_path, key) -> eqxbert.SentenceEncoder:
    config = tiny_config(
        vocab_size=len(VOCABULARY), num_hidden_layers=1, max_position_embeddings=256
    )
    bert = eqxbert.BertModel(config, add_pooling_layer=False, key=key)
    tokenizer = eqxbert.Tokenizer.from_pretrained(write_vocabulary(tmp_path))
    return eqxbert.SentenceEncoder(SentenceModel(bert, Pooling(), ()), tokenizer)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows by one entry for each program that XLA compiles."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def corpus(seed: int, words: str = "cat") -> list[str]:
    """As many texts as SciFact has abstracts, but of more varied lengths: of one token to more than
    the limit of 256.
    """
    lengths = 1 + np.random.default_rng(seed).lognormal(4, 1.2, TEXTS).astype(int)
    return [f"{words} " * length for length in lengths]


def test_a_corpus_compiles_few_programs_and_others_like_it_none(encoder, compilations):
    first, second, third = corpus(0), corpus(0, "sat")[::-1], corpus(1)

    vectors = encoder.encode(first, tokens_per_batch=1024)
    assert vectors.shape == (TEXTS, 12)
    assert 9 <= len(compilations) <= 12

    after_first = len(compilations)
    encoder.encode(second, tokens_per_batch=1024)
    assert len(compilations) == after_first

    encoder.encode(third, tokens_per_batch=1024)
    assert len(compilations) <= 12


def test_prompts_compile_nothing_more(encoder, compilations):
    texts = ["cat " * 5] * 8
    encoder.encode(texts)
    before = len(compilations)
    assert before > 0
    for prompt in ("the ", "sat ", "t ", "the sat "):
        encoder.encode([text[4:] for text in texts], prompt=prompt)
    assert len(compilations) == before


def test_another_model_of_the_same_sizes_compiles_nothing_more(encoder, compilations, key):
    texts = ["cat " * n for n in range(40)]
    encoder.encode(texts)
    before = len(compilations)
    weights = jax.tree.map(lambda x: x * 2, encoder.model)
    during = len(compilations)
    other = eqxbert.SentenceEncoder(weights, encoder.tokenizer)
    assert not np.allclose(other.encode(texts), encoder.encode(texts))
    assert before > 0
    assert len(compilations) == during


def test_the_settings_of_the_caller_hold_for_all_batches(encoder, compilations):
    """Those of JAX that a thread has of its own, though batches are computed by several: under
    other ones, they would compile another program.
    """
    with jax.enable_x64(True), jax.default_matmul_precision("float32"):
        weights = jax.tree.map(lambda x: x.astype(np.float64), encoder.model)
        exact = eqxbert.SentenceEncoder(weights, encoder.tokenizer)
        before = len(compilations)
        vectors = exact.encode(["cat " * 5] * 80, tokens_per_batch=64)
    assert len(compilations) == before + 1
    assert np.all(vectors == vectors[0])


def test_an_error_ends_it(encoder, monkeypatch):
    """And leaves no thread behind."""
    texts = ["cat " * 5] * 80
    before = threading.active_count()

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(batching, "_run", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        encoder.encode(texts, tokens_per_batch=64)
    assert threading.active_count() == before
