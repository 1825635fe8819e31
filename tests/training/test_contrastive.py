"""The contrastive loss against NumPy, in one piece and in chunks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import max_difference
from jaxtyping import Array, Float, Int
from tolerances import FLOAT32, FLOAT32_GRADIENT

from eqxbert.training import contrastive_loss, make_train_step, similarity_loss

WORDS, SEQ, SIZE = 11, 5, 6
PADDING = 7  # a word that counts where the mask does not


class Sums(eqx.Module):
    """A model of texts that compiles in no time: sums of the vectors of words, bent."""

    table: Float[Array, "words size"]
    matrix: Float[Array, "size size"]

    def __call__(
        self, input_ids: Int[Array, "texts seq"], attention_mask: Int[Array, "texts seq"], key: Any
    ) -> Float[Array, "texts size"]:
        weights = attention_mask[..., None].astype(self.table.dtype)
        by_word = jnp.tanh(self.table[input_ids] @ self.matrix)
        return jnp.sum(by_word * weights, axis=1)


@pytest.fixture
def model() -> Sums:
    return random_model()


def random_model(size: int = SIZE) -> Sums:
    rng = np.random.default_rng(0)
    table, matrix = rng.normal(size=(WORDS, size)), rng.normal(size=(size, size))
    return Sums(jnp.asarray(table, jnp.float32), jnp.asarray(matrix, jnp.float32))


def texts(number: int, seed: int, seq: int = SEQ) -> dict[str, np.ndarray]:
    """Random ones of one to `seq` words."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, seq + 1, (number, 1))
    mask = (np.arange(seq) < lengths).astype(np.int32)
    ids = rng.integers(0, WORDS, (number, seq), np.int32)
    return {"input_ids": np.where(mask == 1, ids, PADDING), "attention_mask": mask}


def pairs(kind: str) -> dict[str, dict[str, np.ndarray]]:
    """Four anchors and their candidates."""
    batch = {"anchors": texts(4, 0), "candidates": texts(8 if kind == "hard negatives" else 4, 1)}
    if kind == "duplicates":
        for name, (place, other) in {"anchors": (1, 3), "candidates": (0, 2)}.items():
            for values in batch[name].values():
                values[place] = values[other]
        # What differs where nothing is attended to is the same text.
        batch["anchors"]["input_ids"][1][batch["anchors"]["attention_mask"][1] == 0] = 3
    if kind == "hard negatives":
        for values in batch["candidates"].values():
            values[6] = values[2]  # which is right for that anchor
    return batch


KINDS = ("plain", "duplicates", "hard negatives")


def words_of(texts: Any) -> list[list[int]]:
    """The words of each text that are attended to."""
    rows = zip(texts["input_ids"], texts["attention_mask"], strict=True)
    return [ids[mask == 1].tolist() for ids, mask in rows]


def expected_loss(model: Sums, batch: Any, temperature: float, symmetric: bool) -> float:
    """In NumPy, in float64, pair by pair."""
    by_word = np.tanh(np.float64(model.table) @ np.float64(model.matrix))
    anchors, candidates = words_of(batch["anchors"]), words_of(batch["candidates"])

    def score(i: int, j: int) -> float:
        a, c = by_word[anchors[i]].sum(axis=0), by_word[candidates[j]].sum(axis=0)
        return float(a @ c / np.linalg.norm(a) / np.linalg.norm(c)) / temperature

    def counts(i: int, j: int) -> bool:
        same_anchor = j < len(anchors) and anchors[i] == anchors[j]
        return i == j or not (same_anchor or candidates[i] == candidates[j])

    def loss(i: int, pairs: list[tuple[int, int]]) -> float:
        return np.log(sum(np.exp(score(*pair)) for pair in pairs if counts(*pair))) - score(i, i)

    numbers = range(len(anchors))
    forward = [loss(i, [(i, j) for j in range(len(candidates))]) for i in numbers]
    back = [loss(j, [(i, j) for i in numbers]) for j in numbers]
    return float(np.mean(forward + back if symmetric else forward))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_against_numpy(model, kind, symmetric):
    loss = contrastive_loss(temperature=0.2, symmetric=symmetric)
    found = float(loss(model, pairs(kind), None))
    assert found == pytest.approx(expected_loss(model, pairs(kind), 0.2, symmetric), rel=FLOAT32)


