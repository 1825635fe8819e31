"""Applying a checkpoint's arrays to a model, and taking them out of it."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from ..config import BertConfig
from .containers import LazyTensor
from .names import BASE, canonical_names, is_ignored, path_to_name
from .report import CheckpointError, LoadReport

logger = logging.getLogger("eqxbert")

Model = TypeVar("Model", bound=eqx.Module)


def to_state_dict(model: eqx.Module) -> dict[str, Array]:
    """The model's arrays under the names transformers gives them.

    **Raises:** `CheckpointError` if the model is not what its configuration describes, as after
    dropping layers without changing `config`: such a checkpoint would be loaded as another model.
    """
    config = model.config  # pyright: ignore[reportAttributeAccessIssue]
    skeleton = _skeleton_like(model, config)
    _check_arrays(model, skeleton)
    if jax.tree.structure(model) != jax.tree.structure(skeleton):
        raise CheckpointError(
            "The model's arrays are those that its `config` describes, but other settings of its "
            "parts (number of heads, eps, activation, dropout rates, ...) are not. " + _HOW_TO_AGREE
        )
    return named_arrays(model)


def with_config(model: Model, config: BertConfig) -> Model:
    """The model's arrays in a model with another configuration.

    **Raises:** `CheckpointError` if the configuration calls for other arrays.
    """
    skeleton = _skeleton_like(model, config)
    _check_arrays(model, skeleton)
    return jax.tree.unflatten(jax.tree.structure(skeleton), jax.tree.leaves(model))


_HOW_TO_AGREE = "Let them agree: model.with_config(model.config.replace(...))."


def _check_arrays(model: eqx.Module, skeleton: eqx.Module) -> None:
    """Checks that the arrays of `model` have the names and shapes of those of `skeleton`."""
    found, expected = named_arrays(model), named_arrays(skeleton)
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
    config: BertConfig,
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
    config: BertConfig,
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
            leaves = _without_prefix(named_arrays(model))
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
    report = check(
        skeleton,
        state,
        may_initialize=draw is not None,
        ignore_mismatched_sizes=ignore_mismatched_sizes and draw is not None,
        ignore_unexpected=ignore_unexpected,
    )
    wanted = _without_prefix(named_arrays(skeleton))
    tensors = {canonical: state[name] for name, canonical in report.loaded.items()}
    target = target_dtype(dtype, tensors)
    filled, not_finite = {}, []
    # The largest first: while one is converted, it is held twice.
    for name in sorted(tensors, key=lambda name: -wanted[name].size):
        # Waiting for each copy lets its source go before the next one is read.
        with np.errstate(over="ignore"):  # what becomes infinite is named below
            filled[name] = jnp.array(tensors[name].read(), target).block_until_ready()
        if not _is_finite(np.asarray(filled[name])):
            not_finite.append(name)
    if not_finite:
        logger.warning("NaN or infinity in %s, as %s.", ", ".join(not_finite), target)
        report = dataclasses.replace(report, not_finite=tuple(not_finite))
    if draw is not None and report.initialized:
        filled |= draw(report.initialized, target)
    return jax.tree.unflatten(jax.tree.structure(skeleton), [filled[n] for n in wanted]), report


def check(
    skeleton: eqx.Module,
    state: Mapping[str, LazyTensor],
    *,
    may_initialize: bool = False,
    ignore_mismatched_sizes: bool = False,
    ignore_unexpected: bool = False,
) -> LoadReport:
    """What would become of each name in `state` if `skeleton` were filled from it. Nothing is read.

    **Raises:** `CheckpointError` listing every array that is missing, has the wrong shape or has no
    place.
    """
    wanted = _without_prefix(named_arrays(skeleton))
    found = _by_canonical_name(state)
    report, homeless = _compare(wanted, found)
    _raise_problems(
        report,
        {canonical: state[name] for name, canonical in report.loaded.items()},
        [] if ignore_unexpected else homeless,
        may_initialize=may_initialize,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    return report


def _is_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite, without a second array where that can be avoided."""
    if array.size == 0:
        return True
    if array.dtype == jnp.bfloat16:  # for which NumPy is slow: the bits of the exponent tell
        exponent = np.uint16(0x7F80)
        return not np.any(array.view(np.uint16) & exponent == exponent)
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def named_arrays(module: eqx.Module) -> dict[str, Any]:
    """The arrays of a module, in the order of its leaves, under their PyTorch names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(module)
    return {
        path_to_name(jax.tree_util.keystr(path, simple=True, separator=".")): leaf
        for path, leaf in leaves
    }


def _without_prefix(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("bert."): array for name, array in arrays.items()}


def _skeleton_like(model: Model, config: BertConfig) -> Model:
    """The shapes of a new model with this configuration and the options of `model`."""
    options = {}
    if hasattr(model, "pooler"):
        options["add_pooling_layer"] = getattr(model, "pooler") is not None  # noqa: B009
    construct: Any = type(model)
    return eqx.filter_eval_shape(construct, config, key=jax.random.key(0), **options)


def _by_canonical_name(
    state: Mapping[str, LazyTensor],
) -> dict[str, tuple[str, LazyTensor]]:
    """The tensors under their canonical names, each with the name it has in the checkpoint."""
    found = {}
    for name, canonical in canonical_names(state).items():
        if canonical in found:
            raise CheckpointError(
                f"Both {found[canonical][0]!r} and {name!r} in the checkpoint stand for "
                f"{canonical!r}. Remove one of them."
            )
        found[canonical] = (name, state[name])
    return found


def _compare(
    wanted: Mapping[str, jax.ShapeDtypeStruct], found: Mapping[str, tuple[str, LazyTensor]]
) -> tuple[LoadReport, list[str]]:
    """The report, and the names in the checkpoint that belong to the base model but have no place
    in this one. A head that the model lacks changes nothing in what it computes; an array of the
    base does: without it, the model would not be the one that was saved.
    """
    mismatched = {
        name: (found[name][1].shape, leaf.shape)
        for name, leaf in wanted.items()
        if name in found and found[name][1].shape != leaf.shape
    }
    loaded = {found[name][0]: name for name in wanted if name in found and name not in mismatched}
    others = [name for name in found if name not in wanted]
    unexpected = [name for name in others if not is_ignored(name)]
    homeless = [
        found[name][0]
        for name in unexpected
        if (name.startswith(BASE) and not name.startswith("pooler.")) or ".lora_" in name
    ]
    report = LoadReport(
        loaded=loaded,
        initialized=tuple(n for n in wanted if n not in found or n in mismatched),
        mismatched=mismatched,
        unexpected=tuple(found[name][0] for name in unexpected),
        ignored=tuple(found[name][0] for name in others if is_ignored(name)),
    )
    return report, homeless


def _raise_problems(
    report: LoadReport,
    tensors: Mapping[str, LazyTensor],
    homeless: list[str],
    *,
    may_initialize: bool,
    ignore_mismatched_sizes: bool,
) -> None:
    """Raises one error with every reason why the checkpoint must not be used as it is."""
    problems = []
    missing = [name for name in report.initialized if name not in report.mismatched]
    if missing and (not may_initialize or not report.loaded):
        problems.append(
            _list("missing from the checkpoint", missing) + _why_missing(report, missing)
        )
    if report.mismatched and not ignore_mismatched_sizes:
        rows = [
            f"{name}: {found} in the checkpoint, {expected} in the model"
            for name, (found, expected) in report.mismatched.items()
        ]
        problems.append(_list("of another shape", rows) + _why_mismatched(report))
    problems += quantised(tensors)
    if homeless:
        problems.append(
            _list("in the checkpoint without a place in the model", homeless)
            + "The configuration may be another model's (num_hidden_layers, "
            "position_embedding_type, ...). To leave them out on purpose, pass "
            "ignore_unexpected=True."
        )
    if problems:
        raise CheckpointError("The checkpoint does not fit the model.\n\n" + "\n\n".join(problems))


def quantised(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """What to say of tensors that are not in one of the dtypes that models compute in, if any."""
    rows = [f"{name}: {t.dtype}" for name, t in tensors.items() if t.dtype not in _FLOATS]
    advice = "Quantised checkpoints are not supported; load the original one."
    return [_list("of a dtype that is not supported", rows) + advice] if rows else []


_FLOATS = ("bfloat16", "float16", "float32", "float64")


def _list(title: str, rows: list[str]) -> str:
    return f"{len(rows)} {title}:\n  " + "\n  ".join(rows) + "\n"


def _why_missing(report: LoadReport, missing: list[str]) -> str:
    if all(name.startswith("pooler.") for name in missing):
        return (
            "The checkpoint was saved without a pooler. Pass add_pooling_layer=False to do without "
            "one too, or key=jax.random.key(0) for an untrained one."
        )
    if any(name.endswith(".kernel") for name in report.unexpected):
        return "Its names are Flax's, which safetensors files of this library do not have."
    if not report.loaded:
        return (
            "None of its names belongs to a BERT. It has "
            + (", ".join(report.unexpected[:5]) or "none at all")
            + (", ..." if len(report.unexpected) > 5 else ".")
        )
    return "To draw them anew (a new head, say), pass key=jax.random.key(0)."


def _why_mismatched(report: LoadReport) -> str:
    words = report.mismatched.get("embeddings.word_embeddings.weight")
    if words is not None and words[0][1:] == words[1][1:]:
        return (
            f"The checkpoint's vocabulary has {words[0][0]} rows, the configuration's vocab_size "
            f"is {words[1][0]}. If the table was padded, pass vocab_size={words[0][0]}."
        )
    return (
        "The configuration may be another model's. To draw them anew, pass "
        "ignore_mismatched_sizes=True and key=jax.random.key(0)."
    )


def target_dtype(dtype: DTypeLike | None, tensors: Mapping[str, LazyTensor]) -> np.dtype:
    """The dtype asked for: float32 if None, the one that holds all tensors if "auto"."""
    if dtype is None:
        return jnp.dtype(jnp.float32)
    if isinstance(dtype, str) and dtype == "auto":
        dtypes = {jnp.dtype(tensor.dtype) for tensor in tensors.values()} or {jnp.dtype("float32")}
        with jax.numpy_dtype_promotion("standard"):
            return functools.reduce(jnp.promote_types, dtypes)
    try:
        name = jnp.dtype(dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in _FLOATS:
        raise ValueError(f"dtype must be one of {', '.join(_FLOATS)} or 'auto', got {name}.")
    target = jnp.dtype(name)
    if target == jnp.float64 and not jax.config.jax_enable_x64:  # pyright: ignore
        raise ValueError('float64 needs jax.config.update("jax_enable_x64", True) first.')
    return target
