"""BERT's recipe for AdamW, of optax's parts."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ..nn.numerics import accumulation_dtype

Schedule = Callable[[Any], Any]
"""The learning rate after a number of updates."""


class Optimizer(optax.GradientTransformationExtraArgs):
    """optax's pair of functions, which also knows its learning rate."""

    learning_rate: Schedule


def adamw(
    learning_rate: float | Schedule,
    *,
    total_steps: int | None = None,
    warmup: float | int = 0,
    schedule: str = "linear",
    final_share: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    bias_correction: bool = True,
    weight_decay: float = 0.01,
    decay_embeddings: bool = True,
    layer_decay: float | None = None,
    max_grad_norm: float | None = 1.0,
) -> Optimizer:
    """AdamW ([Loshchilov & Hutter, 2019](https://arxiv.org/abs/1711.05101)) as BERT is trained with
    it: a warmup, a decay to the end, clipped gradients, and weight decay of the matrices alone.

    **Arguments:**

    - `learning_rate`: the highest; or a schedule of your own, a function of the number of updates.
    - `total_steps`: the number of updates after which the schedule ends; needed by all but
        "constant" and "inverse_sqrt".
    - `warmup`: the number of updates in which the learning rate rises from 0; below 1, a share of
        `total_steps`.
    - `schedule`: how it falls after that: "linear" (BERT's), "cosine", "constant", or
        "inverse_sqrt", in proportion to the root of the number of updates.
    - `final_share`: the share of the highest learning rate that it ends with.
    - `b1`, `b2`, `eps`: Adam's. `eps` is added to the root of the second moment.
    - `bias_correction`: False for Google's original `AdamWeightDecay`, which does not make up for
        the moments' beginning at zero (it has `eps=1e-6`).
    - `weight_decay`: what is taken off each matrix, times the learning rate. Vectors (biases, and
        what is in LayerNorms) never decay.
    - `decay_embeddings`: whether embeddings decay as well.
    - `layer_decay`: the learning rate of a layer as a share of that of the layer above; the heads
        have the full one, the embeddings the least ([Clark et al.,
        2020](https://arxiv.org/abs/2003.10555)). None for 1.
    - `max_grad_norm`: gradients are scaled down to this norm, taken over all parameters; None for
        no limit.

    **Raises:** `ValueError` for a value that is out of range, and an unknown schedule.
    """
    _check_shares(b1=b1, b2=b2)
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}.")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be at least 0 and finite, got {eps}.")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be at least 0 and finite, got {weight_decay}.")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(
            f"max_grad_norm must be positive, got {max_grad_norm}; None means no limit."
        )
    rate = (
        learning_rate
        if callable(learning_rate)
        else learning_rate_schedule(
            learning_rate,
            total_steps=total_steps,
            warmup=warmup,
            schedule=schedule,
            final_share=final_share,
        )
    )

    def decays(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x.ndim >= 2 and (decay_embeddings or not _is_embedding(path)), params
        )

    chain = optax.chain(
        optax.identity() if max_grad_norm is None else _clip_by_norm(max_grad_norm),
        optax.scale_by_adam(b1, b2, eps) if bias_correction else _uncorrected_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, decays),
        optax.identity() if layer_decay is None else _scale_by_depth(layer_decay),
        optax.scale_by_learning_rate(rate),
    )
    optimizer = Optimizer(chain.init, chain.update)
    optimizer.learning_rate = rate
    return optimizer


