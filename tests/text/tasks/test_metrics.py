"""Metrics against scikit-learn's and SciPy's, and where these have no answer."""

import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from eqxbert.text.tasks import metrics

ROUNDING = 1e-12


def trials(classes: int):
    """Predictions and labels: many, few, of all classes or of some."""
    rng = np.random.default_rng(classes)
    for size in (1, 2, 3, 10, 200):
        for _ in range(20):
            labels = rng.integers(0, rng.integers(1, classes + 1), size)
            is_right = rng.random(size) < rng.random()
            yield np.where(is_right, labels, rng.integers(0, classes, size)), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classes_equal_scikit_learn(classes):
    for predictions, labels in trials(classes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that do not occur
            expected = {
                "accuracy": sklearn.metrics.accuracy_score(labels, predictions),
                "matthews": sklearn.metrics.matthews_corrcoef(labels, predictions),
                "macro": sklearn.metrics.f1_score(
                    labels, predictions, average="macro", zero_division=0
                ),
            }
            by_class = sklearn.metrics.f1_score(
                labels, predictions, average=None, labels=range(classes), zero_division=np.nan
            )
        found = metrics.class_f1(predictions, labels, classes)
        assert metrics.accuracy(predictions, labels) == pytest.approx(expected["accuracy"])
        assert metrics.matthews(predictions, labels, classes) == pytest.approx(
            expected["matthews"], abs=ROUNDING
        )
        assert np.nanmean(found) == pytest.approx(expected["macro"])
        np.testing.assert_allclose(found, by_class, atol=ROUNDING)


def test_several_classes_equal_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels, predictions = rng.random((2, 9, 4)) < rng.random((2, 1, 4))
        expected = sklearn.metrics.f1_score(labels, predictions, average="micro", zero_division=0)
        assert metrics.binary_f1(predictions, labels) == pytest.approx(expected)


@pytest.mark.parametrize("has_ties", [False, True])
def test_correlations_equal_scipy(has_ties):
    rng = np.random.default_rng(0)
    for size in (2, 3, 10, 200):
        x = rng.normal(size=size)
        y = x**3 + rng.normal(size=size)
        if has_ties:
            x, y = np.round(2 * x), np.round(y)
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            continue
        assert metrics.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
        assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_correlations_of_numbers_far_from_zero_in_float32():
    x = np.float32(1000) + np.arange(5, dtype=np.float32) / 1024
    assert metrics.pearson(x, np.arange(5, dtype=np.float32)) == pytest.approx(1)
    assert metrics.pearson(x, -np.arange(5, dtype=np.float32)) == pytest.approx(-1)


def test_what_is_not_defined():
    same, other = np.ones(3), np.arange(3.0)
    assert np.isnan(metrics.pearson(same, other))
    assert np.isnan(metrics.spearman(other, same))
    assert np.isnan(metrics.pearson(np.zeros(0), np.zeros(0)))
    assert np.isnan(metrics.accuracy(np.zeros(0), np.zeros(0)))
    assert metrics.matthews(np.array([1, 1]), np.array([0, 1]), 2) == 0
    assert metrics.binary_f1(np.zeros(3, bool), np.zeros(3, bool)) == 0
    assert np.isnan(metrics.class_f1(np.array([0]), np.array([0]), 2)[1])
