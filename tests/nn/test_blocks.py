"""Linear, LayerNorm, Embedding and activations against PyTorch's."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from helpers import max_difference
from jax.test_util import check_grads
from tolerances import ERROR_RATIO, FLOAT32, FLOAT32_GRADIENT

from eqxbert.nn import (
    ACTIVATIONS,
    Activation,
    Embedding,
    LayerNorm,
    Linear,
    get_activation,
    split_key,
)

BATCHES = [(), (2,), (2, 3)]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("use_bias", [True, False])
def test_linear_equals_pytorch(batch, use_bias, key):
    ours = Linear(5, 7, use_bias=use_bias, initializer_range=0.5, key=key)
    x = np.random.default_rng(0).normal(size=(*batch, 5)).astype(np.float32)
    bias = None
    if ours.bias is not None:
        bias = torch.tensor(np.asarray(ours.bias))
    expected = torch.nn.functional.linear(
        torch.tensor(x), torch.tensor(np.asarray(ours.weight)), bias
    )
    assert max_difference(ours(jnp.asarray(x)), expected) < FLOAT32


def test_linear_starts_normal_with_zero_bias(key):
    linear = Linear(200, 300, initializer_range=0.02, key=key)
    assert abs(float(jnp.std(linear.weight)) - 0.02) < 2e-4
    assert abs(float(jnp.mean(linear.weight))) < 2e-4
    assert linear.bias is not None
    assert not np.asarray(linear.bias).any()


def test_half_precision_products_accumulate_in_float32(key):
    """A sum in bfloat16 would stop growing at 256, where its steps become 2."""
    linear = Linear(4096, 1, use_bias=False, key=key)
    ones = jnp.ones((1, 4096), jnp.bfloat16)
    linear = jax.tree.map(lambda w: jnp.full_like(w, 1 + 2**-7, jnp.bfloat16), linear)
    assert linear(ones).dtype == jnp.bfloat16
    assert float(linear(ones)[0, 0]) == float(jnp.asarray(4096 * (1 + 2**-7), jnp.bfloat16))


def layer_norms(size: int, eps: float, key: jax.Array) -> tuple[LayerNorm, torch.nn.LayerNorm]:
    ours = LayerNorm(size, eps=eps)
    ours = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), ours)
    theirs = torch.nn.LayerNorm(size, eps=eps)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.asarray(ours.weight)))
        theirs.bias.copy_(torch.tensor(np.asarray(ours.bias)))
    return ours, theirs


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("eps", "scale"), [(1e-12, 1.0), (1e-12, 1e-6), (1e-5, 1e-3)])
def test_layer_norm_equals_pytorch(batch, eps, scale, key):
    """Also where the variance is as small as `eps`, so that a wrong one would be seen."""
    ours, theirs = layer_norms(9, eps, key)
    x = (scale * np.random.default_rng(0).normal(size=(*batch, 9))).astype(np.float32)
    assert max_difference(ours(jnp.asarray(x)), theirs(torch.tensor(x)).detach()) < FLOAT32


def test_layer_norm_keeps_its_digits_where_the_mean_is_large(key):
    """E[x²] - E[x]² would lose five of seven digits here."""
    ours, theirs = layer_norms(384, 1e-12, key)
    x = (1 + 3e-3 * np.random.default_rng(0).normal(size=(200, 384))).astype(np.float32)
    exact = theirs.double()(torch.tensor(x).double()).detach().numpy()

    def rms_error(y: np.ndarray) -> float:
        return float(np.sqrt(np.mean((y - exact) ** 2)))

    error = rms_error(np.asarray(ours(jnp.asarray(x))))
    assert error <= ERROR_RATIO * rms_error(theirs.float()(torch.tensor(x)).detach().numpy())


def test_layer_norm_in_half_precision_takes_statistics_in_float32():
    """With squares of 300 float16 would overflow, and its 1e-12 is zero."""
    norm = LayerNorm(4, eps=1e-12)
    half = jax.tree.map(lambda p: p.astype(jnp.float16), norm)
    x = jnp.asarray([[300.0, -300.0, 300.0, -300.0], [1.0, 1.0, 1.0, 1.0]], jnp.float16)
    assert half(x).dtype == jnp.float16
    assert np.array_equal(np.asarray(half(x)), [[1, -1, 1, -1], [0, 0, 0, 0]])


def test_embedding_looks_up_rows_and_marks_what_is_outside(key):
    table = Embedding(5, 3, key=key)
    rows = np.asarray(table(jnp.asarray([[0, 4], [5, -1]])))
    assert np.array_equal(rows[0], np.asarray(table.weight)[[0, 4]])
    assert np.isnan(rows[1]).all()


def test_embedding_padding_row_is_zero(key):
    table = np.asarray(Embedding(5, 3, padding_id=2, key=key).weight)
    assert not table[2].any()
    assert np.all(table[[0, 1, 3, 4]] != 0)


def test_split_key_of_none_is_nones(key):
    assert split_key(None, 3) == [None, None, None]
    assert len({str(jax.random.key_data(k)) for k in split_key(key, 3) if k is not None}) == 3


def reference_activation(name: str) -> torch.nn.Module:
    if name == "xielu":  # its parameters are in bfloat16 unless asked for otherwise
        return transformers.activations.XIELUActivation(dtype=torch.float32)
    return transformers.activations.ACT2FN[name]


ALL_ACTIVATIONS = tuple(transformers.activations.ACT2CLS)
POINTS = np.concatenate([np.linspace(-12, 12, 1001), [-0.5, 0.0, 3.0]]).astype(np.float32)


@pytest.mark.parametrize("name", ALL_ACTIVATIONS)
def test_activation_equals_transformers(name):
    theirs = torch.tensor(POINTS, requires_grad=True)
    expected = reference_activation(name)(theirs)
    expected.sum().backward()
    ours = Activation(name)
    assert theirs.grad is not None
    assert max_difference(ours(jnp.asarray(POINTS)), expected.detach()) < FLOAT32
    # relu6 and its kin have corners, where each library picks a side.
    smooth = ~np.isin(POINTS, [0.0, -3.0, 3.0, 6.0, -10.0, 10.0])
    gradient = jax.vmap(jax.grad(lambda x: ours(x)))(jnp.asarray(POINTS))
    difference = max_difference(np.asarray(gradient)[smooth], theirs.grad.numpy()[smooth])
    assert difference < FLOAT32_GRADIENT


@pytest.mark.parametrize("name", ALL_ACTIVATIONS)
def test_parameters_of_activations_start_and_learn_as_in_transformers(name):
    reference = reference_activation(name)
    ours = Activation(name)
    expected = dict(reference.named_parameters())
    assert ours.parameters.keys() == expected.keys()
    if not expected:
        return
    reference(torch.tensor(POINTS)).sum().backward()
    gradient = jax.grad(lambda activation: jnp.sum(activation(jnp.asarray(POINTS))))(ours)
    for key, parameter in expected.items():
        assert max_difference(ours.parameters[key], parameter.detach()) < FLOAT32
        scale = parameter.grad.abs().max().item()
        difference = max_difference(gradient.parameters[key], parameter.grad)
        assert difference < FLOAT32_GRADIENT * scale


@pytest.mark.parametrize("name", ALL_ACTIVATIONS)
def test_activations_in_half_precision_are_rounded_only_at_the_end(name):
    x = jnp.asarray(POINTS, jnp.bfloat16)
    activation = jax.tree.map(lambda p: p.astype(jnp.bfloat16), Activation(name))
    exact = jax.tree.map(lambda p: p.astype(jnp.float32), activation)(x.astype(jnp.float32))
    assert activation(x).dtype == jnp.bfloat16
    assert np.array_equal(activation(x), exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("mode", ["fwd", "rev"])
@pytest.mark.parametrize("eps", [1e-12, 1.0])
def test_layer_norm_has_derivatives_of_derivatives(eps, mode):
    """Its first is written out."""

    def normalized(x, weight):
        norm = eqx.tree_at(lambda norm: norm.weight, LayerNorm(5, eps=eps), jnp.asarray(weight))
        return norm(jnp.asarray(x))

    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(3.0, 1.0, (3, 5)))
        check_grads(normalized, (x, jnp.arange(1.0, 6.0)), 3, modes=mode)


@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_gelu_has_derivatives_of_derivatives(mode):
    """Its first is written out."""
    with jax.enable_x64(True):
        points = jnp.linspace(-4.0, 4.0, 41)
        check_grads(lambda x: get_activation("gelu")(jnp.asarray(x)), (points,), 3, modes=mode)


def test_activations_with_parameters_are_not_in_the_table_of_functions():
    assert set(ALL_ACTIVATIONS) - set(ACTIVATIONS) == {"prelu", "xielu"}


def test_gelu_is_the_exact_one():
    exact = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert abs(float(get_activation("gelu")(jnp.asarray(1.0))) - exact) < 1e-7
    assert abs(float(get_activation("gelu_new")(jnp.asarray(1.0))) - exact) > 1e-4


@pytest.mark.parametrize(
    ("name", "message"), [("geluu", "Unknown activation 'geluu'. .* gelu_new"), ("prelu", "param")]
)
def test_unknown_activations_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        get_activation(name)
