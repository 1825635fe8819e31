"""What is given to a model, and its conversion to what the encoder works with."""

from typing import TypedDict

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..checks import AttentionMask, check_mask
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
