"""From token ids to the vectors that enter the encoder."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..config import BertConfig
from ..nn import Embedding, LayerNorm, accumulation_dtype, dropout


class Embeddings(eqx.Module):
    """The sum of word, position and token type embeddings, normalised, with dropout."""

    word: Embedding
    position: Embedding
    token_type: Embedding
    norm: LayerNorm
    dropout_rate: float = eqx.field(static=True)

    def __init__(self, config: BertConfig, *, key: PRNGKeyArray):
        word_key, position_key, type_key = jax.random.split(key, 3)
        size, init = config.hidden_size, config.initializer_range
        self.word = Embedding(
            config.vocab_size,
            size,
            initializer_range=init,
            padding_id=config.pad_token_id,
            key=word_key,
        )
        self.position = Embedding(
            config.max_position_embeddings, size, initializer_range=init, key=position_key
        )
        self.token_type = Embedding(
            config.type_vocab_size, size, initializer_range=init, key=type_key
        )
        self.norm = LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout_rate = config.hidden_dropout_prob

    def __call__(
        self,
        words: Float[Array, "*batch seq hidden"],
        token_type_ids: Int[Array | np.ndarray, "*batch seq"] | None = None,
        position_ids: Int[Array | np.ndarray, "*#batch seq"] | None = None,
        *,
        add_positions: bool = True,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq hidden"]:
        """**Arguments:**

        - `words`: the word embeddings, usually `self.word(input_ids)`.
        - `token_type_ids`: which part of the input each token belongs to; 0 throughout if None.
        - `position_ids`: the position of each token; 0, 1, 2, ... if None.
        - `add_positions`: False where attention itself knows of positions (relative types).
        - `key`: a PRNG key for dropout; without one there is none.
        """
        # In PyTorch's order of summation: words and token types first, then positions.
        # In at least float32, in which then the gradient of a row that many tokens share is summed.
        dtype = accumulation_dtype(words)
        if token_type_ids is None:
            types = self.token_type.weight[0]
        else:
            types = self.token_type(token_type_ids)
        x = words.astype(dtype) + jnp.broadcast_to(types.astype(dtype), words.shape)
        if add_positions:
            if position_ids is None:
                positions = self.position.weight[: words.shape[-2]]
            else:
                positions = self.position(position_ids)
            x = x + jnp.broadcast_to(positions.astype(dtype), words.shape)
        # The tables may be in more than the dtype that is computed in.
        return dropout(self.norm(x).astype(self.dtype), self.dropout_rate, key)

    @property
    def dtype(self) -> jnp.dtype:
        """What the encoder computes in."""
        return self.norm.weight.dtype
