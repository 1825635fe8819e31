"""What is given to a model: its checks, and its conversion to what the encoder works with."""

from typing import TypedDict

import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..checks import (
    AttentionMask,
    check_array,
    check_broadcasts,
    check_ids,
    check_mask,
    check_shape,
)
from ..config import BertConfig
from ..nn import Size, align_trailing, causal_mask, key_mask, pair_mask
from ..outputs import DecoderCache


class BertOptions(TypedDict, total=False):
    """Arguments of `BertModel` that the models with a head hand on to it. It describes them."""

    head_mask: Float[Array | np.ndarray, "layers heads"] | None
    inputs_embeds: Float[Array | np.ndarray, "*batch seq hidden"] | None
    segment_ids: Int[Array | np.ndarray, "*batch seq"] | None
    output_hidden_states: bool | None
    output_attentions: bool | None


class DecoderOptions(BertOptions, total=False):
    """Further arguments of `BertModel` that decoders hand on to it."""

    encoder_hidden_states: Float[Array | np.ndarray, "*batch encoder_seq encoder_hidden"] | None
    encoder_attention_mask: AttentionMask
    cache: DecoderCache | None


def shape_of_tokens(
    input_ids: Int[Array | np.ndarray, "*batch seq"] | None,
    inputs_embeds: Float[Array | np.ndarray, "*batch seq hidden"] | None,
) -> tuple[Size, ...]:
    """`(*batch, seq)`; or nothing, where there is nothing that has a shape."""
    if input_ids is None:
        return getattr(inputs_embeds, "shape", ())[:-1]
    return getattr(input_ids, "shape", ())


def attention_mask_for_scores(
    attention_mask: AttentionMask, batch_seq: tuple[Size, ...], *, causal: bool
) -> Bool[Array, "..."] | None:
    """The boolean mask for attention scores of shape `(*batch, heads, seq, seq)`.

    **Arguments:**

    - `attention_mask`: of shape `(*batch, seq)`, marking the tokens that may be attended to, or
        `(*batch, seq, seq)`, marking for each token those it may attend to. None means all.
    - `batch_seq`: the shape of the token ids.
    - `causal`: whether, besides, no token may attend to later ones.

    **Raises:** `ValueError` if the mask has another shape or holds neither booleans nor integers.
    """
    seq = batch_seq[-1]
    causality = causal_mask(seq, seq) if causal else None
    may_attend = check_mask("attention_mask", attention_mask, batch_seq, (*batch_seq, seq))
    if may_attend is None:
        return causality
    mask = key_mask(may_attend) if may_attend.ndim == len(batch_seq) else pair_mask(may_attend)
    return mask if causality is None else mask & align_trailing(causality, mask)


def check_length(seq: Size, config: BertConfig, *, are_side_by_side: bool) -> None:
    """**Raises:** `ValueError` if there are no tokens, or more than positions, unless those that
    are side by side share them.
    """
    limit = config.max_position_embeddings
    if seq > limit and not are_side_by_side:
        raise ValueError(
            f"The sequence has {seq} tokens, but this model has positions for {limit} "
            "(max_position_embeddings). Truncate it or split it into windows."
        )
    if seq == 0:
        raise ValueError("The sequence is empty: input_ids must have at least one token.")


def check_positions(position_ids: object, config: BertConfig, batch_seq: tuple[Size, ...]) -> None:
    """**Raises:** `ValueError` if there is no such position, or there are not as many as tokens."""
    limit = config.max_position_embeddings
    check_ids("position_ids", position_ids, limit, "max_position_embeddings")
    check_broadcasts("position_ids", position_ids, batch_seq)


def check_counted_positions(positions: Int[Array, "*batch seq"], config: BertConfig) -> None:
    """**Raises:** `ValueError` if there are more than the model has, where that is known."""
    if isinstance(positions, jax.core.Tracer):
        return
    last, limit = int(jnp.max(positions, initial=0)), config.max_position_embeddings
    if last >= limit:
        raise ValueError(
            f"With these tokens there would be {last + 1} in a row, but this model has positions "
            f"for {limit} (max_position_embeddings)."
        )


def check_segments(
    segment_ids: object,
    attention_mask: AttentionMask,
    cache: DecoderCache | None,
    batch_seq: tuple[Size, ...],
) -> None:
    """**Raises:** `ValueError` if there is not one for each token, or something that does not go
    with them.
    """
    check_array("segment_ids", segment_ids, np.integer, "integers")
    check_shape("segment_ids", segment_ids, batch_seq)
    if attention_mask is not None:
        raise ValueError(
            "Give either attention_mask or segment_ids; both were given. Padding is what has the "
            "segment 0."
        )
    if cache is not None:
        raise ValueError(
            "segment_ids was given with a cache, in which each row is one sequence. Decode "
            "sequences in rows of their own."
        )
