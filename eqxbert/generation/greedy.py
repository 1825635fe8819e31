"""One token after the other: the likeliest, or one drawn."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ..outputs import DecoderCache
from .options import GenerationOptions
from .prompt import Decoder, Prompt, read_tokens
from .sampling import draw, likeliest


class State(eqx.Module):
    """Generation between two tokens.

    - `ids`: the tokens of each row, the prompt's included; -1 where there is none.
    - `token`: the last one of each row.
    - `step`: how many new tokens there are.
    - `limit`: how many there may be.
    - `is_finished`: which rows have ended.
    - `scores`: the sum of the log-probabilities of each row's new tokens.
    - `options`: how tokens are chosen.
    """

    ids: Int[Array, "batch slots"]
    token: Int[Array, " batch"]
    step: Int[Array, ""]
    limit: Int[Array, ""]
    is_finished: Bool[Array, " batch"]
    scores: Float[Array, " batch"]
    cache: DecoderCache
    keys: Key[Array, " batch"] | None
    options: GenerationOptions = eqx.field(static=True)


def start(
    decoder: Decoder, prompt: Prompt, keys: Key[Array, " batch"] | None, options: GenerationOptions
) -> State:
    """The state after the first new token."""
    logits, cache, ids = prompt.read(decoder)
    batch = ids.shape[0]
    state = State(
        ids=ids,
        token=jnp.zeros(batch, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        limit=prompt.limit,
        is_finished=jnp.zeros(batch, bool),
        scores=jnp.zeros(batch, jnp.float32),
        cache=cache,
        keys=keys,
        options=options,
    )
    return _choose(state, logits, cache)


def advance(decoder: Decoder, state: State) -> State:
    """The state after one more token."""
    logits, cache = read_tokens(decoder, state.token[:, None], state.cache)
    return _choose(state, logits[:, -1], cache)


def is_going_on(state: State) -> Bool[Array, ""]:
    """Whether some row has not ended, and there may be more tokens."""
    return (state.step < state.limit) & ~jnp.all(state.is_finished)


def run(
    decoder: Decoder, prompt: Prompt, keys: Key[Array, " batch"] | None, options: GenerationOptions
) -> tuple[Int[Array, "batch slots"], Float[Array, " batch"]]:
    """The tokens of each row (-1 where there is none), and their scores."""
    state = start(decoder, prompt, keys, options)
    state = lax.while_loop(is_going_on, lambda state: advance(decoder, state), state)
    return state.ids, state.scores


def _choose(state: State, logits: Float[Array, "batch vocab"], cache: DecoderCache) -> State:
    """Chooses the next token of each row; rows that have ended get padding."""
    options = state.options
    logits = options.process(state.ids, logits, state.step, state.limit)
    if state.keys is not None:
        token = draw(state.keys, logits, state.step).astype(jnp.int32)
    else:
        token = likeliest(logits)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    # If all tokens are forbidden, one is taken nevertheless, and the score says so.
    is_forbidden = jnp.isneginf(chosen)
    score = jnp.where(is_forbidden, -jnp.inf, chosen - jax.nn.logsumexp(logits, axis=-1))
    written = jnp.where(state.is_finished, -1, token)
    return State(
        ids=lax.dynamic_update_slice_in_dim(state.ids, written[:, None], cache.length, axis=1),
        token=jnp.where(state.is_finished, options.padding, token),
        step=state.step + 1,
        limit=state.limit,
        is_finished=state.is_finished | options.is_end(token),
        scores=state.scores + jnp.where(state.is_finished, 0, score),
        cache=cache,
        keys=state.keys,
        options=options,
    )
