"""What is asked of `generate` and `stream`: checked, and in shapes that few programs serve."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt32

from ..checks import AttentionMask, boolean_mask, check_array, check_ids
from ..config import BertConfig
from .options import GenerationOptions, check_integer
from .prompt import Decoder, Prompt, bucket, longest_below_bucket

Keys = Key[Array, "..."] | UInt32[Array, "..."] | None
"""Of shape `()`, or that of the batch; of either kind that JAX has."""


class Request(eqx.Module):
    """What programs are run with.

    - `prompt`: what the decoder continues.
    - `source`, `source_mask`: what an encoder-decoder's encoder reads.
    - `keys`: one for each row, if tokens are drawn.
    """

    prompt: Prompt
    source: Int[Array, "batch source_seq"] | None
    source_mask: Bool[Array, "batch source_seq"] | None
    keys: Key[Array, " generated"] | None
    options: GenerationOptions = eqx.field(static=True)


def decoder_of(model: Any) -> Any:
    """The part of a model that generates: itself, or an encoder-decoder's decoder.

    **Raises:** `ValueError` if there is none.
    """
    if isinstance(model, type):
        raise ValueError(
            f"model is the class {model.__name__}, expected one of its instances, such as "
            f"{model.__name__}.from_pretrained(...)."
        )
    decoder = model.decoder if _has_encoder(model) else model
    if not isinstance(decoder, Decoder) or hasattr(decoder, "pooler"):
        raise ValueError(
            f"{type(model).__name__} does not predict the next word. Load a BertForCausalLM, or an "
            "EncoderDecoderModel."
        )
    return decoder


def _has_encoder(model: Any) -> bool:
    return hasattr(model, "decoder")


def make_request(
    model: Any,
    input_ids: Int[Array | np.ndarray, "*batch seq"],
    attention_mask: AttentionMask,
    max_new_tokens: int | None,
    max_length: int | None,
    encoder_hidden_states: Float[Array | np.ndarray, "*batch encoder_seq encoder_hidden"] | None,
    encoder_attention_mask: AttentionMask,
    key: Keys,
    options: GenerationOptions,
) -> tuple[Request, Int[np.ndarray, "rows prompt"], tuple[int, ...]]:
    """The request that arguments of `generate` make; the prompts as they were given, or the
    beginning of an encoder-decoder's output, in one axis; and the shape of the batch.

    **Raises:** `ValueError` as `generate` does.
    """
    given = (model, input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, key)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)):
        raise ValueError(
            "Generation compiles its own program, so it cannot be called in a function that is "
            "compiled, mapped or differentiated. Call it outside of jax.jit, vmap and grad."
        )
    decoder = decoder_of(model)
    options = options.settled(decoder.config)
    ids, mask = _checked(model, input_ids, attention_mask)
    batch_shape = np.shape(input_ids)[:-1]
    source = source_mask = None
    if encoder_hidden_states is not None:
        _check_states(encoder_hidden_states, batch_shape)
        encoder_attention_mask = boolean_mask(
            "encoder_attention_mask",
            _on_host(encoder_attention_mask),
            encoder_hidden_states.shape[:-1],
        )
    elif encoder_attention_mask is not None:
        raise ValueError("encoder_attention_mask was given without encoder_hidden_states.")
    if _has_encoder(model):
        if encoder_hidden_states is not None:
            raise ValueError("This model has an encoder; encoder_hidden_states cannot be given.")
        length = min(bucket(ids.shape[1]), model.encoder.config.max_position_embeddings)
        if ids.shape[1] > length:
            raise ValueError(
                f"The input has {ids.shape[1]} tokens, but the encoder has positions for {length} "
                "(max_position_embeddings). Truncate it."
            )
        source, source_mask = map(jnp.asarray, _padded(ids, mask, length))
        ids = np.full((ids.shape[0], 1), _first_token(model, options), np.int32)
        mask = np.ones(ids.shape, bool)
    elif options.decoder_start_token_id is not None:
        raise ValueError(
            "decoder_start_token_id only matters for an EncoderDecoderModel, got a "
            f"{type(model).__name__}, which begins with the prompt. Leave it out."
        )
    elif decoder.config.add_cross_attention and encoder_hidden_states is None:
        raise ValueError(
            "This model attends to an encoder (add_cross_attention): give encoder_hidden_states."
        )
    limit, room = _limits(ids, mask, max_new_tokens, max_length, options, decoder.config)
    longest = int(np.max(np.sum(mask, axis=-1)))
    length = min(bucket(longest), decoder.config.max_position_embeddings)
    prompt_ids, prompt_mask = _padded(*_without_padding(ids, mask, longest), length)
    prompt = Prompt(
        jnp.asarray(prompt_ids),
        jnp.asarray(prompt_mask),
        jnp.asarray(limit, jnp.int32),
        length + room,
        None if encoder_hidden_states is None else jnp.asarray(_flat(encoder_hidden_states, 2)),
        None if encoder_attention_mask is None else jnp.asarray(_flat(encoder_attention_mask, 1)),
    )
    keys = _row_keys(key, batch_shape, options)
    return Request(prompt, source, source_mask, keys, options), ids, batch_shape


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
    checked = boolean_mask("attention_mask", _on_host(attention_mask), input_ids.shape)
    mask = np.ones(input_ids.shape, bool) if checked is None else np.asarray(checked)
    empty = np.argwhere(~np.any(mask, axis=-1))
    if len(empty):
        raise ValueError(
            f"attention_mask is 0 throughout in row {tuple(map(int, empty[0]))}: there is nothing "
            "to continue. Each row must have at least one token."
        )
    return _flat(np.asarray(input_ids).astype(np.int32), 1), _flat(mask, 1)


def _on_host(x: Any) -> Any:
    """As an array of NumPy, if it is JAX's: what is done with it then compiles nothing."""
    return np.asarray(x) if isinstance(x, jax.Array) else x


