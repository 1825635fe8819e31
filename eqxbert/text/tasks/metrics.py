"""How good predictions are, in NumPy. Shares are from 0 to 1, correlations from -1 to 1."""

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped


def accuracy(
    predictions: Shaped[np.ndarray, " examples"], labels: Shaped[np.ndarray, " examples"]
) -> float:
    """The share of predictions that are right; NaN if there are none."""
    return float(np.mean(predictions == labels)) if len(labels) else float("nan")


def f1(right: int, predicted: int, labelled: int) -> float:
    """The harmonic mean of precision and recall; 0 if nothing is right.

    **Arguments:**

    - `right`: how many predictions are right, of how many that are `predicted`.
    - `labelled`: how many there should be.
    """
    return 2 * right / (predicted + labelled) if right else 0.0


def class_f1(
    predictions: Int[np.ndarray, " examples"],
    labels: Int[np.ndarray, " examples"],
    classes: int,
) -> Float[np.ndarray, " classes"]:
    """The F1 of each class by itself; NaN for one that is neither labelled nor predicted."""
    both = np.bincount(predictions[predictions == labels], minlength=classes)
    either = np.bincount(predictions, minlength=classes) + np.bincount(labels, minlength=classes)
    return np.where(either > 0, 2 * both / np.maximum(either, 1), np.nan)


def binary_f1(predictions: Bool[np.ndarray, "*shape"], labels: Bool[np.ndarray, "*shape"]) -> float:
    """The F1 of what is true, over all elements together ("micro" if these are classes)."""
    right = int(np.sum(predictions & labels))
    return f1(right, int(np.sum(predictions)), int(np.sum(labels)))


def matthews(
    predictions: Int[np.ndarray, " examples"],
    labels: Int[np.ndarray, " examples"],
    classes: int,
) -> float:
    """Matthews' correlation coefficient, for any number of classes ([Gorodkin,
    2004](https://doi.org/10.1016/j.compbiolchem.2004.09.006)); 0 if the predictions, or the labels,
    are all the same.
    """
    predicted = np.eye(classes)[predictions] - np.bincount(predictions, minlength=classes) / max(
        len(labels), 1
    )
    labelled = np.eye(classes)[labels] - np.bincount(labels, minlength=classes) / max(
        len(labels), 1
    )
    scale = np.sqrt(np.sum(predicted**2) * np.sum(labelled**2))
    return float(np.sum(predicted * labelled) / scale) if scale > 0 else 0.0


def pearson(
    predictions: Float[np.ndarray, " examples"], labels: Float[np.ndarray, " examples"]
) -> float:
    """The linear correlation; NaN if the predictions, or the labels, are all the same."""
    x, y = predictions.astype(np.float64), labels.astype(np.float64)
    if len(x) == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def spearman(
    predictions: Float[np.ndarray, " examples"], labels: Float[np.ndarray, " examples"]
) -> float:
    """The linear correlation of ranks, equal values having the mean of theirs."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: Float[np.ndarray, " examples"]) -> Float[np.ndarray, " examples"]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def ranks_of_own(
    similarities: Float[np.ndarray, "queries candidates"],
) -> Int[np.ndarray, " queries"]:
    """The rank of candidate `i` for query `i`, counted from 1: one more than the number of others
    that are at least as similar. With NaN, it is the last one.
    """
    own = np.diagonal(similarities)
    return np.sum(~(similarities < own[:, None]), axis=1)
