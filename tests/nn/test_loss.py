"""Losses against PyTorch's: values, gradients, what is ignored, and dtypes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import max_difference
from tolerances import ERROR_RATIO, FLOAT32, FLOAT32_GRADIENT, FLOAT64

from eqxbert.nn import (
    IGNORED_LABEL,
    binary_cross_entropy,
    cross_entropy,
    mean_squared_error,
)

CLASSES = 5
BATCHES = [(), (2, 3)]


def classes_of(batch: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Labels, of which some are missing, but never the first."""
    labels = np.array(rng.integers(0, CLASSES, batch), np.int32)
    first = labels.flat[0]
    labels[rng.random(batch) < 0.4] = IGNORED_LABEL
    labels.flat[0] = first
    return labels


def torch_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.reshape(-1, CLASSES), labels.reshape(-1).long())


LOSSES = {
    "cross_entropy": (cross_entropy, torch_cross_entropy, classes_of),
    "binary_cross_entropy": (
        binary_cross_entropy,
        torch.nn.functional.binary_cross_entropy_with_logits,
        lambda batch, rng: rng.random((*batch, CLASSES)),
    ),
    "mean_squared_error": (
        mean_squared_error,
        torch.nn.functional.mse_loss,
        lambda batch, rng: rng.normal(size=(*batch, CLASSES)),
    ),
}


