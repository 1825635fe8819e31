"""A training step against PyTorch's, and what it does beyond that: parts, skipped steps, metrics,
donated memory, several devices.
"""

import functools
import io
from collections import UserDict
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import max_difference, run_python, tiny_config
from parity import labelled_inputs
from tolerances import FLOAT32
from training.references import (
    SMALL,
    TASKS,
    TorchTraining,
    Toy,
    assert_same_parameters,
    batch_of,
    model_of,
    parameters_of,
    reference_of,
    toy_batch,
    toy_loss,
    unused,
    without_gradient,
)

from eqxbert import BertForQuestionAnswering, BertForSequenceClassification, BertModel
from eqxbert.nn import IGNORED_LABEL, dropout
from eqxbert.training import (
    MeanLoss,
    TrainState,
    adamw,
    freeze,
    make_eval_step,
    make_train_step,
    step as step_module,
)

STEPS, WARMUP, RATE, MAX_NORM = 20, 4, 1e-3, 0.5
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


@functools.cache
def recipe() -> Any:
    return adamw(RATE, total_steps=STEPS, warmup=WARMUP, max_grad_norm=MAX_NORM)


def torch_training(reference: Any) -> TorchTraining:
    """By the same recipe."""
    return TorchTraining(
        reference,
        learning_rate=RATE,
        total_steps=STEPS,
        warmup=WARMUP,
        weight_decay=0.01,
        max_grad_norm=MAX_NORM,
    )


@functools.cache
def common_step(accumulate: int = 1) -> Step:
    """For models of all kinds. The state that it is given remains."""
    return jax.jit(make_train_step(recipe(), accumulate=accumulate))


def assert_equal(a: Any, b: Any) -> None:
    """That two trees are the same, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


class TestAgainstPyTorch:
    """With its AdamW, the clipping of gradients, and transformers' schedule."""

    @pytest.mark.parametrize(
        ("task", "step"),
        [
            *((task, common_step()) for task in TASKS),
            pytest.param("masked words", make_train_step(recipe()), marks=pytest.mark.optimized),
        ],
    )
    def test_twenty_steps(self, task, step, key):
        """By the program that users run as well, of which the compiler makes what it can."""
        reference = reference_of(task)
        state = TrainState.create(model_of(reference), recipe(), key=key)
        expected = torch_training(reference)
        before = parameters_of(reference)
        names = without_gradient(reference) | unused(reference)
        is_clipped = False
        for i in range(STEPS):
            batch = batch_of(task, seed=i)
            theirs = expected.step(batch)
            state, metrics = step(state, batch)
            for name, value in theirs.items():
                assert float(metrics[name]) == pytest.approx(value, rel=FLOAT32), (name, i)
            is_clipped |= theirs["grad_norm"] > MAX_NORM
            if i == 1:  # in the first, the learning rate is 0
                assert_same_parameters(state.model, reference, FLOAT32, leave_out=names)
        assert_same_parameters(state.model, reference, FLOAT32, leave_out=names)
        assert is_clipped
        for name, array in parameters_of(reference).items():
            if name not in names:
                assert max_difference(array, before[name]) > 100 * FLOAT32, name

    @pytest.mark.parametrize("task", ["pretraining", "choice", "answer"])
    def test_in_float64_no_parameter_is_left_out(self, task, key):
        """There the rounding of a gradient that is zero is far less than Adam's epsilon. What
        remains is that of the learning rate, which is computed in float32.
        """
        reference = reference_of(task).double()
        expected = torch_training(reference)
        with jax.enable_x64(True):
            state = TrainState.create(model_of(reference, "float64"), recipe(), key=key)
            for i in range(STEPS):
                loss = expected.step(batch_of(task, seed=i))["loss"]
                state, metrics = common_step()(state, batch_of(task, seed=i))
                assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-7)
            assert_same_parameters(state.model, reference, 1e-8)

    def test_one_step_from_the_full_learning_rate(self, key):
        reference = reference_of("class")
        optimizer = adamw(RATE, total_steps=STEPS, max_grad_norm=0.1, weight_decay=0.1)
        state = TrainState.create(model_of(reference), optimizer, key=key)
        expected = TorchTraining(
            reference,
            learning_rate=RATE,
            total_steps=STEPS,
            warmup=0,
            weight_decay=0.1,
            max_grad_norm=0.1,
        )
        theirs = expected.step(batch_of("class"))
        state, metrics = jax.jit(make_train_step(optimizer))(state, batch_of("class"))
        assert float(metrics["grad_norm"]) == pytest.approx(theirs["grad_norm"], rel=FLOAT32)
        names = without_gradient(reference)
        assert_same_parameters(state.model, reference, FLOAT32, leave_out=names)