@pytest.mark.parametrize("kind", ["duplicates", "hard negatives"])
def test_the_same_text_elsewhere_is_not_held_against_it(model, kind):
    """It would be, were it another one."""
    batch = pairs(kind)
    found = float(contrastive_loss(temperature=0.2)(model, batch, None))
    place = {"duplicates": 0, "hard negatives": 6}[kind]
    batch["candidates"]["input_ids"][place, 0] += 1
    batch["candidates"]["input_ids"][place, 0] %= WORDS
    assert abs(float(contrastive_loss(temperature=0.2)(model, batch, None)) - found) > 1e-3


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_as_one_piece(model, kind, chunk_size):
    whole, in_chunks = (
        jax.value_and_grad(
            lambda m, size=size: contrastive_loss(chunk_size=size)(m, pairs(kind), None)
        )
        for size in (None, chunk_size)
    )
    (value, gradient), (found, found_gradient) = whole(model), in_chunks(model)
    assert float(found) == pytest.approx(float(value), rel=FLOAT32)
    for a, b in zip(jax.tree.leaves(found_gradient), jax.tree.leaves(gradient), strict=True):
        assert max_difference(a, b) < FLOAT32_GRADIENT * np.abs(b).max()
        assert np.abs(b).max() > 1e-3


def gradient_memory(chunk_size: int | None, batch: Any, size: int = SIZE) -> int:
    """What a compiled gradient needs besides what it is given and returns, in bytes."""
    loss = contrastive_loss(chunk_size=chunk_size)
    program = jax.jit(jax.grad(lambda model, batch: loss(model, batch, None)))
    compiled = program.lower(random_model(size), batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_chunks_take_less_memory():
    batch = {"anchors": texts(64, 0, 32), "candidates": texts(64, 1, 32)}
    assert gradient_memory(4, batch, 32) < 0.3 * gradient_memory(None, batch, 32)


def test_finding_duplicates_takes_memory_for_pairs_of_texts_alone():
    """Not for the tokens of each pair, which are many times as many."""
    number, seq = 128, 64
    batch = {"anchors": texts(number, 0, seq), "candidates": texts(number, 1, seq)}
    # A chunk is a text, so that nearly all memory is that of what is made of pairs.
    assert gradient_memory(1, batch) < number**2 * seq


def test_parts_of_a_batch_would_be_another_loss():
    for loss in (contrastive_loss(), contrastive_loss(chunk_size=2)):
        make_train_step(optax.sgd(1.0), loss=loss)
        with pytest.raises(ValueError, match=r"accumulate is 2, but the loss .* chunk_size"):
            make_train_step(optax.sgd(1.0), loss=loss, accumulate=2)
    make_train_step(optax.sgd(1.0), loss=similarity_loss, accumulate=2)  # of each pair by itself


@pytest.mark.parametrize(
    ("options", "candidates", "message"),
    [
        ({"temperature": 0.0}, 4, "temperature must be positive, got 0.0"),
        ({"chunk_size": 0}, 4, "chunk_size must be at least 1, got 0"),
        ({"chunk_size": 3}, 4, "anchors has 4 texts, which is no multiple of chunk_size, 3"),
        ({}, 3, "There are 4 anchors, but only 3 candidates"),
    ],
)
def test_wrong_arguments(model, options, candidates, message):
    batch = {"anchors": texts(4, 0), "candidates": texts(candidates, 1)}
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**options)(model, batch, None)


def test_similarity_against_numpy(model):
    batch = pairs("plain") | {"labels": np.array([1, 0.5, -1, 0], np.float32)}
    vectors = [np.float64(model(**batch[name], key=None)) for name in ("anchors", "candidates")]
    a, c = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in vectors)
    expected = np.mean((np.sum(a * c, axis=1) - batch["labels"]) ** 2)
    assert float(similarity_loss(model, batch, None)) == pytest.approx(expected, rel=FLOAT32)


def test_float64_stays(model):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), model)
        batch = pairs("plain") | {"labels": np.array([1, 0.5, -1, 0])}
        assert contrastive_loss()(wide, batch, None).dtype == jnp.float64
        assert similarity_loss(wide, batch, None).dtype == jnp.float64