def learning_rate_schedule(
    learning_rate: float,
    *,
    total_steps: int | None,
    warmup: float | int = 0,
    schedule: str = "linear",
    final_share: float = 0.0,
) -> Schedule:
    """The learning rate after each number of updates; arguments and errors are those of `adamw`."""
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}.")
    if not 0 <= final_share <= 1:
        raise ValueError(f"final_share must be in [0, 1], got {final_share}.")
    if total_steps is None and (schedule in ("linear", "cosine") or 0 < warmup < 1):
        raise ValueError(
            f"schedule {schedule!r} with warmup {warmup} needs total_steps, the number of updates."
        )
    if warmup < 0 or (warmup >= 1 and warmup != int(warmup)):
        raise ValueError(f"warmup must be a share in [0, 1) or a number of updates, got {warmup}.")
    rising = round(warmup * total_steps) if total_steps and warmup < 1 else int(warmup)
    if total_steps is not None and not rising < total_steps:
        raise ValueError(
            f"total_steps is {total_steps}, which leaves no update after a warmup of {rising}."
        )
    falling = (total_steps or 0) - rising
    final = final_share * learning_rate
    fall: Schedule
    if schedule == "linear":
        fall = optax.linear_schedule(learning_rate, final, falling)
    elif schedule == "cosine":
        fall = optax.cosine_decay_schedule(learning_rate, falling, final_share)
    elif schedule == "constant":
        fall = optax.constant_schedule(learning_rate)
    elif schedule == "inverse_sqrt":
        fall = _inverse_sqrt(learning_rate, max(rising, 1), final)
    else:
        raise ValueError(
            f"Unknown schedule {schedule!r}. Known are: linear, cosine, constant, inverse_sqrt; or "
            "give a function as learning_rate."
        )
    if rising == 0:
        return fall
    rise = optax.linear_schedule(0.0, learning_rate, rising)
    return optax.join_schedules([rise, fall], [rising])


def _inverse_sqrt(highest: float, start: int, final: float) -> Schedule:
    def rate(count: Any) -> Any:
        count = jnp.maximum(count, 0)  # optax asks for those before it, too
        return jnp.maximum(highest * jnp.sqrt(start / (count + start)), final)

    return rate


def freeze(model: PyTree, *names: str) -> PyTree:
    """Which parameters train if some parts do not, for `TrainState.create`.

    **Arguments:**

    - `names`: of the parts that do not, as the attributes are: "bert.embeddings",
        "bert.encoder.layers.0".

    **Returns:** a tree of the model's structure with True for what trains.

    **Raises:** `ValueError` for a name of which the model has no part.
    """
    paths = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(model)[0]]
    for name in names:
        if not any(_is_in(path, name) for path in paths):
            parts = sorted({".".join(path.split(".")[:2]) for path in paths})
            raise ValueError(f"The model has no part {name!r}. It has, among others: {parts}.")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(_is_in(_name(path), name) for name in names), model
    )


def _check_shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}.")


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_in(name: str, part: str) -> bool:
    return f"{name}.".startswith(f"{part}.")


def _is_embedding(path: tuple[Any, ...]) -> bool:
    return "embeddings" in _name(path).split(".")


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The norm of all arrays in a tree, taken together.

    `optax.tree.norm` but for this: vectors are joined first. There are so many that a sum for
    each would take a tenth of the time in which a step is compiled.
    """
    leaves = [x.astype(accumulation_dtype(x)) for x in jax.tree.leaves(tree)]
    vectors = [jnp.ravel(x) for x in leaves if x.ndim < 2]
    matrices = [x for x in leaves if x.ndim >= 2]
    joined = [jnp.concatenate(vectors)] if vectors else []
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in [*joined, *matrices]))


def _clip_by_norm(largest: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` by `global_norm`."""

    def update(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        # XLA on CPU computes a quotient once; a product, again for each moment and for the update,
        # with more in memory meanwhile.
        divisor = jnp.maximum(global_norm(updates) / largest, 1)
        return jax.tree.map(lambda x: x / divisor.astype(x.dtype), updates)

    return optax.stateless(update)


class _Moments(NamedTuple):
    mu: PyTree
    nu: PyTree


def _uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's quotient of moments that begin at zero and are taken as they are."""

    def init(params: PyTree) -> _Moments:
        return _Moments(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), _Moments(mu, nu)

    return optax.GradientTransformation(init, update)


def _scale_by_depth(factor: float) -> optax.GradientTransformation:
    """Scales the updates of each layer by a power of `factor`: its distance from the heads."""

    def update(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        # Those of parameters that do not train, which are None, count as well.
        leaves, _ = jax.tree_util.tree_flatten_with_path(updates, is_leaf=lambda x: x is None)
        paths = [path for path, _ in leaves]
        layers = [number for path in paths if (number := _layer(path)) is not None]
        depth = 1 + max(layers, default=-1)

        def scale(path: tuple[Any, ...], x: Float[Array, "..."]) -> Float[Array, "..."]:
            layer = -1 if _is_embedding(path) else _layer(path)
            return x if layer is None else x * factor ** (depth - layer)

        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.stateless(update)


def _layer(path: tuple[Any, ...]) -> int | None:
    """The number of the layer that a parameter is in, if it is in one."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", _name(path))
    return int(found.group(1)) if found else None
