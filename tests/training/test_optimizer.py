"""AdamW by BERT's recipe: each part of it against its definition, PyTorch and transformers."""

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers
from helpers import max_difference, tiny_config
from tolerances import FLOAT32
from training.references import SMALL, Toy, batch_of, model_of, reference_of

from eqxbert import BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, BertModel
from eqxbert.convert import to_state_dict
from eqxbert.training import (
    TrainState,
    adamw,
    freeze,
    learning_rate_schedule,
    make_train_step,
)

# optax takes 1 - b2 ** count in float32, in which 0.999 is 1.3e-8 off: a hundred-thousandth of the
# difference, half of it of the root.
B2 = 1e-5


@pytest.fixture(autouse=True)
def standard_promotion():
    """On which optax relies."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def updates_of(optimizer: Any, model: Any, gradients: Any) -> Any:
    """What the first update adds to the parameters."""
    return optimizer.update(gradients, optimizer.init(model), model)[0]


def named(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in to_state_dict(tree).items()}


def zeros(model: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, model)


def ones(model: Any) -> Any:
    return jax.tree.map(jnp.ones_like, model)


class TestWeightDecay:
    """Seen by gradients of zero, with which there is nothing else."""

    @pytest.mark.parametrize("embeddings", [True, False])
    @pytest.mark.parametrize("model_class", [BertForPreTraining, BertForSequenceClassification])
    def test_takes_its_share_off_matrices_alone(self, model_class, embeddings, key):
        config = tiny_config(num_hidden_layers=1, tie_word_embeddings=False, hidden_act="prelu")
        model = ones(model_class(config, key=key))
        optimizer = adamw(0.5, schedule="constant", weight_decay=0.1, decay_embeddings=embeddings)
        kinds = set()
        for name, update in named(updates_of(optimizer, model, zeros(model))).items():
            is_matrix = name.endswith("weight") and "LayerNorm" not in name and "act" not in name
            is_embedding = "bert.embeddings." in name
            decays = is_matrix and (embeddings or not is_embedding)
            kinds.add((is_matrix, is_embedding, decays))
            assert np.allclose(update, -0.05 if decays else 0, rtol=1e-6, atol=0), name
        assert len(kinds) == 4

    def test_of_a_bert_without_a_head(self, key):
        """Whose parts have shorter names."""
        model = BertModel(tiny_config(num_hidden_layers=1), key=key)
        optimizer = adamw(0.5, schedule="constant", weight_decay=0.1, decay_embeddings=False)
        updates = updates_of(optimizer, ones(model), zeros(model))
        assert not any(np.any(x) for x in jax.tree.leaves(updates.embeddings))
        assert np.all(updates.pooler.dense.weight < 0)

    def test_none(self, key):
        model = ones(Toy(key=key))
        optimizer = adamw(0.5, schedule="constant", weight_decay=0.0)
        assert not any(
            np.any(x) for x in jax.tree.leaves(updates_of(optimizer, model, zeros(model)))
        )


class TestLayerDecay:
    @pytest.fixture
    def model(self, key: jax.Array) -> BertForPreTraining:
        return BertForPreTraining(tiny_config(num_hidden_layers=3), key=key)

    @pytest.mark.parametrize("kind", ["steps", "decay"])
    def test_each_layer_has_a_share_of_the_rate_of_the_one_above(self, model, kind):
        """In Adam's steps and in the decay of weights."""
        optimizer = adamw(
            0.5, schedule="constant", layer_decay=0.8, weight_decay=float(kind == "decay")
        )
        gradients = zeros(model) if kind == "decay" else ones(model)
        updates = named(updates_of(optimizer, ones(model), gradients))
        depths = {"bert.embeddings.": 4} | {f"bert.encoder.layer.{i}.": 3 - i for i in range(3)}
        for name, update in updates.items():
            depth = next((d for part, d in depths.items() if name.startswith(part)), 0)
            moves = kind == "steps" or update.ndim == 2
            assert np.allclose(update, -0.5 * 0.8**depth * moves, rtol=B2, atol=0), name

    def test_parameters_that_do_not_train_count(self, model):
        """The last layer, for instance: those below have the rate that they had with it."""
        optimizer = adamw(0.5, schedule="constant", layer_decay=0.5, weight_decay=0.0)
        trainable = freeze(model, "bert.encoder.layers.2")
        trained = eqx.filter(ones(model), trainable)
        updates = updates_of(optimizer, trained, trained)
        layers, words = updates.bert.encoder.layers, updates.bert.embeddings.word
        assert np.allclose(layers[1].feed_forward.output.weight, -0.5 * 0.5**2, rtol=B2)
        assert np.allclose(words.weight, -0.5 * 0.5**4, rtol=B2)

    def test_none_is_1(self, model):
        updates = [
            updates_of(adamw(0.5, schedule="constant", layer_decay=x), model, ones(model))
            for x in (None, 1.0)
        ]
        jax.tree.map(np.testing.assert_array_equal, *updates)

    def test_without_layers(self, key):
        """There is nothing but heads, and embeddings if they are called so."""
        model = Toy(key=key).words
        optimizer = adamw(0.5, schedule="constant", layer_decay=0.5, weight_decay=0.0)
        assert np.allclose(updates_of(optimizer, model, ones(model)).weight, -0.5, rtol=B2)


