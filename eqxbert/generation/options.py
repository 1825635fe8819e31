"""What generation can be asked for, and the processors that follow from it."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..config import BertConfig
from ..files import HUB_OPTIONS, Location, read_json
from . import processors as p, sampling
from .processors import ById, Processor

OPTIONS_FILE = "generation_config.json"
logger = logging.getLogger("eqxbert")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How `generate` and `stream` choose tokens. Names and rules are those of transformers.

    - `eos_token_id`, `pad_token_id`: the tokens that end a sequence, and what follows them; those
        of the model's configuration if None.
    - `decoder_start_token_id`: the token that an encoder-decoder's output begins with; that of the
        model's configuration if None.
    - `num_beams`: the number of beams; 1 for none.
    - `num_return_sequences`: how many sequences are returned for each prompt: the best beams, or
        independent samples.
    - `length_penalty`: beams are compared by their score divided by `length ** length_penalty`.
    - `early_stopping`: with beams, True ends when as many have ended as there are beams; False also
        when it is unlikely that better ones will be found; "never" only when there can be none.
    - `do_sample`: whether tokens are drawn; if not, the likeliest are taken.
    - `temperature`: what the scores are divided by before drawing.
    - `top_k`, `top_p`, `min_p`, `typical_p`: which tokens are drawn from; see
        `eqxbert.generation.sampling`.
    - `repetition_penalty`: above 1, tokens that have occurred become less likely.
    - `no_repeat_ngram_size`: no sequence of so many tokens occurs twice; 0 for no such rule.
    - `min_length`, `min_new_tokens`: there is no end before; with the prompt, or without. Padding
        does not count, since each row is continued as if it were alone. (In transformers, that on
        the left counts for `min_length`.)
    - `suppress_tokens`, `bad_words`: tokens, and sequences of tokens, that do not occur. As in
        transformers, an end that is a bad word by itself is not heeded: it can be suppressed.
    - `forced_bos_token_id`: the token after the very first one.
    - `forced_eos_token_id`: the last token, where the limit is reached, or several to choose from.
    - `processors`: functions `(ids, logits, step) -> logits` of your own; see
        `eqxbert.generation.processors`. They are told apart by identity: pass the same ones again,
        or the program is compiled again.
    """

    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    decoder_start_token_id: int | None = None
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float | int = 1.0
    early_stopping: bool | str = False
    do_sample: bool = False
    temperature: float | int = 1.0
    top_k: int | None = None
    top_p: float | int | None = None
    min_p: float | int | None = None
    typical_p: float | int | None = None
    repetition_penalty: float | int = 1.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int = 0
    suppress_tokens: Sequence[int] = ()
    bad_words: Sequence[Sequence[int]] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    processors: Sequence[Processor] = ()

    def __post_init__(self) -> None:
        settled: dict[str, Any] = {n: check_integer(n, getattr(self, n)) for n in _COUNTS}
        settled |= {name: _number(name, getattr(self, name)) for name in _NUMBERS}
        for names, kind in ((_OPTIONAL_INTEGERS, check_integer), (_OPTIONAL_NUMBERS, _number)):
            given = {name: getattr(self, name) for name in names}
            settled |= {n: kind(n, value) for n, value in given.items() if value is not None}
        for name in ("eos_token_id", "forced_eos_token_id"):
            if (value := getattr(self, name)) is not None:
                settled[name] = _integers(name, [value] if np.ndim(value) == 0 else value)
        settled["suppress_tokens"] = _integers("suppress_tokens", self.suppress_tokens)
        words = _sequence("bad_words", self.bad_words)
        settled["bad_words"] = tuple(_integers("bad_words", word) for word in words)
        processors = _sequence("processors", self.processors)
        if not all(map(callable, processors)):
            raise ValueError(f"processors must be functions, got {self.processors!r}.")
        settled["processors"] = tuple(map(ById.of, processors))
        if not isinstance(self.do_sample, bool):
            raise ValueError(f"do_sample must be True or False, got {self.do_sample!r}.")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(
                f'early_stopping must be True, False or "never", got {self.early_stopping!r}.'
            )
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | PathLike[str], **options: Any
    ) -> "GenerationOptions":
        """The options in a checkpoint's `generation_config.json`, by which transformers generates
        unless it is told otherwise: `generate(model, ids, max_new_tokens=64, **vars(options))`.

        What the file does not say is as it is here by default. (In transformers, `top_k` is 50
        then.) What no field stands for, such as `max_length`, is left out, and named in the log.

        **Arguments:**

        - `path_or_id`: a local folder, or the name of a repository on the Hugging Face hub.
        - `options`: how to reach it (`revision`, `token`, `subfolder`, `cache_dir`,
            `local_files_only`), and fields to change (`num_beams=1`).

        **Raises:** `FileNotFoundError` and `ConnectionError` if there is none; `ValueError` if it
        is damaged, or an option cannot have its value.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        changes = {name: options.pop(name) for name in fields & options.keys()}
        if unknown := options.keys() - HUB_OPTIONS:
            raise TypeError(
                f"{', '.join(sorted(unknown))}: neither a field of GenerationOptions nor one of "
                f"{', '.join(HUB_OPTIONS)}."
            )
        location = Location.of(path_or_id, **options)
        path = location.require(OPTIONS_FILE, "so there are no options but those of its config")
        values = {k: v for k, v in read_json(location, OPTIONS_FILE).items() if v is not None}
        if "bad_words_ids" in values:
            values["bad_words"] = values.pop("bad_words_ids")
        if left_out := sorted(values.keys() - fields):
            logger.info("%s: without %s", path, ", ".join(left_out))
        try:
            return cls(**{name: values[name] for name in fields & values.keys()} | changes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def settled(self, config: BertConfig) -> "GenerationOptions":
        """With the end and the padding of the model's configuration, where they are not given.

        **Raises:** `ValueError` for values that are out of range or contradict one another.
        """
        ends = self.eos_token_id
        if ends is None:
            ends = () if config.eos_token_id is None else config.eos_token_id
        pad = config.pad_token_id if self.pad_token_id is None else self.pad_token_id
        settled = dataclasses.replace(self, eos_token_id=ends, pad_token_id=pad)
        if pad is None:
            first = settled.ends[0] if settled.ends else 0
            settled = dataclasses.replace(settled, pad_token_id=first)
        settled._check_counts()
        settled._check_sampling()
        settled._check_idle()
        settled._check_tokens(config.vocab_size)
        settled._check_choice(config.vocab_size)
        return settled

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a sequence, once they are settled."""
        assert isinstance(self.eos_token_id, tuple)
        return self.eos_token_id

    @property
    def forced_ends(self) -> tuple[int, ...]:
        """The tokens of which one is the last where the limit is reached, if any is."""
        assert self.forced_eos_token_id is None or isinstance(self.forced_eos_token_id, tuple)
        return self.forced_eos_token_id or ()

    @property
    def padding(self) -> int:
        """What follows the end, once it is settled."""
        assert self.pad_token_id is not None
        return self.pad_token_id

    def _check_tokens(self, vocab_size: int) -> None:
        tokens = {
            "eos_token_id": self.ends,
            "pad_token_id": (self.padding,),
            "decoder_start_token_id": (self.decoder_start_token_id,),
            "suppress_tokens": self.suppress_tokens,
            "bad_words": tuple(token for word in self.bad_words for token in word),
            "forced_bos_token_id": (self.forced_bos_token_id,),
            "forced_eos_token_id": self.forced_ends,
        }
        for name, ids in tokens.items():
            for token in ids:
                if not (token is None or 0 <= token < vocab_size):
                    raise ValueError(
                        f"{name} contains {token}, but the vocabulary has the ids 0 to "
                        f"{vocab_size - 1}."
                    )
        if not all(self.bad_words):
            raise ValueError("bad_words contains an empty word; expected lists of token ids.")

    def _check_choice(self, vocab_size: int) -> None:
        """Something must be left to choose from, as far as that depends on nothing else."""
        forbidden = {*self.suppress_tokens}
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = getattr(self, name)
            forced = {forced} if isinstance(forced, int) else {*(forced or ())}
            if forced and forced <= forbidden:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which suppress_tokens forbids. Take it out "
                    "of either."
                )
        forbidden |= {word[0] for word in self._forbidden_words if len(word) == 1}
        names = "suppress_tokens and bad_words"
        if self.min_new_tokens:
            forbidden |= {*self.ends}
            names = f"{names}, and min_new_tokens at first,"
        if len(forbidden) == vocab_size:
            raise ValueError(
                f"{names} forbid all of the {vocab_size} tokens. At least one must be left to "
                "choose."
            )

    def _check_counts(self) -> None:
        for name in ("num_beams", "num_return_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences}, but num_beams is "
                f"{self.num_beams}, and no more than that is found. Raise num_beams, or set "
                "do_sample=True."
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences ({self.num_return_sequences}) exceeds num_beams "
                f"({self.num_beams})."
            )

    def _check_sampling(self) -> None:
        if self.repetition_penalty <= 0:
            raise ValueError(
                f"repetition_penalty must be positive, got {self.repetition_penalty}; 1 is none."
            )
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be positive, got {self.temperature}. For the likeliest token, "
                "use do_sample=False."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or None for all, got {self.top_k}.")
        for name in ("top_p", "typical_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, or None, got {value}.")

    def _check_idle(self) -> None:
        of_sampling = {
            "temperature": self.temperature != 1,
            "top_k": self.top_k is not None,
            "top_p": self.top_p is not None,
            "min_p": self.min_p is not None,
            "typical_p": self.typical_p is not None,
        }
        idle = [name for name, is_set in of_sampling.items() if is_set]
        if idle and not self.do_sample:
            raise ValueError(
                f"{', '.join(idle)} only matters for sampling, but do_sample is False. Set "
                "do_sample=True and pass a key."
            )
        of_beams = {
            "length_penalty": self.length_penalty != 1,
            "early_stopping": self.early_stopping is not False,
        }
        idle = [name for name, is_set in of_beams.items() if is_set]
        if idle and self.num_beams == 1:
            raise ValueError(
                f"{', '.join(idle)} only matters for beams, but num_beams is 1. Set num_beams to 2 "
                "or more."
            )

    def process(
        self,
        ids: Int[Array, "batch slots"],
        logits: Float[Array, "batch vocab"],
        step: Int[Array, ""],
        limit: Int[Array, ""],
    ) -> Float[Array, "batch vocab"]:
        """The scores from which the next token is chosen, in the order of transformers."""
        for processor in self._processors(limit):
            processed = processor(ids, logits, step)
            if getattr(processed, "shape", None) != logits.shape:
                raise ValueError(
                    f"The processor {processor!r} returned "
                    f"{getattr(processed, 'shape', type(processed).__name__)}, expected scores of "
                    f"the shape that it was given, {logits.shape}."
                )
            logits = processed.astype(logits.dtype)
        return self._narrow(logits) if self.do_sample else logits

    def _processors(self, limit: Int[Array, ""]) -> Sequence[Processor]:
        every: list[Processor] = []
        if self.repetition_penalty != 1:
            every.append(p.repetition_penalty(self.repetition_penalty))
        if self.no_repeat_ngram_size:
            every.append(p.no_repeat_ngram(self.no_repeat_ngram_size))
        if self._forbidden_words:
            every.append(p.forbid_words(self._forbidden_words))
        if self.min_length and self.ends:
            every.append(p.minimum_length(self.min_length, self.ends))
        if self.min_new_tokens and self.ends:
            every.append(p.minimum_new_tokens(self.min_new_tokens, self.ends))
        if self.forced_bos_token_id is not None:
            every.append(p.force_first(self.forced_bos_token_id))
        if self.forced_ends:
            every.append(p.force_last(self.forced_ends, limit))
        if self.suppress_tokens:
            every.append(p.suppress(self.suppress_tokens))
        return [*every, *self.processors]

    @property
    def _forbidden_words(self) -> tuple[Sequence[int], ...]:
        """The bad words that are heeded."""
        ends = [(end,) for end in self.ends]
        return tuple(word for word in self.bad_words if word not in ends)

    def _narrow(self, logits: Float[Array, "batch vocab"]) -> Float[Array, "batch vocab"]:
        # Beams need something to go on with where all others end.
        keep = max(2, len(self.ends) + 1) if self.num_beams > 1 else 1
        logits = sampling.apply_temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = sampling.keep_top_k(logits, self.top_k, keep=keep)
        if self.top_p is not None and self.top_p < 1:
            logits = sampling.keep_top_p(logits, self.top_p, keep=keep)
        if self.min_p is not None:
            logits = sampling.keep_min_p(logits, self.min_p, keep=keep)
        if self.typical_p is not None and self.typical_p < 1:
            logits = sampling.keep_typical(logits, self.typical_p, keep=keep)
        return logits

    def is_end(self, tokens: Int[Array, "*shape"]) -> Array:
        """Which tokens end a sequence."""
        return jnp.isin(tokens, jnp.asarray(self.ends, tokens.dtype))


_COUNTS = (
    "num_beams",
    "num_return_sequences",
    "no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
)
_OPTIONAL_INTEGERS = (
    "top_k",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
)
_NUMBERS = ("length_penalty", "temperature", "repetition_penalty")
_OPTIONAL_NUMBERS = ("top_p", "min_p", "typical_p")


def check_integer(name: str, value: object) -> int:
    """The value as an integer.

    **Raises:** `ValueError` if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be an integer, got {value!r}.")
    return int(value)


def _number(name: str, value: Any) -> float | int:
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if isinstance(value, bool) or not is_number or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")
    return value.item() if isinstance(value, np.generic) else value


def _integers(name: str, values: Any) -> tuple[int, ...]:
    return tuple(check_integer(name, value) for value in _sequence(name, values))


def _sequence(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise ValueError(f"{name} must be a list, got {values!r}.")
    return tuple(values)
