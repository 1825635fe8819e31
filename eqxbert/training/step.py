"""One update of a model, compiled."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import core, lax
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PRNGKeyArray, PyTree

from ..models.checkpointing import Policy, checkpoint_layers
from ..nn import accumulation_dtype, platform
from .loss import (
    Batch,
    LossFunction,
    MeanLoss,
    WholeBatchLoss,
    as_means,
    check_batch,
    model_loss,
    total_loss,
)
from .optimizer import Optimizer, global_norm
from .precision import LossScale, for_compute

T = TypeVar("T")

Metrics = dict[str, Array]

_COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    # More optimisation than this takes a third more time, and gives no faster step. (The scheduler
    # is the usual one, which the preset would change.)
    "cpu": {
        "xla_backend_optimization_level": 2,
        "xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED",
    },
    # Where XLA weighs products of its own against cuBLAS's, the latter no longer add the biases.
    "gpu": {"xla_gpu_enable_triton_gemm": False},
}
# JAX puts barriers between the two computations of a checkpointed layer, so that XLA does not make
# them one. By default XLA takes them out too early.
_KEEP_BARRIERS: dict[str, Any] = {
    "xla_disable_hlo_passes": "optimization-barrier-expander,cse_barrier_expander",
}

# Tokens in a part of a batch: on CPU, a step over more of them at once is slower by a quarter.
_PART = 512


class TrainState(eqx.Module):
    """All that changes in training.

    - `model`: the model; its parameters are kept in the dtype that they have.
    - `optimizer_state`: the optimizer's, of the parameters that train.
    - `step`: how many batches there have been.
    - `skipped`: how many of these changed nothing, since their gradients were not finite.
    - `key`: the PRNG key from which each step's dropout is drawn.
    - `loss_scale`: if the loss is scaled.
    - `trainable`: which parameters train; None for all.
    """

    model: Any
    optimizer_state: PyTree
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    key: PRNGKeyArray
    loss_scale: LossScale | None
    trainable: PyTree | None = eqx.field(static=True)

    @classmethod
    def create(
        cls,
        model: Any,
        optimizer: optax.GradientTransformation,
        *,
        key: PRNGKeyArray,
        trainable: PyTree | None = None,
        scale_loss: bool = False,
    ) -> "TrainState":
        """The state before the first step. The arrays of the model are copied, since a step takes
        over the memory of the state that it is given.

        **Arguments:**

        - `model`, `optimizer`: what is trained, and by what.
        - `key`: a PRNG key, for dropout.
        - `trainable`: a tree of the model's structure with True for the parameters that train, such
            as `freeze` makes; None for all.
        - `scale_loss`: for float16, whether the loss is scaled.

        **Raises:** `ValueError` if the model has leaves that are no arrays, `trainable` is of
        another structure, or nothing trains.
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(model):
            if not eqx.is_array(leaf):
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise ValueError(
                    f"{name} of the model is no array, but {leaf!r:.100}. What does not train "
                    "belongs in a static field (eqx.field(static=True)), or outside of the model; "
                    "a number that trains, in an array."
                )
        if trainable is not None:
            if jax.tree.structure(trainable) != jax.tree.structure(model):
                raise ValueError(
                    "trainable must have the structure of the model, with True or False in place "
                    "of each array; eqxbert.training.freeze makes such a tree."
                )
            trainable = jax.tree.map(bool, trainable)
            if not any(jax.tree.leaves(trainable)):
                raise ValueError("trainable is False throughout: there is nothing to train.")
        model = jax.tree.map(jnp.copy, model)
        return cls(
            model=model,
            optimizer_state=optimizer.init(_split(model, trainable)[0]),
            step=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
            key=jnp.copy(key),
            loss_scale=LossScale.create() if scale_loss else None,
            trainable=trainable,
        )


