"""Losses over labelled examples, numerically PyTorch's; but the cross entropy of nothing is
zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from .numerics import accumulation_dtype, as_int32

IGNORED_LABEL = -100
"""The label of what has none: it adds nothing to a loss and does not count in its mean."""


def cross_entropy(
    logits: Float[Array, "*batch classes"],
    labels: Int[Array | np.ndarray, "*batch"],
    *,
    ignored_label: int = IGNORED_LABEL,
) -> Float[Array, ""]:
    """The mean negative log-probability of the labels, over those that are not `ignored_label`;
    zero, with zero gradients, if there are none. As `torch.nn.CrossEntropyLoss`, in at least
    float32.

    A label that is no class makes the loss NaN; so do scores that are not finite, of what is
    ignored as well, since their gradients are NaN.
    """
    logits = logits.astype(accumulation_dtype(logits))
    labels = as_int32(labels)
    counts = labels != ignored_label
    # Beyond the last class there is nothing to take: NaN. Negative labels would count from the end.
    index = jnp.where(counts, jnp.where(labels < 0, logits.shape[-1], labels), 0)
    chosen = jnp.take_along_axis(logits, index[..., None], axis=-1, mode="fill", fill_value=jnp.nan)
    # Relative to the largest: where scores are large, a small loss would lose its digits in them.
    largest = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    normalizers = jnp.log(jnp.sum(jnp.exp(logits - largest), axis=-1))
    losses = normalizers - (chosen - largest)[..., 0]
    losses = jnp.where(counts, losses, 0 * lax.stop_gradient(normalizers))
    return jnp.sum(losses) / jnp.maximum(jnp.sum(counts), 1).astype(losses.dtype)


def binary_cross_entropy(
    logits: Float[Array, "*shape"], labels: Shaped[Array | np.ndarray, "*shape"]
) -> Float[Array, ""]:
    """The mean over all elements, each a yes-or-no question with its probability as the label. As
    `torch.nn.BCEWithLogitsLoss`, in at least float32.
    """
    dtype = accumulation_dtype(logits)
    logits, labels = logits.astype(dtype), jnp.asarray(labels).astype(dtype)
    # log(1 + exp(x)) - x y
    return jnp.mean(jax.nn.softplus(logits) - logits * labels)


def mean_squared_error(
    predictions: Float[Array, "*shape"], labels: Shaped[Array | np.ndarray, "*shape"]
) -> Float[Array, ""]:
    """The mean over all elements. As `torch.nn.MSELoss`, in at least float32."""
    dtype = accumulation_dtype(predictions)
    return jnp.mean(jnp.square(predictions.astype(dtype) - jnp.asarray(labels).astype(dtype)))
