"""LoRA: adapters on a model, what trains, merging, and PEFT's files."""

import functools
import json
import logging
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from convert.checkpoints import as_numpy, assert_same_arrays, contents, torch_bert
from helpers import max_difference, tiny_config
from parity import (
    WITH_HEADS,
    as_torch,
    assert_same_outputs,
    labelled_inputs,
    random_inputs,
    reference_model,
    same_model,
    without_labels,
)
from safetensors.numpy import load_file, save_file
from tolerances import FLOAT32, FLOAT32_GRADIENT, FLOAT64

import eqxbert
from eqxbert.convert import CheckpointError
from eqxbert.nn import Linear
from eqxbert.training import lora_files
from eqxbert.training.lora import (
    LoRALinear,
    add_lora,
    lora_filter,
    merge_lora,
    named_modules,
    remove_lora,
)
from eqxbert.training.lora_files import load_lora, save_lora

QUERY = "encoder.layer.0.attention.self.query"
PREFIX = "base_model.model."


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft", reason="needs peft: pip install 'eqxbert[test]'")


def with_peft(test: Any) -> Any:
    """Marks a test that uses PEFT, which warns of what it does itself."""
    return pytest.mark.filterwarnings("ignore")(test)


def randomized(model: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """An adapted model in which no adapter is zero any more."""
    rng = np.random.default_rng(seed)

    def draw(part: Any) -> Any:
        if not isinstance(part, LoRALinear):
            return part
        b = jnp.asarray(rng.normal(size=part.b.shape, scale=scale), part.b.dtype)
        return eqx.tree_at(lambda adapted: adapted.b, part, b)

    return jax.tree.map(draw, model, is_leaf=lambda part: isinstance(part, LoRALinear))


@functools.cache
def new_model(model_class: Any = eqxbert.BertModel, **changes: Any) -> Any:
    return model_class(tiny_config(**changes), key=jax.random.key(0))


def adapted_model(
    model_class: Any = eqxbert.BertModel, *, dtype: Any = None, **options: Any
) -> Any:
    """A tiny model with adapters that are not zero."""
    model = new_model(model_class)
    if dtype is not None:
        model = jax.tree.map(lambda x: x.astype(dtype), model)
    return randomized(add_lora(model, key=jax.random.key(1), **{"rank": 3} | options))


def adapted_linear(
    dtype: Any = jnp.float32, *, use_bias: bool = True, scale: float = 0.3, **options: Any
) -> LoRALinear:
    base = Linear(24, 10, use_bias=use_bias, initializer_range=1.0, key=jax.random.key(0))
    if use_bias:
        base = eqx.tree_at(
            lambda linear: linear.bias, base, jax.random.normal(jax.random.key(3), 10)
        )
    base = jax.tree.map(lambda x: x.astype(dtype), base)
    return randomized(LoRALinear(base, **{"key": jax.random.key(1)} | options), scale=scale)


def as_float64(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def exact(adapted: LoRALinear, x: Any) -> np.ndarray:
    """What an adapted map computes, in float64 and by the formula of the paper."""
    weight = as_float64(adapted.base.weight)
    update = as_float64(adapted.b) @ as_float64(adapted.a)
    y = as_float64(x) @ (weight + adapted.scale * update).T
    return y if adapted.base.bias is None else y + as_float64(adapted.base.bias)


def inputs_of(model_class: Any) -> dict[str, np.ndarray]:
    if model_class is eqxbert.BertModel:
        return random_inputs()
    return without_labels(labelled_inputs(model_class))


# One map


@pytest.mark.parametrize("leading", [(), (2,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("use_bias", [True, False])
def test_an_adapted_map_is_that_of_the_paper(leading, use_bias):
    with jax.enable_x64(True):
        adapted = adapted_linear(jnp.float64, use_bias=use_bias, rank=3, alpha=5)
        x = jax.random.normal(jax.random.key(2), (*leading, 24), jnp.float64)
        assert adapted.a.dtype == adapted.b.dtype == jnp.float64
        assert adapted(x).shape == (*leading, 10)
        assert max_difference(adapted(x), exact(adapted, x)) < FLOAT64


def test_the_scale():
    assert adapted_linear(rank=4, alpha=6).scale == 1.5
    assert adapted_linear(rank=4, alpha=6, use_rslora=True).scale == 3.0
    assert adapted_linear(rank=3, use_rslora=True).scale == 16 / math.sqrt(3)
    assert adapted_linear(rank=5).rank == 5


def test_new_adapters_are_drawn_as_pytorch_draws_them():
    """kaiming_uniform_ with a = sqrt(5)."""
    base = Linear(64, 3, key=jax.random.key(0))
    adapted = LoRALinear(base, rank=500, key=jax.random.key(1))
    theirs = torch.empty(500, 64)
    torch.nn.init.kaiming_uniform_(theirs, a=math.sqrt(5))
    a = np.asarray(adapted.a)
    assert a.shape == (500, 64)
    assert np.abs(a).max() <= 1 / 8
    assert np.abs(a).max() == pytest.approx(theirs.abs().max().item(), rel=1e-3)
    assert a.std() == pytest.approx(theirs.std().item(), rel=0.02)
    assert abs(a.mean()) < 0.002
    assert not np.any(adapted.b)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_in_half_precision_are_rounded_once(dtype):
    """By half a unit in the last place, and by what is lost in sums in float32."""
    adapted = adapted_linear(dtype, rank=4, scale=2.0)
    assert adapted.a.dtype == adapted.b.dtype == jnp.float32
    x = jax.random.normal(jax.random.key(2), (500, 24), dtype)
    y, expected = adapted(x), exact(adapted, x)
    assert y.dtype == dtype
    error = np.abs(as_float64(y) - expected)
    half_a_unit = float(jnp.finfo(dtype).eps) / 2
    assert np.all(error <= half_a_unit * np.abs(expected) + 1e-4)


@pytest.mark.parametrize(
    "adapters", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
@pytest.mark.parametrize("base", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("inputs", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
def test_dtypes_may_be_mixed(base, adapters, inputs):
    adapted = adapted_linear(base, rank=4)
    adapted = eqx.tree_at(
        lambda m: (m.a, m.b), adapted, (adapted.a.astype(adapters), adapted.b.astype(adapters))
    )
    x = jax.random.normal(jax.random.key(2), (5, 24), inputs)
    expected = exact(adapted, x)
    unit = max(float(jnp.finfo(inputs).eps), 1e-6)
    assert adapted(x).dtype == inputs
    assert np.all(np.abs(as_float64(adapted(x)) - expected) <= unit * np.abs(expected) + 1e-5)
    gradient = jax.grad(lambda m: jnp.sum(m(x).astype(jnp.float32)))(adapted)
    assert [g.dtype for g in jax.tree.leaves(gradient)] == [
        g.dtype for g in jax.tree.leaves(adapted)
    ]
    assert (
        max_difference(
            gradient.a,
            (adapted.scale * as_float64(adapted.b).sum(0))[:, None] * as_float64(x).sum(0),
        )
        < 0.05 * np.abs(as_float64(gradient.a)).max()
    )
    assert merge_lora(adapted).weight.dtype == base


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": -2}, "rank must be at least 1, got -2"),
        ({"alpha": 0}, "alpha must be positive and finite, got 0"),
        ({"alpha": -1.5}, "alpha must be positive and finite, got -1.5"),
        ({"alpha": math.nan}, "alpha must be positive and finite, got nan"),
        ({"alpha": math.inf}, "alpha must be positive and finite, got inf"),
    ],
)
def test_options_that_make_no_adapter(options, message):
    with pytest.raises(ValueError, match=message):
        adapted_linear(**options)
    with pytest.raises(ValueError, match=message):
        add_lora(new_model(), key=jax.random.key(0), **options)


# Models


@pytest.mark.parametrize("model_class", [eqxbert.BertModel, *WITH_HEADS], ids=lambda c: c.__name__)
def test_new_adapters_change_nothing(model_class):
    """Not a bit, operation for operation; compiled, operations are joined in another way."""
    model = new_model(model_class)
    adapted = add_lora(model, targets="all-linear", key=jax.random.key(1))
    assert type(adapted) is model_class
    assert adapted.config == model.config
    inputs = inputs_of(model_class)
    with jax.disable_jit():
        found, expected = adapted(**inputs), model(**inputs)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(one, two)
    compiled = eqx.filter_jit(adapted)(**inputs)
    for one, two in zip(jax.tree.leaves(compiled), jax.tree.leaves(expected), strict=True):
        assert max_difference(one, two) < FLOAT32


def test_every_leaf_is_an_array():
    adapted = adapted_model()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(adapted))
    assert jax.tree.structure(adapted) == jax.tree.structure(adapted_model())
    assert jax.tree.structure(adapted) != jax.tree.structure(adapted_model(alpha=17))


def test_each_adapter_is_drawn_on_its_own(key):
    maps = named_modules(LoRALinear, add_lora(new_model(), key=key)).values()
    assert len({np.asarray(adapted.a).tobytes() for adapted in maps}) == 4
    again = named_modules(LoRALinear, add_lora(new_model(), key=key)).values()
    assert all(np.array_equal(x.a, y.a) for x, y in zip(maps, again, strict=True))


def names_in(part: str, layers: tuple[int, ...] = (0, 1), before: str = "") -> set[str]:
    return {f"{before}encoder.layer.{i}.{part}" for i in layers}


ALL = {
    name
    for part in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    for name in names_in(part)
}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("query", names_in("attention.self.query")),
        (["query"], names_in("attention.self.query")),
        (("key", "value"), names_in("attention.self.key") | names_in("attention.self.value")),
        ("attention.output.dense", names_in("attention.output.dense")),
        # As in PEFT, whole parts of the name; this is the end of another one's too.
        ("output.dense", names_in("output.dense") | names_in("attention.output.dense")),
        ("layer.1.intermediate.dense", names_in("intermediate.dense", (1,))),
        (QUERY, {QUERY}),
        ("pooler.dense", {"pooler.dense"}),
        ("dense", {n for n in ALL if n.endswith("dense")} | {"pooler.dense"}),
        ("all-linear", ALL | {"pooler.dense"}),
        (
            lambda name: "layer.1." in name and "self" in name,
            {n for n in ALL if "1.attention.self" in n},
        ),
    ],
)
def test_targets(targets, expected):
    model = add_lora(new_model(), targets=targets, key=jax.random.key(1))
    assert named_modules(LoRALinear, model).keys() == expected


def test_targets_in_a_model_with_a_head():
    model = new_model(eqxbert.BertForSequenceClassification)
    queries = add_lora(model, targets="query", key=jax.random.key(1))
    assert named_modules(LoRALinear, queries).keys() == names_in(
        "attention.self.query", before="bert."
    )
    head = add_lora(model, targets="classifier", key=jax.random.key(1))
    assert isinstance(head.classifier, LoRALinear)
    everything = add_lora(model, targets="all-linear", key=jax.random.key(1))
    assert isinstance(everything.classifier, Linear)  # it trains whole
    assert isinstance(everything.bert.pooler.dense, LoRALinear)


@pytest.mark.parametrize(
    "targets",
    [
        "querry",
        ["query", "vlaue"],
        "uery",
        "self",
        "word_embeddings",
        "LayerNorm",
        [],
        lambda name: False,
    ],
)
def test_targets_that_mean_nothing(targets):
    with pytest.raises(ValueError, match="No linear map is meant") as error:
        add_lora(new_model(), targets=targets, key=jax.random.key(0))
    for part in ("layer.*.attention.self.query", "layer.*.output.dense", "pooler.dense"):
        assert str(error.value).count(part) >= 1
    if targets == ["query", "vlaue"]:
        assert "by 'vlaue'." in str(error.value)


def test_a_model_has_adapters_once(tmp_path: Path, key):
    adapted = add_lora(new_model(), key=key)
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(adapted, targets="key", key=key)
    save_lora(adapted, tmp_path)
    with pytest.raises(ValueError, match="has adapters already"):
        load_lora(adapted, tmp_path)


def test_what_needs_names_of_a_checkpoint_says_what_to_do_about_adapters(tmp_path, key):
    adapted = add_lora(eqxbert.BertForSequenceClassification(tiny_config(), key=key), key=key)
    for call in (
        lambda: adapted.save_pretrained(tmp_path / "model"),
        lambda: adapted.prune_heads({0: [1]}),
        lambda: adapted.with_labels(5, key=key),
        lambda: eqxbert.convert.to_state_dict(adapted),
    ):
        with pytest.raises(ValueError, match=r"query\.base\.weight has no name .* merge_lora"):
            call()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "function", [merge_lora, remove_lora, lora_filter, lambda m: save_lora(m, "/nowhere/at/all")]
)
def test_a_model_without_adapters(function):
    with pytest.raises(ValueError, match="has no adapters; add_lora adds some"):
        function(new_model())


class TwoParts(eqx.Module):
    """A model that is not of this library."""

    encoder: eqxbert.BertModel
    projection: Linear

    def __call__(self, ids: Any) -> Any:
        return self.projection(self.encoder(ids).pooler_output)


def test_any_model_can_be_adapted(tmp_path: Path, key):
    model = TwoParts(new_model(), Linear(12, 5, key=key))
    adapted = randomized(add_lora(model, targets=("query", "projection"), key=key))
    assert named_modules(LoRALinear, adapted).keys() == {
        *names_in("attention.self.query", before="encoder."),
        "projection",
    }
    assert merge_lora(adapted)(random_inputs()["input_ids"]).shape == (2, 5)
    save_lora(adapted, tmp_path)
    assert eqx.tree_equal(load_lora(model, tmp_path), adapted)
    single = LoRALinear(model.projection, rank=2, key=key)
    assert eqx.tree_equal(merge_lora(single), model.projection)
    assert eqx.tree_equal(remove_lora(single), model.projection)


# Training


def changed(before: Any, after: Any) -> set[str]:
    """The paths of the arrays that differ in any bit."""
    pairs = zip(
        jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for (path, x), y in pairs
        if np.asarray(x).tobytes() != np.asarray(y).tobytes()
    }


def paths_where(tree: Any) -> set[str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator=".") for p, leaf in leaves if leaf}


ADAPTERS = {
    f"bert.encoder.layers.{i}.attention.{part}.{matrix}"
    for i in (0, 1)
    for part in ("query", "value")
    for matrix in ("a", "b")
}
CLASSIFIER = {"classifier.weight", "classifier.bias"}


def train(model: Any, spec: Any, inputs: dict[str, Any], steps: int = 3) -> Any:
    """The model after steps of AdamW, whose weight decay would move what it is given."""
    trained, frozen = eqx.partition(model, spec)
    optimizer = optax.adamw(0.01, weight_decay=0.1)
    state = optimizer.init(trained)

    @jax.jit
    def step(trained: Any, state: Any) -> Any:
        def loss(trained: Any) -> Any:
            return eqx.combine(trained, frozen)(**inputs).loss

        value, gradient = eqx.filter_value_and_grad(loss)(trained)
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            updates, state = optimizer.update(gradient, state, trained)
        return eqx.apply_updates(trained, updates), state, value

    losses = []
    for _ in range(steps):
        trained, state, value = step(trained, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    return eqx.combine(trained, frozen)


@pytest.mark.parametrize(
    ("modules_to_save", "whole"),
    [
        (None, CLASSIFIER),
        ((), set()),
        ("classifier", CLASSIFIER),
        (["pooler"], {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}),
        (
            ["layer.1.output", "classifier"],
            CLASSIFIER
            | {f"bert.encoder.layers.1.feed_forward.output.{x}" for x in ("weight", "bias")}
            | {f"bert.encoder.layers.1.feed_forward_norm.{x}" for x in ("weight", "bias")},
        ),
    ],
)
def test_only_adapters_and_the_modules_named_train(modules_to_save, whole):
    model_class = eqxbert.BertForSequenceClassification
    model = add_lora(new_model(model_class), rank=3, key=jax.random.key(1))
    spec = lora_filter(model, modules_to_save=modules_to_save)
    assert jax.tree.structure(spec) == jax.tree.structure(model)
    assert {type(leaf) for leaf in jax.tree.leaves(spec)} == {bool}
    assert paths_where(spec) == ADAPTERS | whole
    trained = train(model, spec, labelled_inputs(model_class))
    assert changed(model, trained) == ADAPTERS | whole
    assert not changed(new_model(model_class).bert, remove_lora(trained).bert) - {
        name.removeprefix("bert.") for name in whole
    }


@pytest.mark.parametrize(
    ("model_class", "whole"),
    [
        (eqxbert.BertForMaskedLM, set()),
        (eqxbert.BertForNextSentencePrediction, set()),
        (eqxbert.BertForMultipleChoice, CLASSIFIER),
        (eqxbert.BertForTokenClassification, CLASSIFIER),
        (eqxbert.BertForQuestionAnswering, {"qa_outputs.weight", "qa_outputs.bias"}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_heads_that_train_by_themselves(model_class, whole):
    adapted = add_lora(new_model(model_class), key=jax.random.key(1))
    assert paths_where(lora_filter(adapted)) == ADAPTERS | whole


def test_a_head_with_an_adapter_does_not_train_whole(key):
    model = new_model(eqxbert.BertForSequenceClassification)
    adapted = add_lora(model, targets=["classifier"], key=key)
    assert paths_where(lora_filter(adapted)) == {"classifier.a", "classifier.b"}
    with pytest.raises(ValueError, match=r"'classifier' cannot train whole.*: classifier\."):
        lora_filter(adapted, modules_to_save=["classifier"])


def test_modules_that_cannot_train_whole(key):
    adapted = add_lora(new_model(eqxbert.BertForSequenceClassification), key=key)
    with pytest.raises(ValueError, match=r"no module 'clasifier'.*pooler.dense, classifier\."):
        lora_filter(adapted, modules_to_save=["clasifier"])
    for part in ("weight", "lassifier", "class"):
        with pytest.raises(ValueError, match=f"no module '{part}'"):
            lora_filter(adapted, modules_to_save=[part])
    with pytest.raises(ValueError, match="'bert' cannot train whole"):
        lora_filter(adapted, modules_to_save=["bert"])
    with pytest.raises(ValueError, match=r"'self\.query' cannot train whole"):
        lora_filter(adapted, modules_to_save=["self.query"])


def test_adapted_models_under_jax_transformations():
    model_class = eqxbert.BertForSequenceClassification
    model = adapted_model(model_class)
    inputs = labelled_inputs(model_class)
    trained, frozen = eqx.partition(model, lora_filter(model))

    def loss(trained: Any, inputs: dict[str, Any]) -> Any:
        return eqx.combine(trained, frozen)(**inputs).loss

    eager, compiled = loss(trained, inputs), jax.jit(loss)(trained, inputs)
    assert max_difference(compiled, eager) < FLOAT32
    whole = jax.jit(jax.grad(loss))(trained, inputs)
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(trained, inputs)
    for one, all_of_them in zip(jax.tree.leaves(each), jax.tree.leaves(whole), strict=True):
        assert max_difference(np.mean(one, axis=0), all_of_them) < FLOAT32


def test_many_adapters_on_one_base(key):
    """One call for several sets of adapters, with a single copy of the base weights."""
    model = new_model()
    inputs = random_inputs()
    each = [randomized(add_lora(model, rank=3, key=key), seed) for seed in range(3)]
    spec = lora_filter(each[0])
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *(eqx.filter(m, spec) for m in each))
    base = eqx.filter(each[0], spec, inverse=True)
    run = jax.vmap(lambda adapters: eqx.combine(adapters, base)(**inputs).pooler_output)
    out = jax.jit(run)(stacked)
    for row, one in zip(out, each, strict=True):
        assert max_difference(row, one(**inputs).pooler_output) < FLOAT32
    assert max_difference(out[0], out[1]) > 0.01


def test_adapters_can_be_made_in_a_compiled_program(key):
    model = new_model()
    compiled = eqx.filter_jit(lambda model, key: add_lora(model, key=key))(model, key)
    assert eqx.tree_equal(compiled, add_lora(model, key=key), rtol=1e-6)
    shapes = eqx.filter_eval_shape(add_lora, model, key=key)
    assert jax.tree.structure(shapes) == jax.tree.structure(compiled)


# Merging


def merging_bound(adapted: LoRALinear, x: Any) -> np.ndarray:
    """How far the output of a merged map may be from that of the adapted one. Each weight and each
    output is rounded to its dtype; each sum is one in float32, of no more than `terms` terms.
    """
    unit, weight_unit, sum_unit = (
        float(jnp.finfo(d).eps) / 2 for d in (x.dtype, adapted.base.weight.dtype, jnp.float32)
    )
    size, weight = np.abs(as_float64(x)), np.abs(as_float64(adapted.base.weight))
    update = adapted.scale * np.abs(as_float64(adapted.b)) @ np.abs(as_float64(adapted.a))
    bias = 0 if adapted.base.bias is None else np.abs(as_float64(adapted.base.bias))
    terms = weight.shape[1] + adapted.rank + 4
    sums = terms * sum_unit * (size @ (weight + update).T + bias)
    outputs = 2 * unit * np.abs(exact(adapted, x)) * (1 + 1e-2)
    return weight_unit * size @ np.abs(as_float64(adapted.weight)).T + 2 * sums + outputs


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
def test_merging_a_map(dtype, use_rslora):
    adapted = adapted_linear(dtype, rank=4, alpha=3, use_rslora=use_rslora)
    merged = merge_lora(adapted)
    assert type(merged) is Linear
    assert jax.tree.structure(merged) == jax.tree.structure(adapted.base)
    assert merged.weight.dtype == dtype
    update = adapted.scale * as_float64(adapted.b) @ as_float64(adapted.a)
    expected = as_float64(adapted.base.weight) + update
    error = np.abs(as_float64(merged.weight) - expected)
    rounding = float(jnp.finfo(dtype).eps) / 2 * np.abs(expected)
    assert np.all(error <= rounding + 8 * 6e-8 * (np.abs(update) + 1))
    assert np.array_equal(merged.bias, adapted.base.bias)
    x = jax.random.normal(jax.random.key(2), (200, 24), dtype)
    difference = np.abs(as_float64(merged(x)) - as_float64(adapted(x)))
    assert np.all(difference <= merging_bound(adapted, x))


@pytest.mark.parametrize("model_class", [eqxbert.BertModel, *WITH_HEADS], ids=lambda c: c.__name__)
def test_merging_a_model(model_class):
    model = new_model(model_class)
    adapted = randomized(add_lora(model, targets="all-linear", key=jax.random.key(1)), scale=0.1)
    merged = merge_lora(adapted)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    inputs = inputs_of(model_class)
    found, expected, before = (jax.tree.leaves(m(**inputs)) for m in (merged, adapted, model))
    assert max_difference(expected[0], before[0]) > 0.01
    assert_close(found, expected, FLOAT32)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert max_difference(x, y) < tolerance


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__
)
def test_merging_new_adapters_changes_no_bit(dtype):
    """Nor the sign of a zero, nor numbers too small for arithmetic."""
    base = jax.tree.map(lambda x: x.astype(dtype), Linear(24, 10, key=jax.random.key(0)))
    tiny = float(jnp.finfo(dtype).smallest_subnormal)
    weight = np.array(base.weight)
    weight[0, :5] = np.array([-0.0, 0.0, tiny, -tiny, 1.0]).astype(dtype)
    base = eqx.tree_at(lambda linear: linear.weight, base, jnp.asarray(weight))
    merged = merge_lora(LoRALinear(base, key=jax.random.key(1)))
    assert np.asarray(merged.weight).tobytes() == weight.tobytes()


def test_merging_and_removing_leave_a_plain_model(tmp_path: Path, key):
    model = new_model(eqxbert.BertForSequenceClassification)
    adapted = add_lora(model, targets="all-linear", key=key)
    for plain in (merge_lora(adapted), remove_lora(adapted), remove_lora(randomized(adapted))):
        assert jax.tree.structure(plain) == jax.tree.structure(model)
        assert_same_arrays(plain, model)
    merged = merge_lora(randomized(adapted))
    merged.save_pretrained(tmp_path)
    loaded = eqxbert.BertForSequenceClassification.from_pretrained(tmp_path)
    assert_same_arrays(loaded, merged)
    assert changed(model, loaded) == {
        f"{path}.weight"
        for path in paths_where(jax.tree.map(lambda _: True, model))
        for path in [path.removesuffix(".weight")]
        if isinstance(at(model, path), Linear) and path != "classifier"
    }


def at(model: Any, path: str) -> Any:
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def test_a_decoder_of_its_own_can_be_adapted(tmp_path: Path, key):
    """Its product is not computed by the map itself, but with its weight."""
    model = new_model(eqxbert.BertForMaskedLM, tie_word_embeddings=False)
    adapted = randomized(add_lora(model, targets="cls.predictions.decoder", key=key))
    inputs = random_inputs()
    assert max_difference(adapted(**inputs).logits, model(**inputs).logits) > 0.1
    assert max_difference(adapted(**inputs).logits, merge_lora(adapted)(**inputs).logits) < FLOAT32
    inputs = labelled_inputs(eqxbert.BertForMaskedLM)
    new = add_lora(model, targets="cls.predictions.decoder", key=key)
    trained = train(new, lora_filter(new), inputs)
    assert changed(new, trained) == {"lm_head.decoder.a", "lm_head.decoder.b"}
    everything = add_lora(model, targets="all-linear", key=key)
    assert isinstance(everything.lm_head.decoder, Linear)
    assert isinstance(everything.lm_head.dense, LoRALinear)
    with pytest.raises(ValueError, match="No linear map"):  # there is none if it is tied
        add_lora(new_model(eqxbert.BertForMaskedLM), targets="cls.predictions.decoder", key=key)


def test_adapted_models_decode():
    model = adapted_model(eqxbert.BertForCausalLM)
    ids = random_inputs()["input_ids"]
    out = jax.jit(lambda model, ids: model(ids[:, :3], cache=model.init_cache(2, 8)))(model, ids)
    rest = jax.jit(lambda model, cache, ids: model(ids[:, 3:], cache=cache))(model, out.cache, ids)
    logits = jnp.concatenate([out.logits, rest.logits], 1)
    assert max_difference(logits, merge_lora(model)(ids).logits) < FLOAT32


# Files, against what the format is known to be


def written_by_hand(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """A folder as PEFT writes it."""
    folder.mkdir(exist_ok=True)
    save_file(
        {PREFIX + name: array for name, array in tensors.items()}, folder / lora_files.WEIGHTS
    )
    values = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["query"]} | config
    (folder / lora_files.CONFIG).write_text(json.dumps(values), encoding="utf-8")
    return folder


def pair(name: str, rank: int = 3, in_size: int = 12, out_size: int = 12, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    shapes = {"A": (rank, in_size), "B": (out_size, rank)}
    return {
        f"{name}.lora_{matrix}.weight": rng.normal(size=shape).astype(np.float32)
        for matrix, shape in shapes.items()
    }


def merged_by_hand(
    reference: Any, tensors: dict[str, np.ndarray], scale: Any, **arrays: np.ndarray
) -> Any:
    """A model of transformers with `scale(name) * B @ A` added to its weights."""
    state = reference.state_dict()
    for name in {name.split(".lora_")[0] for name in tensors if ".lora_" in name}:
        update = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        state[f"{name}.weight"] += torch.tensor(scale(name) * update)
    reference.load_state_dict(state | {name: torch.tensor(x) for name, x in arrays.items()})
    return reference


def test_adapters_written_by_peft_are_added_to_the_weights(tmp_path: Path):
    reference = torch_bert(transformers.BertForSequenceClassification)
    model = same_model(reference)
    value = "bert.encoder.layer.1.attention.self.value"
    tensors = pair(f"bert.{QUERY}") | pair(value, rank=2, seed=1)
    head = {
        "classifier.weight": np.ones((2, 12), np.float32),
        "classifier.bias": np.ones(2, np.float32),
    }
    written_by_hand(
        tmp_path,
        tensors | head,
        modules_to_save=["classifier", "score"],
        task_type="SEQ_CLS",
        lora_dropout=0.1,
        rank_pattern={"value": 2},
        alpha_pattern={"layer.1.attention.self.value": 5},
        init_lora_weights="gaussian",
        unknown_setting=None,
    )
    adapted = load_lora(model, tmp_path)
    assert named_modules(LoRALinear, adapted).keys() == {f"bert.{QUERY}", value}
    by_hand = merged_by_hand(
        reference, tensors, lambda name: 5 / 2 if name == value else 6 / 3, **head
    )
    inputs = random_inputs()
    with torch.no_grad():
        assert_same_outputs(adapted(**inputs), by_hand(**as_torch(inputs)), FLOAT32)


def test_rslora_in_a_file(tmp_path: Path):
    written_by_hand(tmp_path, pair(QUERY), use_rslora=True)
    (adapted,) = named_modules(LoRALinear, load_lora(new_model(), tmp_path)).values()
    assert adapted.use_rslora
    assert adapted.scale == 6 / math.sqrt(3)


@pytest.mark.parametrize("saved", [eqxbert.BertModel, eqxbert.BertForMaskedLM])
@pytest.mark.parametrize("loaded", [eqxbert.BertModel, eqxbert.BertForSequenceClassification])
def test_adapters_fit_models_with_other_heads(tmp_path: Path, saved, loaded):
    adapted = adapted_model(saved)
    save_lora(adapted, tmp_path)
    found = load_lora(new_model(loaded), tmp_path)
    expected = [(x.a, x.b) for x in named_modules(LoRALinear, adapted).values()]
    assert eqx.tree_equal([(x.a, x.b) for x in named_modules(LoRALinear, found).values()], expected)


def test_a_head_that_the_model_lacks_is_left_out(tmp_path: Path, caplog):
    save_lora(adapted_model(eqxbert.BertForSequenceClassification), tmp_path)
    with caplog.at_level(logging.INFO, "eqxbert"):
        load_lora(new_model(), tmp_path)
    assert "Adapters from" in caplog.text
    assert "not used by this model: classifier.bias, classifier.weight" in caplog.text


def test_what_is_written(tmp_path: Path):
    model = adapted_model(eqxbert.BertForSequenceClassification, targets=("query",), alpha=6)
    save_lora(model, tmp_path, base_model="some/bert")
    assert contents(tmp_path).keys() == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    names = sorted(names_in("attention.self.query", before="bert."))
    assert config == {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "some/bert",
        "r": 3,
        "lora_alpha": 6,
        "use_rslora": False,
        "target_modules": names,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": ["classifier"],
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    assert isinstance(config["lora_alpha"], int)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    expected = {f"{PREFIX}{n}.lora_{m}.weight": (m, n) for n in names for m in "AB"}
    assert tensors.keys() == expected.keys() | {PREFIX + name for name in CLASSIFIER}
    adapters = named_modules(LoRALinear, model)
    for name, (matrix, module) in expected.items():
        assert np.array_equal(tensors[name], getattr(adapters[module], matrix.lower()))
    assert np.array_equal(tensors[f"{PREFIX}classifier.weight"], model.classifier.weight)


@pytest.mark.parametrize("model_class", [eqxbert.BertModel, *WITH_HEADS], ids=lambda c: c.__name__)
def test_adapters_come_back_from_files(tmp_path: Path, model_class):
    adapted = adapted_model(model_class, targets="all-linear", use_rslora=True, alpha=2.5)
    save_lora(adapted, tmp_path)
    assert eqx.tree_equal(load_lora(remove_lora(adapted), tmp_path), adapted)
    (tmp_path / lora_files.WEIGHTS).rename(tmp_path / "step_9000.safetensors")
    path = tmp_path / "step_9000.safetensors"
    assert eqx.tree_equal(load_lora(remove_lora(adapted), path), adapted)


def test_modules_trained_whole_come_back_from_files(tmp_path: Path):
    model_class = eqxbert.BertForSequenceClassification
    model = add_lora(new_model(model_class), rank=3, key=jax.random.key(1))
    modules = ["pooler", "classifier", "layer.0.output.LayerNorm"]
    spec = lora_filter(model, modules_to_save=modules)
    trained = train(model, spec, labelled_inputs(model_class))
    save_lora(trained, tmp_path, modules_to_save=modules)
    loaded = load_lora(new_model(model_class), tmp_path)
    assert eqx.tree_equal(loaded, trained)
    config = json.loads((tmp_path / lora_files.CONFIG).read_text(encoding="utf-8"))
    assert config["modules_to_save"] == modules
    save_lora(trained, tmp_path, modules_to_save=())
    config = json.loads((tmp_path / lora_files.CONFIG).read_text(encoding="utf-8"))
    # PEFT would look for the head of a classifier.
    assert (config["modules_to_save"], config["task_type"]) == (None, None)
    assert not any("classifier" in name for name in load_file(tmp_path / lora_files.WEIGHTS))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_files_in_half_precision(tmp_path: Path, dtype):
    model_class = eqxbert.BertForSequenceClassification
    adapted = adapted_model(model_class, dtype=dtype)
    save_lora(adapted, tmp_path)
    assert eqx.tree_equal(load_lora(remove_lora(adapted), tmp_path), adapted)
    halved = jax.tree.map(lambda x: x.astype(dtype), adapted)
    save_lora(halved, tmp_path)
    assert {str(x.dtype) for x in load_file(tmp_path / lora_files.WEIGHTS).values()} == {
        jnp.dtype(dtype).name
    }
    loaded = load_lora(new_model(model_class), tmp_path)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}
    for found, expected in zip(
        named_modules(LoRALinear, loaded).values(),
        named_modules(LoRALinear, halved).values(),
        strict=True,
    ):
        assert np.array_equal(found.a, expected.a.astype(jnp.float32))


def test_adapters_of_different_ranks_and_scales(tmp_path: Path, key):
    model = new_model()
    maps = named_modules(Linear, model)
    options: Any = {QUERY: {"rank": 2}, "pooler.dense": {"alpha": 0.5}}
    adapted = add_lora(model, targets="all-linear", rank=4, key=key)
    adapted = eqx.tree_at(
        lambda m: (m.encoder.layers[0].attention.query, m.pooler.dense),
        adapted,
        tuple(LoRALinear(maps[n], **{"rank": 4} | o, key=key) for n, o in options.items()),
        is_leaf=lambda part: isinstance(part, LoRALinear),
    )
    save_lora(adapted, tmp_path)
    config = json.loads((tmp_path / lora_files.CONFIG).read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (4, 16)
    assert config["rank_pattern"] == {QUERY: 2}
    assert config["alpha_pattern"] == {"pooler.dense": 0.5}
    assert eqx.tree_equal(load_lora(model, tmp_path), adapted)
    mixed = eqx.tree_at(
        lambda m: m.pooler.dense,
        adapted,
        LoRALinear(maps["pooler.dense"], use_rslora=True, key=key),
        is_leaf=lambda part: isinstance(part, LoRALinear),
    )
    with pytest.raises(ValueError, match="Some adapters use rsLoRA"):
        save_lora(mixed, tmp_path)


def test_adapters_of_an_encoder_and_its_decoder(tmp_path: Path, key):
    config = tiny_config(add_cross_attention=True, is_decoder=True)
    model = eqxbert.EncoderDecoderModel.from_encoder_decoder(
        new_model(), eqxbert.BertForCausalLM(config, key=key), decoder_start_token_id=1, key=key
    )
    adapted = randomized(add_lora(model, key=key))
    assert named_modules(LoRALinear, adapted).keys() == {
        f"{part}encoder.layer.{i}.{attention}.self.{name}"
        for part, kinds in (
            ("encoder.", ["attention"]),
            ("decoder.bert.", ["attention", "crossattention"]),
        )
        for i in (0, 1)
        for attention in kinds
        for name in ("query", "value")
    }
    save_lora(adapted, tmp_path, modules_to_save=["encoder.embeddings"])
    assert eqx.tree_equal(load_lora(model, tmp_path), adapted)


def test_a_pickle_of_older_versions(tmp_path: Path):
    tensors = pair(QUERY)
    written_by_hand(tmp_path, tensors)
    expected = load_lora(new_model(), tmp_path)
    (tmp_path / lora_files.WEIGHTS).unlink()
    as_torch_tensors = {PREFIX + name: torch.tensor(x) for name, x in tensors.items()}
    torch.save(as_torch_tensors, tmp_path / "adapter_model.bin")
    assert eqx.tree_equal(load_lora(new_model(), tmp_path), expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'; only 'LORA' is"),
        ({"peft_type": None}, "peft_type None; only 'LORA' is"),
        ({"use_dora": True}, "use_dora = True"),
        ({"use_qalora": True}, "use_qalora = True"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"bias": "all"}, "bias = 'all'; only 'none' is"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"layer_replication": [[0, 1]]}, r"layer_replication = \[\[0, 1\]\]"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices = \[3\]"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa', which changes the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
        ({"lora_alpha": "16"}, "lora_alpha = '16'; a number is"),
        ({"alpha_pattern": {"key": None}}, "lora_alpha = None"),
        ({"alpha_pattern": {"*key": 4}}, r"alpha_pattern has '\*key'; a pattern is"),
    ],
    ids=str,
)
def test_settings_that_are_not_supported(tmp_path: Path, config, message):
    written_by_hand(tmp_path, pair(QUERY), **config)
    with pytest.raises(CheckpointError, match=message) as error:
        load_lora(new_model(), tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: Not supported:")


WORDS = "embeddings.word_embeddings"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "there are none in it"),
        ({"classifier.weight": np.ones((2, 12), np.float32)}, "there are none in it"),
        (pair("encoder.layer.7.output.dense"), "layer.7.output.dense: the model has no such"),
        (pair("embeddings.LayerNorm"), "embeddings.LayerNorm: the model has no such linear map"),
        (
            pair(QUERY, in_size=13),
            rf"{QUERY}: lora_A and lora_B have shapes \(3, 13\) and \(12, 3\)",
        ),
        (pair(QUERY, out_size=9), rf"{QUERY}: lora_A.*from 12 to 12"),
        (pair(QUERY, rank=0), rf"{QUERY}: lora_A"),
        (
            {f"{QUERY}.lora_A.weight": np.ones((3, 12), np.float32)},
            f"{QUERY}.lora_B.weight: missing",
        ),
        (
            {f"{QUERY}.lora_B.weight": np.ones((12, 3), np.float32)},
            f"{QUERY}.lora_A.weight: missing",
        ),
        (
            pair(QUERY) | {f"{WORDS}.lora_embedding_A": np.ones((3, 33), np.float32)},
            f"{WORDS}.lora_embedding_A: only lora_A and lora_B of linear maps",
        ),
        (
            pair(QUERY) | {f"{QUERY}.lora_magnitude_vector.weight": np.ones(12, np.float32)},
            "lora_magnitude_vector.weight: only lora_A and lora_B",
        ),
        (
            pair(QUERY) | {f"{WORDS}.weight": np.ones((40, 12), np.float32)},
            rf"{WORDS}.weight: \(40, 12\) in the file, \(33, 12\) in the model",
        ),
        (
            pair(QUERY) | {"encoder.layer.9.output.dense.weight": np.ones((2, 2), np.float32)},
            "encoder.layer.9.output.dense.weight: the model has no such array",
        ),
        (
            {n: x.astype(np.int8) for n, x in pair(QUERY).items()},
            "of a dtype that is not supported",
        ),
    ],
)
def test_adapters_that_do_not_fit(tmp_path: Path, tensors, message):
    written_by_hand(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=message) as error:
        load_lora(new_model(), tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: The adapters do not fit the model:")


def test_all_problems_are_listed(tmp_path: Path):
    names = [f"encoder.layer.{i}.output.dense" for i in (5, 6)]
    written_by_hand(tmp_path, pair(names[0]) | pair(names[1]) | pair(QUERY, in_size=13))
    with pytest.raises(CheckpointError) as error:
        load_lora(new_model(), tmp_path)
    assert all(name in str(error.value) for name in [*names, QUERY])


def test_a_module_that_was_to_be_saved_is_there(tmp_path: Path):
    model = new_model(eqxbert.BertForSequenceClassification)
    weight = {"classifier.weight": np.ones((2, 12), np.float32)}
    written_by_hand(tmp_path, pair(QUERY) | weight, modules_to_save=["classifier"])
    with pytest.raises(CheckpointError, match=r"classifier\.bias: missing, although modules"):
        load_lora(model, tmp_path)


def test_a_head_for_other_labels(tmp_path: Path):
    save_lora(adapted_model(eqxbert.BertForSequenceClassification), tmp_path)
    model = new_model(eqxbert.BertForSequenceClassification, num_labels=5)
    with pytest.raises(
        CheckpointError, match=r"classifier.weight: \(2, 12\) in the file, \(5, 12\)"
    ):
        load_lora(model, tmp_path)


def test_folders_without_adapters(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json"):
        load_lora(new_model(), tmp_path)
    written_by_hand(tmp_path, pair(QUERY))
    (tmp_path / lora_files.WEIGHTS).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no adapter_model\.safetensors, nor adapter_model\.bin"
    ):
        load_lora(new_model(), tmp_path)
    with pytest.raises(FileNotFoundError):
        load_lora(new_model(), tmp_path / "absent")
    (tmp_path / lora_files.WEIGHTS).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        load_lora(new_model(), tmp_path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch):
    folder = tmp_path / "adapters"
    save_lora(adapted_model(), folder)
    (folder / "README.md").write_text("mine", encoding="utf-8")
    before = contents(folder)

    def fail(path: Path, tensors: Any) -> None:
        path.write_bytes(b"half a file")
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(lora_files, "write_safetensors", fail)
        with pytest.raises(OSError, match="the disk is full"):
            save_lora(adapted_model(alpha=99), folder)
    assert contents(folder) == before
    save_lora(adapted_model(alpha=99), folder)
    assert contents(folder).keys() == before.keys()
    assert contents(folder)["README.md"] == b"mine"
    assert contents(folder)[lora_files.CONFIG] != before[lora_files.CONFIG]


# Heads of language models, whose decoder PEFT unties


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "modules", [["cls"], ["cls.predictions.transform"], ["word_embeddings", "cls"]], ids=str
)
def test_heads_of_language_models_come_back(tmp_path: Path, modules, tied):
    model_class = eqxbert.BertForMaskedLM
    new = new_model(model_class, tie_word_embeddings=tied)
    model = add_lora(new, rank=3, key=jax.random.key(1))
    spec = lora_filter(model, modules_to_save=modules)
    trained = train(model, spec, labelled_inputs(model_class))
    save_lora(trained, tmp_path, modules_to_save=modules)
    assert eqx.tree_equal(load_lora(new, tmp_path), trained)
    names = load_file(tmp_path / lora_files.WEIGHTS).keys()
    head = f"{PREFIX}cls.predictions"
    assert {f"{head}.decoder.weight", f"{head}.decoder.bias", f"{head}.bias"} <= names or (
        modules == ["cls.predictions.transform"]
    )


def test_tied_word_embeddings_are_saved_with_the_decoder(tmp_path: Path):
    adapted = adapted_model(eqxbert.BertForMaskedLM)
    with pytest.raises(ValueError, match=r"Name both in.*\['word_embeddings', 'cls'\]"):
        save_lora(adapted, tmp_path, modules_to_save=["word_embeddings"])
    save_lora(adapted, tmp_path, modules_to_save=["word_embeddings", "cls"])


@pytest.mark.parametrize("table", ["cls.predictions.decoder", f"bert.{WORDS}"])
def test_decoders_that_peft_has_untied(tmp_path: Path, table):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(33, 12)).astype(np.float32)
    written_by_hand(tmp_path, pair(f"bert.{QUERY}") | {f"{table}.weight": array})
    with pytest.raises(CheckpointError, match="load it with tie_word_embeddings=False"):
        load_lora(new_model(eqxbert.BertForMaskedLM), tmp_path)
    loaded = load_lora(new_model(eqxbert.BertForMaskedLM, tie_word_embeddings=False), tmp_path)
    decoder, words = loaded.lm_head.decoder.weight, loaded.bert.embeddings.word.weight
    assert [np.array_equal(decoder, array), np.array_equal(words, array)] == [
        "decoder" in table,
        "decoder" not in table,
    ]