def without_some_labels(task: str) -> dict[str, np.ndarray]:
    """A batch of four whose examples have different numbers of labels, and the last two, or the
    first, none of a kind.
    """
    batch = batch_of(task)
    if task == "pretraining":
        batch["labels"][2:] = IGNORED_LABEL
        batch["labels"][0, :4] = 5
        batch["next_sentence_label"][0] = IGNORED_LABEL
    elif task == "next words":
        batch["labels"][0] = IGNORED_LABEL
        batch["labels"][0, 0] = 5  # of which there is no prediction
        batch["labels"][1, :5] = 7
    elif task == "answer":
        seq = batch["input_ids"].shape[1]
        batch["start_positions"] = np.array([seq, 2, seq + 5, -3], np.int32)
        batch["end_positions"] = np.array([seq, seq + 1, seq, 4], np.int32)
    return batch


class TestAccumulation:
    @pytest.mark.parametrize(
        ("task", "parts"),
        [("pretraining", 2), ("pretraining", 4), ("next words", 2), ("answer", 4), ("score", 2)],
    )
    def test_parts_are_as_one_batch(self, task, parts, key):
        """With plain gradient descent, whose steps are as long as the gradients."""
        batch = without_some_labels(task)
        model = model_of(reference_of(task))
        whole, expected = one_batch(task)
        state = TrainState.create(model, optax.sgd(1.0), key=key)
        step = jax.jit(make_train_step(optax.sgd(1.0), accumulate=parts))
        state, metrics = step(state, batch)
        for name, value in expected.items():
            assert float(metrics[name]) == pytest.approx(float(value), rel=FLOAT32), name
        assert float(metrics["loss"]) == pytest.approx(float(model(**batch).loss), rel=FLOAT32)
        jax.tree.map(lambda a, b: assert_close(a, b), state.model, whole)

    def test_numbers_count_whatever_they_are(self, key):
        """Also -100, which is no mark for what has no label in regression."""
        config = tiny_config(**SMALL | {"num_labels": 1})
        model = BertForSequenceClassification(config, key=key)
        labels = np.array([-100, 5, 3, 1], np.int32)
        batch = {"input_ids": np.ones((4, 3), np.int32), "labels": labels}
        state = TrainState.create(model, optax.sgd(0.0), key=key)
        losses = [
            float(jax.jit(make_train_step(optax.sgd(0.0), accumulate=n))(state, batch)[1]["loss"])
            for n in (1, 4)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=FLOAT32)

    def test_gradients_in_half_precision_are_summed_in_float32(self, key):
        """Each part's is 1/256 of the whole, half of which bfloat16 would lose next to 1."""

        def loss(model: jax.Array, batch: Any, key: Any) -> jax.Array:
            return jnp.mean(batch["x"] * model.astype(jnp.float32))

        state = TrainState.create(jnp.zeros((), jnp.bfloat16), optax.sgd(1.0), key=key)
        batch = {"x": np.ones(512, np.float32)}
        state, _ = make_train_step(optax.sgd(1.0), loss=loss, accumulate=512)(state, batch)
        assert float(state.model) == -1

    def test_without_any_label_nothing_changes(self, key):
        optimizer = adamw(RATE, schedule="constant", weight_decay=0.0)
        state = TrainState.create(Toy(key=key), optimizer, key=key)
        before = jax.tree.map(jnp.copy, state.model)

        def loss(model: Toy, batch: Any, key: Any) -> MeanLoss:
            weights = batch["weights"]
            distances = jnp.sum(jnp.square(model(batch["input_ids"])), axis=-1)
            count = jnp.sum(weights)
            return MeanLoss(jnp.sum(distances * weights) / jnp.maximum(count, 1), count)

        batch = {"input_ids": toy_batch()["input_ids"], "weights": np.zeros(4, np.float32)}
        state, metrics = make_train_step(optimizer, loss=loss, accumulate=2)(state, batch)
        assert float(metrics["loss"]) == float(metrics["grad_norm"]) == 0
        assert int(metrics["skipped"]) == 0
        assert_equal(state.model, before)

    @pytest.mark.parametrize("parts", [2, 4])
    @pytest.mark.parametrize("kind", ["number", "mean", "tuple", "fractions"])
    def test_of_a_users_own_loss(self, kind, parts, key):
        """A number, whose parts count the same; a mean by its weight, also if the weights are small
        fractions; several of these, with their shares.
        """
        loss, expected = USERS_LOSSES[kind]
        batch = toy_batch() | {"weights": np.array([3, 0, 1, 2], np.float32)}
        state = TrainState.create(Toy(key=key), optax.sgd(1.0), key=key)
        value, gradient = jax.value_and_grad(expected)(state.model, batch)
        descended = jax.tree.map(lambda p, g: p - g, state.model, gradient)
        step = jax.jit(make_train_step(optax.sgd(1.0), loss=loss, accumulate=parts))
        state, metrics = step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(float(value), rel=FLOAT32)
        jax.tree.map(lambda a, b: assert_close(a, b), state.model, descended)

    def test_in_float64(self, key):
        """Of the parameters, while the batch is in float32."""
        with jax.enable_x64(True):
            model = jax.tree.map(lambda x: x.astype(jnp.float64), Toy(key=key))
            losses = []
            for parts in (1, 2):
                state = TrainState.create(model, recipe(), key=key)
                step = jax.jit(make_train_step(recipe(), loss=double_loss, accumulate=parts))
                state, metrics = step(state, toy_batch())
                losses.append(float(metrics["loss"]))
                assert {x.dtype for x in jax.tree.leaves(state.model)} == {jnp.dtype("float64")}
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)

    def test_each_part_has_a_key_of_its_own(self, key):
        def loss(model: Toy, batch: Any, key: Any) -> MeanLoss:
            return MeanLoss(jax.random.uniform(key) + 0 * model.words.weight[0, 0], batch["w"][0])

        step = make_train_step(optax.sgd(1.0), loss=loss, accumulate=2)
        values = []
        for weights in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]):
            state = TrainState.create(Toy(key=key), optax.sgd(1.0), key=key)
            batch = {"w": np.array(weights, np.float32)}
            values.append(float(step(state, batch)[1]["loss"]))
        first, second, both = values
        assert abs(first - second) > 1e-3
        assert both == pytest.approx((first + second) / 2, rel=FLOAT32)

    @pytest.mark.parametrize("examples", [3, 5])
    def test_of_a_batch_that_cannot_be_divided(self, examples, key):
        step = make_train_step(recipe(), loss=toy_loss, accumulate=2)
        state = TrainState.create(Toy(key=key), recipe(), key=key)
        with pytest.raises(ValueError, match=f"{examples} examples, .* 2 equal parts"):
            step(state, toy_batch(examples))

    def test_of_something_without_examples(self, key):
        step = make_train_step(recipe(), loss=toy_loss, accumulate=2)
        state = TrainState.create(Toy(key=key), recipe(), key=key)
        with pytest.raises(ValueError, match="2 equal parts"):
            step(state, toy_batch() | {"temperature": np.float32(0.5)})

    @pytest.mark.parametrize("accumulate", [0, -2])
    def test_in_no_parts(self, accumulate):
        with pytest.raises(ValueError, match=f"accumulate must be at least 1, got {accumulate}"):
            make_train_step(recipe(), accumulate=accumulate)


