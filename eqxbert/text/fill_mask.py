"""Words for the gaps in a text."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..models import BertForMaskedLM
from .batching import buckets
from .tokenizer import Tokenizer, check_text


class FilledMask(NamedTuple):
    """A token for a gap.

    - `token`: the token; one that goes on with a word begins with `##`.
    - `probability`: how likely it is, from 0 to 1.
    - `text`: the text with the token in this gap, the others being left open.
    """

    token: str
    probability: float
    text: str


def fill_mask(
    model: BertForMaskedLM, tokenizer: Tokenizer, text: str, *, top_k: int = 5
) -> list[list[FilledMask]]:
    """The likeliest tokens for each `[MASK]` in a text.

    **Arguments:**

    - `model`, `tokenizer`: of one checkpoint.
    - `text`: a text with gaps, marked by the tokenizer's mask token.
    - `top_k`: how many tokens there are for each.

    **Returns:** for each gap its tokens, the likeliest first.

    **Raises:** `ValueError` if there is no gap, the text is longer than the model allows, or
    `top_k` is not a number of tokens.
    """
    check_text("text", text)
    mask = tokenizer.special_tokens["mask_token"]
    if not 1 <= top_k <= tokenizer.vocab_size:
        raise ValueError(f"top_k is {top_k}, expected 1 to {tokenizer.vocab_size} (vocab_size).")
    limit = model.config.max_position_embeddings
    inputs = tokenizer(text, max_length=2**31)  # not cut off: a gap might be
    [places] = np.nonzero(inputs["input_ids"] == tokenizer.mask_id)
    seq = len(inputs["input_ids"])
    if len(places) == 0:
        raise ValueError(f"The text has no {mask}: {text!r:.100}. Write it where a word is wanted.")
    if seq > limit:
        raise ValueError(f"The text has {seq} tokens, but the model takes {limit} at most.")
    # A few shapes, each of which is compiled once.
    padding = next(size for size in buckets(limit) if size >= seq) - seq
    padded = {name: np.pad(array, (0, padding)) for name, array in inputs.items()}
    probabilities = np.asarray(_probabilities(model, padded))[places, : tokenizer.vocab_size]

    parts = text.split(mask)
    filled = []
    for gap, row in enumerate(probabilities):
        tokens = [int(i) for i in np.argsort(-row, kind="stable")[:top_k]]
        filled.append(
            [_fill(parts, gap, mask, tokenizer.id_to_token(i), float(row[i])) for i in tokens]
        )
    return filled


@eqx.filter_jit
def _probabilities(model: BertForMaskedLM, inputs: Any) -> Float[Array, "seq vocab"]:
    return jax.nn.softmax(model(**inputs).logits.astype(jnp.float32))


def _fill(parts: list[str], gap: int, mask: str, token: str, probability: float) -> FilledMask:
    before, after = mask.join(parts[: gap + 1]), mask.join(parts[gap + 1 :])
    if token.startswith("##"):
        before, word = before.rstrip(), token.removeprefix("##")
    else:
        word = token
    return FilledMask(token, probability, before + word + after)
