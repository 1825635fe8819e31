"""Sentences to vectors, from any folder that sentence-transformers would load as a BERT."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .. import convert
from ..files import Location, read_json
from . import batching
from .pooling import SentenceModel
from .sentence_files import (
    read_modules,
    read_sentence_model,
    read_transformer_config,
    write_json,
    write_sentence_model,
)
from .tokenizer import Tokenizer, check_text, check_texts, pad_rows

OutputValue = Literal["sentence_embedding", "token_embeddings"]


class SentenceEncoder:
    """Texts in, vectors out.

    - `model`: the arrays, an Equinox module that can be trained.
    - `tokenizer`: what makes tokens of texts.
    - `max_seq_length`: how many tokens of a text count, special ones included; the rest is cut off.
    - `truncate_dim`: how many dimensions of a vector are kept unless a call says otherwise; None
        for all.
    - `prompts`: texts by name that `encode` can put before each text.
    - `default_prompt_name`: the prompt that is used unless a call says otherwise, or None.
    - `similarity_fn_name`: how `similarity` compares vectors.
    """

    def __init__(
        self,
        model: SentenceModel,
        tokenizer: Tokenizer,
        *,
        max_seq_length: int | None = None,
        truncate_dim: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str = "cosine",
    ):
        limit = model.bert.config.max_position_embeddings
        wanted = tokenizer.max_length if max_seq_length is None else max_seq_length
        self.model = model
        self.tokenizer = tokenizer
        self.max_seq_length = limit if wanted is None else min(wanted, limit)
        self.truncate_dim = truncate_dim
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.similarity_fn_name = similarity_fn_name
        if self.max_seq_length < 3:
            raise ValueError(
                f"max_seq_length is {self.max_seq_length}, which leaves no room for a text between "
                "the two special tokens."
            )
        if tokenizer.vocab_size > model.bert.config.vocab_size:
            raise ValueError(
                f"The tokenizer has {tokenizer.vocab_size} tokens, but the model only "
                f"{model.bert.config.vocab_size}: they do not belong together."
            )
        if default_prompt_name is not None and default_prompt_name not in self.prompts:
            raise ValueError(
                f"default_prompt_name is {default_prompt_name!r}, but the prompts are "
                f"{sorted(self.prompts)}."
            )
        if similarity_fn_name not in _SIMILARITIES:
            raise ValueError(
                f"similarity_fn_name is {similarity_fn_name!r}; known are "
                f"{', '.join(_SIMILARITIES)}."
            )

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | PathLike[str],
        *,
        dtype: Any = None,
        max_seq_length: int | None = None,
        **hub_options: Any,
    ) -> "SentenceEncoder":
        """The encoder in a local folder, or in a repository of the Hugging Face hub.

        **Arguments:**

        - `path_or_id`: the folder, or the repository's name. Without a `modules.json`, it is taken
            for a BERT whose token vectors are averaged.
        - `dtype`: what the weights become; float32 if None.
        - `max_seq_length`: how many tokens of a text count; as the folder says if None.
        - `hub_options`: `revision`, `token`, `subfolder`, `cache_dir`, `local_files_only`.

        **Raises:** `FileNotFoundError`, `ConnectionError` and `ValueError`, as
        `eqxbert.convert.load`; `ValueError` too for modules that are not supported.
        """
        location = Location.of(path_or_id, **hub_options)
        modules = read_modules(location)
        transformer_config = read_transformer_config(modules)
        config = {}
        if modules.pooling is not None:
            config = read_json(location, "config_sentence_transformers.json", {})
        tokenizer = Tokenizer.from_pretrained(modules.transformer)
        if max_seq_length is None:
            max_seq_length = transformer_config.get("max_seq_length")
        if transformer_config.get("do_lower_case"):
            tokenizer = tokenizer.lowercased()
        return cls(
            read_sentence_model(modules, dtype),
            tokenizer,
            max_seq_length=max_seq_length,
            truncate_dim=config.get("truncate_dim"),
            prompts=config.get("prompts"),
            default_prompt_name=config.get("default_prompt_name"),
            similarity_fn_name=config.get("similarity_fn_name") or "cosine",
        )

    def __repr__(self) -> str:
        return (
            f"SentenceEncoder(embedding_size={self.embedding_size}, "
            f"max_seq_length={self.max_seq_length}, prompts={sorted(self.prompts)})"
        )

    def with_model(self, model: SentenceModel) -> "SentenceEncoder":
        """The same encoder with another model, such as a trained one."""
        return SentenceEncoder(
            model,
            self.tokenizer,
            max_seq_length=self.max_seq_length,
            truncate_dim=self.truncate_dim,
            prompts=self.prompts,
            default_prompt_name=self.default_prompt_name,
            similarity_fn_name=self.similarity_fn_name,
        )

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes the encoder to a folder that this library and sentence-transformers can load. If
        writing fails, what was in the folder stays.
        """
        with convert.staged_folder(folder) as staging:
            self.write(staging)

    def write(self, folder: Path) -> None:
        """What `save_pretrained` writes, straight into a folder that is there."""
        write_sentence_model(self.model, folder)
        self.tokenizer.write(folder)
        write_json(
            folder / "sentence_bert_config.json",
            {"max_seq_length": self.max_seq_length, "do_lower_case": False},
        )
        write_json(
            folder / "config_sentence_transformers.json",
            {
                "prompts": self.prompts,
                "default_prompt_name": self.default_prompt_name,
                "similarity_fn_name": self.similarity_fn_name,
                "truncate_dim": self.truncate_dim,
            },
        )

    def encode(
        self,
        sentences: str | Sequence[str] | np.ndarray,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        output_value: OutputValue = "sentence_embedding",
        normalize: bool = False,
        truncate_dim: int | None = None,
        tokens_per_batch: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """The vectors of some texts.

        **Arguments:**

        - `sentences`: texts of any length, or a single one.
        - `prompt_name`: the name of a prompt in `self.prompts` to put before each text.
        - `prompt`: a text to put before each text, in place of a named one.
        - `output_value`: "sentence_embedding" for one vector a text; "token_embeddings" for one
            vector a token, special tokens included.
        - `normalize`: whether the vectors are scaled to length 1, after truncation.
        - `truncate_dim`: how many dimensions of each vector are kept; `self.truncate_dim` if None.
        - `tokens_per_batch`: how many tokens go through the model at once, padding included; what
            suits the device if None.
        - `show_progress_bar`: whether progress is shown; if None, in a terminal, when it takes
            longer than two seconds. Needs tqdm, from the extra `text`.

        **Returns:** an array of shape (texts, size), or (size,) for a single text, in the order of
        the texts. For token embeddings a list of arrays (tokens, hidden), or a single one.

        **Raises:** `ValueError` if something is not a text, a prompt is unknown, or token
        embeddings, which are the model's own, are to be truncated or normalised.
        """
        if output_value not in _COMPUTE:
            raise ValueError(f"output_value is {output_value!r}; known are {', '.join(_COMPUTE)}.")
        is_tokens = output_value == "token_embeddings"
        if is_tokens and (normalize or truncate_dim is not None):
            raise ValueError("normalize and truncate_dim are for sentence embeddings.")
        truncate_dim = self.truncate_dim if truncate_dim is None else truncate_dim
        if truncate_dim is not None and truncate_dim < 1:
            raise ValueError(f"truncate_dim must be a positive number, got {truncate_dim}.")
        if tokens_per_batch is not None and tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch must be a positive number, got {tokens_per_batch}.")
        is_single = isinstance(sentences, str)
        texts: Sequence[str] | np.ndarray = [sentences] if isinstance(sentences, str) else sentences
        check_texts("sentences", texts)
        prompt = self._resolve_prompt(prompt_name, prompt)
        if prompt:
            texts = [prompt + text for text in texts]
        ids, _ = self.tokenizer.encode(texts, max_length=self.max_seq_length)

        prompt_length = 0 if self.model.pooling.include_prompt else self._count_tokens(prompt)
        results: list[Any] = [None] * len(texts)
        with _progress_bar(len(texts), show_progress_bar) as progress:
            for batch, rows in self._run(ids, output_value, prompt_length, tokens_per_batch):
                for i, row in zip(batch.indices, rows, strict=False):
                    # Not the batch's memory, of which the caller may keep but one text's.
                    results[i] = row[: len(ids[i])].copy() if is_tokens else row
                progress.update(len(batch.indices))
        if is_tokens:
            return results[0] if is_single else results
        vectors = (
            np.stack(results) if results else np.zeros((0, self.model.embedding_size), np.float32)
        )
        vectors = vectors[:, :truncate_dim]
        if normalize:
            vectors = _unit_length(vectors)
        return vectors[0] if is_single else vectors

    def similarity(
        self, a: Float[np.ndarray, "... size"], b: Float[np.ndarray, "... size"]
    ) -> Float[np.ndarray, "a b"]:
        """How similar each vector of `a` is to each of `b`, by `self.similarity_fn_name`: greater
        is more similar (distances are negated).

        **Arguments:**

        - `a`, `b`: vectors, or single ones, as `encode` returns them.
        """
        a, b = np.atleast_2d(a), np.atleast_2d(b)
        return _SIMILARITIES[self.similarity_fn_name](a, b)

    @property
    def embedding_size(self) -> int:
        """The size of a text's vector."""
        size = self.model.embedding_size
        return size if self.truncate_dim is None else min(size, self.truncate_dim)

    def _resolve_prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            if name is not None:
                raise ValueError(f"Give prompt or prompt_name, not both ({prompt!r}, {name!r}).")
            check_text("prompt", prompt)
            return prompt
        name = self.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(
                f"There is no prompt {name!r}; the prompts are {sorted(self.prompts)}."
            )
        return self.prompts[name]

    def _count_tokens(self, prompt: str) -> int:
        """How many tokens a prompt has, with the [CLS] before it."""
        if not prompt:
            return 0
        [ids], _ = self.tokenizer.encode([prompt], max_length=self.max_seq_length)
        return len(ids) - 1

    def _run(
        self,
        ids: list[np.ndarray],
        output_value: OutputValue,
        prompt_length: int,
        tokens_per_batch: int | None,
    ) -> Iterator[tuple[batching.Batch, np.ndarray]]:
        """The batches with their results, each waited for when later ones are under way."""
        prompt = np.asarray(prompt_length, np.int32)  # an array, since each int has its own program
        plan = batching.plan_batches(
            [len(row) for row in ids],
            max_length=self.max_seq_length,
            tokens_per_batch=tokens_per_batch,
        )

        def arguments(batch: batching.Batch) -> tuple[Any, ...]:
            rows = [ids[i] for i in batch.indices]
            padded = pad_rows(rows, (batch.rows, batch.seq), self.tokenizer.pad_id)
            lengths = np.zeros(batch.rows, np.int32)
            lengths[: len(rows)] = [len(row) for row in rows]
            return self.model, padded, lengths, prompt

        calls = ((batch, arguments(batch)) for batch in plan)
        for batch, result in batching.run_batches(_COMPUTE[output_value], calls):
            yield batch, np.asarray(result)


@eqx.filter_jit
def _sentence_vectors(
    model: SentenceModel,
    ids: Int[Array | np.ndarray, "rows seq"],
    lengths: Int[Array | np.ndarray, " rows"],
    prompt_length: Int[Array | np.ndarray, ""],
) -> Float[Array, "rows size"]:
    vectors = model(ids, _mask(ids, lengths), prompt_length=prompt_length)
    return vectors.astype(jnp.float32)


@eqx.filter_jit
def _token_vectors(
    model: SentenceModel,
    ids: Int[Array | np.ndarray, "rows seq"],
    lengths: Int[Array | np.ndarray, " rows"],
    prompt_length: Int[Array | np.ndarray, ""],
) -> Float[Array, "rows seq hidden"]:
    del prompt_length  # a prompt's tokens are tokens like the others
    return model.bert(ids, _mask(ids, lengths)).last_hidden_state.astype(jnp.float32)


_COMPUTE = {"sentence_embedding": _sentence_vectors, "token_embeddings": _token_vectors}


def _mask(
    ids: Int[Array | np.ndarray, "rows seq"], lengths: Int[Array | np.ndarray, " rows"]
) -> Bool[Array, "rows seq"]:
    """True for the tokens of each row, the first `lengths` of them. (Not `ids != pad_id`: a text
    may contain the padding token.)
    """
    return jnp.arange(ids.shape[-1], dtype=lengths.dtype)[None, :] < lengths[:, None]


def _unit_length(x: Float[np.ndarray, "... size"]) -> Float[np.ndarray, "... size"]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _distances(
    a: Float[np.ndarray, "a size"], b: Float[np.ndarray, "b size"], order: int
) -> Float[np.ndarray, "a b"]:
    """From each to each, by the norm of that order. A column at a time: all differences together
    would take `size` times as much memory as the result.
    """
    columns = [np.linalg.norm(a - vector, order, axis=-1) for vector in b]
    return np.reshape(columns, (len(b), len(a))).T


_SIMILARITIES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": lambda a, b: _unit_length(a) @ _unit_length(b).T,
    "dot": lambda a, b: a @ b.T,
    "euclidean": lambda a, b: -_distances(a, b, 2),
    "manhattan": lambda a, b: -_distances(a, b, 1),
}


class _NoProgress(contextlib.nullcontext):
    """Stands in for a progress bar."""

    def __enter__(self) -> "_NoProgress":
        return self

    def update(self, number: int) -> None:
        """Does nothing."""


def _progress_bar(total: int, show: bool | None) -> Any:
    if show is False or (show is None and not sys.stderr.isatty()):
        return _NoProgress()
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        if show is None:
            return _NoProgress()
        raise ModuleNotFoundError(
            "A progress bar needs the package tqdm: pip install 'eqxbert[text]'."
        ) from error
    return tqdm(total=total, unit="text", delay=2 if show is None else 0)