@functools.cache
def one_batch(task: str) -> tuple[Any, dict[str, jax.Array]]:
    """What a whole batch makes of a model, and what is told of it."""
    state = TrainState.create(model_of(reference_of(task)), optax.sgd(1.0), key=jax.random.key(0))
    state, metrics = jax.jit(make_train_step(optax.sgd(1.0)))(state, without_some_labels(task))
    return state.model, metrics


def assert_close(a: Any, b: Any) -> None:
    assert max_difference(a, b) < FLOAT32


def distances(model: Toy, batch: Any) -> jax.Array:
    """Of each example."""
    return jnp.mean(jnp.square(model(batch["input_ids"]) - batch["targets"]), axis=-1)


def weighted_loss(model: Toy, batch: Any, key: Any, scale: float = 1.0) -> MeanLoss:
    weights = scale * batch["weights"]
    total = jnp.sum(weights)
    mean = jnp.sum(distances(model, batch) * weights) / jnp.where(total == 0, 1, total)
    return MeanLoss(mean, total)


def double_loss(model: Toy, batch: Any, key: Any) -> jax.Array:
    vectors = model(batch["input_ids"])
    return jnp.mean(jnp.square(vectors - batch["targets"].astype(vectors.dtype)))


USERS_LOSSES = {
    "number": (toy_loss, lambda model, batch: toy_loss(model, batch, None)),
    "mean": (weighted_loss, lambda model, batch: weighted_loss(model, batch, None).mean),
    "fractions": (
        functools.partial(weighted_loss, scale=0.01),
        lambda model, batch: weighted_loss(model, batch, None).mean,
    ),
    "tuple": (
        lambda model, batch, key: (
            weighted_loss(model, batch, key)._replace(share=0.3),
            MeanLoss(toy_loss(model, batch, key), jnp.ones((), jnp.int32)),
        ),
        lambda model, batch: (
            0.3 * weighted_loss(model, batch, None).mean + toy_loss(model, batch, None)
        ),
    ),
}


