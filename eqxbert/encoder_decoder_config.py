"""The configuration of an encoder and a decoder that work together."""

import dataclasses
import json
from collections.abc import Mapping
from os import PathLike
from typing import Any

from .config import CONFIG_FILE, PROVENANCE, BertConfig
from .files import Location, read_json
from .frozen_dict import FrozenDict


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """What determines an `EncoderDecoderModel`: two BERTs, and the tokens that decoding begins,
    ends and is filled up with. Names are those of transformers' `EncoderDecoderConfig`.

    - `encoder`, `decoder`: of the parts. The decoder is always one, with cross-attention.
    - `decoder_start_token_id`: the decoder's first token; its `bos_token_id`, or else its
        `cls_token_id`, if None.
    - `pad_token_id`, `eos_token_id`: the decoder's if None.
    - `extra`: what else is in a `config.json`; it is kept.

    **Raises:** `ValueError` if the parts contradict one another.
    """

    encoder: BertConfig
    decoder: BertConfig
    decoder_start_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    dtype: str | None = None
    architectures: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder"):
            if not isinstance(getattr(self, name), BertConfig):
                raise ValueError(f"{name} must be a BertConfig, got {getattr(self, name)!r}.")
        clash = {field.name for field in dataclasses.fields(self)} & {*self.extra}
        if clash:
            raise ValueError(f"extra contains {', '.join(sorted(clash))}, which are fields.")
        decoder = self.decoder
        if not (decoder.is_decoder and decoder.add_cross_attention):
            decoder = decoder.replace(is_decoder=True, add_cross_attention=True)
        size = decoder.cross_attention_hidden_size
        if size is not None and size != self.encoder.hidden_size:
            raise ValueError(
                f"The decoder's cross_attention_hidden_size is {size}, but the encoder's "
                f"hidden_size is {self.encoder.hidden_size}. Make them equal, or leave the former "
                "out: then the encoder's output is projected to the decoder's size."
            )
        start = self.decoder_start_token_id
        for choice in (decoder.bos_token_id, decoder.cls_token_id):
            start = choice if start is None else start
        if isinstance(start, bool) or not isinstance(start, int | None):
            raise ValueError(f"decoder_start_token_id must be an integer, got {start!r}.")
        if start is not None and not 0 <= start < decoder.vocab_size:
            raise ValueError(
                f"decoder_start_token_id is {start}, but the decoder's vocabulary has "
                f"{decoder.vocab_size} tokens."
            )
        # One place for each fact: generation asks the decoder.
        ends = decoder.eos_token_id if self.eos_token_id is None else self.eos_token_id
        pad = decoder.pad_token_id if self.pad_token_id is None else self.pad_token_id
        decoder = decoder.replace(eos_token_id=ends, pad_token_id=pad)
        for name, value in {
            "decoder": decoder,
            "decoder_start_token_id": start,
            "pad_token_id": decoder.pad_token_id,
            "eos_token_id": decoder.eos_token_id,
            "extra": FrozenDict(self.extra),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the decoder's head reads the decoder's word embeddings."""
        return self.decoder.tie_word_embeddings

    def replace(self, **changes: Any) -> "EncoderDecoderConfig":
        """The same configuration with other values for some fields. Another decoder brings its own
        `pad_token_id` and `eos_token_id`, unless these are given as well.
        """
        tokens = {n: changes.get(n) for n in ("pad_token_id", "eos_token_id")}
        if "decoder" in changes:
            changes |= tokens
        elif unset := {n: None for n, value in tokens.items() if n in changes and value is None}:
            changes["decoder"] = self.decoder.replace(**unset)
        return dataclasses.replace(self, **changes)

    def without_provenance(self) -> "EncoderDecoderConfig":
        """Without what describes the file rather than the model."""
        return self.replace(
            encoder=self.encoder.without_provenance(),
            decoder=self.decoder.without_provenance(),
            dtype=None,
            architectures=None,
            extra={k: v for k, v in self.extra.items() if k not in PROVENANCE},
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EncoderDecoderConfig":
        """The configuration that a `config.json`, parsed into `values`, describes.

        **Raises:** `ValueError` if it is not that of two BERTs, or they share their weights
        (`tie_encoder_decoder`).
        """
        if values.get("model_type") != "encoder-decoder" or not {"encoder", "decoder"} <= set(
            values
        ):
            raise ValueError(
                f"model_type is {values.get('model_type')!r}, expected 'encoder-decoder' with an "
                "encoder and a decoder."
            )
        if values.get("tie_encoder_decoder"):
            raise ValueError(
                "tie_encoder_decoder is true: encoder and decoder share their weights, which is "
                "not supported. Save the model with transformers after untying them."
            )
        values = dict(values)
        encoder, decoder = (BertConfig.from_dict(values.pop(n)) for n in ("encoder", "decoder"))
        values["dtype"] = values.pop("torch_dtype", None) or values.get("dtype")
        fields = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in fields
        }
        derived = (*fields, "model_type", "is_encoder_decoder", "tie_word_embeddings")
        extra = {key: value for key, value in values.items() if key not in derived}
        return cls(encoder=encoder, decoder=decoder, **known, extra=extra)

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | PathLike[str] | Location, **hub_options: Any
    ) -> "EncoderDecoderConfig":
        """The configuration of a checkpoint, from its `config.json`. Arguments and errors are those
        of `BertConfig.from_pretrained`, but for fields to change.
        """
        location = path_or_id
        if not isinstance(location, Location):
            location = Location.of(location, **hub_options)
        path = location.require(CONFIG_FILE, "which describes encoder and decoder")
        try:
            return cls.from_dict(read_json(location, CONFIG_FILE))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The contents of a `config.json`, as transformers reads it."""
        values = {
            "model_type": "encoder-decoder",
            "is_encoder_decoder": True,
            "encoder": self.encoder.to_dict(),
            "decoder": self.decoder.to_dict(),
            "decoder_start_token_id": self.decoder_start_token_id,
            "pad_token_id": self.pad_token_id,
            "eos_token_id": _as_list(self.eos_token_id),
            "tie_word_embeddings": self.tie_word_embeddings,
            "dtype": self.dtype,
            "architectures": _as_list(self.architectures),
        }
        return {k: v for k, v in values.items() if v is not None} | dict(self.extra)

    def to_json(self) -> str:
        """The text of a `config.json`."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