def make_train_step(
    optimizer: optax.GradientTransformation,
    *,
    loss: LossFunction = model_loss,
    accumulate: int | None = None,
    dtype: DTypeLike | None = None,
    remat: bool | Policy = False,
) -> "TrainStep":
    """A compiled function that takes a state and a batch, and returns the next state and the step's
    metrics. The state that it is given is used up: its memory is that of the next.

    **Arguments:**

    - `optimizer`: as in `TrainState.create`, such as `adamw`.
    - `loss`: what is minimised: a function `(model, batch, key)` that returns a number, the mean
        over the examples; or a `MeanLoss`, or a tuple of these, which are added. By default, the
        loss that the model returns for the labels in the batch.
    - `accumulate`: in how many parts, one after the other, a batch is computed: less memory, the
        same gradients. A mean over labels remains one over those of the whole batch, however many
        there are in each part. None for what is fastest: with the models' own loss on a CPU,
        parts that stay in the processor's cache; the whole otherwise. A loss that compares examples
        with one another would change in parts; `contrastive_loss` has `chunk_size` instead.
    - `dtype`: what is computed in, such as `jnp.bfloat16`; parameters, gradients and optimizer
        stay in that of the parameters. None for theirs. float16 wants `scale_loss` in the state.
    - `remat`: whether layers are computed again for their gradients, instead of being kept; or, for
        something in between, one of `jax.checkpoint_policies`.

    **Returns:** of a step, with these metrics: `loss`, `grad_norm` (before it is clipped),
    `tokens` (which are attended to), `skipped` (steps so far whose gradients were not finite: such
    a step leaves the parameters as they were) and, if the optimizer knows it, `learning_rate`.

    **Raises:** `ValueError` if `accumulate` is not positive, or more than 1 with
    `contrastive_loss`; a step, if it does not divide the batch, or that is no dictionary.
    """
    if accumulate is not None and accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}.")
    if accumulate is not None and accumulate > 1 and isinstance(loss, WholeBatchLoss):
        raise ValueError(
            f"accumulate is {accumulate}, but the loss holds the examples of a batch against one "
            "another: in parts, it would be another loss. Save memory by contrastive_loss's "
            "chunk_size, or by remat."
        )

    def step(batch: Batch, state: TrainState) -> tuple[TrainState, Metrics]:
        trained, frozen = _split(state.model, state.trainable)
        key = jax.random.fold_in(state.key, state.step)
        scale = None if state.loss_scale is None else state.loss_scale.value

        def means(trained: PyTree, part: Batch, key: PRNGKeyArray) -> tuple[MeanLoss, ...]:
            model = for_compute(eqx.combine(trained, frozen), dtype)
            if remat is not False:
                model = checkpoint_layers(model, None if remat is True else remat)
            return as_means(loss(model, part, key))

        parts = accumulate
        if parts is None:
            parts = _usual_parts(batch) if loss is model_loss else 1
        value, gradients = _loss_and_gradients(means, trained, batch, key, parts, scale)
        norm = global_norm(gradients)
        is_finite = jnp.isfinite(norm) & jnp.isfinite(value)

        def update() -> tuple[PyTree, PyTree]:
            with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
                updates, new = optimizer.update(gradients, state.optimizer_state, trained)
                return eqx.apply_updates(trained, updates), new

        trained, optimizer_state = _if(is_finite, update, (trained, state.optimizer_state))
        skipped = state.skipped + jnp.where(is_finite, 0, 1)
        new = TrainState(
            model=eqx.combine(trained, frozen),
            optimizer_state=optimizer_state,
            step=state.step + 1,
            skipped=skipped,
            key=state.key,
            loss_scale=None if state.loss_scale is None else state.loss_scale.adjust(is_finite),
            trainable=state.trainable,
        )
        metrics = {"loss": value, "grad_norm": norm, "tokens": _tokens(batch), "skipped": skipped}
        if isinstance(optimizer, Optimizer):
            with jax.numpy_dtype_promotion("standard"):
                metrics["learning_rate"] = optimizer.learning_rate(state.step - state.skipped)
        return new, metrics

    return TrainStep(step, is_checkpointed=remat is not False)