class TestDropout:
    """It is drawn from the state's key and the number of the step."""

    @pytest.fixture
    def model(self) -> BertForSequenceClassification:
        config = tiny_config(num_hidden_layers=1, hidden_dropout_prob=0.5)
        return BertForSequenceClassification(config, key=jax.random.key(0))

    @pytest.fixture
    def batch(self) -> dict[str, np.ndarray]:
        return labelled_inputs(BertForSequenceClassification, (4,))

    def test_of_equal_states_is_equal_and_of_another_step_is_another(self, model, batch):
        def loss_of(key: int, number: int) -> float:
            state = TrainState.create(model, recipe(), key=jax.random.key(key))
            state = eqx.tree_at(lambda s: s.step, state, jnp.asarray(number, jnp.int32))
            return float(common_step()(state, batch)[1]["loss"])

        first = loss_of(0, 0)
        assert loss_of(0, 0) == first
        assert abs(loss_of(0, 1) - first) > 1e-3
        assert abs(loss_of(1, 0) - first) > 1e-3
        assert abs(first - float(model(**batch).loss)) > 1e-3

    def test_evaluation_has_none(self, model, batch):
        (found,) = make_eval_step()(model, batch)
        assert float(found.mean) == pytest.approx(float(model(**batch).loss), rel=FLOAT32)
        assert int(found.weight) == 4


class TestNonFiniteGradients:
    def test_change_nothing_and_the_next_step_goes_on(self, key):
        model = model_of(reference_of("class"))
        good, bad = batch_of("class"), batch_of("class")
        for batch in (good, bad):
            table = np.asarray(model.get_input_embeddings().weight)
            batch["inputs_embeds"] = table[batch.pop("input_ids")]
        bad["inputs_embeds"][1, 2, 3] = np.nan
        state = TrainState.create(model, recipe(), key=key)
        for _ in range(2):
            state, _ = common_step()(state, good)
        undisturbed, expected = common_step()(state, good)
        after, metrics = common_step()(state, bad)
        assert_equal(after.model, state.model)
        assert_equal(after.optimizer_state, state.optimizer_state)
        assert (int(after.step), int(after.skipped), int(metrics["skipped"])) == (3, 1, 1)
        assert np.isnan(metrics["loss"])
        assert metrics["learning_rate"] == expected["learning_rate"]

        after, metrics = common_step()(after, good)
        assert_equal(after.model, undisturbed.model)
        assert_equal(after.optimizer_state, undisturbed.optimizer_state)
        assert metrics["learning_rate"] == expected["learning_rate"] > 0
        assert (int(after.step), int(metrics["skipped"])) == (4, 1)

    def test_of_labels_out_of_range(self, key):
        """Compiled code cannot raise: their loss is NaN, so their step is skipped."""
        state = TrainState.create(model_of(reference_of("class")), recipe(), key=key)
        batch = batch_of("class")
        state, _ = common_step()(state, batch)
        # Not in place: the step before may not have read its labels yet.
        wrong = batch | {"labels": np.array([0, 1, 3, 2])}
        after, metrics = common_step()(state, wrong)
        assert np.isnan(metrics["loss"])
        assert int(metrics["skipped"]) == 1
        assert_equal(after.model, state.model)

    @pytest.mark.parametrize(("factor", "summand"), [(np.inf, 0), (1e25, 0), (1, np.nan)])
    def test_neither_the_norm_nor_the_loss_may_overflow(self, factor, summand, key):
        """Of these, the first has no finite gradients, the second no finite norm of them, and the
        third no finite loss.
        """

        def loss(model: Toy, batch: Any, key: Any) -> jax.Array:
            return factor * toy_loss(model, batch, key) + summand

        state = TrainState.create(Toy(key=key), recipe(), key=key)
        _, metrics = jax.jit(make_train_step(recipe(), loss=loss))(state, toy_batch())
        assert bool(np.isfinite(metrics["loss"])) == (factor == 1e25)
        assert bool(np.isfinite(metrics["grad_norm"])) == (factor == 1)
        assert int(metrics["skipped"]) == 1


