"""Applying a checkpoint's arrays to a model, and taking them out of it."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from .containers import LazyTensor
from .dtypes import is_finite, target_dtype
from .matching import match, named_arrays, without_prefix
from .names import DECODER_WEIGHT
from .report import CheckpointError, LoadReport
from .ties import find_overridden, with_decoder_bias

logger = logging.getLogger("eqxbert")

Model = TypeVar("Model", bound=eqx.Module)


def to_state_dict(model: eqx.Module) -> dict[str, Array]:
    """The model's arrays under the names transformers gives them.

    **Raises:** `CheckpointError` if the model is not what its configuration describes, as after
    dropping layers without changing `config`: such a checkpoint would be loaded as another model.
    """
    config = model.config  # pyright: ignore[reportAttributeAccessIssue]
    skeleton = _skeleton_like(model, config)
    _check_arrays(without_prefix(named_arrays(model)), skeleton)
    if jax.tree.structure(model) != jax.tree.structure(skeleton):
        raise CheckpointError(
            "The model's arrays are those that its `config` describes, but other settings of its "
            "parts (number of heads, eps, activation, dropout rates, ...) are not. " + _HOW_TO_AGREE
        )
    return with_decoder_bias(named_arrays(model))


def with_config(model: Model, config: Any) -> Model:
    """The model's arrays in a model with another configuration.

    **Raises:** `CheckpointError` if the configuration calls for other arrays.
    """
    return with_arrays(model, config, without_prefix(named_arrays(model)))


def with_arrays(model: Model, config: Any, arrays: Mapping[str, Array]) -> Model:
    """A model of the class and with the options of `model`, with another configuration and other
    arrays, given by canonical name.

    **Raises:** `CheckpointError` if the configuration calls for other arrays.
    """
    skeleton = _skeleton_like(model, config)
    _check_arrays(arrays, skeleton)
    names = without_prefix(named_arrays(skeleton))
    return jax.tree.unflatten(jax.tree.structure(skeleton), [arrays[name] for name in names])


_HOW_TO_AGREE = "Let them agree: model.with_config(model.config.replace(...))."


def _check_arrays(found: Mapping[str, Array], skeleton: eqx.Module) -> None:
    """Checks that the arrays of a model have the names and shapes of those of `skeleton`."""
    expected = without_prefix(named_arrays(skeleton))
    problems = [f"{name}: the configuration has no such array" for name in found.keys() - expected]
    for name, leaf in expected.items():
        if name not in found:
            problems.append(f"{name}: missing from the model")
        elif found[name].shape != leaf.shape:
            problems.append(
                f"{name}: shape {found[name].shape}, the configuration says {leaf.shape}"
            )
    if problems:
        raise CheckpointError(
            "The model's arrays are not those that its `config` describes:\n  "
            + "\n  ".join(sorted(problems))
            + f"\n{_HOW_TO_AGREE}"
        )


def from_state_dict(
    model_class: type[Model],
    config: Any,
    state: Mapping[str, Any],
    *,
    dtype: DTypeLike | None = None,
    key: PRNGKeyArray | None = None,
    ignore_mismatched_sizes: bool = False,
    ignore_unexpected: bool = False,
    **options: Any,
) -> Model:
    """A model filled with the arrays in `state`.

    **Arguments:**

    - `model_class`: the class of the model.
    - `config`: its configuration.
    - `state`: arrays by name, in any of the spellings and with any of the prefixes that BERT
        checkpoints have: NumPy's, JAX's, or a PyTorch state dict.
    - `dtype`: what floating-point arrays become; float32 if None, and the dtype of the checkpoint
        if "auto".
    - `key`: a PRNG key to draw arrays that `state` lacks. Without one, lacking any is an error.
    - `ignore_mismatched_sizes`: with a `key`, draw anew also the arrays whose shape is another.
    - `ignore_unexpected`: accept arrays of the base model that have no place in this one, such as
        the upper layers when `num_hidden_layers` is smaller than the checkpoint's.
    - `options`: further arguments of the class, such as `add_pooling_layer`.

    **Raises:** `CheckpointError` (a `ValueError`) listing every array that is missing, has the
    wrong shape or has no place.
    """
    return apply_state(
        model_class,
        config,
        {name: LazyTensor.of(array) for name, array in state.items()},
        dtype=dtype,
        key=key,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        ignore_unexpected=ignore_unexpected,
        **options,
    )[0]


def apply_state(
    construct: Callable[..., Model],
    config: Any,
    state: Mapping[str, LazyTensor],
    *,
    dtype: DTypeLike | None,
    key: PRNGKeyArray | None,
    ignore_mismatched_sizes: bool,
    ignore_unexpected: bool,
    **options: Any,
) -> tuple[Model, LoadReport]:
    """`from_state_dict`, with the report. `construct` is the class of the model."""

    def draw(names: tuple[str, ...], dtype: np.dtype) -> dict[str, Array]:
        """The arrays `names` of a new model. Compiled, so that the others are never made."""

        @jax.jit
        def arrays(key: PRNGKeyArray) -> dict[str, Array]:
            model = construct(config, key=key, **options)
            leaves = without_prefix(named_arrays(model))
            return {name: leaves[name].astype(dtype) for name in names}

        return arrays(key)

    return fill(
        eqx.filter_eval_shape(construct, config, key=jax.random.key(0), **options),
        state,
        dtype=dtype,
        draw=None if key is None else draw,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        ignore_unexpected=ignore_unexpected,
    )


def fill(
    skeleton: Model,
    state: Mapping[str, LazyTensor],
    *,
    dtype: DTypeLike | None,
    draw: Callable[[tuple[str, ...], np.dtype], dict[str, Array]] | None = None,
    ignore_mismatched_sizes: bool = False,
    ignore_unexpected: bool = False,
) -> tuple[Model, LoadReport]:
    """The module whose arrays have the shapes in `skeleton`, and the values in `state`. Those are
    read one at a time; those that `state` lacks come from `draw`, if it is given.
    """
    found = match(
        skeleton,
        state,
        may_initialize=draw is not None,
        ignore_mismatched_sizes=ignore_mismatched_sizes and draw is not None,
        ignore_unexpected=ignore_unexpected,
    )
    wanted, report = without_prefix(named_arrays(skeleton)), found.report
    tensors = {name: entry.tensor for name, entry in found.filling.items()}
    target = target_dtype(dtype, tensors)
    filled, not_finite = {}, []
    # The largest first: while one is converted, it is held twice.
    for name in sorted(tensors, key=lambda name: -wanted[name].size):
        # Waiting for each copy lets its source go before the next one is read.
        with np.errstate(over="ignore"):  # what becomes infinite is named below
            filled[name] = jnp.array(tensors[name].read(), target).block_until_ready()
        if not is_finite(np.asarray(filled[name])):
            not_finite.append(name)
    if not_finite:
        logger.warning("NaN or infinity in %s, as %s.", ", ".join(not_finite), target)
        report = dataclasses.replace(report, not_finite=tuple(not_finite))
    if found.repeats:
        overridden = find_overridden(
            found.repeats, filled, tied=not any(name.endswith(DECODER_WEIGHT) for name in wanted)
        )
        report = dataclasses.replace(report, overridden=overridden)
    if draw is not None and report.initialized:
        filled |= draw(report.initialized, target)
    return jax.tree.unflatten(jax.tree.structure(skeleton), [filled[n] for n in wanted]), report


def _skeleton_like(model: Any, config: Any) -> Any:
    """The shapes of a new model with this configuration and the options of `model`."""
    return eqx.filter_eval_shape(type(model), config, key=jax.random.key(0), **model.options)