class TrainStep:
    """What `make_train_step` returns."""

    def __init__(
        self,
        function: Callable[[Batch, TrainState], tuple[TrainState, Metrics]],
        *,
        is_checkpointed: bool,
    ):
        options = _compiler_options(platform())
        if platform() == "cpu" and is_checkpointed:
            options = options | _KEEP_BARRIERS

        def program(
            arrays: list[Any], state: TrainState, others: tuple[Any, ...]
        ) -> tuple[TrainState, Metrics]:
            return function(_joined(arrays, others), state)

        # Not `eqx.filter_jit`, which waits for what it computes: an accelerator would be idle
        # until it is told of the next step.
        self._program = jax.jit(
            program, donate_argnums=1, static_argnums=2, compiler_options=options
        )
        self._function = function

    # `Any`, so that a batch of a wrong type comes to `check_batch`, whose words are clearer.
    def __call__(self, state: TrainState, batch: Batch | Any) -> tuple[TrainState, Metrics]:
        """The state after the step, and its metrics. They may still be being computed: to use a
        number waits for it, and raises what has gone wrong (such as an `eqx.error_if` in a loss).
        """
        batch = check_batch(batch)
        # Part of a larger program, it may not bring options of its own.
        if any(isinstance(x, core.Tracer) for x in jax.tree.leaves((state, batch))):
            return self._function(batch, state)
        arrays, others = _arrays_and_others(batch)
        return self._program(arrays, state, others)

    def lower(self, state: TrainState, batch: Batch | Any) -> jax.stages.Lowered:
        """The program for such arguments, as `jax.jit` lowers it: `.compile().memory_analysis()`
        tells how much memory it takes.
        """
        arrays, others = _arrays_and_others(check_batch(batch))
        return self._program.lower(arrays, state, others)


@functools.cache
def _compiler_options(platform: str) -> dict[str, Any]:
    """Those of the options that are known to this version of XLA, in which they come and go."""

    def is_known(name: str, value: Any) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "INVALID_ARGUMENT" in str(error):
                return False
            raise
        return True

    options = _COMPILER_OPTIONS.get(platform, {})
    return {name: value for name, value in options.items() if is_known(name, value)}


def _arrays_and_others(batch: dict[str, Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """The arrays in a batch, and all that is compiled for: its structure, and other values."""
    leaves, structure = jax.tree.flatten(batch)
    arrays = [x for x in leaves if eqx.is_array(x)]
    return arrays, (structure, *(None if eqx.is_array(x) else x for x in leaves))


def _joined(arrays: list[Any], others: tuple[Any, ...]) -> dict[str, Any]:
    structure, *leaves = others
    remaining = iter(arrays)
    # (No leaf is None.)
    return jax.tree.unflatten(structure, [next(remaining) if x is None else x for x in leaves])


def make_eval_step(
    *, loss: LossFunction = model_loss, dtype: DTypeLike | None = None
) -> Callable[[Any, Batch], tuple[MeanLoss, ...]]:
    """A compiled function that takes a model and a batch, and returns the means that its loss is
    made of, without dropout. `dtype` is what is computed in.
    """

    @eqx.filter_jit
    def step(model: Any, batch: Batch) -> tuple[MeanLoss, ...]:
        return as_means(loss(for_compute(model, dtype), batch, None))

    return lambda model, batch: step(model, check_batch(batch))


def _split(model: PyTree, trainable: PyTree | None) -> tuple[PyTree, PyTree]:
    """The parameters that train and those that do not, with None in each other's place."""
    return eqx.partition(model, eqx.is_inexact_array if trainable is None else trainable)


def _loss_and_gradients(
    means: Callable[[PyTree, Batch, PRNGKeyArray], tuple[MeanLoss, ...]],
    trained: PyTree,
    batch: Batch,
    key: PRNGKeyArray,
    parts: int,
    scale: Float[Array, ""] | None,
) -> tuple[Float[Array, ""], PyTree]:
    """The loss of a batch and its gradients, computed in a number of parts."""

    def scaled(trained: PyTree, part: Batch, key: PRNGKeyArray, weights: Any) -> Any:
        found = means(trained, part, key)
        if weights is not None:
            found = tuple(
                m._replace(mean=m.mean * w.astype(m.mean.dtype))
                for m, w in zip(found, weights, strict=True)
            )
        value = total_loss(found)
        return value if scale is None else value * scale, value

    def unscaled(gradients: PyTree) -> PyTree:
        return gradients if scale is None else jax.tree.map(lambda g: g / scale, gradients)

    differentiate = eqx.filter_value_and_grad(scaled, has_aux=True)
    if parts == 1:
        (_, value), gradients = differentiate(trained, batch, key, None)
        return value, unscaled(gradients)

    split = jax.tree.map(lambda x: _in_parts(x, parts), batch)
    keys = jax.random.split(key, parts)
    # A part counts by its share of the labels. To know it, the labels of all parts are counted
    # first; nothing else of what is computed here is used, so it is not computed.
    counts = lax.map(lambda inputs: tuple(m.weight for m in means(trained, *inputs)), (split, keys))
    weights = tuple(_shares(c) for c in counts)

    def add(total: PyTree, inputs: Any) -> tuple[PyTree, Float[Array, ""]]:
        (_, value), gradients = differentiate(trained, *inputs)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, gradients), value

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, accumulation_dtype(x)), trained)
    total, values = lax.scan(add, zeros, (split, keys, weights))
    gradients = jax.tree.map(lambda t, x: t.astype(x.dtype), unscaled(total), trained)
    return jnp.sum(values), gradients


