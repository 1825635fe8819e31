"""Models made of others by changing their arrays, and their configuration with them.

Arrays are addressed by their names in checkpoints, of which there is one for each whatever the
class of the model.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..convert.matching import named_arrays, without_prefix
from ..convert.names import DECODER_WEIGHT, LM_BIAS, WORDS
from ..convert.state_dict import with_arrays, with_config
from ..nn import Linear, accumulation_dtype

Model = TypeVar("Model", bound=Any)


def resize_token_embeddings(model: Model, num_tokens: int) -> Model:
    """See `OneBertModel.resize_token_embeddings`."""
    config = model.config.replace(vocab_size=num_tokens)
    arrays = without_prefix(named_arrays(model))
    tables = {name for name in (WORDS, LM_BIAS, DECODER_WEIGHT) if name in arrays}
    return with_arrays(
        model, config, arrays | {name: _resized(arrays[name], num_tokens) for name in tables}
    )


def _resized(table: Float[Array, "rows *row"], rows: int) -> Float[Array, "new_rows *row"]:
    """The first rows of a table; where there are not enough, the mean of all follows them."""
    mean = jnp.mean(table.astype(accumulation_dtype(table)), axis=0).astype(table.dtype)
    missing = max(0, rows - table.shape[0])
    return jnp.concatenate([table[:rows], jnp.broadcast_to(mean, (missing, *mean.shape))])


def prune_heads(model: Model, heads: Mapping[int, Iterable[int]]) -> Model:
    """See `OneBertModel.prune_heads`."""
    before = model.config
    arrays = without_prefix(named_arrays(with_config(model, before)))  # the two must agree
    pruned = {i: set(before.pruned_heads.get(i, ())) for i in range(before.num_hidden_layers)}
    for layer, numbers in heads.items():
        pruned.setdefault(layer, set()).update(map(operator.index, numbers))
    config = before.replace(pruned_heads={i: tuple(numbers) for i, numbers in pruned.items()})

    for i in range(config.num_hidden_layers):
        kept = set(config.kept_heads(i))
        present = before.kept_heads(i)
        places = [place for place, head in enumerate(present) if head in kept]
        attention = f"encoder.layer.{i}.attention"
        for name in (f"{attention}.self.{part}" for part in ("query", "key", "value")):
            arrays[f"{name}.weight"] = _rows_of_heads(
                arrays[f"{name}.weight"], len(present), places
            )
            arrays[f"{name}.bias"] = _rows_of_heads(arrays[f"{name}.bias"], len(present), places)
        name = f"{attention}.output.dense.weight"
        arrays[name] = _rows_of_heads(arrays[name].T, len(present), places).T
    return with_arrays(model, config, arrays)


def _rows_of_heads(
    rows: Float[Array, "rows *row"], heads: int, places: Sequence[int]
) -> Float[Array, "kept_rows *row"]:
    """The rows that belong to some of the heads, each of which has as many, one after the other."""
    by_head = jnp.reshape(rows, (heads, -1, *rows.shape[1:]))
    return jnp.reshape(by_head[np.asarray(places)], (-1, *rows.shape[1:]))


def with_labels(
    model: Model, labels: int | Sequence[str] | Mapping[int, str], *, key: PRNGKeyArray
) -> Model:
    """The model with an untrained classifier for other labels."""
    if isinstance(labels, int):
        names = {i: f"LABEL_{i}" for i in range(labels)}
    elif isinstance(labels, Mapping):
        names = dict(labels)
    elif isinstance(labels, Sequence) and not isinstance(labels, str):
        names = dict(enumerate(labels))
    else:
        raise ValueError(f"labels must be a number or the names in order, got {labels!r}.")
    if not names or len(set(names.values())) < len(names):
        raise ValueError(f"There must be labels, each with a name of its own, got {labels!r}.")
    config = model.config.replace(id2label=names)
    old = model.classifier.weight
    new = Linear(
        old.shape[1], config.num_labels, initializer_range=config.initializer_range, key=key
    )
    arrays = without_prefix(named_arrays(model)) | {
        "classifier.weight": new.weight.astype(old.dtype),
        "classifier.bias": jnp.zeros(config.num_labels, old.dtype),
    }
    return with_arrays(model, config, arrays)
