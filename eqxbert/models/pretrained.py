"""What every model has in common: it can be read from a checkpoint and written to one."""

from os import PathLike
from typing import Any, TypeVar

import equinox as eqx
from jaxtyping import DTypeLike, PRNGKeyArray

from .. import convert

# Not typing.Self, which the run-time type checker cannot check in a method of a class.
Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(eqx.Module):
    """A model with a configuration, read and written in Hugging Face's format."""

    config: eqx.AbstractVar[Any]

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

    def with_config(self: Model, config: Any) -> Model:
        """The same arrays in a model with another configuration: other dropout rates, say, or the
        smaller number of layers that is left after surgery. (A configuration, and what follows from
        it in every part, is static, hence out of the reach of `eqx.tree_at`.)

        **Raises:** `CheckpointError` if the configuration calls for other arrays.
        """
        return convert.with_config(self, config)

    def save_pretrained(
        self, folder: str | PathLike[str], *, max_shard_size: int | str = "5GB"
    ) -> None:
        """Writes the model to a folder that this library and transformers can load.

        The arguments are those of `eqxbert.convert.save`.
        """
        convert.save(self, folder, max_shard_size=max_shard_size)
