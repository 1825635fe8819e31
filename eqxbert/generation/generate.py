"""Text from a decoder: whole (`generate`), or as it comes (`stream`)."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt32

from ..checks import AttentionMask, check_array, check_ids, check_mask
from ..config import BertConfig
from . import beam, greedy
from .options import GenerationOptions, check_integer
from .prompt import Decoder, Prompt, bucket, longest_below_bucket


class GenerationOutput(eqx.Module):
    """What `generate` returns; with several returned sequences they are one more axis.

    - `sequences`: the prompt as it was given (an encoder-decoder's begins with
        `decoder_start_token_id`), the new tokens, and padding after their end.
    - `lengths`: the number of new tokens, the end included.
    - `scores`: the sum of the log-probabilities of the new tokens, as processed; with beams divided
        by `lengths ** length_penalty`.
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
    key: PRNGKeyArray | Key[Array, " rows"] | UInt32[Array, "rows words"] | None = None,
    **options: Any,
) -> GenerationOutput:
    """Continues sequences token by token, in one compiled program with a cache.

    The program is compiled once for each batch size, bucket of the prompts' lengths, number of
    tokens (and of tokens of `encoder_hidden_states`) and set of options; other prompts then run at
    once.

    **Arguments:**

    - `model`: a `BertForCausalLM`; or an `EncoderDecoderModel`, whose encoder reads the input once
        and whose decoder begins with `decoder_start_token_id`.
    - `input_ids`: the prompts.
    - `attention_mask`: 1 for their tokens, 0 for padding, which may be anywhere: each row is
        continued as if it were alone.
    - `max_new_tokens`, `max_length`: how many tokens there may be, without the prompts or with
        them (padding included). One of the two is needed.
    - `encoder_hidden_states`, `encoder_attention_mask`: what a `BertForCausalLM` with
        cross-attention attends to.
    - `key`: for sampling: a PRNG key, of which each row gets its own; or one for each row, in one
        axis.
    - `options`: `num_beams`, `do_sample`, `temperature`, `top_k`, `top_p` and all other fields of
        `GenerationOptions`, which describes them.

    **Raises:** `ValueError` if an argument is out of range or contradicts another, if a prompt is
    empty or all padding, or if there would be more tokens than the model has positions.
    """
    request, given, batch_shape = _request(
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
    key: PRNGKeyArray | Key[Array, " rows"] | UInt32[Array, "rows words"] | None = None,
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
    request, _, batch_shape = _request(
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


def _stream(model: Any, request: "_Request", batch_shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    state = _start(model, request)
    while True:
        yield np.reshape(np.asarray(state.token), batch_shape)
        if not greedy.is_going_on(state):
            return
        state = _advance(model, state)


class _Request(eqx.Module):
    """What is asked for, checked, and in the shapes that programs are compiled for.

    - `prompt`: what the decoder continues.
    - `source`, `source_mask`: what an encoder-decoder's encoder reads.
    - `keys`: one for each row, if tokens are drawn.
    """

    prompt: Prompt
    source: Int[Array, "batch source_seq"] | None
    source_mask: Bool[Array, "batch source_seq"] | None
    keys: Key[Array, " generated"] | None
    options: GenerationOptions = eqx.field(static=True)


def _decoder_of(model: Any) -> Any:
    decoder = model.decoder if _has_encoder(model) else model
    if not isinstance(decoder, Decoder) or hasattr(decoder, "pooler"):
        raise ValueError(
            f"{type(model).__name__} does not predict the next word. Load a BertForCausalLM, or an "
            "EncoderDecoderModel."
        )
    return decoder


def _has_encoder(model: Any) -> bool:
    return hasattr(model, "decoder")


def _request(
    model: Any,
    input_ids: Int[Array | np.ndarray, "*batch seq"],
    attention_mask: AttentionMask,
    max_new_tokens: int | None,
    max_length: int | None,
    encoder_hidden_states: Float[Array | np.ndarray, "*batch encoder_seq encoder_hidden"] | None,
    encoder_attention_mask: AttentionMask,
    key: PRNGKeyArray | Key[Array, "..."] | UInt32[Array, "..."] | None,
    options: GenerationOptions,
) -> tuple[_Request, Int[np.ndarray, "rows prompt"], tuple[int, ...]]:
    given = (model, input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, key)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)):
        raise ValueError(
            "Generation compiles its own program, so it cannot be called in a function that is "
            "compiled, mapped or differentiated. Call it outside of jax.jit, vmap and grad."
        )
    decoder = _decoder_of(model)
    options = options.settled(decoder.config)
    ids, mask = _checked(model, input_ids, attention_mask)
    batch_shape = np.shape(input_ids)[:-1]
    source = source_mask = None
    if encoder_hidden_states is not None:
        _check_states(encoder_hidden_states, batch_shape)
        encoder_attention_mask = check_mask(
            "encoder_attention_mask", encoder_attention_mask, encoder_hidden_states.shape[:-1]
        )
    elif encoder_attention_mask is not None:
        raise ValueError("encoder_attention_mask was given without encoder_hidden_states.")
    if _has_encoder(model):
        if encoder_hidden_states is not None:
            raise ValueError("This model has an encoder; encoder_hidden_states cannot be given.")
        if model.config.decoder_start_token_id is None:
            raise ValueError(
                "The model's decoder_start_token_id is None. Set it: "
                "model.with_config(model.config.replace(decoder_start_token_id=...))."
            )
        length = min(bucket(ids.shape[1]), model.encoder.config.max_position_embeddings)
        if ids.shape[1] > length:
            raise ValueError(
                f"The input has {ids.shape[1]} tokens, but the encoder has positions for {length} "
                "(max_position_embeddings). Truncate it."
            )
        source, source_mask = map(jnp.asarray, _padded(ids, mask, length))
        ids = np.full((ids.shape[0], 1), model.config.decoder_start_token_id, np.int32)
        mask = np.ones(ids.shape, bool)
    elif decoder.config.add_cross_attention and encoder_hidden_states is None:
        raise ValueError(
            "This model attends to an encoder (add_cross_attention): give encoder_hidden_states."
        )
    limit, room = _limits(ids, mask, max_new_tokens, max_length, decoder.config)
    longest = int(np.max(np.sum(mask, axis=-1)))
    length = min(bucket(longest), decoder.config.max_position_embeddings)
    prompt_ids, prompt_mask = _padded(*_without_padding(ids, mask, longest), length)
    prompt = Prompt(
        jnp.asarray(prompt_ids),
        jnp.asarray(prompt_mask),
        jnp.asarray(limit, jnp.int32),
        length + room,
        None if encoder_hidden_states is None else _flat(jnp.asarray(encoder_hidden_states), 2),
        None if encoder_attention_mask is None else _flat(jnp.asarray(encoder_attention_mask), 1),
    )
    keys = _row_keys(key, ids.shape[0], options)
    return _Request(prompt, source, source_mask, keys, options), ids, batch_shape


def _check_states(states: Any, batch_shape: tuple[int, ...]) -> None:
    check_array("encoder_hidden_states", states, np.floating, "floats")
    *batch, seq = states.shape[:-1] or (0,)
    if states.ndim < 2 or tuple(batch) != batch_shape or seq == 0:
        expected = (*batch_shape, "encoder_seq", "encoder_hidden")
        raise ValueError(
            f"encoder_hidden_states has shape {tuple(states.shape)}, expected "
            f"({', '.join(map(str, expected))}) with at least one token."
        )


def _checked(
    model: Any, input_ids: Int[Array | np.ndarray, "*batch seq"], attention_mask: AttentionMask
) -> tuple[Int[np.ndarray, "rows seq"], Bool[np.ndarray, "rows seq"]]:
    """The prompts and their mask, with one leading axis."""
    vocab = (model.encoder if _has_encoder(model) else model).config.vocab_size
    check_ids("input_ids", input_ids, vocab, "vocab_size")
    if input_ids.ndim == 0:
        raise ValueError("input_ids is a single number, expected shape (*batch, seq).")
    if input_ids.size == 0:
        what = "prompt is empty" if input_ids.shape[-1] == 0 else "batch has no rows"
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}: the {what}. There must be at least one "
            "token, such as bos_token_id, in at least one row."
        )
    mask = check_mask("attention_mask", attention_mask, input_ids.shape)
    mask = np.ones(input_ids.shape, bool) if mask is None else np.asarray(mask)
    empty = np.argwhere(~np.any(mask, axis=-1))
    if len(empty):
        raise ValueError(
            f"attention_mask is 0 throughout in row {tuple(map(int, empty[0]))}: there is nothing "
            "to continue. Each row must have at least one token."
        )
    return _flat(np.asarray(input_ids).astype(np.int32), 1), _flat(mask, 1)