def test_the_bias_that_pytorch_computes_with(tmp_path: Path):
    """Of the two that a head that was saved whole may have."""
    head = {
        f"cls.predictions.{name}": np.full(33, x, np.float32)
        for name, x in (("bias", 1), ("decoder.bias", 2))
    }
    written_by_hand(tmp_path, pair(f"bert.{QUERY}") | head)
    loaded = load_lora(new_model(eqxbert.BertForMaskedLM), tmp_path)
    assert np.all(np.asarray(loaded.lm_head.bias) == 2)


# PEFT


def their_outputs(model: Any, inputs: dict[str, np.ndarray]) -> Any:
    """Not by the PeftModel, some of which do not pass all inputs on."""
    with torch.no_grad():
        return model.get_base_model().eval()(**as_torch(inputs))


def randomized_peft(model: Any) -> Any:
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    return model


TASKS = {
    "BertForCausalLM": "CAUSAL_LM",
    "BertForSequenceClassification": "SEQ_CLS",
    "BertForTokenClassification": "TOKEN_CLS",
    "BertForQuestionAnswering": "QUESTION_ANS",
    "BertModel": "FEATURE_EXTRACTION",
}


@with_peft
@pytest.mark.parametrize(
    "options", [{}, {"targets": "all-linear", "use_rslora": True, "alpha": 2.5}], ids=str
)
@pytest.mark.parametrize("model_class", [eqxbert.BertModel, *WITH_HEADS], ids=lambda c: c.__name__)
def test_peft_loads_what_is_saved(tmp_path: Path, peft, model_class, options):
    reference = reference_model(model_class)
    model = same_model(reference)
    adapted = randomized(add_lora(model, rank=3, key=jax.random.key(1), **options))
    for head in ("classifier", "qa_outputs"):
        if hasattr(adapted, head):  # it is saved whole
            bias = getattr(adapted, head).bias
            adapted = eqx.tree_at(lambda m, head=head: getattr(m, head).bias, adapted, bias + 1)
    save_lora(adapted, tmp_path)
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert config.task_type == TASKS.get(model_class.__name__)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path)
    inputs = inputs_of(model_class)
    assert_same_outputs(adapted(**inputs), their_outputs(theirs, inputs), FLOAT32)
    with torch.no_grad():
        merged = theirs.merge_and_unload()
    assert_close_states(merge_lora(adapted), merged)


