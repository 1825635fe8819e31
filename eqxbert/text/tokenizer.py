"""Text to token ids and back, by the `tokenizers` library."""

import json
import threading
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..convert import staged_folder
from ..files import Location
from .tokenizer_files import SPECIAL_TOKENS, read_backend, read_settings

if TYPE_CHECKING:
    import tokenizers

# Texts are tokenised this many at a time: the library's results take far more memory than the ids.
_TEXTS_AT_ONCE = 1024


class Tokenizer:
    """A WordPiece tokenizer as BERT's checkpoints bring it.

    Called with texts, it returns the arguments of a model: `model(**tokenizer(["some text"]))`.

    - `backend`: the `tokenizers.Tokenizer` that does the work.
    - `special_tokens`: the model's special tokens by the role they play, such as "mask_token".
    - `max_length`: how many tokens of a text are kept unless a call says otherwise; None for all.
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        *,
        special_tokens: Mapping[str, str] | None = None,
        max_length: int | None = None,
    ):
        self.backend = backend
        self.special_tokens = SPECIAL_TOKENS | dict(special_tokens or {})
        self.max_length = max_length
        # Truncation is a state of the backend, which several threads must not change at once.
        self._lock = threading.Lock()
        backend.no_padding()
        backend.no_truncation()

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | PathLike[str] | Location, **hub_options: Any
    ) -> "Tokenizer":
        """The tokenizer of a checkpoint: from its `tokenizer.json`, or else from its `vocab.txt`,
        with what `tokenizer_config.json` says of it.

        **Arguments:**

        - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub.
        - `hub_options`: `revision`, `token`, `subfolder`, `cache_dir`, `local_files_only`.

        **Raises:** `FileNotFoundError` if there is neither file; `ValueError` if one is damaged.
        """
        location = path_or_id
        if not isinstance(location, Location):
            location = Location.of(location, **hub_options)
        settings = read_settings(location)
        return cls(
            read_backend(location, settings),
            special_tokens=settings.special_tokens,
            max_length=settings.max_length,
        )

    def __call__(
        self,
        texts: str | Sequence[str] | np.ndarray,
        text_pairs: str | Sequence[str] | np.ndarray | None = None,
        *,
        max_length: int | None = None,
    ) -> dict[str, np.ndarray]:
        """The model's arguments for some texts, padded on the right to the longest of them.

        **Arguments:**

        - `texts`: texts, or a single one, for which the arrays have no batch axis.
        - `text_pairs`: the second part for each text, for tasks on pairs.
        - `max_length`: how many tokens are kept, special ones included; `self.max_length` if None.

        **Returns:** `input_ids`, `attention_mask` and `token_type_ids`, of shape (texts, seq).
        """
        if isinstance(texts, str):
            pairs = [text_pairs] if isinstance(text_pairs, str) else text_pairs
            batch = self([texts], pairs, max_length=max_length)
            return {name: array[0] for name, array in batch.items()}
        ids, type_ids = self.encode(texts, text_pairs, max_length=max_length)
        seq = max(map(len, ids), default=0)
        mask = [np.ones(len(row), np.int32) for row in ids]
        return {
            "input_ids": pad_rows(ids, (len(ids), seq), self.pad_id),
            "attention_mask": pad_rows(mask, (len(ids), seq), 0),
            "token_type_ids": pad_rows(type_ids, (len(ids), seq), 0),
        }

    def encode(
        self,
        texts: Sequence[str] | np.ndarray,
        text_pairs: Sequence[str] | np.ndarray | None = None,
        *,
        max_length: int | None = None,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The token ids and the token type ids of each text, not padded.

        **Raises:** `ValueError` if one of the texts is not a string, or is not valid Unicode.
        """
        check_texts("texts", texts)
        inputs: list[Any] = list(texts)
        if text_pairs is not None:
            check_texts("text_pairs", text_pairs)
            if len(texts) != len(text_pairs):
                raise ValueError(f"There are {len(texts)} texts, but {len(text_pairs)} text_pairs.")
            inputs = list(zip(texts, text_pairs, strict=True))
        max_length = self.max_length if max_length is None else max_length
        ids, type_ids = [], []
        with self._lock:
            self._truncate(max_length, is_pair=text_pairs is not None)
            for start in range(0, len(inputs), _TEXTS_AT_ONCE):
                encodings = self.backend.encode_batch_fast(inputs[start : start + _TEXTS_AT_ONCE])
                ids += [np.asarray(encoding.ids, np.int32) for encoding in encodings]
                type_ids += [np.asarray(encoding.type_ids, np.int32) for encoding in encodings]
        return ids, type_ids

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def _truncate(self, max_length: int | None, *, is_pair: bool) -> None:
        if max_length is None:
            self.backend.no_truncation()
            return
        special = self.backend.num_special_tokens_to_add(is_pair)
        if max_length <= special:
            raise ValueError(
                f"max_length is {max_length}, but the special tokens alone are {special}."
            )
        self.backend.enable_truncation(max_length)

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_special_tokens: bool = True) -> str:
        """The text that token ids stand for."""
        values = [int(i) for i in np.asarray(ids)]
        return self.backend.decode(values, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int:
        """The id of a token.

        **Raises:** `KeyError` if the vocabulary does not have it.
        """
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise KeyError(f"The vocabulary has no token {token!r}.")
        return token_id

    def id_to_token(self, token_id: int) -> str:
        """The token with this id.

        **Raises:** `KeyError` if the vocabulary does not have it.
        """
        token = self.backend.id_to_token(token_id)
        if token is None:
            raise KeyError(f"The vocabulary has no id {token_id}; it has {self.vocab_size} tokens.")
        return token

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included."""
        return self.backend.get_vocab_size()

    @property
    def pad_id(self) -> int:
        """The id of the padding token."""
        return self.token_to_id(self.special_tokens["pad_token"])

    @property
    def mask_id(self) -> int:
        """The id of the token that stands for a masked one."""
        return self.token_to_id(self.special_tokens["mask_token"])

    def lowercased(self) -> "Tokenizer":
        """The same tokenizer, but lower-casing its input first."""
        import tokenizers
        from tokenizers import normalizers

        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        steps = [normalizers.Lowercase()]
        if backend.normalizer is not None:
            steps.append(backend.normalizer)
        backend.normalizer = normalizers.Sequence(steps)
        return Tokenizer(backend, special_tokens=self.special_tokens, max_length=self.max_length)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers reads too. If
        writing fails, what was in the folder stays.
        """
        with staged_folder(folder) as staging:
            self.write(staging)

    def write(self, folder: Path) -> None:
        """What `save_pretrained` writes, straight into a folder that is there."""
        with self._lock:
            self.backend.no_truncation()
            self.backend.save(str(folder / "tokenizer.json"))
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        }
        config |= self.special_tokens
        if self.max_length is not None:
            config["model_max_length"] = self.max_length
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def pad_rows(rows: Sequence[np.ndarray], shape: tuple[int, int], value: int) -> np.ndarray:
    """The rows as an array of this shape, with `value` after each, and whole rows of it
    after all.
    """
    padded = np.full(shape, value, np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def check_texts(name: str, texts: Any) -> None:
    """Checks that `texts` is a sequence of strings.

    **Raises:** `ValueError` that names the first one that is not.
    """
    is_sequence = isinstance(texts, Sequence) or (isinstance(texts, np.ndarray) and texts.ndim == 1)
    if isinstance(texts, str | bytes) or not is_sequence:
        raise ValueError(f"{name} must be a sequence of strings, got {type(texts).__name__}.")
    for i, text in enumerate(texts):
        check_text(f"{name}[{i}]", text)


def check_text(name: str, text: Any) -> None:
    """Checks that `text` is a string of valid Unicode.

    **Raises:** `ValueError` that names it.
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a string, got {type(text).__name__}: {text!r}.")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(
            f"{name} is not valid Unicode: it contains a lone surrogate, usually from bytes "
            f"decoded with the wrong encoding: {text[:50]!r}."
        )