class TestGooglesAdam:
    def test_is_its_formula(self, key):
        """`AdamWeightDecayOptimizer` of google-research/bert/optimization.py."""
        rate, b1, b2, eps, decay = 0.01, 0.9, 0.999, 1e-6, 0.01
        optimizer = adamw(
            rate,
            schedule="constant",
            b1=b1,
            b2=b2,
            eps=eps,
            weight_decay=decay,
            bias_correction=False,
            max_grad_norm=None,
        )
        model = Toy(key=key)
        state = optimizer.init(model)
        params = [np.asarray(x, np.float64) for x in jax.tree.leaves(model)]
        m = [np.zeros_like(p) for p in params]
        v = [np.zeros_like(p) for p in params]
        rng = np.random.default_rng(0)
        for _ in range(5):
            gradients = [rng.normal(size=p.shape).astype(np.float32) for p in params]
            tree = jax.tree.unflatten(jax.tree.structure(model), gradients)
            updates, state = optimizer.update(jax.tree.map(jnp.asarray, tree), state, model)
            model = eqx.apply_updates(model, updates)
            for i, g in enumerate(gradients):
                m[i] = b1 * m[i] + (1 - b1) * g
                v[i] = b2 * v[i] + (1 - b2) * np.square(np.float64(g))
                update = m[i] / (np.sqrt(v[i]) + eps)
                if params[i].ndim == 2:
                    update += decay * params[i]
                params[i] = params[i] - rate * update
        for ours, expected in zip(jax.tree.leaves(model), params, strict=True):
            assert max_difference(ours, expected) < FLOAT32

    def test_its_first_step_is_longer(self, key):
        """By (1 - b1) / sqrt(1 - b2), where Adam's is as long as the learning rate."""
        model = Toy(key=key)
        for corrects, length in ((True, 1.0), (False, 0.1 / np.sqrt(0.001))):
            optimizer = adamw(
                0.5,
                schedule="constant",
                bias_correction=corrects,
                max_grad_norm=None,
                weight_decay=0.0,
            )
            updates = updates_of(optimizer, model, ones(model))
            assert np.allclose(updates.words.weight, -0.5 * length, rtol=1e-5)


class TestAdam:
    def test_its_constants(self, key):
        """After a gradient of 2, then one of -1."""
        b1, b2, eps = 0.8, 0.95, 0.1
        optimizer = adamw(
            1.0,
            schedule="constant",
            b1=b1,
            b2=b2,
            eps=eps,
            max_grad_norm=None,
            weight_decay=0.0,
        )
        model = Toy(key=key)
        state = optimizer.init(model)
        for gradient in (2.0, -1.0):
            constant = jax.tree.map(lambda x, g=gradient: jnp.full_like(x, g), model)
            updates, state = optimizer.update(constant, state, model)
        m = (b1 * (1 - b1) * 2 - (1 - b1)) / (1 - b1**2)
        v = (b2 * (1 - b2) * 4 + (1 - b2)) / (1 - b2**2)
        assert np.allclose(updates.words.weight, -m / (np.sqrt(v) + eps), rtol=1e-5)


