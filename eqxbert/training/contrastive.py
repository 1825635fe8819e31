"""Training of sentence embeddings by contrast: each text is to be nearest to its partner."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..nn import accumulation_dtype, cross_entropy, mean_squared_error, split_key
from .loss import Batch, WholeBatchLoss

Texts = Mapping[str, Any]
"""A model's arguments for some texts, with their leading axis."""


def contrastive_loss(
    *, temperature: float = 0.05, symmetric: bool = True, chunk_size: int | None = None
) -> WholeBatchLoss:
    """A loss for `make_train_step` and `fit`: each anchor is to tell its own candidate from all
    others in the batch, by cosine similarity ([van den Oord et al.,
    2018](https://arxiv.org/abs/1807.03748); [Henderson et al.,
    2017](https://arxiv.org/abs/1705.00652)).

    The batch has two entries, `anchors` and `candidates`, each a dictionary of the model's
    arguments (`input_ids`, `attention_mask`); the model returns one vector for each text, as
    `SentenceEncoder.model` does. Candidate `i` belongs to anchor `i`; there may be more candidates
    after these, to which no anchor belongs: hard negatives. Texts that occur several times in a
    batch are not held against one another.

    It is one of the batch as a whole. In parts (`accumulate`), each anchor would be told from the
    few candidates of its part: `make_train_step` refuses that. What saves memory is `chunk_size`.

    **Arguments:**

    - `temperature`: what similarities are divided by.
    - `symmetric`: whether each candidate is to tell its anchor from the others as well.
    - `chunk_size`: how many texts are computed at a time. The gradients are those of the whole
        batch, in little more memory than that of a chunk, in the time of one more forward pass
        ([Gao et al., 2021](https://arxiv.org/abs/2101.06983)). None for all at once.

    **Raises:** `ValueError` if `temperature` or `chunk_size` is not positive; a step, if there are
    fewer candidates than anchors, or `chunk_size` does not divide their numbers.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")

    def loss(model: Any, batch: Batch, key: PRNGKeyArray | None) -> Float[Array, ""]:
        anchors, candidates = batch["anchors"], batch["candidates"]
        anchor_key, candidate_key = split_key(key, 2)
        a = _normalised(_vectors("anchors", model, anchors, chunk_size, anchor_key))
        c = _normalised(_vectors("candidates", model, candidates, chunk_size, candidate_key))
        count = a.shape[0]
        if c.shape[0] < count:
            raise ValueError(
                f"There are {count} anchors, but only {c.shape[0]} candidates: the first ones must "
                "be the anchors' own."
            )
        similarities = a @ c.T / temperature
        own = jnp.eye(count, c.shape[0], dtype=bool)
        # The same text elsewhere in the batch is right too, so it counts neither way.
        is_repeated = _equal(candidates)[:count] | jnp.pad(
            _equal(anchors), ((0, 0), (0, c.shape[0] - count))
        )
        # (Next to any cosine, this is as good as minus infinity, which would make NaN gradients.)
        similarities = jnp.where(is_repeated & ~own, -1e9, similarities)
        labels = jnp.arange(count)
        forward = cross_entropy(similarities, labels)
        if not symmetric:
            return forward
        return (forward + cross_entropy(similarities[:, :count].T, labels)) / 2

    return WholeBatchLoss(loss)


def similarity_loss(model: Any, batch: Batch, key: PRNGKeyArray | None) -> Float[Array, ""]:
    """The mean squared difference of the cosines between two texts' vectors and their labels
    ([Reimers & Gurevych, 2019](https://arxiv.org/abs/1908.10084)), a loss for `make_train_step` and
    `fit`.

    The batch has `anchors` and `candidates`, as for `contrastive_loss`, as many of each; and
    `labels`, one for each pair, from -1 to 1.
    """
    anchor_key, candidate_key = split_key(key, 2)
    a = _normalised(_vectors("anchors", model, batch["anchors"], None, anchor_key))
    c = _normalised(_vectors("candidates", model, batch["candidates"], None, candidate_key))
    return mean_squared_error(jnp.sum(a * c, axis=-1), batch["labels"])


def _vectors(
    name: str, model: Any, texts: Texts, chunk_size: int | None, key: PRNGKeyArray | None
) -> Float[Array, "texts size"]:
    """The vectors of all texts; in chunks, of which only the vectors are kept for the gradients."""
    count = texts["input_ids"].shape[0]
    if chunk_size is None or chunk_size >= count:
        return model(**texts, key=key)
    if count % chunk_size:
        raise ValueError(
            f"{name} has {count} texts, which is no multiple of chunk_size, {chunk_size}."
        )
    chunks = count // chunk_size
    split = {n: jnp.reshape(x, (chunks, chunk_size, *x.shape[1:])) for n, x in texts.items()}

    @jax.checkpoint
    def of_chunk(model: Any, chunk: Texts, key: PRNGKeyArray | None) -> Float[Array, "chunk size"]:
        return model(**chunk, key=key)

    keys = None if key is None else jax.random.split(key, chunks)
    vectors = lax.map(lambda inputs: of_chunk(model, *inputs), (split, keys))
    return jnp.reshape(vectors, (count, -1))


def _normalised(x: Float[Array, "texts size"]) -> Float[Array, "texts size"]:
    x = x.astype(accumulation_dtype(x))
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def _equal(texts: Texts) -> Bool[Array, "texts texts"]:
    """Which texts are the same, token for token."""
    ids = jnp.asarray(texts["input_ids"])
    if (mask := texts.get("attention_mask")) is not None:
        ids = jnp.where(jnp.asarray(mask) != 0, ids, -1)
    # Row by row: all at once, XLA would make an array of texts x texts x tokens.
    return lax.map(lambda row: jnp.all(row[None, :] == ids, axis=-1), ids)
