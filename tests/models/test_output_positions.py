"""The last layer at some positions alone: the vectors that it has there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import max_difference, tiny_config
from tolerances import FLOAT64

import eqxbert
from eqxbert.models import micro_batches

SEQ = 7
POSITIONS = np.array([[6, 0, 3, 3], [1, 2, 6, 4], [0, 5, 5, 1]])


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def make_model(**changes):
    options = {"add_pooling_layer": not changes.get("is_decoder", False)}
    model = eqxbert.BertModel(tiny_config(**changes), **options, key=jax.random.key(0))
    # Weights and biases that are far from zero, so that a wrong one shows.
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(model))))
    return jax.tree.map(
        lambda x: x.astype(float) + 0.3 * jax.random.normal(next(keys), x.shape, float), model
    )


def make_inputs(batch: tuple[int, ...] = (3,)) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    mask = random.random((*batch, SEQ)) < 0.7
    return {"input_ids": random.integers(0, 33, (*batch, SEQ)), "attention_mask": mask}


def at(x, positions):
    return np.take_along_axis(np.asarray(x), positions[..., None], axis=-2)


def assert_same_at(model, inputs, positions=POSITIONS, **options):
    expected = model(**inputs, **options)
    out = model(**inputs, **options, output_positions=positions)
    assert max_difference(out.last_hidden_state, at(expected.last_hidden_state, positions)) < (
        FLOAT64
    )
    if model.pooler is not None:
        assert max_difference(out.pooler_output, expected.pooler_output) < FLOAT64
    return out, expected


def pairs():
    may_attend = np.random.default_rng(1).random((3, SEQ, SEQ)) < 0.6
    may_attend[1, 2] = False  # a token that may attend to nothing
    return may_attend


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 1},
        {"is_decoder": True},
        {"position_embedding_type": "relative_key"},
        {"position_embedding_type": "relative_key_query"},
        {"position_embedding_type": "relative_key_query", "is_decoder": True},
        {"chunk_size_feed_forward": 3},
        {"pruned_heads": {0: [1], 1: [0]}},
    ],
    ids=str,
)
@pytest.mark.parametrize("mask", ["none", "of keys", "of pairs", "of segments"])
def test_vectors_are_those_of_all_positions(changes, mask):
    inputs = make_inputs()
    if mask != "of keys":
        del inputs["attention_mask"]
    if mask == "of pairs":
        inputs["attention_mask"] = pairs()
    if mask == "of segments":
        inputs["segment_ids"] = np.array([[1, 1, 2, 2, 2, 3, 0], [1, 1, 1, 1, 2, 2, 2], [4] * SEQ])
    assert_same_at(make_model(**changes), inputs)


def test_with_cross_attention_and_a_head_mask():
    model = make_model(is_decoder=True, add_cross_attention=True)
    random = np.random.default_rng(2)
    options = {
        "encoder_hidden_states": random.standard_normal((3, 5, 12)),
        "encoder_attention_mask": random.random((3, 5)) < 0.6,
        "head_mask": random.standard_normal((2, model.config.num_attention_heads)),
    }
    assert_same_at(model, make_inputs(), **options)


@pytest.mark.parametrize("position_type", ["absolute", "relative_key_query"])
def test_with_a_cache(position_type):
    """It holds all tokens all the same."""
    model = make_model(is_decoder=True, position_embedding_type=position_type)
    inputs = make_inputs()
    cache = model(**inputs, cache=model.init_cache(3, 2 * SEQ)).cache
    out, expected = assert_same_at(model, make_inputs(), cache=cache)
    for ours, theirs in zip(*(jax.tree.leaves(o.cache) for o in (out, expected)), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("what", ["output_hidden_states", "output_attentions"])
def test_what_else_is_asked_for_is_of_all_positions(what):
    out, expected = assert_same_at(make_model(), make_inputs(), **{what: True})
    name = what.removeprefix("output_")
    for ours, theirs in zip(out[name], expected[name], strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_positions_for_all_rows_alike(batch):
    model, inputs = make_model(), make_inputs(batch)
    alike = np.array([4, 0])
    out = model(**inputs, output_positions=alike)
    each = np.broadcast_to(alike, (*batch, 2))
    assert out.last_hidden_state.shape == (*batch, 2, 12)
    assert_same_at(model, inputs, each)
    again = model(**inputs, output_positions=each).last_hidden_state
    assert np.array_equal(out.last_hidden_state, again)


def test_none_at_all():
    """What a head asks for that reads nothing but the pooler's output."""
    out, _ = assert_same_at(make_model(), make_inputs(), np.zeros((3, 0), int))
    assert out.last_hidden_state.shape == (3, 0, 12)


def test_gradients_are_the_same():
    model, inputs = make_model(), make_inputs()
    weight = np.random.default_rng(3).standard_normal((*POSITIONS.shape, 12))

    @eqx.filter_grad
    def sparse(model):
        out = model(**inputs, output_positions=POSITIONS)
        return jnp.sum(out.last_hidden_state * weight) + jnp.sum(out.pooler_output)

    @eqx.filter_grad
    def full(model):
        out = model(**inputs)
        states = jnp.take_along_axis(out.last_hidden_state, POSITIONS[..., None], axis=-2)
        return jnp.sum(states * weight) + jnp.sum(out.pooler_output)

    for ours, theirs in zip(*map(jax.tree.leaves, (sparse(model), full(model))), strict=True):
        assert max_difference(ours, theirs) < FLOAT64 * max(1, np.abs(theirs).max())


def test_in_parts_and_mapped(monkeypatch):
    monkeypatch.setattr(micro_batches, "_TOKENS", SEQ)
    model, inputs = make_model(), make_inputs()

    def states(inputs, positions):
        return model(**inputs, output_positions=positions).last_hidden_state

    expected = states(inputs, POSITIONS)
    assert str(jax.make_jaxpr(states)(inputs, POSITIONS)).count("scan[") == 1
    assert max_difference(jax.jit(states)(inputs, POSITIONS), expected) < FLOAT64
    assert max_difference(jax.vmap(states)(inputs, POSITIONS), expected) < FLOAT64


def test_dropout_happens_there_too():
    model, inputs = make_model(), make_inputs()
    out = [
        model(**inputs, output_positions=POSITIONS, key=jax.random.key(i)).last_hidden_state
        for i in (0, 0, 1)
    ]
    assert np.array_equal(out[0], out[1])
    assert not np.array_equal(out[0], out[2])


@pytest.mark.parametrize("position", [SEQ, -1])
def test_positions_that_there_are_not(position):
    message = rf"output_positions contains {position}, .* 0 to 6 \(the sequence's length is 7\)"
    model, inputs = make_model(), make_inputs()
    with pytest.raises(ValueError, match=message):
        model(**inputs, output_positions=np.array([0, position]))

    # Compiled code cannot raise. There the vector at such a position is NaN, and only that one.
    states = eqx.filter_jit(model)(**inputs, output_positions=np.array([0, position]))
    assert np.isfinite(states.last_hidden_state[:, 0]).all()
    assert np.isnan(states.last_hidden_state[:, 1]).all()
