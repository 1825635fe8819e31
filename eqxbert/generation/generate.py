"""Text from a decoder: whole (`generate`), or as it comes (`stream`)."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..checks import AttentionMask
from . import beam, greedy
from .options import GenerationOptions
from .prompt import Prompt
from .request import Keys, Request, decoder_of, make_request


class GenerationOutput(eqx.Module):
    """What `generate` returns; with several returned sequences they are one more axis.

    - `sequences`: the prompt as it was given (an encoder-decoder's begins with
        `decoder_start_token_id`), the new tokens, and padding after their end.
    - `lengths`: the number of new tokens, the end included; 0 for beams that are left over, where
        the options and processors leave fewer sequences than there are to be.
    - `scores`: the sum of the log-probabilities of the new tokens, as processed; with beams divided
        by `lengths ** length_penalty`. Minus infinity for beams that are left over; and, without
        beams, where processors forbade all tokens, so that one was taken nevertheless.
    """

    sequences: Int[Array, "*batch length"]
    lengths: Int[Array, "*batch"]
    scores: Float[Array, "*batch"]


def generate(
    model: Any,
    input_ids: Int[Array | np.ndarray, "*batch seq"],
    attention_mask: AttentionMask = None,
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    encoder_hidden_states: Float[Array | np.ndarray, "*batch encoder_seq encoder_hidden"]
    | None = None,
    encoder_attention_mask: AttentionMask = None,
    key: Keys = None,
    **options: Any,
) -> GenerationOutput:
    """Continues sequences token by token, in one compiled program with a cache.

    The program is compiled once for each batch size, bucket of the prompts' lengths, number of
    tokens (and of tokens of `encoder_hidden_states`) and set of options; other prompts then run at
    once. Padding does not count for the bucket, except with `max_length`, which includes it: then
    the bucket of the lengths with padding counts as well.

    **Arguments:**

    - `model`: a `BertForCausalLM`; or an `EncoderDecoderModel`, whose encoder reads the input once
        and whose decoder begins with `decoder_start_token_id`.
    - `input_ids`: the prompts.
    - `attention_mask`: 1 for their tokens, 0 for padding, which may be anywhere: each row is
        continued as if it were alone. (An encoder's input should have it at the end: as in
        transformers, its positions count all that stands before.)
    - `max_new_tokens`, `max_length`: how many tokens there may be, without the prompts or with
        them (padding included). One of the two is needed.
    - `encoder_hidden_states`, `encoder_attention_mask`: what a `BertForCausalLM` with
        cross-attention attends to.
    - `key`: for sampling: one PRNG key for each row, of shape `*batch`; what is drawn for a row
        depends on its key alone. Or a single one, from which each row of a batch gets its own.
    - `options`: `num_beams`, `do_sample`, `temperature`, `top_k`, `top_p` and all other fields of
        `GenerationOptions`, which describes them. What a checkpoint's `generation_config.json`
        says is read by `GenerationOptions.from_pretrained`.

    **Raises:** `ValueError` if an argument is out of range or contradicts another, if a prompt is
    empty or all padding, or if there would be more tokens than the model has positions.
    """
    request, given, batch_shape = make_request(
        model,
        input_ids,
        attention_mask,
        max_new_tokens,
        max_length,
        encoder_hidden_states,
        encoder_attention_mask,
        key,
        GenerationOptions(**options),
    )
    ids, scores = _run(model, request)
    return _collect(request, given, batch_shape, ids, scores)


def stream(
    model: Any,
    input_ids: Int[Array | np.ndarray, "*batch seq"],
    attention_mask: AttentionMask = None,
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    encoder_hidden_states: Float[Array | np.ndarray, "*batch encoder_seq encoder_hidden"]
    | None = None,
    encoder_attention_mask: AttentionMask = None,
    key: Keys = None,
    **options: Any,
) -> Iterator[np.ndarray]:
    """Continues sequences as `generate` does without beams, and yields the new tokens of all rows,
    an array of shape `*batch`, as soon as they are there. Rows that have ended yield padding.

    **Arguments and errors:** those of `generate`, where `num_beams` and `num_return_sequences` must
    be 1.
    """
    settings = GenerationOptions(**options)
    if settings.num_beams != 1 or settings.num_return_sequences != 1:
        raise ValueError(
            "stream yields one sequence for each prompt as it grows, so num_beams and "
            "num_return_sequences must be 1; with beams, it is only known at the end: use generate."
        )
    request, _, batch_shape = make_request(
        model,
        input_ids,
        attention_mask,
        max_new_tokens,
        max_length,
        encoder_hidden_states,
        encoder_attention_mask,
        key,
        settings,
    )
    return _stream(model, request, batch_shape)


def _stream(model: Any, request: Request, batch_shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    state = _start(model, request)
    while True:
        yield np.reshape(np.asarray(state.token), batch_shape)
        if not greedy.is_going_on(state):
            return
        state = _advance(model, state)


def _prompt(model: Any, request: Request) -> Prompt:
    """The prompt of each sequence, with the encoder's output if the model has an encoder."""
    prompt = request.prompt
    if request.source is not None:
        states = model.encode(request.source, request.source_mask).last_hidden_state
        prompt = eqx.tree_at(
            lambda prompt: (prompt.encoder_hidden_states, prompt.encoder_attention_mask),
            prompt,
            (states, request.source_mask),
            is_leaf=lambda x: x is None,
        )
    samples = request.options.num_return_sequences
    if request.options.num_beams > 1 or samples == 1:
        return prompt
    return jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0) if x.ndim else x, prompt)


@eqx.filter_jit
def _run(model: Any, request: Request) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    search = beam.run if request.options.num_beams > 1 else greedy.run
    return search(decoder_of(model), _prompt(model, request), request.keys, request.options)


@eqx.filter_jit
def _start(model: Any, request: Request) -> greedy.State:
    return greedy.start(decoder_of(model), _prompt(model, request), request.keys, request.options)


@eqx.filter_jit(donate="all-except-first")
def _advance(model: Any, state: greedy.State) -> greedy.State:
    return greedy.advance(decoder_of(model), state)


def _collect(
    request: Request,
    given: Int[np.ndarray, "rows prompt"],
    batch_shape: tuple[int, ...],
    ids: Int[Array, "..."],
    scores: Float[Array, "..."],
) -> GenerationOutput:
    """The prompts as they were given and the tokens after them, without the slots left empty."""
    options, count = request.options, request.options.num_return_sequences
    rows = given.shape[0]
    start = request.prompt.ids.shape[1]
    # With beams these are the best of them; without, each was generated on its own.
    new = np.reshape(np.asarray(ids), (rows, -1, ids.shape[-1]))[:, :count, start:]
    new_scores = np.reshape(np.asarray(scores), (rows, -1))[:, :count]
    lengths = np.sum(new >= 0, axis=-1)
    new = new[..., : int(lengths.max())]
    new = np.where(new < 0, options.padding, new)
    prompts = np.broadcast_to(given[:, None], (rows, count, given.shape[1]))
    shape = batch_shape + (() if count == 1 else (count,))
    sequences = np.concatenate([prompts, new], axis=-1)
    return GenerationOutput(
        sequences=jnp.asarray(np.reshape(sequences, (*shape, -1)), jnp.int32),
        lengths=jnp.asarray(np.reshape(lengths, shape), jnp.int32),
        scores=jnp.asarray(np.reshape(new_scores, shape)),
    )
