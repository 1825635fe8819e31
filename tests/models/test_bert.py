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

    def call(inputs: dict) -> eqxbert.outputs.BertModelOutput:
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
    # (The sum of a normalised vector does not depend on anything: one of its numbers.)
    jacobian = jax.jacobian(lambda x: model(inputs_embeds=x).last_hidden_state[:, 0])(embeds)
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

    def test_of_attention_weights(self, key):
        config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
        model = BertModel(config, key=key)
        inputs = random_inputs()
        weights = np.asarray(model(**inputs, output_attentions=True).attentions[0])
        dropped = np.asarray(model(**inputs, output_attentions=True, key=key).attentions[0])
        assert abs(np.mean(dropped[weights > 0] > 0) - 0.5) < 0.15

    @pytest.mark.parametrize("branch", ["attention", "feed_forward"])
    def test_of_each_branch_of_a_layer(self, branch, key):
        """Where one branch is nothing, the other's dropout alone is seen."""
        config = tiny_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0)
        layer = BertModel(config, key=key).encoder.layers[0]
        other = "feed_forward" if branch == "attention" else "attention"
        silent = jax.tree.map(jnp.zeros_like, getattr(layer, other))
        layer = eqx.tree_at(lambda layer: getattr(layer, other), layer, silent)
        x = jax.random.normal(key, (2, 5, 12))
        assert max_difference(layer(x, key=key)[0], layer(x)[0]) > 0.01

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


class TestWithConfig:
    def test_reaches_every_part(self, model, key):
        config = model.config.replace(
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, hidden_act="relu"
        )
        other = model.with_config(config)
        inputs = random_inputs()
        expected = other(**inputs).last_hidden_state
        assert np.array_equal(other(**inputs, key=key).last_hidden_state, expected)
        assert max_difference(expected, model(**inputs).last_hidden_state) > 0.01
        assert other.embeddings.word.weight is model.embeddings.word.weight

    def test_lets_a_model_with_fewer_layers_be_saved(self, model, tmp_path):
        shorter = eqx.tree_at(lambda m: m.encoder.layers, model, model.encoder.layers[:1])
        with pytest.raises(eqxbert.convert.CheckpointError, match="with_config"):
            shorter.save_pretrained(tmp_path)
        shorter = shorter.with_config(model.config.replace(num_hidden_layers=1))
        shorter.save_pretrained(tmp_path)
        saved = eqxbert.convert.to_state_dict(BertModel.from_pretrained(tmp_path))
        expected = eqxbert.convert.to_state_dict(shorter)
        assert saved.keys() == expected.keys()
        assert all(np.array_equal(saved[name], expected[name]) for name in saved)

    def test_refuses_a_configuration_of_other_arrays(self, model):
        with pytest.raises(eqxbert.convert.CheckpointError, match="missing from the model"):
            model.with_config(model.config.replace(num_hidden_layers=3))

    def test_parts_built_otherwise_are_not_saved_as_if_they_were_not(self, model, tmp_path):
        other = model.with_config(model.config.replace(layer_norm_eps=0.1))
        mixed = eqx.tree_at(lambda m: m.encoder, model, other.encoder)
        with pytest.raises(eqxbert.convert.CheckpointError, match="other settings"):
            mixed.save_pretrained(tmp_path)


def test_an_ensemble_is_a_vmap_over_models(key):
    models = eqx.filter_vmap(lambda k: BertModel(tiny_config(), key=k))(jax.random.split(key, 3))
    inputs = random_inputs()
    out = eqx.filter_vmap(lambda m: m(**inputs).last_hidden_state)(models)
    second = jax.tree.map(operator.itemgetter(1), models)
    assert max_difference(out[1], second(**inputs).last_hidden_state) < FLOAT32


def test_gradients_of_shared_rows_are_summed_in_float32(key):
    """A sum of 4,096 numbers in bfloat16 would stop growing at 256 times the first of them."""
    config = tiny_config(num_hidden_layers=1, max_position_embeddings=2)
    embeddings = BertModel(config, key=key).embeddings
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), embeddings)
    words = jnp.zeros((2048, 2, 12), jnp.bfloat16)
    weight = jax.random.normal(key, (12,))

    def total(embeddings, dtype):
        y = embeddings(words.astype(dtype)).astype(jnp.float32)
        return jnp.sum(y * weight[None, None])

    exact = jax.grad(total)(jax.tree.map(lambda x: x.astype(jnp.float32), half), jnp.float32)
    ours = jax.grad(total)(half, jnp.bfloat16)
    reference = np.asarray(exact.token_type.weight[0])
    difference = max_difference(ours.token_type.weight[0].astype(jnp.float32), reference)
    assert difference < 2**-6 * np.abs(reference).max()


def test_layers_can_be_replaced_and_dropped(model):
    inputs = random_inputs()
    states = model(**inputs, output_hidden_states=True).hidden_states
    shorter = eqx.tree_at(lambda m: m.encoder.layers, model, model.encoder.layers[:1])
    assert np.array_equal(shorter(**inputs).last_hidden_state, states[1])


@pytest.mark.parametrize("how", [{}, {"segment_ids": np.zeros((0, 4), np.int32)}])
def test_no_rows(key, how):
    model = eqxbert.BertModel(tiny_config(), key=key)
    for call in (eqxbert.BertModel.__call__, jax.jit(eqxbert.BertModel.__call__)):
        out = call(model, np.zeros((0, 4), np.int32), **how)
        assert out.last_hidden_state.shape == (0, 4, 12)