def example(
    name: str, batch: tuple[int, ...], dtype: str = "float32", seed: int = 0, scale: float = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels for one of the losses."""
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(*batch, CLASSES))).astype(dtype)
    labels = np.asarray(LOSSES[name][2](batch, rng))
    return logits, labels.astype(dtype) if labels.dtype.kind == "f" else labels


def torch_loss(
    name: str, logits: np.ndarray, labels: np.ndarray, dtype: torch.dtype
) -> tuple[float, np.ndarray]:
    """PyTorch's loss and its gradient."""
    given = torch.tensor(logits).to(dtype).requires_grad_()
    targets = torch.tensor(labels)
    loss = LOSSES[name][1](given, targets.to(dtype) if targets.is_floating_point() else targets)
    loss.backward()
    assert given.grad is not None
    return loss.item(), given.grad.double().numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_pytorchs(name, batch, dtype):
    logits, labels = example(name, batch, dtype)
    expected, expected_gradient = torch_loss(name, logits, labels, getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        loss, gradient = jax.value_and_grad(LOSSES[name][0])(jnp.asarray(logits), labels)
        assert loss.dtype == dtype
        is_double = dtype == "float64"
        scale = np.abs(expected_gradient).max()
        assert abs(float(loss) - expected) < (FLOAT64 if is_double else FLOAT32)
        tolerance = FLOAT64 if is_double else FLOAT32_GRADIENT
        assert max_difference(gradient, expected_gradient) < tolerance * scale


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", LOSSES)
def test_of_half_precision_is_computed_in_float32(name, dtype):
    """Errs no more than PyTorch, seen over many examples, and does not come back rounded."""
    errors = []
    for seed in range(32):
        logits, labels = (
            torch.tensor(array).to(getattr(torch, dtype)).float().numpy()
            if array.dtype == np.float32
            else array
            for array in example(name, (6,), seed=seed)
        )
        exact, _ = torch_loss(name, logits, labels, torch.float64)
        theirs, _ = torch_loss(name, logits, labels, getattr(torch, dtype))
        ours = LOSSES[name][0](jnp.asarray(logits, dtype), labels)
        assert ours.dtype == jnp.float32
        assert abs(float(ours) - exact) < FLOAT32 * max(1, abs(exact))
        errors.append((float(ours) - exact, theirs - exact))
    ours, theirs = np.sqrt(np.mean(np.square(errors), axis=0))
    assert ours <= ERROR_RATIO * theirs


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy"])
def test_large_scores_do_not_overflow(name, scale):
    logits, labels = example(name, (4,), scale=scale)
    expected, expected_gradient = torch_loss(name, logits, labels, torch.float32)
    loss, gradient = jax.value_and_grad(LOSSES[name][0])(jnp.asarray(logits), labels)
    assert np.isfinite(loss)
    assert abs(float(loss) - expected) < FLOAT32 * expected
    assert max_difference(gradient, expected_gradient) < FLOAT32_GRADIENT


class TestCrossEntropy:
    def test_labels_that_are_ignored_add_nothing_and_do_not_count(self):
        logits = jnp.asarray(example("cross_entropy", (4,))[0])
        labels = np.array([3, -100, 1, -100], np.int32)
        loss, gradient = jax.value_and_grad(cross_entropy)(logits, labels)
        assert abs(float(loss - cross_entropy(logits[::2], labels[::2]))) < FLOAT32
        assert not np.asarray(gradient)[1::2].any()

    @pytest.mark.parametrize(("scale", "shift"), [(30, 0), (3, 100)])
    def test_keeps_its_digits_where_scores_are_large(self, scale, shift):
        """As those of words a model is sure of are: with the largest added to the logarithm and the
        label's taken away again, the digits of a small loss would be lost, or its sign.
        """
        errors = []
        for seed in range(100):
            logits, _ = example("cross_entropy", (4,), seed=seed, scale=scale)
            logits += shift
            labels = logits.argmax(-1)
            exact, _ = torch_loss("cross_entropy", logits, labels, torch.float64)
            theirs, _ = torch_loss("cross_entropy", logits, labels, torch.float32)
            ours = float(cross_entropy(jnp.asarray(logits), labels))
            assert ours >= 0
            errors.append((ours - exact, theirs - exact))
        ours, theirs = np.sqrt(np.mean(np.square(errors), axis=0))
        assert ours <= ERROR_RATIO * theirs

    @pytest.mark.parametrize("compiled", [False, True])
    @pytest.mark.parametrize("batch", [*BATCHES, (0,), (3, 0)], ids=str)
    def test_of_nothing_is_zero_with_zero_gradients(self, batch, compiled):
        """PyTorch's is NaN, which one batch without a masked word would spread to all weights."""
        logits = jnp.asarray(np.random.default_rng(0).normal(size=(*batch, CLASSES)), jnp.float32)
        function: Callable = jax.value_and_grad(cross_entropy)
        function = jax.jit(function) if compiled else function
        loss, gradient = function(logits, np.full(batch, IGNORED_LABEL, np.int32))
        assert float(loss) == 0
        assert np.array_equal(gradient, np.zeros_like(logits))

    def test_another_label_can_be_the_one_to_ignore(self):
        logits, labels = example("cross_entropy", (4,))
        renamed = np.where(labels == IGNORED_LABEL, 0, labels)
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(logits), torch.tensor(renamed).long(), ignore_index=0
        )
        ours = cross_entropy(jnp.asarray(logits), renamed, ignored_label=0)
        assert abs(float(ours) - float(expected)) < FLOAT32

    @pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
    @pytest.mark.parametrize("wrong", [-1, -99, CLASSES, 101])
    def test_a_label_that_is_no_class_makes_it_nan(self, wrong, dtype):
        """More classes than an int8 can number must not hide it."""
        labels = np.array([1, wrong], dtype)
        for classes in (CLASSES, 300):
            logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, classes)), jnp.float32)
            for function in (cross_entropy, jax.jit(cross_entropy)):
                is_class = 0 <= wrong < classes
                assert np.isnan(function(logits, labels)) == (not is_class), classes

    @pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
    def test_every_kind_of_integer(self, dtype):
        logits, labels = example("cross_entropy", (4,))
        expected = cross_entropy(jnp.asarray(logits), labels)
        assert cross_entropy(jnp.asarray(logits), labels.astype(dtype)) == expected
        assert cross_entropy(jnp.asarray(logits), jnp.asarray(labels.astype(dtype))) == expected


def test_yes_or_no_may_be_integers_and_booleans():
    logits = jnp.asarray(example("binary_cross_entropy", (4,))[0])
    answers = np.random.default_rng(0).random((4, CLASSES)) < 0.5
    expected = binary_cross_entropy(logits, answers.astype(np.float32))
    assert binary_cross_entropy(logits, answers) == expected
    assert binary_cross_entropy(logits, answers.astype(np.int32)) == expected
