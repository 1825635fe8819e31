"""Text to token ids and back, by the `tokenizers` library."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..convert import Location

if TYPE_CHECKING:
    import tokenizers

_NEEDED_BY_BERT = ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
_SPECIAL_TOKENS = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
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
        self.special_tokens = _SPECIAL_TOKENS | dict(special_tokens or {})
        self.max_length = max_length
        backend.no_padding()
        backend.no_truncation()

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | PathLike[str] | Location, **hub_options: Any
    ) -> "Tokenizer":
        """The tokenizer of a checkpoint: from its `tokenizer.json`, or else from its `vocab.txt`
        and what `tokenizer_config.json` says of it.

        **Arguments:**

        - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub.
        - `hub_options`: `revision`, `token`, `subfolder`, `cache_dir`, `local_files_only`.

        **Raises:** `FileNotFoundError` if there is neither file; `ValueError` if one is damaged.
        """
        location = path_or_id
        if not isinstance(location, Location):
            location = Location.of(location, **hub_options)
        config_file = location.find("tokenizer_config.json")
        config = _read_json(config_file) if config_file else {}
        special_tokens = {
            role: _token_text(config[role]) for role in _SPECIAL_TOKENS if config.get(role)
        }
        max_length = config.get("model_max_length")
        if not isinstance(max_length, int | float) or max_length > 10**6:  # "no limit" in practice
            max_length = None
        backend_file = location.find("tokenizer.json")
        if backend_file is not None:
            backend = _read_backend(backend_file)
        else:
            vocabulary = location.require("vocab.txt", "nor tokenizer.json; text needs either")
            backend = _backend_from_vocabulary(vocabulary, config, special_tokens)
        return cls(
            backend,
            special_tokens=special_tokens,
            max_length=None if max_length is None else int(max_length),
        )

    def __call__(
        self,
        texts: str | Sequence[str],
        text_pairs: str | Sequence[str] | None = None,
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
        texts: Sequence[str],
        text_pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The token ids and the token type ids of each text, not padded.

        **Raises:** `ValueError` if one of the texts is not a string, or is not valid Unicode.
        """
        check_texts("texts", texts)
        inputs: Sequence[Any] = texts
        if text_pairs is not None:
            check_texts("text_pairs", text_pairs)
            if len(texts) != len(text_pairs):
                raise ValueError(f"There are {len(texts)} texts, but {len(text_pairs)} text_pairs.")
            inputs = list(zip(texts, text_pairs, strict=True))
        self._truncate(self.max_length if max_length is None else max_length)
        ids, type_ids = [], []
        for start in range(0, len(inputs), _TEXTS_AT_ONCE):
            encodings = self.backend.encode_batch_fast(inputs[start : start + _TEXTS_AT_ONCE])
            ids += [np.asarray(encoding.ids, np.int32) for encoding in encodings]
            type_ids += [np.asarray(encoding.type_ids, np.int32) for encoding in encodings]
        return ids, type_ids

    def _truncate(self, max_length: int | None) -> None:
        if max_length is None:
            self.backend.no_truncation()
            return
        special = self.backend.num_special_tokens_to_add(is_pair=False)
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

    def write(self, folder: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers reads too."""
        self.backend.no_truncation()
        self.backend.save(str(folder / "tokenizer.json"))
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= self.special_tokens
        if self.max_length is not None:
            config["model_max_length"] = self.max_length
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def pad_rows(rows: Sequence[np.ndarray], shape: tuple[int, int], value: int) -> np.ndarray:
    """The rows as an array of this shape, with `value` after the end of each and of them all."""
    padded = np.full(shape, value, np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def check_texts(name: str, texts: Any) -> None:
    """Checks that `texts` is a sequence of strings.

    **Raises:** `ValueError` that names the first one that is not.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence | np.ndarray):
        raise ValueError(f"{name} must be a sequence of strings, got {type(texts).__name__}.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] must be a string, got {type(text).__name__}: {text!r}.")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(
                f"{name}[{i}] is not valid Unicode: it contains a lone surrogate, usually from "
                f"bytes decoded with the wrong encoding: {text[:50]!r}."
            )


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ModuleNotFoundError(
            "Text needs the package tokenizers: pip install 'eqxbert[text]'."
        ) from error
    return tokenizers


def _read_backend(path: Path) -> "tokenizers.Tokenizer":
    library = _tokenizers()
    try:
        return library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path} is not a valid tokenizer: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a JSON {type(values).__name__}, not an object.")
    return values


def _token_text(token: str | Mapping[str, Any]) -> str:
    """A special token is written as its text, or as an object that describes it."""
    return token if isinstance(token, str) else str(token["content"])


def _backend_from_vocabulary(
    path: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> "tokenizers.Tokenizer":
    """BERT's tokenizer over a vocabulary of one token a line, with `tokenizer_config.json`'s
    settings (transformers' `BertTokenizer`).
    """
    library = _tokenizers()
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

    tokens = path.read_text(encoding="utf-8").splitlines()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    special = _SPECIAL_TOKENS | dict(special_tokens)
    missing = [special[role] for role in _SPECIAL_TOKENS if special[role] not in vocabulary]
    if missing:
        raise ValueError(
            f"{path} ({len(tokens)} tokens) lacks the special tokens {', '.join(missing)}. It is "
            "not a BERT vocabulary, or tokenizer_config.json is another model's."
        )
    backend = library.Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    cls, sep = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    backend.add_special_tokens([special[role] for role in _SPECIAL_TOKENS])
    never_split = config.get("never_split") or []
    backend.add_tokens([AddedToken(token, normalized=False) for token in never_split])
    added = config.get("added_tokens_decoder", {})
    for _, token in sorted(added.items(), key=lambda item: int(item[0])):
        options = {k: v for k, v in token.items() if k not in ("content", "special", "__type")}
        add = backend.add_special_tokens if token.get("special") else backend.add_tokens
        add([AddedToken(token["content"], **options)])
    return backend
