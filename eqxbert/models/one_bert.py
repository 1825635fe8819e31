"""What the models with one BERT in them have in common: it can be changed as a whole."""

import abc
from collections.abc import Iterable, Mapping
from typing import TypeVar

import equinox as eqx

from ..config import BertConfig
from ..nn import Embedding
from . import surgery
from .pretrained import PretrainedModel

Model = TypeVar("Model", bound="OneBertModel")


class OneBertModel(PretrainedModel):
    """A BERT, with a head or without."""

    config: eqx.AbstractVar[BertConfig]

    @abc.abstractmethod
    def get_input_embeddings(self) -> Embedding:
        """The table of word embeddings."""

    def resize_token_embeddings(
        self: Model, num_tokens: int, *, pad_to_multiple_of: int | None = None
    ) -> Model:
        """The model with a vocabulary of another size: word embeddings, and the decoder and its
        bias where there are such. New words get the mean of the old ones ([Hewitt,
        2021](https://nlp.stanford.edu/~johnhew/vocab-expansion.html)), so that at first they
        change little; of a smaller vocabulary the last words are gone.

        **Arguments:**

        - `num_tokens`: the new size.
        - `pad_to_multiple_of`: round it up to a multiple of this.

        **Raises:** `ValueError` if the size is not positive, or the padding token would be gone.
        """
        if pad_to_multiple_of is not None:
            if pad_to_multiple_of < 1:
                raise ValueError(f"pad_to_multiple_of must be positive, got {pad_to_multiple_of}.")
            num_tokens = -(-num_tokens // pad_to_multiple_of) * pad_to_multiple_of
        return surgery.resize_token_embeddings(self, num_tokens)

    def prune_heads(self: Model, heads: Mapping[int, Iterable[int]]) -> Model:
        """The model without some of its attention heads ([Michel et al.,
        2019](https://arxiv.org/abs/1905.10650)): smaller, and equal to one in which `head_mask`
        switches them off. (transformers 4 can load it when saved; transformers 5 knows no pruning.)

        **Arguments:**

        - `heads`: layer -> the heads to take out, by their numbers before any were.

        **Raises:** `ValueError` if there are no such heads, or none would be left in a layer.
        """
        return surgery.prune_heads(self, heads)