def assert_close_states(ours: Any, theirs: Any) -> None:
    state = as_numpy(theirs)
    for name, array in eqxbert.convert.to_state_dict(ours).items():
        assert max_difference(array, state[name]) < 1e-6, name


@with_peft
@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        (eqxbert.BertModel, {}),
        (eqxbert.BertModel, {"target_modules": "all-linear", "use_rslora": True}),
        (eqxbert.BertModel, {"layers_to_transform": [1], "target_modules": ["dense", "key"]}),
        (eqxbert.BertForSequenceClassification, {}),
        (
            eqxbert.BertForSequenceClassification,
            {"target_modules": "all-linear", "lora_dropout": 0.2},
        ),
        (eqxbert.BertForSequenceClassification, {"modules_to_save": ["pooler"]}),
        (eqxbert.BertForTokenClassification, {"init_lora_weights": "gaussian"}),
        (eqxbert.BertForQuestionAnswering, {}),
        (eqxbert.BertForMultipleChoice, {"modules_to_save": ["classifier"]}),
        (eqxbert.BertForMaskedLM, {}),
        (eqxbert.BertForMaskedLM, {"target_modules": "all-linear"}),
        (
            eqxbert.BertForMaskedLM,
            {
                "target_modules": ["query", "value", "key"],
                "rank_pattern": {"key": 2, "layer.1.attention.self.value": 5},
                "alpha_pattern": {"key": 7, "layer.0.attention.self.value": 3, "bert.*query": 2.5},
            },
        ),
        (eqxbert.BertForMaskedLM, {"modules_to_save": ["cls.predictions.transform"]}),
        (eqxbert.BertForCausalLM, {}),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_what_peft_saves_is_loaded(tmp_path: Path, peft, model_class, options):
    reference = reference_model(model_class)
    model = same_model(reference)
    config = peft.LoraConfig(
        task_type=TASKS.get(model_class.__name__), **{"r": 4, "lora_alpha": 6} | options
    )
    theirs = randomized_peft(peft.get_peft_model(reference, config))
    theirs.save_pretrained(tmp_path)
    adapted = load_lora(model, tmp_path)
    inputs = inputs_of(model_class)
    expected = their_outputs(theirs, inputs)
    assert_same_outputs(adapted(**inputs), expected, FLOAT32)
    assert (
        max_difference(jax.tree.leaves(adapted(**inputs))[0], jax.tree.leaves(model(**inputs))[0])
        > 0.01
    )
    merged = load_lora(model, theirs_again(tmp_path, adapted))
    assert eqx.tree_equal(merged, adapted)


