"""What `BertModel` does beyond its numbers: transformations, batches, dropout, masks."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import max_difference, tiny_config
from parity import random_inputs, reference_model, same_model
from tolerances import FLOAT32

import eqxbert
from eqxbert import BertModel


@pytest.fixture(scope="module")
def model() -> BertModel:
    return same_model(reference_model())


def test_every_leaf_is_an_array(key):
    for position_type in ("absolute", "relative_key", "relative_key_query"):
        model = BertModel(tiny_config(position_embedding_type=position_type), key=key)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model))


def test_plain_and_filtered_transformations_agree(model):
    inputs = random_inputs()

    def loss(model: BertModel, inputs: dict) -> jax.Array:
        return jnp.sum(model(**inputs).last_hidden_state ** 3)

    expected = loss(model, inputs)
    assert np.allclose(jax.jit(loss)(model, inputs), expected, rtol=1e-5)
    assert np.allclose(eqx.filter_jit(loss)(model, inputs), expected, rtol=1e-5)
    plain = jax.grad(loss)(model, inputs)
    filtered = eqx.filter_grad(loss)(model, inputs)
    jax.tree.map(np.testing.assert_array_equal, plain, filtered)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plain))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("mask_rank", [1, 2])
def test_leading_axes_equal_vmap_and_single_calls(model, batch, mask_rank):
    inputs = random_inputs(batch)
    if mask_rank == 2:
        mask = np.random.default_rng(0).random((*batch, 7, 7)) < 0.7
        mask[..., range(7), range(7)] = True
        inputs["attention_mask"] = mask

    def call(inputs: dict) -> eqxbert.outputs.BertOutput:
        return model(**inputs, output_hidden_states=True, output_attentions=True)

    def assert_close(a: object, b: object) -> None:
        assert max(jax.tree.leaves(jax.tree.map(max_difference, a, b))) < FLOAT32

    out = call(inputs)
    mapped = call
    for _ in batch:
        mapped = jax.vmap(mapped)
    assert_close(out, mapped(jax.tree.map(jnp.asarray, inputs)))
    for index in np.ndindex(batch):
        single = call({name: array[index] for name, array in inputs.items()})
        assert_close(jax.tree.map(operator.itemgetter(index), out), single)


def test_padding_changes_nothing(model):
    inputs = random_inputs((1,), seq=6)
    inputs["attention_mask"][:] = 1
    alone = model(**inputs)
    padded = {name: np.pad(array, [(0, 0), (0, 5)]) for name, array in inputs.items()}
    padded["input_ids"][:, 6:] = 9
    others = random_inputs((2,), seq=11)
    in_company = {n: np.concatenate([array, others[n]]) for n, array in padded.items()}
    for longer in (padded, in_company):
        out = model(**longer)
        assert max_difference(out.last_hidden_state[:1, :6], alone.last_hidden_state) < FLOAT32
        assert max_difference(out.pooler_output[:1], alone.pooler_output) < FLOAT32


def test_a_fully_padded_row_is_finite_and_leaves_the_others_alone(model):
    inputs = random_inputs((2,))
    inputs["attention_mask"][1] = 0

    def loss(model: BertModel) -> tuple[jax.Array, jax.Array]:
        states = model(**inputs).last_hidden_state
        return jnp.sum(states**2), states

    gradient, states = eqx.filter_grad(loss, has_aux=True)(model)
    assert np.isfinite(states).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    inputs["input_ids"][1] = 0
    assert np.array_equal(model(**inputs).last_hidden_state[0], states[0])


def test_decoders_see_no_later_token(key):
    model = BertModel(tiny_config(is_decoder=True), key=key)
    embeds = jax.random.normal(key, (5, 12))
    jacobian = jax.jacobian(lambda x: model(inputs_embeds=x).last_hidden_state.sum(-1))(embeds)
    influence = np.abs(np.asarray(jacobian)).sum(-1)
    assert np.all(influence[np.triu_indices(5, 1)] == 0)
    assert np.all(influence[np.tril_indices(5)] > 0)


class TestDropout:
    def test_happens_only_with_a_key(self, model, key):
        inputs = random_inputs()
        calm = model(**inputs).last_hidden_state
        assert np.array_equal(calm, model(**inputs).last_hidden_state)
        assert max_difference(calm, model(**inputs, key=key).last_hidden_state) > 0.01

    def test_is_determined_by_the_key(self, model, key):
        inputs = random_inputs()
        first, same, other = (
            model(**inputs, key=k).last_hidden_state for k in (key, key, jax.random.key(1))
        )
        assert np.array_equal(first, same)
        assert max_difference(first, other) > 0.01

    def test_in_each_of_its_places(self, key):
        """With every weight at one and everything else off, each rate alone changes the result."""
        inputs = random_inputs()
        calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        for rate in calm:
            model = BertModel(tiny_config(**calm | {rate: 0.5}), key=key)
            dropped = model(**inputs, key=key, output_attentions=True)
            expected = model(**inputs, output_attentions=True)
            difference = max_difference(dropped.last_hidden_state, expected.last_hidden_state)
            assert difference > 0.01, rate
            kept = np.asarray(dropped.attentions[0])[np.asarray(expected.attentions[0]) > 0] > 0
            share = kept.mean()
            assert abs(share - (0.5 if rate.startswith("attention") else 1)) < 0.15, rate

    def test_embeddings_and_layers_drop_at_their_rate(self, key):
        config = tiny_config(
            hidden_size=120, num_attention_heads=3, hidden_dropout_prob=0.3, num_hidden_layers=1
        )
        model = BertModel(config, key=key)
        out = model(**random_inputs((8,)), key=key, output_hidden_states=True)
        assert out.hidden_states is not None
        assert abs(np.mean(np.asarray(out.hidden_states[0]) == 0) - 0.3) < 0.02


def test_initial_weights_are_pytorchs(key):
    model = BertModel(tiny_config(hidden_size=120, vocab_size=500, initializer_range=0.02), key=key)
    for name, array in eqxbert.convert.to_state_dict(model).items():
        array = np.asarray(array)
        if name.endswith("LayerNorm.weight"):
            assert np.all(array == 1), name
        elif name.endswith(".bias"):
            assert np.all(array == 0), name
        else:
            assert abs(array.std() - 0.02) < 0.002, name
    words = np.asarray(model.embeddings.word.weight)
    assert not words[0].any()
    assert words[1:].all()


def test_no_two_weights_start_alike(key):
    model = BertModel(tiny_config(), key=key)
    matrices = [leaf for leaf in jax.tree.leaves(model) if leaf.ndim == 2]
    firsts = [float(matrix[-1, 0]) for matrix in matrices]
    assert len(set(firsts)) == len(firsts)


def test_bfloat16_in_and_out(model):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    out = half(**random_inputs(), output_hidden_states=True, output_attentions=True)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(out))
    expected = model(**random_inputs()).last_hidden_state
    assert max_difference(out.last_hidden_state.astype(jnp.float32), expected) < 0.1


def test_configured_outputs_are_returned_unless_a_call_says_otherwise(key):
    model = BertModel(tiny_config(output_attentions=True, output_hidden_states=True), key=key)
    ids = random_inputs()["input_ids"]
    out = model(ids)
    assert len(out.attentions) == 2
    assert len(out.hidden_states) == 3
    out = model(ids, output_attentions=False, output_hidden_states=False)
    assert out.attentions is None
    assert out.hidden_states is None


def test_layers_can_be_replaced_and_dropped(model):
    inputs = random_inputs()
    states = model(**inputs, output_hidden_states=True).hidden_states
    shorter = eqx.tree_at(lambda m: m.encoder.layers, model, model.encoder.layers[:1])
    assert np.array_equal(shorter(**inputs).last_hidden_state, states[1])
