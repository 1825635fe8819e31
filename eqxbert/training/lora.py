"""LoRA ([Hu et al., 2021](https://arxiv.org/abs/2106.09685)): a model is tuned by adding to some of
its weights the product of two small matrices, and training these alone.
"""

import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..convert.names import path_to_name
from ..nn import Linear, accumulation_dtype, affine, linear_product

Model = TypeVar("Model", bound=eqx.Module)
Targets = str | Sequence[str] | Callable[[str], bool]

# The heads that are new in a task, by their names: they train whole, and are saved whole.
_HEADS = ("classifier", "qa_outputs")

# "all-linear" leaves out the map to the scores of all words, as PEFT does.
_WORD_SCORES = "cls.predictions.decoder"


class LoRALinear(eqx.Module):
    """`y = base(x) + scale * (x @ a.T) @ b.T`: a linear map and an adapter of low rank. It takes
    the place of a `Linear` anywhere.

    Sums are taken in at least float32, and rounded once, to the dtype of `x`. `scale` is
    `alpha / rank`; with rsLoRA, `alpha / sqrt(rank)` ([Kalajdzievski,
    2023](https://arxiv.org/abs/2312.03732)).
    """

    base: Linear
    a: Float[Array, "rank in_size"]
    b: Float[Array, "out_size rank"]
    alpha: float = eqx.field(static=True)
    use_rslora: bool = eqx.field(static=True)

    def __init__(
        self,
        base: Linear,
        *,
        rank: int = 8,
        alpha: float | int = 16,
        use_rslora: bool = False,
        key: PRNGKeyArray,
    ):
        """A new adapter, which changes nothing yet: `b` is zero. `a` is drawn as PEFT draws it,
        uniformly between `-1 / sqrt(in_size)` and `1 / sqrt(in_size)`. Both are in at least
        float32, also on a map in half precision, in which small updates would get lost.

        **Arguments:**

        - `base`: the map that is adapted.
        - `rank`: the rank of `b @ a`.
        - `alpha`: the numerator of `scale`.
        - `use_rslora`: whether the denominator is the root of the rank.
        - `key`: a PRNG key for `a`.

        **Raises:** `ValueError` if `rank` or `alpha` is not positive.
        """
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}.")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be positive and finite, got {alpha}.")
        out_size, in_size = base.weight.shape
        dtype = accumulation_dtype(base.weight)
        limit = in_size**-0.5
        self.base = base
        self.a = jax.random.uniform(key, (rank, in_size), dtype, -limit, limit)
        self.b = jnp.zeros((out_size, rank), dtype)
        self.alpha = float(alpha)
        self.use_rslora = use_rslora

    @property
    def rank(self) -> int:
        return self.a.shape[-2]

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @property
    def weight(self) -> Float[Array, "out_size in_size"]:
        """The weight of the `Linear` that computes the same: `base.weight + scale * b @ a`, rounded
        once, to the dtype of the base's. (The decoder of language models is used by its weight.)
        """
        dtype = accumulation_dtype(self.base.weight)
        update = jnp.matmul(
            self.b.astype(dtype), self.a.astype(dtype), precision=lax.Precision.HIGHEST
        )
        weight = self.base.weight.astype(dtype) + self.scale * update
        return weight.astype(self.base.weight.dtype)

    @property
    def bias(self) -> Float[Array, " out_size"] | None:
        return self.base.bias

    def __call__(self, x: Float[Array, "*batch in_size"]) -> Float[Array, "*batch out_size"]:
        y = affine(x, self.base.weight, self.base.bias)
        y = y + self.scale * linear_product(linear_product(x, self.a), self.b)
        return y.astype(x.dtype)


def add_lora(
    model: Model,
    *,
    rank: int = 8,
    alpha: float | int = 16,
    targets: Targets = ("query", "value"),
    use_rslora: bool = False,
    key: PRNGKeyArray,
) -> Model:
    """The model with adapters on some of its linear maps. At first they change nothing.

    **Arguments:**

    - `model`: any model; of one that is not BERT, names are its paths.
    - `rank`, `alpha`, `use_rslora`: as in `LoRALinear`.
    - `targets`: which maps. One or several ends of their PyTorch names, in whole parts: "query",
        "attention.output.dense", "layer.3.intermediate.dense". Or "all-linear": all but those to
        the scores of words and of labels. Or a function that says it of each name.
    - `key`: a PRNG key for the adapters.

    **Raises:** `ValueError` if a target is the name of no linear map, the model has adapters, or
    `rank` or `alpha` is not positive.
    """
    if named_modules(LoRALinear, model):
        raise ValueError(
            "The model has adapters already. merge_lora makes them part of its weights, and "
            "remove_lora takes them out."
        )
    chosen = _choose(named_modules(Linear, model), targets)
    keys = dict(zip(chosen, jax.random.split(key, len(chosen)), strict=True))

    def adapt(name: str, linear: Linear) -> Linear | LoRALinear:
        if name not in keys:
            return linear
        return LoRALinear(linear, rank=rank, alpha=alpha, use_rslora=use_rslora, key=keys[name])

    return map_modules(adapt, Linear, model)


def lora_filter(model: Model, *, modules_to_save: str | Sequence[str] | None = None) -> Model:
    """Which arrays of an adapted model train: a tree of its structure with True for the adapters
    and for the modules that train whole, and False for all else. It is what
    `TrainState.create(trainable=...)` and `eqx.partition` take.

    **Arguments:**

    - `modules_to_save`: one or several ends of the PyTorch names of modules that train whole;
        `save_lora` must be told the same. If None, `classifier` and `qa_outputs`, where the model
        has them without an adapter, since such heads are usually new.

    **Raises:** `ValueError` if the model has no adapters, no module of one of these names, or
    adapters inside of one.
    """
    whole = trained_whole(model, modules_to_save)

    def is_trained(path: tuple[Any, ...], part: Any) -> Any:
        if isinstance(part, LoRALinear):
            frozen = jax.tree.map(lambda _: False, part)
            return eqx.tree_at(lambda adapted: (adapted.a, adapted.b), frozen, (True, True))
        return is_in_any(name_of(path), whole)

    return jax.tree_util.tree_map_with_path(is_trained, model, is_leaf=_is_a(LoRALinear))