class TestClipping:
    @pytest.mark.parametrize("factor", [0.1, 0.999, 1.001, 10.0])
    def test_scales_gradients_down_to_the_norm_as_pytorch_does(self, factor, key):
        """Over all parameters together. Seen in Adam's first moment."""
        model = Toy(key=key)
        rng = np.random.default_rng(0)
        drawn = [rng.normal(size=x.shape).astype(np.float32) for x in jax.tree.leaves(model)]
        norm = np.sqrt(sum(np.square(x).sum() for x in drawn))
        gradients = [factor * x / norm for x in drawn]
        tensors = [torch.nn.Parameter(torch.zeros(x.shape)) for x in gradients]
        for tensor, x in zip(tensors, gradients, strict=True):
            tensor.grad = torch.tensor(x)
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        optimizer = adamw(0.5, schedule="constant", max_grad_norm=1.0)
        tree = jax.tree.unflatten(jax.tree.structure(model), map(jnp.asarray, gradients))
        _, state = optimizer.update(tree, optimizer.init(model), model)
        for found, tensor in zip(moments(state), tensors, strict=True):
            assert max_difference(found, 0.1 * tensor.grad.numpy()) < 1e-6

    def test_none(self, key):
        model = Toy(key=key)
        optimizer = adamw(0.5, schedule="constant", max_grad_norm=None)
        gradients = jax.tree.map(lambda x: jnp.full_like(x, 1e4), model)
        _, state = optimizer.update(gradients, optimizer.init(model), model)
        assert all(np.allclose(x, 1e3) for x in moments(state))


def moments(state: Any) -> list[jax.Array]:
    """Adam's first ones."""
    return jax.tree.leaves(optax.tree.get(state, "mu"))


def dummy() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)


SCHEDULES = {
    "linear": (
        {"schedule": "linear"},
        lambda warmup, total: transformers.get_linear_schedule_with_warmup(dummy(), warmup, total),
    ),
    "cosine": (
        {"schedule": "cosine"},
        lambda warmup, total: transformers.get_cosine_schedule_with_warmup(dummy(), warmup, total),
    ),
    "cosine to a tenth": (
        {"schedule": "cosine", "final_share": 0.1},
        lambda warmup, total: transformers.get_cosine_with_min_lr_schedule_with_warmup(
            dummy(), warmup, total, min_lr_rate=0.1
        ),
    ),
    "constant": (
        {"schedule": "constant"},
        lambda warmup, total: transformers.get_constant_schedule_with_warmup(dummy(), warmup),
    ),
    "inverse_sqrt": (
        {"schedule": "inverse_sqrt"},
        lambda warmup, total: transformers.get_inverse_sqrt_schedule(
            dummy(), warmup, timescale=warmup or 1
        ),
    ),
}


