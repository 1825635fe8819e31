"""From token vectors to sentence vectors: the modules of sentence-transformers, and the model made
of a BERT and them.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..config import BertConfig
from ..models import BertModel
from ..nn import Activation, Linear, accumulation_dtype, get_activation


class Pooling(eqx.Module):
    """One vector for a text from the vectors of its tokens
    ([Reimers & Gurevych, 2019](https://arxiv.org/abs/1908.10084); sentence-transformers'
    `Pooling`). Several modes give several vectors, one after the other.

    - "cls": the first token's; "lasttoken": the last token's.
    - "mean", "max": mean and maximum over the tokens, in each dimension.
    - "mean_sqrt_len_tokens": the sum divided by the square root of the number of tokens.
    - "weightedmean": the mean with weights 1, 2, 3, ... in the order of the tokens.
    """

    modes: tuple[str, ...] = eqx.field(static=True)
    include_prompt: bool = eqx.field(static=True)

    def __init__(self, modes: tuple[str, ...] = ("mean",), *, include_prompt: bool = True):
        """**Arguments:**

        - `modes`: one or several of the modes.
        - `include_prompt`: whether the tokens of a prompt count.

        **Raises:** `ValueError` for an unknown mode, or none.
        """
        unknown = [mode for mode in modes if mode not in _POOL]
        if unknown or not modes:
            raise ValueError(f"Unknown pooling modes {unknown}; known are {', '.join(_POOL)}.")
        self.modes = modes
        self.include_prompt = include_prompt

    def __call__(
        self, tokens: Float[Array, "*batch seq hidden"], mask: Bool[Array, "*batch seq"]
    ) -> Float[Array, "*batch pooled"]:
        """**Arguments:**

        - `tokens`: one vector for each token.
        - `mask`: True for the tokens that count.
        """
        # At least float32, since a mean is a sum over many tokens.
        x = tokens.astype(accumulation_dtype(tokens))
        vectors = [_POOL[mode](x, mask) for mode in self.modes]
        return jnp.concatenate(vectors, axis=-1).astype(tokens.dtype)


def _pool_first(
    x: Float[Array, "*batch seq hidden"], mask: Bool[Array, "*batch seq"]
) -> Float[Array, "*batch hidden"]:
    return _token_at(x, jnp.argmax(mask, axis=-1))


def _pool_last(
    x: Float[Array, "*batch seq hidden"], mask: Bool[Array, "*batch seq"]
) -> Float[Array, "*batch hidden"]:
    positions = jnp.broadcast_to(jnp.arange(mask.shape[-1]), mask.shape)
    last = jnp.max(jnp.where(mask, positions, 0), axis=-1)
    return _token_at(jnp.where(mask[..., None], x, 0), last)


def _token_at(
    x: Float[Array, "*batch seq hidden"], index: Int[Array, "*batch"]
) -> Float[Array, "*batch hidden"]:
    return jnp.squeeze(jnp.take_along_axis(x, index[..., None, None], axis=-2), axis=-2)


def _pool_max(
    x: Float[Array, "*batch seq hidden"], mask: Bool[Array, "*batch seq"]
) -> Float[Array, "*batch hidden"]:
    return jnp.max(jnp.where(mask[..., None], x, jnp.finfo(x.dtype).min), axis=-2)


def _weighted_sum(
    x: Float[Array, "*batch seq hidden"], weights: Float[Array, "*batch seq"]
) -> Float[Array, "*batch hidden"]:
    return jnp.sum(x * weights[..., None], axis=-2)


def _total(weights: Float[Array, "*batch seq"]) -> Float[Array, "*batch 1"]:
    return jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-9)


def _pool_mean(
    x: Float[Array, "*batch seq hidden"], mask: Bool[Array, "*batch seq"]
) -> Float[Array, "*batch hidden"]:
    weights = mask.astype(x.dtype)
    return _weighted_sum(x, weights) / _total(weights)


def _pool_mean_sqrt(
    x: Float[Array, "*batch seq hidden"], mask: Bool[Array, "*batch seq"]
) -> Float[Array, "*batch hidden"]:
    weights = mask.astype(x.dtype)
    return _weighted_sum(x, weights) / jnp.sqrt(_total(weights))


def _pool_weighted_mean(
    x: Float[Array, "*batch seq hidden"], mask: Bool[Array, "*batch seq"]
) -> Float[Array, "*batch hidden"]:
    positions = jnp.arange(1, x.shape[-2] + 1, dtype=x.dtype)
    weights = mask.astype(x.dtype) * jnp.broadcast_to(positions, mask.shape)
    return _weighted_sum(x, weights) / _total(weights)


_POOL = {
    "cls": _pool_first,
    "max": _pool_max,
    "mean": _pool_mean,
    "mean_sqrt_len_tokens": _pool_mean_sqrt,
    "weightedmean": _pool_weighted_mean,
    "lasttoken": _pool_last,
}


class Dense(eqx.Module):
    """A linear map and an activation, with an optional residual connection
    (sentence-transformers' `Dense`).
    """

    linear: Linear
    residual: Linear | None
    activation: str = eqx.field(static=True)
    use_residual: bool = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        activation: str = "tanh",
        use_residual: bool = False,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_features`, `out_features`: the sizes of the vectors that come in and go out.
        - `use_bias`: whether the linear map has a bias.
        - `activation`: a name in `eqxbert.nn.ACTIVATIONS`.
        - `use_residual`: whether the input is added to the result, through a linear map of its own
            where the sizes differ.
        - `key`: a PRNG key for the weights.
        """
        get_activation(activation)
        linear_key, residual_key = jax.random.split(key)
        self.linear = Linear(in_features, out_features, use_bias=use_bias, key=linear_key)
        needs_map = use_residual and in_features != out_features
        self.residual = (
            Linear(in_features, out_features, use_bias=False, key=residual_key)
            if needs_map
            else None
        )
        self.activation = activation
        self.use_residual = use_residual

    def __call__(self, x: Float[Array, "*batch in_size"]) -> Float[Array, "*batch out_size"]:
        y = Activation(self.activation)(self.linear(x))
        if self.use_residual:
            y = y + (x if self.residual is None else self.residual(x))
        return y


class Normalize(eqx.Module):
    """Scales vectors to length 1 (sentence-transformers' `Normalize`); a zero vector stays zero,
    with finite gradients.
    """

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        y = x.astype(accumulation_dtype(x))
        squared = jnp.sum(jnp.square(y), axis=-1, keepdims=True)
        is_zero = squared == 0
        length = jnp.sqrt(jnp.where(is_zero, 1, squared))
        return (y / jnp.maximum(length, 1e-12)).astype(x.dtype)


class SentenceModel(eqx.Module):
    """A BERT, a pooling, and what follows it: token ids in, one vector for each text out."""

    bert: BertModel
    pooling: Pooling
    head: tuple[Dense | Normalize, ...]

    @property
    def config(self) -> BertConfig:
        """That of the BERT."""
        return self.bert.config

    @property
    def embedding_size(self) -> int:
        """The size of the vectors that come out."""
        dense = [module for module in self.head if isinstance(module, Dense)]
        if dense:
            return dense[-1].linear.weight.shape[0]
        return self.bert.config.hidden_size * len(self.pooling.modes)

    def __call__(
        self,
        input_ids: Int[Array | np.ndarray, "*batch seq"],
        attention_mask: Any,
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        *,
        prompt_length: Int[Array | np.ndarray, ""] | int = 0,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch size"]:
        """**Arguments:**

        - `input_ids`, `token_type_ids`: as in `BertModel`.
        - `attention_mask`: 1 or True for tokens, 0 or False for padding (on the right).
        - `prompt_length`: how many tokens at the beginning are a prompt's, with [CLS].
        - `key`: a PRNG key for dropout; without one there is none.
        """
        mask = jnp.asarray(attention_mask).astype(bool)
        if not self.pooling.include_prompt:
            mask = mask & jnp.broadcast_to(
                jnp.arange(mask.shape[-1], dtype=jnp.int32) >= prompt_length, mask.shape
            )
        # Where one token is all that counts, the BERT need not compute the others.
        is_first_alone = self.pooling.modes == ("cls",)
        first = jnp.argmax(mask, axis=-1, keepdims=True) if is_first_alone else None
        out = self.bert(input_ids, attention_mask, token_type_ids, output_positions=first, key=key)
        x = self.pooling(out.last_hidden_state, mask[..., :1] if is_first_alone else mask)
        for module in self.head:
            x = module(x)
        return x
