"""Vectors of texts, trained on pairs of texts."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from ...training.batches import batch_indices, check_count, host_rows
from ...training.contrastive import contrastive_loss, similarity_loss
from ...training.loss import LossFunction
from ..pooling import SentenceModel
from ..sentence_encoder import SentenceEncoder
from ..tokenizer import Tokenizer, check_text
from . import metrics
from .examples import Example, as_examples, check_labelled
from .features import Features
from .task import Metrics, Task


@dataclasses.dataclass(frozen=True)
class PairExample(Example):
    """Two texts that belong together.

    - `text`, `text_pair`: a question and its answer, say, or two sentences.
    - `label`: how similar they are, a number from -1 to 1; None if it is known only that they
        belong together.
    """

    text: str
    text_pair: str
    label: float | str | None = None


class SentenceEmbedding(Task[PairExample]):
    """Vectors of texts, for `SentenceEncoder.model`.

    From pairs alone, a model learns to tell the text that belongs to another one from all others in
    the batch (`contrastive_loss`); from pairs with labels, to have these as the cosines between its
    vectors (`similarity_loss`). `eqxbert.training.fit` is to be told:

        fit(encoder.model, task.train_batches(pairs), optimizer, key=key, epochs=1, loss=task.loss,
            evaluate=task.evaluator(others), best_metric=task.main_metric, best_is_highest=True)

    - `encoder`: whose model is trained.
    - `is_scored`: whether pairs have labels.
    """

    example_class = PairExample
    model_class = SentenceModel

    def __init__(
        self,
        encoder: SentenceEncoder,
        *,
        max_length: int | None = None,
        is_scored: bool = False,
        temperature: float = 0.05,
        chunk_size: int | None = None,
    ):
        """**Arguments:**

        - `encoder`: whose model is trained. Its default prompt, if it has one, is put before each
            text.
        - `max_length`: how many tokens of a text count; if None, as the encoder says.
        - `is_scored`: whether pairs have labels.
        - `temperature`, `chunk_size`: as in `contrastive_loss`.

        **Raises:** `ValueError` if `max_length` is greater than the model allows, as
        `contrastive_loss`, and if the encoder's vectors leave out the tokens of its prompt.
        """
        max_length = encoder.max_seq_length if max_length is None else max_length
        super().__init__(encoder.tokenizer, encoder.model.config, max_length=max_length)
        self.encoder = encoder
        self.is_scored = is_scored
        self._contrastive_loss = contrastive_loss(temperature=temperature, chunk_size=chunk_size)
        self._prompt = encoder.prompts.get(encoder.default_prompt_name or "", "")
        if self._prompt and not encoder.model.pooling.include_prompt:
            raise ValueError(
                f"The encoder has the default prompt {self._prompt!r}, but leaves its tokens out "
                "of its vectors; that cannot be trained. Take it out: default_prompt_name=None."
            )

    @property
    def main_metric(self) -> str:
        return "spearman" if self.is_scored else "mean_reciprocal_rank"

    @property
    def loss(self) -> LossFunction:
        return similarity_loss if self.is_scored else self._contrastive_loss

    @classmethod
    def load(
        cls,
        path_or_id: str | PathLike[str],
        *,
        key: PRNGKeyArray,
        changes: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> "tuple[SentenceEmbedding, SentenceModel]":
        del key, changes  # there is no head that could be new
        encoder = SentenceEncoder.from_pretrained(path_or_id)
        return cls(encoder, **options), encoder.model

    def write(self, model: SentenceModel, folder: Path) -> None:
        self.encoder.with_model(model).write(folder)

    def features(self, examples: Iterable[PairExample | Mapping[str, Any]]) -> Features:
        """Two rows for each pair: its first text, then its second."""
        return self._features(self._pairs(examples))

    def train_batches(
        self,
        examples: Iterable[PairExample | Mapping[str, Any]],
        *,
        batch_size: int = 32,
        seed: int = 0,
        group_by_length: bool = False,
        host: int = 0,
        hosts: int = 1,
    ) -> "PairBatches":
        if group_by_length:
            raise ValueError("Pairs are not grouped by length: their texts have two.")
        pairs = self._pairs(examples)
        labels = np.array([pair.label for pair in pairs], np.float32) if self.is_scored else None
        return PairBatches(
            self._features(pairs),
            labels,
            batch_size=batch_size,
            seed=seed,
            host=host,
            hosts=hosts,
        )

    def predict(
        self, model: SentenceModel, examples: Iterable[PairExample | Mapping[str, Any]]
    ) -> list[float]:
        """**Returns:** for each pair the cosine between its vectors."""
        return self._cosines(model, as_examples(PairExample, examples)).tolist()

    def evaluator(
        self, examples: Iterable[PairExample | Mapping[str, Any]]
    ) -> Callable[[Any], Metrics]:
        """**Returns:** with labels, `pearson` and `spearman`, the correlations of these with the
        cosines. Without, how each text finds its own partner among those of all others:
        `recall_at_1`, `recall_at_10` and `mean_reciprocal_rank`.
        """
        pairs = self._pairs(examples)
        if self.is_scored:
            labels = np.array([pair.label for pair in pairs], np.float64)

            def correlations(model: Any) -> Metrics:
                cosines = self._cosines(model, pairs)
                return {
                    "pearson": metrics.pearson(cosines, labels),
                    "spearman": metrics.spearman(cosines, labels),
                }

            return correlations

        def retrieval(model: Any) -> Metrics:
            first, second = self._vectors(model, pairs)
            ranks = metrics.ranks_of_own(first @ second.T)
            return {
                "recall_at_1": float(np.mean(ranks <= 1)),
                "recall_at_10": float(np.mean(ranks <= 10)),
                "mean_reciprocal_rank": float(np.mean(1 / ranks)),
            }

        return retrieval

    def _pairs(self, examples: Iterable[PairExample | Mapping[str, Any]]) -> list[PairExample]:
        pairs = as_examples(PairExample, examples)
        if not pairs:
            raise ValueError("There are no examples.")
        for pair in pairs:
            check_text(f"{pair.source}: text", pair.text)
            check_text(f"{pair.source}: text_pair", pair.text_pair)
        if not self.is_scored:
            return pairs
        check_labelled(pairs, "label")
        return [dataclasses.replace(pair, label=_score(pair)) for pair in pairs]

    def _features(self, pairs: Sequence[PairExample]) -> Features:
        texts = [self._prompt + text for pair in pairs for text in (pair.text, pair.text_pair)]
        return pair_features(self.tokenizer, texts, max_length=self.max_length)

    def _vectors(
        self, model: SentenceModel, pairs: Sequence[PairExample]
    ) -> tuple[Float[np.ndarray, "pairs size"], Float[np.ndarray, "pairs size"]]:
        encoder = self.encoder.with_model(model)
        texts = [pair.text for pair in pairs], [pair.text_pair for pair in pairs]
        first, second = (np.asarray(encoder.encode(column, normalize=True)) for column in texts)
        return first, second

    def _cosines(
        self, model: SentenceModel, pairs: Sequence[PairExample]
    ) -> Float[np.ndarray, " pairs"]:
        first, second = self._vectors(model, pairs)
        return np.sum(first.astype(np.float64) * second, axis=-1)


class PairBatches:
    """Batches of pairs of texts for `contrastive_loss`, or for `similarity_loss` if they have
    labels: a function of the number of the step. `len` is the number of batches in an epoch.
    """

    def __init__(
        self,
        features: Features,
        labels: Float[np.ndarray, " pairs"] | None = None,
        *,
        batch_size: int,
        seed: int,
        host: int = 0,
        hosts: int = 1,
    ):
        """**Arguments:**

        - `features`: two rows for each pair, its first text and its second.
        - `labels`: how similar they are.
        - `batch_size`: the number of pairs in each, those of all hosts together.
        - `seed`: each has an order of its own.
        - `host`, `hosts`: which part of each batch is made, of how many, as in `batch_indices`.

        **Raises:** `ValueError` if a number is out of range, or a batch cannot be split so.
        """
        self._part = host_rows(batch_size, host, hosts)
        check_count("seed", seed)
        self.features, self.labels = features, labels
        self.batch_size, self.seed = batch_size, seed

    @property
    def pairs(self) -> int:
        """How many there are."""
        return len(self.features) // 2

    def __len__(self) -> int:
        return -(-self.pairs // self.batch_size)

    def __call__(self, step: int) -> dict[str, Any]:
        """The batch of a step, counted from 0; the host's part of it."""
        chosen: Int[np.ndarray, " batch_size"] = batch_indices(
            self.pairs, self.batch_size, seed=self.seed, step=step
        )
        texts = {
            "anchors": self.features.batch(2 * chosen, self._part),
            "candidates": self.features.batch(2 * chosen + 1, self._part),
        }
        if self.labels is None:
            return texts
        return texts | {"labels": self.labels[chosen[self._part]]}


def pair_features(tokenizer: Tokenizer, texts: Sequence[str], *, max_length: int) -> Features:
    """A row for each text; of pairs, the two follow one another."""
    ids, types = tokenizer.encode(texts, max_length=max_length)
    return Features(ids, types, {}, max_length=max_length, pad_id=tokenizer.pad_id)


def _score(pair: PairExample) -> float:
    try:
        score = float(pair.label)  # pyright: ignore[reportArgumentType]  # checked before
    except (TypeError, ValueError, OverflowError):
        score = float("nan")
    if not -1 <= score <= 1:
        raise ValueError(
            f"{pair.source} has the label {pair.label!r}, expected a similarity from -1 to 1. "
            "Divide scores on another scale by the highest one."
        )
    return score
