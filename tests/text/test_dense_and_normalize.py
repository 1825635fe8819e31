"""What may follow a pooling, against sentence-transformers' modules of the same names."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import max_difference
from sentence_transformers.base.modules import (
    Dense as ReferenceDense,
    Normalize as ReferenceNormalize,
)
from text.tiny import HIDDEN
from tolerances import FLOAT32

import eqxbert
from eqxbert.nn import get_activation
from eqxbert.text import Dense, Normalize

ACTIVATIONS = [
    torch.nn.Identity,
    torch.nn.Tanh,
    torch.nn.ReLU,
    torch.nn.ReLU6,
    torch.nn.GELU,
    torch.nn.SiLU,
    torch.nn.Sigmoid,
    torch.nn.LeakyReLU,
    torch.nn.Hardswish,
    torch.nn.Mish,
]

X = np.random.default_rng(0).normal(size=(2, 3, HIDDEN)).astype(np.float32) * 8


def read_head(folder: Path):
    [module] = eqxbert.SentenceEncoder.from_pretrained(folder).model.head
    return module


def assert_equal(module: Dense | Normalize, reference: torch.nn.Module) -> None:
    """On values from -30 to 30, for inputs with zero, one and two leading axes."""
    for x in (X[0, 0], X[0], X):
        with torch.no_grad():
            expected = reference({"sentence_embedding": torch.tensor(x)})["sentence_embedding"]
        assert max_difference(module(jnp.asarray(x)), expected) <= FLOAT32


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_dense_with_each_activation(save_sentence_model, activation):
    reference = ReferenceDense(HIDDEN, 7, activation_function=activation())
    assert_equal(read_head(save_sentence_model(reference)), reference)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("out_features", [7, HIDDEN])
@pytest.mark.parametrize("use_residual", [True, False])
def test_dense_with_and_without_bias_and_residual(
    save_sentence_model, bias, out_features, use_residual
):
    reference = ReferenceDense(HIDDEN, out_features, bias=bias, use_residual=use_residual)
    dense = read_head(save_sentence_model(reference))
    assert (dense.linear.bias is not None) == bias
    assert (dense.residual is not None) == (use_residual and out_features != HIDDEN)
    assert_equal(dense, reference)


def test_a_new_dense_draws_its_two_maps_apart(key):
    dense = Dense(6, 4, use_residual=True, key=key)
    assert dense.residual is not None
    assert not jnp.array_equal(dense.linear.weight, dense.residual.weight)


def test_dense_with_an_unknown_activation_is_an_error(key):
    with pytest.raises(ValueError, match="Unknown activation 'tanhh'"):
        Dense(6, 4, activation="tanhh", key=key)


def test_normalize(save_sentence_model):
    reference = ReferenceNormalize()
    assert_equal(read_head(save_sentence_model(reference)), reference)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-13, 1e-6, 1e6, 1e15])
def test_normalize_of_any_length(scale):
    """Squares of small float32 numbers vanish, those of large ones overflow past 1e19."""
    x = X[0] * np.float32(scale)
    expected = torch.nn.functional.normalize(torch.tensor(x), dim=-1)
    assert max_difference(Normalize()(jnp.asarray(x)), expected) <= FLOAT32


def test_normalize_has_finite_gradients_at_zero():
    x = jnp.zeros((2, 4)).at[0].set(jnp.array([3.0, 0, 4.0, 0]))
    y, gradient = jax.value_and_grad(lambda x: jnp.sum(Normalize()(x)))(x)
    assert float(y) == pytest.approx(1.4)
    assert np.isfinite(gradient).all()


def test_normalize_sums_bfloat16_in_float32():
    x = jnp.ones(1024, jnp.bfloat16)
    y = Normalize()(x)
    assert y.dtype == jnp.bfloat16
    assert max_difference(y, np.full(1024, 1 / 32)) == 0


@pytest.mark.parametrize("activation", ["gelu", "sigmoid", "silu", "mish"])
def test_dense_applies_its_activation_in_float32(key, activation):
    """In bfloat16, the sum of the map is rounded, and the result; nothing in between."""
    dense = Dense(16, 256, activation=activation, key=key)
    dense = jax.tree.map(lambda x: x.astype(jnp.bfloat16), dense)
    x = jax.random.normal(key, (64, 16), jnp.bfloat16)
    summed = dense.linear(x)
    expected = get_activation(activation)(summed.astype(jnp.float32)).astype(jnp.bfloat16)
    assert np.array_equal(dense(x), expected)