class TestMemory:
    def test_of_the_state_is_used_again_and_nothing_else(self, key):
        model = Toy(key=key)
        batch = jax.tree.map(jnp.asarray, toy_batch())
        state = TrainState.create(model, recipe(), key=key)
        step = make_train_step(recipe(), loss=toy_loss)
        new, _ = step(state, batch)
        assert all(x.is_deleted() for x in jax.tree.leaves(state.model))
        moments = jax.tree.leaves(optax.tree.get_all_with_path(state.optimizer_state, "mu"))
        assert moments
        assert all(x.is_deleted() for x in moments if isinstance(x, jax.Array))
        for kept in (model, batch, key, new):
            assert not any(x.is_deleted() for x in jax.tree.leaves(kept))
        with pytest.raises((RuntimeError, ValueError), match=r"deleted|donated"):
            step(state, batch)
        step(new, batch)

    def test_it_is_compiled_once_for_batches_of_a_shape(self, key):
        """Be they JAX's or NumPy's arrays, in 64 bits or 32."""
        traces = 0

        def loss(model: Toy, batch: Any, key: Any) -> jax.Array:
            nonlocal traces
            traces += 1
            return toy_loss(model, batch, key)

        step = make_train_step(recipe(), loss=loss)
        state = TrainState.create(Toy(key=key), recipe(), key=key, scale_loss=True)
        wide = toy_batch()
        wide = {"input_ids": wide["input_ids"].astype(np.int64), "targets": wide["targets"]}
        for batch in (toy_batch(), toy_batch(seed=1), jax.tree.map(jnp.asarray, toy_batch()), wide):
            state, _ = step(state, batch)
        assert traces == 1
        step(state, toy_batch(examples=2))
        assert traces == 2


