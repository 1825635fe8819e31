"""What every model has in common: it can be read from a checkpoint and written to one."""

import abc
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, TypeVar

import equinox as eqx
from jaxtyping import DTypeLike, PRNGKeyArray

from .. import convert
from ..config import BertConfig
from ..nn import Embedding
from . import surgery

# Not typing.Self, which the run-time type checker cannot check in a method of a class.
Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(eqx.Module):
    """A model with a configuration, read and written in Hugging Face's format."""

    config: eqx.AbstractVar[BertConfig]

    @property
    def options(self) -> dict[str, Any]:
        """What its class was called with besides the configuration and a key."""
        return {}

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path_or_id: str | PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray | None = None,
        ignore_mismatched_sizes: bool = False,
        ignore_unexpected: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        **changes: Any,
    ) -> Model:
        """The model in a local folder or in a repository of the Hugging Face hub.

        The arguments are those of `eqxbert.convert.load`, which also returns a report of what was
        found.
        """
        loaded = convert.load(
            cls,
            path_or_id,
            dtype=dtype,
            key=key,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            ignore_unexpected=ignore_unexpected,
            revision=revision,
            token=token,
            subfolder=subfolder,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            **changes,
        )
        return loaded.model

    def with_config(self: Model, config: BertConfig) -> Model:
        """The same arrays in a model with another configuration: other dropout rates, say, or the
        smaller number of layers that is left after surgery. (A configuration, and what follows from
        it in every part, is static, hence out of the reach of `eqx.tree_at`.)

        **Raises:** `CheckpointError` if the configuration calls for other arrays.
        """
        return convert.with_config(self, config)

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

    def save_pretrained(
        self, folder: str | PathLike[str], *, max_shard_size: int | str = "5GB"
    ) -> None:
        """Writes the model to a folder that this library and transformers can load.

        The arguments are those of `eqxbert.convert.save`.
        """
        convert.save(self, folder, max_shard_size=max_shard_size)
