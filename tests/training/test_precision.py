"""Mixed precision: what is computed in half of float32, what is kept in it, and what that costs."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import max_difference, tiny_config
from parity import labelled_inputs
from training.references import (
    SMALL,
    TASKS,
    Toy,
    batch_of,
    model_of,
    reference_of,
    toy_batch,
    toy_loss,
)

from eqxbert import BertForCausalLM, BertForMaskedLM, BertForPreTraining
from eqxbert.convert import to_state_dict
from eqxbert.training import (
    LossScale,
    TrainState,
    adamw,
    for_compute,
    make_train_step,
    model_loss,
)

HALVES = [jnp.bfloat16, jnp.float16]


def dtypes(tree: Any) -> set[str]:
    return {str(x.dtype) for x in jax.tree.leaves(tree)}


class TestForCompute:
    @pytest.mark.parametrize("dtype", HALVES)
    def test_all_but_embeddings_are_in_that_dtype(self, dtype, key):
        config = tiny_config(
            **SMALL, position_embedding_type="relative_key", tie_word_embeddings=False
        )
        model = BertForPreTraining(config, key=key)
        converted = for_compute(model, dtype)
        for name, array in to_state_dict(converted).items():
            is_table = "_embeddings.weight" in name or "distance_embedding" in name
            assert array.dtype == (jnp.float32 if is_table else dtype), name
        assert jax.tree.structure(converted) == jax.tree.structure(model)

    def test_none_is_as_it_is(self, key):
        model = Toy(key=key)
        assert for_compute(model, None) is model

    def test_numbers_that_are_not_floats_stay(self):
        tree = {"count": jnp.arange(3), "flag": jnp.ones(2, bool), "x": jnp.ones(2)}
        assert dtypes(for_compute(tree, jnp.bfloat16)) == {"int32", "bool", "bfloat16"}

    def test_what_comes_out_is_in_that_dtype(self, key):
        """States and scores, so that no part of a model is computed in float32."""
        model = for_compute(BertForMaskedLM(tiny_config(**SMALL), key=key), jnp.bfloat16)
        inputs = labelled_inputs(BertForMaskedLM)
        out = jax.eval_shape(
            lambda: model(**inputs, output_hidden_states=True, output_attentions=True)
        )
        assert dtypes(out) == {"bfloat16", "float32"}
        assert out.loss.dtype == jnp.float32
        assert dtypes((out.logits, out.hidden_states, out.attentions)) == {"bfloat16"}


def relative(position_type: str) -> tuple[Any, dict[str, np.ndarray]]:
    config = tiny_config(**SMALL, position_embedding_type=position_type)
    model = BertForMaskedLM(config, key=jax.random.key(0))
    return model, labelled_inputs(BertForMaskedLM, (4,))


def activated(name: str) -> tuple[Any, dict[str, np.ndarray]]:
    model = BertForMaskedLM(tiny_config(**SMALL, hidden_act=name), key=jax.random.key(0))
    return model, labelled_inputs(BertForMaskedLM, (4,))


def untied() -> tuple[Any, dict[str, np.ndarray]]:
    config = tiny_config(**SMALL, tie_word_embeddings=False)
    model = BertForPreTraining(config, key=jax.random.key(0))
    return model, labelled_inputs(BertForPreTraining, (4,))


def at_masked_positions() -> tuple[Any, dict[str, np.ndarray]]:
    model = BertForMaskedLM(tiny_config(**SMALL), key=jax.random.key(0))
    inputs = labelled_inputs(BertForMaskedLM, (4,))
    positions = np.array([[0, 3], [1, 2], [6, 0], [4, 5]], np.int32)
    labels = np.array([[7, 8], [9, 1], [2, -100], [3, 4]], np.int32)
    return model, inputs | {"masked_positions": positions, "labels": labels}


def with_cross_attention() -> tuple[Any, dict[str, np.ndarray]]:
    config = tiny_config(**SMALL, is_decoder=True, add_cross_attention=True)
    model = BertForCausalLM(config, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    return model, labelled_inputs(BertForCausalLM, (4,)) | {
        "encoder_hidden_states": rng.normal(size=(4, 5, 12)).astype(np.float32),
        "encoder_attention_mask": np.array([[1, 1, 1, 1, 0]] * 4),
    }


CASES = {
    **{task: lambda task=task: (model_of(reference_of(task)), batch_of(task)) for task in TASKS},
    "relative_key": lambda: relative("relative_key"),
    "relative_key_query": lambda: relative("relative_key_query"),
    "prelu": lambda: activated("prelu"),
    "xielu": lambda: activated("xielu"),
    "untied": untied,
    "masked positions": at_masked_positions,
    "cross-attention": with_cross_attention,
}


@pytest.mark.parametrize("case", CASES)
def test_every_model_is_computed_in_half_precision(case):
    """With gradients in float32 that point where those of float32 do. Nothing is promoted silently:
    the tests forbid it.
    """
    model, batch = CASES[case]()

    @functools.partial(jax.jit, static_argnums=1)
    @jax.value_and_grad
    def loss_and_gradient(model: Any, dtype: Any) -> Any:
        means = model_loss(for_compute(model, dtype), batch, None)
        return sum(m.share * m.mean for m in means)

    exact, gradient = loss_and_gradient(model, None)
    exact_direction = flat(gradient)
    for dtype in HALVES:
        value, gradient = loss_and_gradient(model, dtype)
        assert value.dtype == jnp.float32
        assert dtypes(gradient) == {"float32"}
        assert float(value) == pytest.approx(float(exact), rel=0.03)
        direction = flat(gradient)
        cosine = direction @ exact_direction
        cosine /= np.linalg.norm(direction) * np.linalg.norm(exact_direction)
        assert cosine > (0.98 if dtype == jnp.bfloat16 else 0.9995)


def flat(gradient: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(gradient)])


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_the_models(task):
    """Which is that of scores in float32, before they are rounded."""
    half = for_compute(model_of(reference_of(task)), jnp.bfloat16)
    batch = batch_of(task, examples=16)
    means = model_loss(half, batch, None)
    total = sum(m.share * m.mean for m in means)
    assert float(total) == pytest.approx(float(half(**batch).loss), rel=1e-6)


class TestTraining:
    def test_parameters_gradients_and_optimizer_stay_in_float32(self, key):
        seen = []

        def look(updates: Any, params: Any) -> Any:
            seen.append(dtypes(updates))
            return updates

        for accumulate in (1, 2):
            optimizer = optax.chain(optax.stateless(look), optax.adamw(1e-3))
            model = BertForMaskedLM(tiny_config(**SMALL), key=key)
            state = TrainState.create(model, optimizer, key=key)
            step = make_train_step(optimizer, dtype=jnp.bfloat16, accumulate=accumulate)
            after, metrics = jax.eval_shape(step, state, labelled_inputs(BertForMaskedLM))
            assert dtypes(after.model) == {"float32"}
            assert dtypes(after.optimizer_state) == {"float32", "int32"}
            assert metrics["loss"].dtype == metrics["grad_norm"].dtype == jnp.float32
        assert seen == [{"float32"}] * 2

    def test_follows_the_losses_of_float32(self, key):
        """Sixty steps over the same batches, in which about half of the loss is gone."""
        curves = {}
        for dtype in (None, jnp.bfloat16):
            optimizer = adamw(5e-3, total_steps=60, warmup=6)
            state = TrainState.create(model_of(reference_of("pretraining")), optimizer, key=key)
            step = jax.jit(make_train_step(optimizer, dtype=dtype))
            losses = []
            for i in range(60):
                state, metrics = step(state, batch_of("pretraining", seed=i % 3))
                losses.append(float(metrics["loss"]))
            assert int(state.skipped) == 0
            curves[dtype] = np.array(losses)
        exact, found = curves.values()
        assert exact[-3:].mean() < 0.6 * exact[:3].mean()
        assert 0 < np.abs(found - exact).max() < 0.02 * exact[0]

    def test_rows_that_many_tokens_share_do_not_lose_small_gradients(self):
        """A sum of a thousand equal numbers stops growing in bfloat16 where they are less than its
        rounding: at a quarter.
        """
        model = model_of(reference_of("masked words"))
        batch = {name: x[:1].repeat(1000, 0) for name, x in batch_of("masked words").items()}

        def gradients(cast: Callable[[Any], Any]) -> Any:
            def loss(model: Any) -> jax.Array:
                return model_loss(cast(model), batch, None)[0].mean

            return jax.jit(jax.grad(loss))(model).bert.embeddings

        exact, found, cast = (
            gradients(f)
            for f in (
                lambda m: m,
                lambda m: for_compute(m, jnp.bfloat16),
                lambda m: jax.tree.map(lambda x: x.astype(jnp.bfloat16), m),
            )
        )
        for table in ("word", "position", "token_type"):
            a, b, c = (np.asarray(getattr(x, table).weight) for x in (exact, found, cast))
            norm = np.linalg.norm(a)
            assert np.linalg.norm(b - a) < 0.05 * norm, table
            assert np.linalg.norm(c - a) > 0.2 * norm, table  # that there is something to lose


@functools.cache
def half_step() -> Any:
    return jax.jit(make_train_step(adamw(1e-3, schedule="constant"), dtype=jnp.float16))


class TestLossScale:
    @pytest.fixture
    def state(self, key: jax.Array) -> TrainState:
        optimizer = adamw(1e-3, schedule="constant")
        model = model_of(reference_of("class"))
        return TrainState.create(model, optimizer, key=key, scale_loss=True)

    def test_changes_no_metric(self, state):
        _, metrics = half_step()(state, batch_of("class"))
        expected = state.model(**batch_of("class")).loss
        assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-2)
        gradient = jax.grad(lambda m: m(**batch_of("class")).loss)(state.model)
        norm = float(optax.tree.norm(gradient))
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-2)

    def test_halves_at_an_overflow_whose_step_is_skipped(self, state):
        state, _ = half_step()(state, batch_of("class"))
        state = with_scale(state, value=2.0**30)
        after, metrics = half_step()(state, batch_of("class"))
        assert np.isfinite(metrics["loss"])
        assert not np.isfinite(metrics["grad_norm"])
        assert (int(after.skipped), int(metrics["skipped"])) == (1, 1)
        assert float(after.loss_scale.value) == 2.0**29
        assert int(after.loss_scale.finite_steps) == 0
        for part in ("model", "optimizer_state"):
            pairs = zip(*(jax.tree.leaves(getattr(s, part)) for s in (after, state)), strict=True)
            for new, old in pairs:
                np.testing.assert_array_equal(new, old)

        for _ in range(30):
            after, metrics = half_step()(after, batch_of("class"))
        assert np.isfinite(metrics["grad_norm"])
        assert 1 < int(after.skipped) < 30
        assert float(after.loss_scale.value) == 2.0 ** (30 - int(after.skipped))
        assert max_difference(after.model.classifier.bias, state.model.classifier.bias) > 1e-4

    @pytest.mark.parametrize(
        ("steps", "value", "expected"),
        [(1998, 2.0**15, (1999, 2.0**15)), (1999, 2.0**15, (0, 2.0**16)), (0, 2.0, (1, 2.0))],
    )
    def test_doubles_after_2000_finite_steps(self, state, steps, value, expected):
        state = with_scale(state, value=value, steps=steps)
        state, _ = half_step()(state, batch_of("class"))
        assert (int(state.loss_scale.finite_steps), float(state.loss_scale.value)) == expected

    def test_has_limits(self):
        """It neither vanishes nor overflows."""
        scale = LossScale(jnp.float32(2.0), jnp.int32(0))
        for expected in (1.0, 1.0):
            scale = scale.adjust(jnp.asarray(False))
            assert float(scale.value) == expected
        scale = LossScale(jnp.float32(2.0**29), jnp.int32(1999))
        for expected in (2.0**30, 2.0**30):
            scale = scale.adjust(jnp.asarray(True))
            assert (float(scale.value), int(scale.finite_steps)) == (expected, 0)
            scale = eqx.tree_at(lambda s: s.finite_steps, scale, jnp.int32(1999))

    def test_an_overflow_begins_the_count_anew(self):
        scale = LossScale(jnp.float32(2.0**15), jnp.int32(1999)).adjust(jnp.asarray(False))
        assert (float(scale.value), int(scale.finite_steps)) == (2.0**14, 0)

    @pytest.mark.parametrize("parts", [1, 2])
    def test_keeps_gradients_that_would_vanish(self, parts, key):
        """Float16 has nothing between 0 and 6e-8."""
        norms = {}
        for dtype, scale in ((None, False), (jnp.float16, True), (jnp.float16, False)):
            state = TrainState.create(Toy(key=key), optax.sgd(1.0), key=key, scale_loss=scale)
            step = make_train_step(optax.sgd(1.0), loss=small_loss, dtype=dtype, accumulate=parts)
            _, metrics = jax.jit(step)(state, toy_batch())
            norms[dtype, scale] = float(metrics["grad_norm"])
        exact, scaled, unscaled = norms.values()
        assert scaled == pytest.approx(exact, rel=0.01)
        assert unscaled < 0.5 * exact

    def test_there_is_none_unless_asked_for(self, key):
        state = TrainState.create(Toy(key=key), optax.sgd(1.0), key=key)
        assert state.loss_scale is None


def small_loss(model: Any, batch: Any, key: Any) -> jax.Array:
    return 3e-8 * toy_loss(model, batch, key)


def with_scale(state: TrainState, *, value: float, steps: int = 0) -> TrainState:
    scale = LossScale(jnp.asarray(value, jnp.float32), jnp.asarray(steps, jnp.int32))
    return eqx.tree_at(lambda s: s.loss_scale, state, scale)