class TestMetrics:
    def test_what_there_is_to_tell(self, key):
        state = TrainState.create(model_of(reference_of("class")), recipe(), key=key)
        _, metrics = common_step()(state, batch_of("class"))
        assert metrics.keys() == {"loss", "grad_norm", "tokens", "skipped", "learning_rate"}
        assert all(x.shape == () for x in metrics.values())
        assert int(metrics["tokens"]) == batch_of("class")["attention_mask"].sum()

    @pytest.mark.parametrize(
        ("names", "tokens"),
        [
            ({"input_ids", "attention_mask"}, 3),
            ({"input_ids"}, 8),
            ({"inputs_embeds", "attention_mask"}, 3),
            ({"inputs_embeds"}, 8),
            ({"input_ids", "segment_ids"}, 5),
            ({"input_ids", "segment_ids", "attention_mask"}, 3),
        ],
    )
    def test_tokens_are_those_attended_to(self, names, tokens, key):
        inputs = {
            "input_ids": np.ones((2, 4), np.int32),
            "inputs_embeds": np.ones((2, 4, 5), np.float32),
            "attention_mask": np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.int32),
            "segment_ids": np.array([[1, 1, 2, 0], [3, 3, 0, 0]], np.int32),
        }
        batch = {name: inputs[name] for name in names}
        state = TrainState.create(Toy(key=key), optax.sgd(1.0), key=key)
        step = make_train_step(optax.sgd(1.0), loss=lambda m, *_: jnp.sum(m.words.weight))
        assert int(step(state, batch)[1]["tokens"]) == tokens

    def test_the_norm_of_gradients_is_that_of_what_trains(self, key):
        model = Toy(key=key)
        gradient = jax.grad(toy_loss)(model, toy_batch(), None)
        expected = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(gradient.layers)))
        state = TrainState.create(model, recipe(), key=key, trainable=freeze(model, "words"))
        _, metrics = jax.jit(make_train_step(recipe(), loss=toy_loss))(state, toy_batch())
        assert float(metrics["grad_norm"]) == pytest.approx(float(expected), rel=FLOAT32)

    def test_of_another_optimizer(self, key):
        """Any of optax's will do; its learning rate is not known."""
        optimizer = optax.chain(optax.clip(0.1), optax.adamw(1e-3))
        state = TrainState.create(Toy(key=key), optimizer, key=key)
        before = jax.tree.map(jnp.copy, state.model)
        state, metrics = make_train_step(optimizer, loss=toy_loss)(state, toy_batch())
        assert metrics.keys() == {"loss", "grad_norm", "tokens", "skipped"}
        assert max_difference(state.model.words.weight, before.words.weight) > 1e-4


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: optax.adamw(1e-2, mu_dtype=jnp.float32),
        lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=lambda count: 1e-2),
        lambda: optax.trace(0.9, accumulator_dtype=jnp.bfloat16),
    ],
    ids=["moments in float32", "an injected learning rate", "momentum in bfloat16"],
)
def test_everything_keeps_its_dtype(make_optimizer, key):
    """Whatever the optimizer computes in: the next step is then the same program."""
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), Toy(key=key))
    optimizer = make_optimizer()
    before = TrainState.create(model, optimizer, key=key)
    dtypes = [x.dtype for x in jax.tree.leaves(before)]
    state, _ = make_train_step(optimizer, loss=toy_loss)(before, toy_batch())
    assert [x.dtype for x in jax.tree.leaves(state)] == dtypes
    assert max_difference(state.model.words.weight, model.words.weight) > 1e-4


def test_a_compiler_option_that_is_not_known_is_left_out(monkeypatch):
    known = step_module._compiler_options("cpu")
    assert "xla_backend_optimization_level" in known
    options = step_module._COMPILER_OPTIONS["cpu"] | {"xla_of_another_time": True}
    monkeypatch.setitem(step_module._COMPILER_OPTIONS, "cpu", options)
    step_module._compiler_options.cache_clear()
    assert step_module._compiler_options("cpu") == known


class TestState:
    @pytest.fixture
    def state(self, key: jax.Array) -> TrainState:
        model = Toy(key=key)
        return TrainState.create(
            model, recipe(), key=key, trainable=freeze(model, "layers.0"), scale_loss=True
        )

    def test_is_a_tree_of_arrays(self, state):
        leaves, structure = jax.tree.flatten(state)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        assert_equal(jax.tree.unflatten(structure, leaves), state)
        assert_equal(jax.tree.map(lambda x: x, state), state)

    def test_goes_on_after_being_taken_apart_and_put_together(self, state):
        """As when it is written to a file and read from it."""
        step = jax.jit(make_train_step(recipe(), loss=toy_loss))
        for i in range(3):
            state, _ = step(state, toy_batch(seed=i))
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, with_key_data(state))
        file.seek(0)
        empty = TrainState.create(
            jax.tree.map(jnp.zeros_like, state.model),
            recipe(),
            key=jax.random.key(9),
            trainable=state.trainable,
            scale_loss=True,
        )
        read = eqx.tree_deserialise_leaves(file, with_key_data(empty))
        read = eqx.tree_at(lambda s: s.key, read, jax.random.wrap_key_data(read.key))
        assert_equal(read, state)
        assert_equal(step(read, toy_batch(seed=3)), step(state, toy_batch(seed=3)))

    def test_holds_copies(self, key):
        model = Toy(key=key)
        state = TrainState.create(model, recipe(), key=key)
        pointers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(model)}
        assert not pointers & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.model)}
        assert_equal(state.model, model)

    def test_begins_at_zero(self, state):
        assert (int(state.step), int(state.skipped)) == (0, 0)
        assert float(state.loss_scale.value) == 2**15

    def test_what_trains_has_the_structure_of_the_model(self, key):
        model = Toy(key=key)
        with pytest.raises(ValueError, match="trainable must have the structure of the model"):
            TrainState.create(model, recipe(), key=key, trainable={"words": True})

    def test_something_must_train(self, key):
        model = Toy(key=key)
        with pytest.raises(ValueError, match="there is nothing to train"):
            TrainState.create(model, recipe(), key=key, trainable=freeze(model, "words", "layers"))


