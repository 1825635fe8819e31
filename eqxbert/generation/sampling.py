"""Which tokens are drawn from: what narrows or reshapes a distribution before sampling.

Each is a function of scores `Float[Array, "batch vocab"]` and returns such; minus infinity stands
for tokens that are not drawn. `keep` is how many of the likeliest always stay.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

Logits = Float[Array, "batch vocab"]


def likeliest(logits: Logits) -> Int[Array, " batch"]:
    """The token with the highest score, the first of several: `argmax`, which XLA on CPU computes
    several times slower.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True)
    vocab = logits.shape[-1]
    tokens = jnp.arange(vocab, dtype=jnp.int32)[None, :]
    return jnp.min(jnp.where(logits < largest, vocab, tokens), axis=-1)


def apply_temperature(logits: Logits, temperature: float | int) -> Logits:
    """Divides the scores: below 1 the likely become likelier, above 1 less so."""
    return logits / temperature


def keep_top_k(logits: Logits, k: int, *, keep: int = 1) -> Logits:
    """Only the `k` likeliest ([Fan et al., 2018](https://arxiv.org/abs/1805.04833))."""
    least = lax.top_k(logits, min(max(k, keep), logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def keep_top_p(logits: Logits, p: float | int, *, keep: int = 1) -> Logits:
    """Only the likeliest that together have probability `p` ([Holtzman et al.,
    2020](https://arxiv.org/abs/1904.09751)).
    """
    order = jnp.argsort(-logits, axis=-1)
    sorted_probabilities = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    # Kept unless they and all that are less likely have no more than what is to be left out. Summed
    # from the least likely on, where rounding errors are least; so does transformers.
    rest = lax.cumsum(sorted_probabilities, axis=1, reverse=True)
    return _keep_sorted(logits, order, rest > 1 - p, keep)


def keep_min_p(logits: Logits, p: float | int, *, keep: int = 1) -> Logits:
    """Only those at least `p` times as likely as the likeliest ([Nguyen et al.,
    2024](https://arxiv.org/abs/2407.01082)).
    """
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    largest = jnp.max(log_probabilities, axis=-1, keepdims=True)
    order = jnp.argsort(-logits, axis=-1)
    likely = log_probabilities >= largest + jnp.log(p)
    return _keep_sorted(logits, order, jnp.take_along_axis(likely, order, axis=-1), keep)


def keep_typical(logits: Logits, p: float | int, *, keep: int = 1) -> Logits:
    """Only those whose surprise is nearest to the expected one, that together have probability `p`
    ([Meister et al., 2022](https://arxiv.org/abs/2202.00666)).
    """
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    probabilities = jnp.exp(log_probabilities)
    # Where a probability is 0, its logarithm is minus infinity, and their product is to be 0.
    terms = jnp.where(probabilities > 0, probabilities * log_probabilities, 0)
    entropy = -jnp.sum(terms, axis=-1, keepdims=True)
    order = jnp.argsort(jnp.abs(-log_probabilities - entropy), axis=-1)
    sorted_probabilities = jnp.take_along_axis(probabilities, order, axis=-1)
    before = jnp.cumsum(sorted_probabilities, axis=-1) - sorted_probabilities
    return _keep_sorted(logits, order, before < p, keep)


def _keep_sorted(
    logits: Logits, order: Int[Array, "batch vocab"], kept: Bool[Array, "batch vocab"], keep: int
) -> Logits:
    """The scores of those that are `kept`, which are listed in some `order`."""
    kept = kept | (jnp.arange(logits.shape[-1]) < keep)[None, :]
    rows = jnp.arange(logits.shape[0])[:, None]
    return jnp.where(jnp.zeros_like(kept).at[rows, order].set(kept), logits, -jnp.inf)


def draw(keys: Key[Array, " batch"], logits: Logits, step: Int[Array, ""]) -> Int[Array, " batch"]:
    """A token for each row, with the row's key alone, so that it does not depend on the others."""

    def of_row(key: PRNGKeyArray, row: Float[Array, " vocab"]) -> Int[Array, ""]:
        return jax.random.categorical(jax.random.fold_in(key, step), row)

    return jax.vmap(of_row)(keys, logits)


def draw_without_replacement(
    keys: Key[Array, " batch"],
    logits: Float[Array, "batch choices"],
    count: int,
    step: Int[Array, ""],
) -> Int[Array, "batch count"]:
    """Several different choices for each row, in the order in which they would be drawn one by one
    ([Kool et al., 2019](https://arxiv.org/abs/1903.06059)).
    """

    def of_row(key: PRNGKeyArray, row: Float[Array, " choices"]) -> Int[Array, " count"]:
        noise = jax.random.gumbel(jax.random.fold_in(key, step), row.shape, row.dtype)
        return lax.top_k(row + noise, count)[1]

    return jax.vmap(of_row)(keys, logits)