class TestSchedules:
    @pytest.mark.parametrize("warmup", [0, 1, 7, 49])
    @pytest.mark.parametrize("name", SCHEDULES)
    def test_are_transformers_at_every_step(self, name, warmup):
        """From the first to some after the last."""
        options, reference = SCHEDULES[name]
        (share,) = reference(warmup, 50).lr_lambdas
        rate = learning_rate_schedule(0.02, total_steps=50, warmup=warmup, **options)
        # After the end, transformers' cosine rises again.
        last = 50 if name.startswith("cosine") else 60
        for count in range(last + 1):
            assert float(rate(count)) == pytest.approx(0.02 * share(count), abs=1e-7), count

    @pytest.mark.parametrize("schedule", ["linear", "cosine"])
    def test_stay_at_the_end_what_they_end_with(self, schedule):
        rate = learning_rate_schedule(0.02, total_steps=50, schedule=schedule, final_share=0.25)
        for count in (50, 51, 1000):
            assert float(rate(count)) == pytest.approx(0.005)
        assert float(rate(25)) == pytest.approx(0.02 * (1 + 0.25) / 2)

    def test_of_the_inverse_root_ends_at_its_share(self):
        rate = learning_rate_schedule(
            0.02, total_steps=None, warmup=4, schedule="inverse_sqrt", final_share=0.1
        )
        assert float(rate(16)) == pytest.approx(0.01)
        assert float(rate(10_000)) == pytest.approx(0.002)

    @pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "inverse_sqrt"])
    @pytest.mark.parametrize(
        ("share", "updates"), [(0.07, 4), (0.1, 5), (0.5, 25), (0.98, 49), (0.001, 0)]
    )
    def test_warmup_as_a_share_and_as_a_number(self, schedule, share, updates):
        one, other = (
            learning_rate_schedule(0.02, total_steps=50, warmup=w, schedule=schedule)
            for w in (share, updates)
        )
        assert [float(one(i)) for i in range(60)] == [float(other(i)) for i in range(60)]

    def test_the_first_update_after_the_warmup_has_the_highest(self):
        rate = learning_rate_schedule(0.02, total_steps=50, warmup=10)
        assert float(rate(0)) == 0
        rates = [float(rate(i)) for i in range(51)]
        assert rates[10] == max(rates) == pytest.approx(0.02)
        assert rates[50] == 0

    def test_are_what_the_optimizer_goes_by(self, key):
        """One of one's own too."""
        model = Toy(key=key)
        for rate in (lambda count: 0.1 / (1 + count), learning_rate_schedule(0.1, total_steps=9)):
            optimizer = adamw(rate, weight_decay=0.0, max_grad_norm=None)
            assert optimizer.learning_rate is rate
            state = optimizer.init(model)
            for i in range(3):
                updates, state = optimizer.update(ones(model), state, model)
                assert np.allclose(updates.words.weight, -float(rate(i)), rtol=1e-4)

    def test_need_no_end_if_they_have_none(self):
        for schedule in ("constant", "inverse_sqrt"):
            rate = learning_rate_schedule(0.02, total_steps=None, warmup=3, schedule=schedule)
            assert float(rate(3)) == pytest.approx(0.02)


WRONG = [
    ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
    ({"learning_rate": -1e-3}, "learning_rate must be positive"),
    ({"learning_rate": float("nan")}, "learning_rate must be positive"),
    ({"final_share": 1.5}, r"final_share must be in \[0, 1\], got 1.5"),
    ({"final_share": -0.5}, "final_share must be in"),
    ({"total_steps": None}, "'linear' with warmup 0 needs total_steps"),
    ({"total_steps": None, "schedule": "cosine"}, "'cosine' .* needs total_steps"),
    (
        {"total_steps": None, "schedule": "constant", "warmup": 0.1},
        "'constant' with warmup 0.1 needs total_steps",
    ),
    ({"eps": -1e-8}, "eps must be at least 0 and finite, got -1e-08"),
    ({"eps": float("nan")}, "eps must be at least 0 and finite, got nan"),
    ({"warmup": -1}, "warmup must be a share .* got -1"),
    ({"warmup": 2.5}, "warmup must be a share .* got 2.5"),
    ({"warmup": 10}, "leaves no update after a warmup of 10"),
    ({"warmup": 11}, "leaves no update after a warmup of 11"),
    ({"total_steps": 0}, "total_steps is 0"),
    ({"total_steps": -5}, "total_steps is -5"),
    ({"schedule": "polynomial"}, "Unknown schedule 'polynomial'. Known are: linear, cosine"),
    ({"b1": 1.0}, r"b1 must be in \[0, 1\), got 1.0"),
    ({"b1": -0.1}, "b1 must be in"),
    ({"b2": 1.5}, "b2 must be in"),
    ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], got 0.0"),
    ({"layer_decay": 1.1}, "layer_decay must be in"),
    ({"weight_decay": -0.1}, "weight_decay must be at least 0 and finite, got -0.1"),
    ({"weight_decay": float("nan")}, "weight_decay must be at least 0"),
    ({"max_grad_norm": float("nan")}, "max_grad_norm must be positive"),
    ({"max_grad_norm": 0.0}, "max_grad_norm must be positive, got 0.0; None means no limit"),
    ({"max_grad_norm": -1.0}, "max_grad_norm must be positive"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=str)
