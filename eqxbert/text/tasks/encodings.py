"""Texts as tokens that know which words, and which characters, they stand for."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

# The library's results take far more memory than what is kept of them.
_TEXTS_AT_ONCE = 256


def encodings(
    tokenizer: Tokenizer,
    inputs: Sequence[Any],
    *,
    is_pretokenized: bool = False,
    truncation: dict[str, Any] | None = None,
) -> "Iterator[tokenizers.Encoding]":
    """What the `tokenizers` library tells of each text.

    **Arguments:**

    - `tokenizer`: what makes tokens of the texts. It stays as it is.
    - `inputs`: texts, pairs of texts or, if `is_pretokenized`, lists of words.
    - `truncation`: the arguments of the library's `enable_truncation`; None for no limit.
    """
    import tokenizers

    # A copy, since truncation is a state.
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.no_truncation()
    if truncation is not None:
        backend.enable_truncation(**truncation)
    for start in range(0, len(inputs), _TEXTS_AT_ONCE):
        yield from backend.encode_batch(
            list(inputs[start : start + _TEXTS_AT_ONCE]), is_pretokenized=is_pretokenized
        )