def with_key_data(state: TrainState) -> TrainState:
    """With numbers in place of the key, which equinox cannot write."""
    return eqx.tree_at(lambda s: s.key, state, jax.random.key_data(state.key))


class TestEvaluation:
    def test_means_and_numbers_of_labels(self):
        """Of the kinds that the loss is made of, which add up to the model's."""
        model = model_of(reference_of("pretraining"))
        batch = without_some_labels("pretraining")
        words, pairs = jax.jit(make_eval_step())(model, batch)
        counts = [
            (batch[name] != IGNORED_LABEL).sum() for name in ("labels", "next_sentence_label")
        ]
        assert [int(words.weight), int(pairs.weight)] == counts
        assert (words.share, pairs.share) == (1, 1)
        one_kind = {k: x for k, x in batch.items() if k != "next_sentence_label"}
        assert float(words.mean) == pytest.approx(float(model(**one_kind).loss), rel=FLOAT32)
        loss = float(model(**batch).loss)
        assert float(words.mean + pairs.mean) == pytest.approx(loss, rel=FLOAT32)

    def test_of_answers_starts_and_ends_count_half(self):
        model = model_of(reference_of("answer"))
        batch = without_some_labels("answer")
        starts, ends = jax.jit(make_eval_step())(model, batch)
        assert (int(starts.weight), int(ends.weight)) == (2, 1)
        assert (starts.share, ends.share) == (0.5, 0.5)
        total = (starts.mean + ends.mean) / 2
        assert float(total) == pytest.approx(float(model(**batch).loss), rel=FLOAT32)

    def test_of_predicted_words_the_first_has_no_label(self):
        batch = without_some_labels("next words")
        (words,) = jax.jit(make_eval_step())(model_of(reference_of("next words")), batch)
        assert int(words.weight) == (batch["labels"][:, 1:] != IGNORED_LABEL).sum()

    def test_several_batches_are_as_one(self, key):
        """If their means are weighted."""
        step = make_eval_step(loss=weighted_loss)
        batch = toy_batch(8) | {"weights": np.arange(8, dtype=np.float32)}
        halves = [step(Toy(key=key), jax.tree.map(lambda x, i=i: x[i::2], batch)) for i in (0, 1)]
        (whole,) = step(Toy(key=key), batch)
        total = sum(part.mean * part.weight for (part,) in halves)
        assert float(total / whole.weight) == pytest.approx(float(whole.mean), rel=FLOAT32)

    def test_a_loss_of_ones_own_gets_no_key(self, key):
        def loss(model: Toy, batch: Any, key: Any) -> jax.Array:
            return jnp.mean(dropout(model(batch["input_ids"]), 0.5, key))

        (found,) = make_eval_step(loss=loss)(Toy(key=key), toy_batch())
        expected = jnp.mean(Toy(key=key)(toy_batch()["input_ids"]))
        assert float(found.mean) == pytest.approx(float(expected), rel=FLOAT32)