def _usual_parts(batch: Batch) -> int:
    """In how many parts a batch is computed fastest."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(dict(batch))]
    examples = {shape[0] if shape else 0 for shape in shapes}
    if platform() != "cpu" or "input_ids" not in batch or len(examples) != 1:
        return 1
    [count] = examples
    most = max(1, math.prod(jnp.shape(batch["input_ids"])) // _PART)
    return max((parts for parts in range(1, most + 1) if count % parts == 0), default=1)


def _shares(counts: Array) -> Float[Array, " parts"]:
    """What each part is of the whole; nothing, if that is nothing."""
    counts = counts.astype(float)  # float32, or float64 where that is enabled
    total = jnp.sum(counts)
    return counts / jnp.where(total == 0, jnp.ones_like(total), total)


def _in_parts(x: Any, parts: int) -> Array:
    examples = jnp.shape(x)[0] if jnp.ndim(x) else 0
    if examples % parts or not examples:
        raise ValueError(
            f"The batch has {examples} examples, which cannot be computed in {parts} equal parts. "
            "Choose a batch size that is a multiple of accumulate."
        )
    return jnp.reshape(x, (parts, examples // parts, *jnp.shape(x)[1:]))


def _if(condition: Bool[Array, ""], new: Callable[[], T], old: T) -> T:
    """What `new` returns, in the dtypes that there were, or else what there was."""

    def as_before(new: Any, old: Any) -> Any:
        return new if getattr(new, "dtype", None) == old.dtype else jnp.asarray(new, old.dtype)

    def new_as_before() -> T:
        return jax.tree.map(as_before, new(), old)

    if platform() == "cpu":
        # To choose between arrays, XLA would copy the old ones first.
        return lax.cond(condition, new_as_before, lambda: old)
    # An accelerator would wait for the condition.
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new_as_before(), old)


def _tokens(batch: Batch) -> Int[Array, ""]:
    """The number of tokens that are attended to, in all parts of the batch; where sequences share
    rows, of those that are part of one.
    """
    parts = [_tokens(part) for part in batch.values() if isinstance(part, Mapping)]
    ids, vectors = batch.get("input_ids"), batch.get("inputs_embeds")
    shape = jnp.shape(ids) if ids is not None else () if vectors is None else vectors.shape[:-1]
    masks = batch.get("attention_mask"), batch.get("segment_ids")
    mask = next((mask for mask in masks if mask is not None and jnp.shape(mask) == shape), None)
    if mask is not None:
        parts.append(jnp.sum(jnp.asarray(mask).astype(bool), dtype=jnp.int32))
    elif shape:
        parts.append(jnp.asarray(math.prod(shape), jnp.int32))
    return sum(parts, start=jnp.zeros((), jnp.int32))