def theirs_again(folder: Path, adapted: Any) -> Path:
    """The adapters that were loaded, saved here with the modules that PEFT's file names."""
    config = json.loads((folder / lora_files.CONFIG).read_text(encoding="utf-8"))
    modules = [name for name in config["modules_to_save"] or () if name != "score"]
    save_lora(adapted, folder / "again", modules_to_save=modules)
    return folder / "again"


@with_peft
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_models_head_that_peft_trained(tmp_path: Path, peft, tied):
    reference = reference_model(eqxbert.BertForMaskedLM, tie_word_embeddings=tied)
    untied = reference_model(eqxbert.BertForMaskedLM, tie_word_embeddings=False)
    words = reference.bert.embeddings.word_embeddings.weight
    untied.load_state_dict(reference.state_dict() | {"cls.predictions.decoder.weight": words})
    config = peft.LoraConfig(target_modules=["query"], modules_to_save=["cls"])
    theirs = randomized_peft(peft.get_peft_model(reference, config))
    theirs.save_pretrained(tmp_path)
    if tied:
        with pytest.raises(CheckpointError, match="tie_word_embeddings=False"):
            load_lora(same_model(reference_model(eqxbert.BertForMaskedLM)), tmp_path)
    adapted = load_lora(same_model(untied), tmp_path)
    inputs = random_inputs()
    assert_same_outputs(adapted(**inputs), their_outputs(theirs, inputs), FLOAT32)