class TestBatches:
    def test_may_be_any_mapping(self, key):
        """Such as what a tokenizer of transformers returns."""
        batch = UserDict(toy_batch())
        state = TrainState.create(Toy(key=key), recipe(), key=key)
        _, metrics = make_train_step(recipe(), loss=toy_loss)(state, batch)
        (found,) = make_eval_step(loss=toy_loss)(Toy(key=key), batch)
        assert float(found.mean) == pytest.approx(float(metrics["loss"]), rel=FLOAT32)

    @pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
    def test_labels_may_be_integers_of_any_size(self, dtype, key):
        """The sequence is longer than an int8 can say."""
        config = tiny_config(**SMALL, max_position_embeddings=200)
        model = BertForQuestionAnswering(config, key=key)
        ids = np.ones((2, 150), np.int32)
        positions = {
            name: np.array([3, 90], dtype) for name in ("start_positions", "end_positions")
        }
        means = jax.jit(make_eval_step())(model, {"input_ids": ids, **positions})
        loss = model(ids, **{name: x.astype(np.int32) for name, x in positions.items()}).loss
        assert [int(m.weight) for m in means] == [2, 2]
        total = float(sum(m.share * m.mean for m in means))
        assert total == pytest.approx(float(loss), rel=FLOAT32)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"labels": None}, ValueError, "no labels for BertForSequenceClassification"),
            ({"label": np.zeros(4, np.int32)}, TypeError, "unexpected keyword argument 'label'"),
            ({"labels": np.zeros(3, np.int32)}, ValueError, r"labels has shape \(3,\), expected"),
            ({"labels": np.zeros(4, np.float32)}, ValueError, r"labels has shape|labels must hold"),
        ],
    )
    def test_that_do_not_suit_the_model(self, changes, error, message, key):
        batch = batch_of("class") | changes
        batch = {name: x for name, x in batch.items() if x is not None}
        state = TrainState.create(model_of(reference_of("class")), recipe(), key=key)
        with pytest.raises(error, match=message):
            make_train_step(recipe())(state, batch)

    @pytest.mark.parametrize("batch", [(np.ones((2, 3)), np.ones(2)), None])
    def test_must_be_mappings(self, batch, key):
        state = TrainState.create(Toy(key=key), recipe(), key=key)
        for call in (make_train_step(recipe()), make_train_step(recipe()).lower):
            with pytest.raises(ValueError, match="A batch must be a dictionary"):
                call(state, batch)
        with pytest.raises(ValueError, match="A batch must be a dictionary"):
            make_eval_step()(state.model, batch)

    @pytest.mark.parametrize(
        ("returned", "kinds"), [((1.0, {"a": 2}), "float, dict"), ((), "nothing")]
    )
    def test_a_loss_has_nothing_besides(self, key, returned, kinds):
        state = TrainState.create(Toy(key=key), recipe(), key=key)
        step = make_train_step(recipe(), loss=lambda *_: returned)
        with pytest.raises(ValueError, match=f"returned a tuple of {kinds}. It returns the loss"):
            step(state, toy_batch())

    def test_leaves_that_are_no_arrays(self, key):
        model = eqx.nn.MLP(2, 2, 2, 1, key=key)
        with pytest.raises(ValueError, match=r"^activation of the model is no array, but <"):
            TrainState.create(model, recipe(), key=key)

    def test_a_model_without_a_head_has_no_loss(self, key):
        state = TrainState.create(BertModel(tiny_config(**SMALL), key=key), recipe(), key=key)
        with pytest.raises(ValueError, match="BertModel has no loss"):
            make_train_step(recipe())(state, {"input_ids": np.ones((2, 3), np.int32)})


def test_on_two_devices_the_numbers_are_the_same():
    """The batch is divided among them; each has all parameters."""
    result = run_python(TWO_DEVICES, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["1", "ok", "2", "ok"]


TWO_DEVICES = f"""
import sys
sys.path.insert(0, {__file__.rsplit("/training/", 1)[0]!r})
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from helpers import max_difference, tiny_config
import eqxbert
from eqxbert.training import TrainState, adamw, make_train_step

jax.config.update("jax_default_matmul_precision", "highest")
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
config = tiny_config(num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
model = eqxbert.BertForMaskedLM(config, key=jax.random.key(0))
rng = np.random.default_rng(0)
ids = rng.integers(0, 33, (4, 6), np.int32)
# The first half has a label, the second eighteen.
labels = np.where(np.arange(4)[:, None] < 2, -100, rng.integers(0, 33, (4, 6), np.int32))
labels[0, 1] = 5
batch = dict(input_ids=ids, labels=labels)
optimizer = adamw(1e-3, schedule="constant")

for accumulate in (1, 2):
    step = jax.jit(make_train_step(optimizer, accumulate=accumulate))
    state = TrainState.create(model, optimizer, key=jax.random.key(0))
    shared = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    divided = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    for _ in range(2):
        state, metrics = step(state, batch)
        shared, found = step(shared, divided)
        assert abs(float(metrics["loss"]) - float(found["loss"])) < 1e-5
        assert abs(float(metrics["grad_norm"]) - float(found["grad_norm"])) < 1e-5
        assert int(metrics["tokens"]) == int(found["tokens"]) == 24
    pairs = zip(jax.tree.leaves(state.model), jax.tree.leaves(shared.model), strict=True)
    for one, two in pairs:
        assert len(two.sharding.device_set) == 2 and two.is_fully_replicated
        if one.ndim > 1:  # the bias of a key has no gradient but for rounding
            assert max_difference(one, two) < 1e-5
    print(accumulate, "ok")
"""
