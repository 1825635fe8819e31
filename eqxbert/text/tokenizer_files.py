"""The files that a BERT's tokenizer is kept in, of which transformers has had several kinds."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..files import Location, read_json

if TYPE_CHECKING:
    import tokenizers

# The roles special tokens play, and the tokens that play them unless a file says otherwise.
SPECIAL_TOKENS = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}

# Settings of the normalizer: what transformers calls them, what the library does, the default.
_NORMALIZER = (
    ("do_lower_case", "lowercase", True),
    ("strip_accents", "strip_accents", None),
    ("tokenize_chinese_chars", "handle_chinese_chars", True),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the files beside the vocabulary say.

    - `config`: the contents of `tokenizer_config.json`.
    - `special_tokens`: token by role.
    - `added_tokens`: id -> description of tokens that may not be in the vocabulary.
    - `max_length`: the greatest number of tokens, or None.
    """

    config: Mapping[str, Any]
    special_tokens: Mapping[str, str]
    added_tokens: Mapping[int, Mapping[str, Any]]
    max_length: int | None


def read_settings(location: Location) -> Settings:
    """Reads `tokenizer_config.json`, and the two files that came before it."""
    config = read_json(location, "tokenizer_config.json", {})
    roles = read_json(location, "special_tokens_map.json", {}) | config
    special_tokens = {role: _text(roles[role]) for role in SPECIAL_TOKENS if roles.get(role)}
    added: dict[int, Mapping[str, Any]] = {
        int(index): {"content": token}
        for token, index in read_json(location, "added_tokens.json", {}).items()
    }
    added |= {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    max_length = config.get("model_max_length")
    if not isinstance(max_length, int | float) or max_length > 10**6:  # "no limit" in practice
        max_length = None
    return Settings(config, special_tokens, added, None if max_length is None else int(max_length))


def read_backend(location: Location, settings: Settings) -> "tokenizers.Tokenizer":
    """The tokenizer in `tokenizer.json`, or else one made of `vocab.txt`."""
    path = location.find("tokenizer.json")
    if path is not None:
        backend = _from_json(path)
        _follow_config(backend, settings.config)
    else:
        path = location.require("vocab.txt", "nor tokenizer.json; text needs either")
        backend = _from_vocabulary(path, settings)
    _add_tokens(backend, settings.added_tokens, path)
    return backend


def _text(token: str | Mapping[str, Any]) -> str:
    """A special token is written as its text, or as an object that describes it."""
    return token if isinstance(token, str) else str(token["content"])


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ModuleNotFoundError(
            "Text needs the package tokenizers: pip install 'eqxbert[text]'."
        ) from error
    return tokenizers


def _from_json(path: Path) -> "tokenizers.Tokenizer":
    library = _library()
    try:
        return library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path} is not a valid tokenizer: {error}") from error


def _follow_config(backend: "tokenizers.Tokenizer", config: Mapping[str, Any]) -> None:
    """Where `tokenizer_config.json` and `tokenizer.json` disagree, transformers follows the former,
    for BERT's own tokenizer.
    """
    is_berts = str(config.get("tokenizer_class", "")).startswith("BertTokenizer")
    normalizer = backend.normalizer
    if is_berts and type(normalizer).__name__ == "BertNormalizer":
        for name, attribute, _ in _NORMALIZER:
            if name in config:
                setattr(normalizer, attribute, config[name])
        backend.normalizer = normalizer


def _from_vocabulary(path: Path, settings: Settings) -> "tokenizers.Tokenizer":
    """BERT's tokenizer over a vocabulary of one token a line (transformers' `BertTokenizer`)."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    # Not splitlines(), for which some characters that are tokens end a line too.
    tokens = text.removesuffix("\n").split("\n")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    special = SPECIAL_TOKENS | dict(settings.special_tokens)
    missing = [token for token in special.values() if token not in vocabulary]
    if missing:
        raise ValueError(
            f"{path} ({len(tokens)} tokens) lacks the special tokens {', '.join(missing)}. It is "
            "not a BERT vocabulary, or tokenizer_config.json is another model's."
        )
    options = {
        attribute: settings.config.get(name, default) for name, attribute, default in _NORMALIZER
    }
    return make_backend(vocabulary, special, **options)


def make_backend(
    vocabulary: Mapping[str, int],
    special: Mapping[str, str] = MappingProxyType(SPECIAL_TOKENS),
    **normalizer: Any,
) -> "tokenizers.Tokenizer":
    """BERT's tokenizer over a vocabulary.

    **Arguments:**

    - `vocabulary`: ids by tokens, the special ones included.
    - `special`: the special tokens by role.
    - `normalizer`: arguments of the library's `BertNormalizer`.
    """
    library = _library()
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    model = models.WordPiece(dict(vocabulary), unk_token=special["unk_token"])
    backend = library.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(**normalizer)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    cls, sep = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    backend.add_special_tokens(list(special.values()))
    return backend


def _add_tokens(
    backend: "tokenizers.Tokenizer", added: Mapping[int, Mapping[str, Any]], path: Path
) -> None:
    """Adds tokens in the order of their ids.

    **Raises:** `ValueError` if one would get another id than its file says.
    """
    from tokenizers import AddedToken

    for index, description in sorted(added.items()):
        options = {k: v for k, v in description.items() if k not in ("content", "__type")}
        token = AddedToken(description["content"], **options)
        add = backend.add_special_tokens if options.get("special") else backend.add_tokens
        add([token])
        if backend.token_to_id(token.content) != index:
            raise ValueError(
                f"{path.parent}: the added token {token.content!r} should have the id {index}, but "
                f"after the vocabulary and the tokens before it, its id is "
                f"{backend.token_to_id(token.content)}. The files do not belong together."
            )