def _flat(x: Array | np.ndarray, own_axes: int) -> Any:
    """With its leading axes as one."""
    return x.reshape(-1, *x.shape[x.ndim - own_axes :])


def _first_token(model: Any, options: GenerationOptions) -> int:
    """What an encoder-decoder's output begins with."""
    if options.decoder_start_token_id is not None:
        return options.decoder_start_token_id
    if model.config.decoder_start_token_id is None:
        raise ValueError(
            "The model's decoder_start_token_id is None. Set it: "
            "model.with_config(model.config.replace(decoder_start_token_id=...)); or give it."
        )
    return model.config.decoder_start_token_id


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
    options: GenerationOptions,
    config: BertConfig,
) -> tuple[int, int]:
    """How many new tokens there may be, and how many slots a program has for them. The latter is
    the same for all prompts whose widths are in a bucket.
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
    name, value = (
        ("max_length", max_length) if max_new_tokens is None else ("max_new_tokens", limit)
    )
    if limit < 1:
        raise ValueError(
            f"{name} is {value}, which leaves no room for a new token after {seq} of the prompt."
        )
    if options.min_new_tokens > limit:
        raise ValueError(
            f"min_new_tokens is {options.min_new_tokens}, but {name} is {value}, which leaves room "
            f"for no more than {limit}. Lower the one, or raise the other."
        )
    if max_length is not None and options.min_length > max_length:
        raise ValueError(
            f"min_length is {options.min_length}, but max_length is {max_length}. Lower the one, "
            "or raise the other."
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
    key: Keys, batch_shape: tuple[int, ...], options: GenerationOptions
) -> Key[Array, " generated"] | None:
    """A key for each row that is generated, or None where nothing is drawn."""
    if not options.do_sample:
        if key is not None:
            raise ValueError(
                "key only matters for sampling, but do_sample is False. Set do_sample=True, or "
                "leave the key out."
            )
        return None
    if key is None:
        raise ValueError("do_sample=True needs a key, such as key=jax.random.key(0).")
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == np.uint32):
        raise ValueError(f"key must be a PRNG key, such as jax.random.key(0), got {key!r}.")
    given = jax.random.wrap_key_data(key) if dtype == np.uint32 else key
    if given.shape not in ((), batch_shape):
        of_rows = f" or one for each row, {batch_shape}" if batch_shape else ""
        raise ValueError(f"key has shape {given.shape}, expected (){of_rows}.")

    def one_for_each(key: PRNGKeyArray, count: int) -> Key[Array, " count"]:
        return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(count))

    is_for_each = given.shape == batch_shape
    keys = jnp.reshape(given, -1) if is_for_each else one_for_each(given, math.prod(batch_shape))
    if options.num_beams > 1 or options.num_return_sequences == 1:
        return keys
    samples = options.num_return_sequences
    return jnp.reshape(jax.vmap(lambda key: one_for_each(key, samples))(keys), -1)