def merge_lora(model: Model) -> Model:
    """The model with its adapters made part of its weights: plain `Linear`s again, which cost no
    more than before, and can be saved with `save_pretrained`.

    Each weight is rounded once, to its dtype, and stays as it is in every bit where its adapter is
    zero. By the rounding, the output of a map changes by no more than
    `eps / 2 * abs(x) @ abs(weight).T`, where `eps` is that of the weights' dtype; the rest is
    rounding of sums.

    **Raises:** `ValueError` if the model has no adapters.
    """
    _require_adapters(model)

    def merge(name: str, adapted: LoRALinear) -> Linear:
        del name
        old, new = adapted.base.weight, adapted.weight
        # Where they are equal, the old bits: the sum loses the sign of a zero, and may lose
        # numbers next to zero.
        new = jnp.where(new == old, old, new)
        return eqx.tree_at(lambda linear: linear.weight, adapted.base, new)

    return map_modules(merge, LoRALinear, model)


def remove_lora(model: Model) -> Model:
    """The model without its adapters: as it was before `add_lora`, but for what else was trained.

    **Raises:** `ValueError` if the model has no adapters.
    """
    _require_adapters(model)
    return map_modules(lambda _, adapted: adapted.base, LoRALinear, model)


def name_of(path: tuple[Any, ...]) -> str:
    """What PyTorch calls the module or array at a path of a tree; the path itself, with dots, if it
    is not one of BERT's.
    """
    text = jax.tree_util.keystr(path, simple=True, separator=".")
    try:
        return path_to_name(text)
    except KeyError:
        return text


def named_modules(kind: type[eqx.Module], model: PyTree) -> dict[str, Any]:
    """The modules of a class in a model, by their PyTorch names."""
    parts, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_a(kind))
    return {name_of(path): part for path, part in parts if isinstance(part, kind)}


def map_modules(function: Callable[[str, Any], Any], kind: type[eqx.Module], model: Model) -> Model:
    """The model with each of its modules of a class replaced by `function(name, module)`."""

    def visit(path: tuple[Any, ...], part: Any) -> Any:
        return function(name_of(path), part) if isinstance(part, kind) else part

    return jax.tree_util.tree_map_with_path(visit, model, is_leaf=_is_a(kind))


def trained_whole(
    model: eqx.Module, modules_to_save: str | Sequence[str] | None
) -> tuple[str, ...]:
    """The names, or their ends, of the modules of an adapted model that train whole; arguments and
    errors are those of `lora_filter`.
    """
    _require_adapters(model)
    adapted = named_modules(LoRALinear, model)
    linears = named_modules(Linear, model)  # the bases of adapters among them, as `name.base`
    if modules_to_save is None:
        return tuple(h for h in _HEADS if any(_ends_with_any(name, (h,)) for name in linears))
    paths, _ = jax.tree_util.tree_flatten_with_path(model)
    names = [name_of(path) for path, _ in paths]
    modules = (modules_to_save,) if isinstance(modules_to_save, str) else tuple(modules_to_save)
    for module in modules:
        if not any(is_in_any(name, [module]) for name in names):
            raise ValueError(
                f"The model has no module {module!r} to train whole. It has, among others, "
                f"{_shortened([n for n in linears if n.removesuffix('.base') not in adapted])}."
            )
        inside = [name for name in adapted if is_in_any(f"{name}.", [module])]
        if inside:
            raise ValueError(
                f"{module!r} cannot train whole, since it has adapters: {', '.join(inside)}."
            )
    return modules


def is_in_any(name: str, modules: Collection[str]) -> bool:
    """Whether the array of that name is in a module whose name ends, in whole parts, with one of
    those given.
    """
    return any(f".{module}." in f".{name}" for module in modules)


def _choose(names: Collection[str], targets: Targets) -> list[str]:
    """Those of the names of linear maps that are meant."""
    if callable(targets):
        chosen, unmatched = [name for name in names if targets(name)], []
    elif targets == "all-linear":
        left_out = (*_HEADS, _WORD_SCORES)
        chosen, unmatched = [n for n in names if not _ends_with_any(n, left_out)], []
    else:
        ends = (targets,) if isinstance(targets, str) else tuple(targets)
        chosen = [name for name in names if _ends_with_any(name, ends)]
        unmatched = [end for end in ends if not any(_ends_with_any(n, (end,)) for n in names)]
    if unmatched or not chosen:
        what = ", ".join(map(repr, unmatched)) or repr(targets)
        raise ValueError(
            f"No linear map is meant by {what}. There are {_shortened(names)}. (Embeddings and "
            "LayerNorms cannot be adapted.)"
        )
    return chosen


def _ends_with_any(name: str, ends: Sequence[str]) -> bool:
    return f".{name}".endswith(tuple(f".{end}" for end in ends))


def _shortened(names: Collection[str]) -> str:
    """The names for a message, each once for all layers."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names))


def _require_adapters(model: eqx.Module) -> None:
    if not named_modules(LoRALinear, model):
        raise ValueError("The model has no adapters; add_lora adds some.")


def _is_a(kind: type[eqx.Module]) -> Callable[[Any], bool]:
    return lambda part: isinstance(part, kind)
