"""Integers of any dtype mean what they say, though sizes and marks do not fit in narrow ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config

import eqxbert
from eqxbert.nn import cross_entropy


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_a_label_that_is_no_class_makes_the_loss_nan(dtype, as_array):
    logits = jnp.zeros((1, 256))
    assert np.isnan(cross_entropy(logits, as_array(np.array([-5], dtype))))
    assert np.isfinite(cross_entropy(logits, as_array(np.array([5], dtype))))


def test_a_label_beyond_32_bits_is_no_class():
    assert np.isnan(cross_entropy(jnp.zeros((1, 256)), np.array([2**33])))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_positions_of_answers(dtype, as_array, key):
    config = tiny_config(max_position_embeddings=300)
    model = eqxbert.BertForQuestionAnswering(config, key=key)
    ids = np.ones((1, 290), np.int32)
    loss = model(ids, start_positions=np.array([3]), end_positions=np.array([5])).loss
    narrow = {"start_positions": as_array(np.array([3], dtype))}
    narrow["end_positions"] = as_array(np.array([5], dtype))
    assert model(ids, **narrow).loss == loss


def test_a_position_beyond_32_bits_does_not_count(key):
    model = eqxbert.BertForQuestionAnswering(tiny_config(), key=key)
    ids = np.ones((1, 7), np.int32)
    beyond = model(ids, start_positions=np.array([2**33]), end_positions=np.array([5])).loss
    assert beyond == model(ids, start_positions=np.array([7]), end_positions=np.array([5])).loss


def test_a_masked_position_out_of_range_makes_the_loss_nan_even_without_a_label(key):
    model = eqxbert.BertForMaskedLM(tiny_config(), key=key)
    ids, labels = jnp.ones((1, 7), jnp.int32), jnp.array([[2, -100]])

    @jax.jit
    def loss(positions):
        return model(ids, labels=labels, masked_positions=positions).loss

    assert np.isfinite(loss(jnp.array([[1, 0]])))
    for wrong in (-1, 7, 99):
        assert np.isnan(loss(jnp.array([[1, wrong]])))


def test_ids_beyond_32_bits_are_none_of_the_table(key):
    """With 64 bits enabled, compiled: ids and labels that would wrap around to 1."""
    model = eqxbert.BertForTokenClassification(tiny_config(), key=key)
    ids, labels, beyond = np.ones((1, 7), np.int64), np.ones((1, 7), np.int64), 2**32 + 1
    with jax.enable_x64(True):
        call = jax.jit(lambda ids, labels: model(ids, labels=labels))
        assert np.isfinite(call(ids, labels).loss)
        for place in (ids, labels):
            place[0, 2] = beyond
            assert np.isnan(call(ids, labels).loss)
            place[0, 2] = 1