@with_peft
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("modules", [["cls"], ["word_embeddings", "cls"]], ids=str)
def test_peft_loads_heads_of_language_models(tmp_path: Path, peft, modules, tied):
    reference = reference_model(eqxbert.BertForMaskedLM, tie_word_embeddings=tied)
    model = add_lora(same_model(reference), key=jax.random.key(1))
    spec = lora_filter(model, modules_to_save=modules)
    trained = train(model, spec, labelled_inputs(eqxbert.BertForMaskedLM))
    save_lora(trained, tmp_path, modules_to_save=modules)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path)
    inputs = random_inputs()
    assert_same_outputs(trained(**inputs), their_outputs(theirs, inputs), FLOAT32)


@with_peft
@pytest.mark.parametrize("model_class", [eqxbert.BertModel, *WITH_HEADS], ids=lambda c: c.__name__)
def test_all_linear_means_what_it_means_in_peft(peft, model_class):
    reference = reference_model(model_class)
    adapted = add_lora(same_model(reference), targets="all-linear", key=jax.random.key(0))
    # With the tasks of others, PEFT adapts their heads, and then fails.
    task = "SEQ_CLS" if model_class is eqxbert.BertForSequenceClassification else None
    heads = [head for head in ("classifier", "qa_outputs") if hasattr(adapted, head)]
    config = peft.LoraConfig(task_type=task, target_modules="all-linear", modules_to_save=heads)
    theirs = peft.get_peft_model(reference, config)
    names = {n.split(".lora_A")[0] for n, _ in theirs.named_parameters() if ".lora_A." in n}
    assert named_modules(LoRALinear, adapted).keys() == {n.removeprefix(PREFIX) for n in names}