def test_values_out_of_range(wrong, message):
    options = {"learning_rate": 1e-3, "total_steps": 10} | wrong
    with pytest.raises(ValueError, match=message):
        adamw(options.pop("learning_rate"), **options)


def test_what_it_is_by_default():
    """BERT's recipe, but for the decay of the embeddings, which is an option."""
    defaults = {
        name: p.default
        for name, p in inspect.signature(adamw).parameters.items()
        if p.default is not inspect.Parameter.empty
    }
    assert (defaults["b1"], defaults["b2"], defaults["eps"]) == (0.9, 0.999, 1e-8)
    assert (defaults["weight_decay"], defaults["max_grad_norm"]) == (0.01, 1.0)
    assert defaults["schedule"] == "linear"


class TestFreeze:
    def test_what_is_named_and_nothing_else(self, key):
        model = BertForMaskedLM(tiny_config(num_hidden_layers=2), key=key)
        trainable = freeze(model, "bert.embeddings.word", "bert.encoder.layers.0.feed_forward")
        assert jax.tree.structure(trainable) == jax.tree.structure(model)
        still = {
            jax.tree_util.keystr(path, simple=True, separator=".")
            for path, trains in jax.tree_util.tree_leaves_with_path(trainable)
            if not trains
        }
        parts = [f"{part}.{x}" for part in ("intermediate", "output") for x in ("weight", "bias")]
        feed_forward = {f"bert.encoder.layers.0.feed_forward.{part}" for part in parts}
        assert still == {"bert.embeddings.word.weight"} | feed_forward

    def test_layer_1_is_not_layer_10(self, key):
        config = tiny_config(num_hidden_layers=11)
        model = eqx.filter_eval_shape(lambda k: BertModel(config, key=k), key)
        trains = freeze(model, "encoder.layers.1").encoder.layers
        assert [all(jax.tree.leaves(layer)) for layer in trains] == [i != 1 for i in range(11)]

    def test_nothing(self, key):
        assert all(jax.tree.leaves(freeze(Toy(key=key))))

    @pytest.mark.parametrize(
        "name", ["bert.embedding", "embeddings", "bert.encoder.layers.2", "", "bert.", "word"]
    )
    def test_what_there_is_not(self, name, key):
        model = BertForMaskedLM(tiny_config(num_hidden_layers=2), key=key)
        with pytest.raises(ValueError, match=f"no part '{name}'. It has, .*'bert.embeddings'"):
            freeze(model, "bert.encoder", name)

    def test_does_not_move_a_bit_and_has_no_optimizer_state(self, key):
        model = model_of(reference_of("class"))
        trainable = freeze(model, "bert.embeddings", "bert.encoder.layers.0.attention")
        optimizer = adamw(1e-2, schedule="constant", weight_decay=0.1)
        state = TrainState.create(model, optimizer, key=key, trainable=trainable)
        trained, frozen = eqx.partition(model, trainable)
        assert len(moments(state.optimizer_state)) == len(jax.tree.leaves(trained))
        assert len(jax.tree.leaves(frozen)) > 10

        step = jax.jit(make_train_step(optimizer))
        for i in range(3):
            state, _ = step(state, batch_of("class", seed=i))
        after, still = eqx.partition(state.model, trainable)
        jax.tree.map(np.testing.assert_array_equal, still, frozen)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(trained), strict=True):
            assert max_difference(a, b) > 1e-3

    def test_the_rest_moves_as_if_nothing_were_frozen(self, key):
        """But for the norm of the gradients, to which what is frozen adds nothing."""
        model = BertForMaskedLM(tiny_config(**SMALL), key=key)
        trainable = freeze(model, "bert.embeddings")
        optimizer = adamw(1e-2, schedule="constant", layer_decay=0.5, max_grad_norm=None)
        gradients = ones(model)
        whole = updates_of(optimizer, model, gradients)
        part = updates_of(optimizer, eqx.filter(model, trainable), eqx.filter(gradients, trainable))
        jax.tree.map(np.testing.assert_array_equal, part, eqx.filter(whole, trainable))
