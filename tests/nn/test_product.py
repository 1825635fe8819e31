"""Products: what is summed, in which dtype, and that gradients are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from tolerances import FLOAT32_GRADIENT

from eqxbert.nn import affine, linear_product

pytestmark = pytest.mark.optimized

HALVES = [jnp.bfloat16, jnp.float16]
SHAPES = [((5, 7), 3), ((2, 3, 8), 64), ((40,), 4), ((2, 0, 4), 6)]


def operands(shape: tuple[int, ...], out_size: int, *dtypes: jnp.dtype) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = shape, (out_size, shape[-1]), (*shape[:-1], out_size)
    dtypes = (*dtypes, jnp.float32)
    return tuple(jnp.asarray(rng.normal(size=s), d) for s, d in zip(shapes, dtypes, strict=True))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("shape", "out_size"), SHAPES)
@pytest.mark.parametrize("is_compiled", [False, True])
def test_half_precision_is_rounded_once(dtype, shape, out_size, is_compiled):
    """The products and both gradients are those in float32 of the same numbers; a gradient that
    comes in, and those that go out, are rounded.
    """
    x, weight, g = operands(shape, out_size, dtype, dtype)

    def run(x, weight, g):
        y, backward = jax.vjp(linear_product, x, weight)
        return y, *backward(g)

    y, x_gradient, weight_gradient = (jax.jit(run) if is_compiled else run)(x, weight, g)
    assert (y.dtype, x_gradient.dtype, weight_gradient.dtype) == (jnp.float32, dtype, dtype)
    wide = [np.asarray(a, np.float64) for a in (x, weight, g.astype(dtype))]
    np.testing.assert_allclose(y, wide[0] @ wide[1].T, rtol=1e-5, atol=1e-5)
    rows = [a.reshape(-1, a.shape[-1]) for a in (wide[2], wide[0])]
    half_a_place = jnp.finfo(dtype).eps / 2
    for found, expected in [
        (x_gradient, wide[2] @ wide[1]),
        (weight_gradient, rows[0].T @ rows[1]),
    ]:
        tolerance = 1.01 * half_a_place
        np.testing.assert_allclose(
            np.asarray(found, np.float64), expected, rtol=tolerance, atol=1e-4
        )


@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype"),
    [(jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)],
)
def test_dtypes_may_differ(x_dtype, weight_dtype):
    x, weight, g = operands((4, 6), 5, x_dtype, weight_dtype)
    y, backward = jax.vjp(linear_product, x, weight)
    x_gradient, weight_gradient = backward(g)
    assert (y.dtype, x_gradient.dtype, weight_gradient.dtype) == (
        jnp.float32,
        x_dtype,
        weight_dtype,
    )
    wide = [np.asarray(a, np.float64) for a in (x, weight, g)]
    np.testing.assert_allclose(y, wide[0] @ wide[1].T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x_gradient.astype(float), wide[2] @ wide[1], rtol=0.01, atol=0.05)
    np.testing.assert_allclose(
        weight_gradient.astype(float), wide[2].T @ wide[0], rtol=0.01, atol=0.05
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_each_example(dtype):
    """`jax.vmap` of a gradient, which adds an axis to what is transposed."""
    x, weight, g = operands((3, 4, 6), 5, dtype, dtype)

    def gradients(x, g):
        return jax.vjp(linear_product, x, weight)[1](g)

    together = jax.jit(jax.vmap(gradients))(x, g)
    for i in range(3):
        for found, expected in zip(together, gradients(x[i], g[i]), strict=True):
            difference = found[i].astype(jnp.float32) - expected.astype(jnp.float32)
            assert np.abs(difference).max() < (0.02 if dtype == jnp.bfloat16 else 1e-5)


def test_float32_has_derivatives_forward():
    x, weight, _ = operands((2, 3), 4, jnp.float32, jnp.float32)
    _, tangent = jax.jvp(linear_product, (x, weight), (x, weight))
    np.testing.assert_allclose(tangent, 2 * x @ weight.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 8, 9, 15, 17, 23, 31, 32, 33])
def test_affine_for_any_number_of_rows(rows):
    """Few rows are filled up, and are the other operand."""
    x, weight, g = operands((rows, 6), 5, jnp.float32, jnp.float32)
    bias = jnp.arange(5, dtype=jnp.float32)
    y, backward = jax.vjp(affine, x, weight, bias)
    expected = np.asarray(x) @ np.asarray(weight).T + np.asarray(bias)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    gradients = np.asarray(g) @ np.asarray(weight), np.asarray(g).T @ np.asarray(x), g.sum(0)
    for found, gradient in zip(backward(g), gradients, strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("terms", [192, 193, 384, 400])
@pytest.mark.parametrize("batch", [(), (3,), (2, 20), (0,)])
def test_sums_in_parts(batch, terms):
    """As exact as float32 allows, with the same derivatives, those of derivatives as well."""
    x, weight, g = operands((*batch, terms), 5, jnp.float32, jnp.float32)
    bias = jnp.arange(5, dtype=jnp.float32)

    def run(x, weight, bias):
        y, backward = jax.vjp(affine, x, weight, bias)
        return y, backward(g), jax.jvp(affine, (x, weight, bias), (x, weight, bias))[1]

    def loss(x):
        return jnp.sum(affine(x, weight, bias) ** 3)

    with jax.default_matmul_precision("highest"):
        results = jax.jit(run)(x, weight, bias)
        second = jax.jvp(jax.grad(loss), (x,), (x,))[1]
    wide = [np.asarray(a, np.float64) for a in (x, weight)]
    exact = wide[0] @ wide[1].T + np.asarray(bias)
    usual = jax.jit(run)(x, weight, bias), jax.jvp(jax.grad(loss), (x,), (x,))[1]
    pairs = zip(jax.tree.leaves((results, second)), jax.tree.leaves(usual), strict=True)
    for found, expected in [(results[0], exact), *pairs]:
        scale = np.max(np.abs(expected), initial=1)
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=FLOAT32_GRADIENT)


def test_sums_in_parts_of_each_example_and_for_any_batch():
    x, weight, _ = operands((4, 3, 400), 5, jnp.float32, jnp.float32)
    weights = jnp.stack([weight, -weight, 2 * weight, weight])
    with jax.default_matmul_precision("highest"):
        together = jax.vmap(linear_product)(x, weights)
        (rows,) = export.symbolic_shape("rows")
        for_any = jax.ShapeDtypeStruct((rows, 400), x.dtype)
        exported = export.export(jax.jit(linear_product))(for_any, weight)
    alone = [linear_product(*pair) for pair in zip(x, weights, strict=True)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(exported.call(x[0], weight), alone[0], rtol=1e-5, atol=1e-4)
