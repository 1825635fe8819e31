"""Large batches on a CPU: computed in parts, with the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import max_difference, tiny_config
from tolerances import FLOAT64

import eqxbert
from eqxbert.models import micro_batches

SEQ = 16


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def double(model):
    return jax.tree.map(lambda x: x.astype(jnp.float64), model)


@pytest.fixture
def model(key):
    return double(eqxbert.BertModel(tiny_config(), key=key))


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of four rows."""
    monkeypatch.setattr(micro_batches, "_TOKENS", 4 * SEQ)


def inputs(batch: tuple[int, ...], mask_axes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    ids = random.integers(0, 33, (*batch, SEQ), np.int32)
    mask = random.random((*batch, *[SEQ] * mask_axes)) < 0.7
    return ids, mask


def loops(function, *arguments) -> int:
    return str(jax.make_jaxpr(function)(*arguments)).count("scan[")


@pytest.mark.parametrize("batch", [(8,), (9,), (2, 3), (5, 1, 2)], ids=str)
@pytest.mark.parametrize("mask_axes", [1, 2])
def test_every_output_is_the_same(model, small_parts, batch, mask_axes):
    """Those of all layers too, whether or not the parts fill up; eagerly, there are none."""
    ids, mask = inputs(batch, mask_axes)

    def run(ids, mask):
        return model(ids, mask, output_hidden_states=True, output_attentions=True)

    assert loops(run, ids, mask) == 1
    found, expected = jax.jit(run)(ids, mask), run(ids, mask)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert max_difference(ours, theirs) < FLOAT64


def test_without_a_mask_and_causally(small_parts, key):
    decoder = double(eqxbert.BertForCausalLM(tiny_config(is_decoder=True), key=key))
    ids, _ = inputs((7,))

    def run(ids):
        return decoder(ids).logits

    assert loops(run, ids) == 1
    assert max_difference(jax.jit(run)(ids), run(ids)) < FLOAT64


def test_with_an_encoder(small_parts, key):
    config = tiny_config(is_decoder=True, add_cross_attention=True)
    decoder = double(eqxbert.BertForCausalLM(config, key=key))
    ids, mask = inputs((7,))
    states = jax.random.normal(key, (7, SEQ, 12), jnp.float64)

    def run(ids):
        return decoder(ids, encoder_hidden_states=states, encoder_attention_mask=mask).logits

    assert loops(run, ids) == 1
    assert max_difference(jax.jit(run)(ids), run(ids)) < FLOAT64


def test_one_part_is_no_loop(model, small_parts):
    """Small batches; and where gradients are taken, for which the loop would only keep more."""
    few, mask = inputs((4,))
    assert loops(lambda ids: model(ids, mask), few) == 0
    ids, mask = inputs((8,))
    gradient = jax.grad(lambda model: model(ids, mask).last_hidden_state.sum())
    assert loops(gradient, model) == 0
    assert loops(lambda key: model(ids, mask, key=key), jax.random.key(0)) == 0


def test_a_large_batch_takes_the_memory_of_a_small_one(key):
    """As it comes, without changed sizes."""
    config = tiny_config(hidden_size=48, intermediate_size=192, max_position_embeddings=128)
    model = double(eqxbert.BertModel(config, key=key))

    def memory(rows: int) -> int:
        ids = jax.ShapeDtypeStruct((rows, 128), np.int32)
        program = jax.jit(lambda ids: model(ids).last_hidden_state).lower(ids).compile()
        return program.memory_analysis().temp_size_in_bytes

    states = 8 * 128 * 48  # of a row, in bytes, which are there before and after the loop
    assert memory(64) < memory(8) + 2 * 64 * states
