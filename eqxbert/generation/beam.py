"""Beam search: in each row, several sequences are continued side by side.

The rules are those of transformers: what counts as finished, how scores are compared with lengths,
and when a search ends.

All beams of a row share its cache: a step fills one slot for each, and which slots are a beam's own
is kept beside. So the prompt is read and kept once, and nothing is moved when beams part; in
return, attention goes over the new slots of all beams of the row.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ..outputs import DecoderCache
from .options import GenerationOptions
from .prompt import Decoder, Prompt, read_tokens
from .sampling import draw_without_replacement

# Added to the scores of what must not be chosen; finite, so that what there is stays in order.
_NEVER = -1e9
# No sum of log-probabilities is as low as this, unless something was added.
_LEAST = _NEVER / 2


class State(eqx.Module):
    """A search between two tokens.

    - `ids`: the tokens of each running beam; -1 where there is none.
    - `filled`: how many of their slots are filled.
    - `attended`: the slots of the cache that each beam attends to.
    - `scores`: the sum of the log-probabilities of their new tokens.
    - `finished_ids`, `finished_scores`, `is_finished`: the best finished ones so far, with scores
        that take account of their lengths; and which of them there are already.
    - `may_improve`: in which rows running beams may still become better than the finished ones.
    - `is_exhausted`: whether no beam can go on.
    - `step`, `limit`: how many new tokens there are, and may be.
    - `logits`: the scores of the next token.
    """

    ids: Int[Array, "batch beams slots"]
    filled: Int[Array, ""]
    attended: Bool[Array, "batch beams cache_slots"]
    scores: Float[Array, "batch beams"]
    finished_ids: Int[Array, "batch beams slots"]
    finished_scores: Float[Array, "batch beams"]
    is_finished: Bool[Array, "batch beams"]
    may_improve: Bool[Array, " batch"]
    is_exhausted: Bool[Array, ""]
    step: Int[Array, ""]
    limit: Int[Array, ""]
    logits: Float[Array, "batch beams vocab"]
    cache: DecoderCache


def run(
    decoder: Decoder, prompt: Prompt, keys: Key[Array, " batch"] | None, options: GenerationOptions
) -> tuple[Int[Array, "batch beams slots"], Float[Array, "batch beams"]]:
    """The best sequences of each row, the best first, with -1 where there is no token; and their
    scores. Where fewer can be found than there are beams, the others have no tokens, and minus
    infinity for a score.
    """
    state = _choose(_start(decoder, prompt, options), keys, options)
    state = lax.while_loop(
        lambda state: _is_going_on(state, options),
        lambda state: _choose(_read(decoder, state), keys, options),
        state,
    )
    ids = jnp.where(state.is_finished[..., None], state.finished_ids, -1)
    return ids, jnp.where(state.is_finished, state.finished_scores, -jnp.inf)


def _start(decoder: Decoder, prompt: Prompt, options: GenerationOptions) -> State:
    beams = options.num_beams
    logits, cache, ids = prompt.read(decoder, side_by_side=beams)
    batch = ids.shape[0]

    def for_each_beam(x: Array) -> Array:
        return jnp.repeat(x[:, None], beams, axis=1)

    valid = jnp.reshape(cache.valid, (batch, -1))
    return State(
        ids=for_each_beam(ids),
        filled=cache.length,
        attended=for_each_beam(valid),
        # All beams are equal at first: only the first one counts.
        scores=jnp.full((batch, beams), _NEVER, jnp.float32).at[:, 0].set(0),
        finished_ids=for_each_beam(ids),
        finished_scores=jnp.full((batch, beams), _NEVER, jnp.float32),
        is_finished=jnp.zeros((batch, beams), bool),
        may_improve=jnp.ones(batch, bool),
        is_exhausted=jnp.zeros((), bool),
        step=jnp.zeros((), jnp.int32),
        limit=prompt.limit,
        logits=for_each_beam(logits),
        cache=cache,
    )


def _read(decoder: Decoder, state: State) -> State:
    """With the scores of the token after the last one of each beam."""
    beams, cache_slots = state.attended.shape[1:]
    last = lax.dynamic_index_in_dim(state.ids, state.filled - 1, axis=2, keepdims=False)
    own_slots = state.cache.length + jnp.arange(beams, dtype=jnp.int32)
    is_own = own_slots[:, None] == jnp.arange(cache_slots, dtype=jnp.int32)[None, :]
    attended = state.attended | is_own[None]
    logits, cache = read_tokens(decoder, last, state.cache, attention_mask=attended)
    return _replace(state, attended=attended, logits=logits, cache=cache)


def _choose(state: State, keys: Key[Array, " batch"] | None, options: GenerationOptions) -> State:
    """Continues the beams with the best of all their next tokens."""
    batch, beams, slots = state.ids.shape
    vocab = state.logits.shape[-1]
    log_probabilities = options.process(
        jnp.reshape(state.ids, (batch * beams, slots)),
        jnp.reshape(jax.nn.log_softmax(state.logits, axis=-1), (batch * beams, vocab)),
        state.step,
        state.limit,
    )
    totals = jnp.reshape(log_probabilities, (batch, beams, vocab)) + state.scores[..., None]
    totals = jnp.reshape(totals, (batch, beams * vocab))
    # Enough for as many to go on as there are beams, even if every end is among the candidates.
    count = min(max(2, 1 + len(options.ends)), vocab) * beams
    if keys is not None:
        chosen = draw_without_replacement(keys, totals, count, state.step)
        totals = jnp.take_along_axis(totals, chosen, axis=-1)
    else:
        totals, chosen = lax.top_k(totals, count)
    parents, tokens = chosen // vocab, (chosen % vocab).astype(jnp.int32)
    candidates = lax.dynamic_update_slice_in_dim(
        _of_beams(state.ids, parents), tokens[..., None], state.filled, axis=2
    )
    ends = options.is_end(tokens) | (state.step + 1 == state.limit)
    step = state.step + 1

    state = _collect_finished(state, candidates, totals, ends, step, options)
    running_totals = totals + jnp.where(ends, _NEVER, 0)
    scores, best = lax.top_k(running_totals, beams)
    state = _replace(
        state,
        ids=_of_beams(candidates, best),
        filled=state.filled + 1,
        attended=_of_beams(state.attended, jnp.take_along_axis(parents, best, axis=-1)),
        scores=scores,
        step=step,
        is_exhausted=jnp.all(ends),
    )
    return _replace(state, may_improve=state.may_improve & _may_improve(state, options))


def _collect_finished(
    state: State,
    candidates: Int[Array, "batch candidates slots"],
    totals: Float[Array, "batch candidates"],
    ends: Bool[Array, "batch candidates"],
    step: Int[Array, ""],
    options: GenerationOptions,
) -> State:
    """With the candidates that have ended, where they are better than those that had before."""
    beams = options.num_beams
    # The candidates after the first ones are there to go on, not to be returned. And what must not
    # be chosen is among them only where there is nothing else.
    has_ended = ends & (jnp.arange(ends.shape[-1]) < beams)[None, :] & (totals > _LEAST)
    scores = totals / step.astype(jnp.float32) ** options.length_penalty
    is_closed = ~state.may_improve
    if options.early_stopping is True:
        is_closed |= jnp.all(state.is_finished, axis=-1)
    scores = scores + jnp.where(is_closed[:, None], _NEVER, 0) + jnp.where(has_ended, 0, _NEVER)
    scores, best = lax.top_k(jnp.concatenate([state.finished_scores, scores], axis=1), beams)
    every = jnp.concatenate([state.finished_ids, candidates], axis=1)
    is_finished = jnp.concatenate([state.is_finished, has_ended], axis=1)
    return _replace(
        state,
        finished_ids=_of_beams(every, best),
        finished_scores=scores,
        is_finished=jnp.take_along_axis(is_finished, best, axis=-1),
    )


def _may_improve(state: State, options: GenerationOptions) -> Bool[Array, " batch"]:
    """Whether the best running beam may become better than the worst finished one, supposing that
    its score does not change any more; with "never", that it has the length that suits it best.
    """
    length = state.step
    if options.early_stopping == "never" and options.length_penalty > 0:
        length = state.limit
    best_running = state.scores[:, :1] / length.astype(jnp.float32) ** options.length_penalty
    worst = jnp.min(state.finished_scores, axis=-1, keepdims=True)
    is_better = jnp.any(best_running > jnp.where(state.is_finished, worst, _NEVER), axis=-1)
    return is_better & (state.scores[:, 0] > _LEAST)


def _is_going_on(state: State, options: GenerationOptions) -> Bool[Array, ""]:
    is_going_on = jnp.any(state.may_improve) & ~state.is_exhausted
    if options.early_stopping is True:
        is_going_on &= ~jnp.all(state.is_finished)
    return is_going_on


def _of_beams(x: Array, beams: Int[Array, "batch chosen"]) -> Array:
    """Those of the beams that were chosen, in each row."""
    return jnp.take_along_axis(x, beams[..., None], axis=1)


def _replace(state: State, **changes: Any) -> State:
    names = list(changes)
    return eqx.tree_at(
        lambda state: [getattr(state, name) for name in names], state, [changes[n] for n in names]
    )