@with_peft
def test_gradients_are_those_of_peft(tmp_path: Path, peft):
    model_class = eqxbert.BertForSequenceClassification
    reference = reference_model(model_class)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")
    theirs = randomized_peft(peft.get_peft_model(reference, config))
    theirs.save_pretrained(tmp_path)
    adapted = load_lora(same_model(reference_model(model_class)), tmp_path)
    inputs = labelled_inputs(model_class)
    theirs.get_base_model().eval()(**as_torch(inputs)).loss.backward()
    named = {
        n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.requires_grad
    }

    trained, frozen = eqx.partition(adapted, lora_filter(adapted))
    gradient = jax.jit(jax.grad(lambda trained: eqx.combine(trained, frozen)(**inputs).loss))(
        trained
    )
    found = {
        f"{PREFIX}{name}.lora_{matrix}.weight": getattr(part, matrix.lower())
        for name, part in named_modules(LoRALinear, gradient).items()
        for matrix in "AB"
    }
    found |= {
        f"{PREFIX}classifier.modules_to_save.{name}": getattr(gradient.classifier, name)
        for name in ("weight", "bias")
    }
    assert found.keys() == named.keys()
    for name, array in named.items():
        scale = array.abs().max().item()
        if "self.key.lora_A" not in name and "self.key.lora_B" not in name:
            assert max_difference(found[name], array) <= FLOAT32_GRADIENT * scale, name