def _flat(x: Array | np.ndarray, own_axes: int) -> Any:
    """With its leading axes as one."""
    return x.reshape(-1, *x.shape[x.ndim - own_axes :])


def _without_padding(
    ids: Int[np.ndarray, "rows seq"], mask: Bool[np.ndarray, "rows seq"], longest: int
) -> tuple[Int[np.ndarray, "rows longest"], Bool[np.ndarray, "rows longest"]]:
    order = np.argsort(mask, axis=-1, kind="stable")[:, -longest:]
    return np.take_along_axis(ids, order, axis=-1), np.take_along_axis(mask, order, axis=-1)


def _padded(
    ids: Int[np.ndarray, "rows seq"], mask: Bool[np.ndarray, "rows seq"], length: int
) -> tuple[Int[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]:
    missing = ((0, 0), (0, length - ids.shape[1]))
    return np.pad(ids, missing), np.pad(mask, missing)


def _limits(
    ids: Int[np.ndarray, "rows seq"],
    mask: Bool[np.ndarray, "rows seq"],
    max_new_tokens: int | None,
    max_length: int | None,
    config: BertConfig,
) -> tuple[int, int]:
    """How many new tokens there may be, and how many slots a program has for all tokens. The latter
    is the same for all prompts of a bucket.
    """
    seq = ids.shape[1]
    if max_new_tokens is not None:
        max_new_tokens = check_integer("max_new_tokens", max_new_tokens)
    if max_length is not None:
        max_length = check_integer("max_length", max_length)
    if (max_new_tokens is None) == (max_length is None):
        raise ValueError("Give either max_new_tokens or max_length.")
    if max_new_tokens is not None:
        limit, room = max_new_tokens, max_new_tokens
    else:
        assert max_length is not None
        limit, room = max_length - seq, max_length - longest_below_bucket(seq) - 1
    if limit < 1:
        name, value = (
            ("max_length", max_length) if max_new_tokens is None else ("max_new_tokens", limit)
        )
        raise ValueError(
            f"{name} is {value}, which leaves no room for a new token after {seq} of the prompt."
        )
    longest = int(np.max(np.sum(mask, axis=-1)))
    if longest + limit > config.max_position_embeddings:
        raise ValueError(
            f"A prompt of {longest} tokens and {limit} new ones are more than the "
            f"{config.max_position_embeddings} positions of this model (max_position_embeddings). "
            "Shorten the prompt, or generate fewer."
        )
    return limit, room


def _row_keys(
    key: PRNGKeyArray | Key[Array, "..."] | UInt32[Array, "..."] | None,
    rows: int,
    options: GenerationOptions,
) -> Key[Array, " generated"] | None:
    """A key for each row that is generated, or None where nothing is drawn."""
    if not options.do_sample:
        return None
    if key is None:
        raise ValueError("do_sample=True needs a key, such as key=jax.random.key(0).")
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == np.uint32):
        raise ValueError(f"key must be a PRNG key, such as jax.random.key(0), got {key!r}.")
    given = jax.random.wrap_key_data(key) if dtype == np.uint32 else key
    if given.shape not in ((), (rows,)):
        raise ValueError(
            f"key has shape {given.shape}, expected () or one for each row, ({rows},)."
        )

    def one_for_each(key: PRNGKeyArray, count: int) -> Key[Array, " count"]:
        return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(count))

    keys = one_for_each(given, rows) if given.ndim == 0 else given
    if options.num_beams > 1 or options.num_return_sequences == 1:
        return keys
    samples = options.num_return_sequences
    return jnp.reshape(jax.vmap(lambda key: one_for_each(key, samples))(keys), -1)


def _prompt(model: Any, request: _Request) -> Prompt:
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
def _run(model: Any, request: _Request) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    search = beam.run if request.options.num_beams > 1 else greedy.run
    return search(_decoder_of(model), _prompt(model, request), request.keys, request.options)


@eqx.filter_jit
def _start(model: Any, request: _Request) -> greedy.State:
    return greedy.start(_decoder_of(model), _prompt(model, request), request.keys, request.options)


@eqx.filter_jit(donate="all-except-first")
def _advance(model: Any, state: greedy.State) -> greedy.State:
    return greedy.advance(_decoder_of(model), state)


def _collect(
    request: _Request,
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
