"""Scores at the masked positions alone: the same losses and gradients at a fraction of the cost."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import max_difference, tiny_config
from parity import assert_same_gradients, labelled_inputs, reference_model, same_model
from tolerances import FLOAT32, FLOAT32_GRADIENT

from eqxbert import BertForMaskedLM, BertForPreTraining
from eqxbert.nn import IGNORED_LABEL

SEQ, SLOTS = 7, 4


@pytest.fixture(scope="module", params=[BertForMaskedLM, BertForPreTraining])
def model(request: pytest.FixtureRequest) -> Any:
    return same_model(reference_model(request.param, num_hidden_layers=1))


def scores(out: Any) -> jax.Array:
    return out.logits if "logits" in out else out.prediction_logits


def full_and_sparse(
    model: Any, batch: tuple[int, ...] = (2,)
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs with labels at up to three tokens of each row; and the same with three slots for them,
    in no order, and one slot for padding besides.
    """
    full = labelled_inputs(type(model), batch)
    rng = np.random.default_rng(0)
    positions = rng.permuted(np.broadcast_to(np.arange(SEQ), (*batch, SEQ)), axis=-1)[..., :SLOTS]
    labels = rng.integers(0, model.config.vocab_size, (*batch, SLOTS), np.int32)
    labels[..., 1:] = np.where(
        rng.random((*batch, SLOTS - 1)) < 0.3, IGNORED_LABEL, labels[..., 1:]
    )
    labels[..., -1] = IGNORED_LABEL
    positions[..., -1] = 0
    everywhere = np.full((*batch, SEQ), IGNORED_LABEL, np.int32)
    for index in np.ndindex(*batch, SLOTS):
        if labels[index] != IGNORED_LABEL:
            everywhere[(*index[:-1], positions[index])] = labels[index]
    full["labels"] = everywhere
    return full, full | {"labels": labels, "masked_positions": positions.astype(np.int32)}


def test_loss_and_gradients_are_those_of_all_positions(model):
    function = jax.value_and_grad(lambda model, inputs: model(**inputs).loss)
    full, sparse = full_and_sparse(model)
    assert (full["labels"] != IGNORED_LABEL).sum() == (sparse["labels"] != IGNORED_LABEL).sum() > 2
    expected, expected_gradient = function(model, full)
    value, gradient = function(model, sparse)
    assert abs(float(value - expected)) < FLOAT32
    assert_same_gradients(gradient, expected_gradient, FLOAT32_GRADIENT)


@pytest.mark.parametrize("batch", [(2,), (2, 3)], ids=str)
def test_scores_are_those_of_these_positions(model, batch):
    """Also without labels, and where a position is named twice."""
    full, sparse = full_and_sparse(model, batch)
    del full["labels"], sparse["labels"]
    sparse["masked_positions"][..., 1] = sparse["masked_positions"][..., 2]
    out, expected = model(**sparse), model(**full)
    assert scores(out).shape == (*batch, SLOTS, model.config.vocab_size)
    taken = np.take_along_axis(
        np.asarray(scores(expected)), sparse["masked_positions"][..., None], axis=-2
    )
    assert max_difference(scores(out), taken) < FLOAT32
    if isinstance(model, BertForPreTraining):
        difference = max_difference(out.seq_relationship_logits, expected.seq_relationship_logits)
        assert difference < FLOAT32


def test_any_number_of_slots(model):
    full, sparse = full_and_sparse(model)
    everywhere = np.broadcast_to(np.arange(SEQ, dtype=np.int32), (2, SEQ))
    out = model(**full | {"masked_positions": everywhere})
    assert abs(float(out.loss - model(**full).loss)) < FLOAT32
    none = {name: sparse[name][:, :0] for name in ("labels", "masked_positions")}
    assert scores(model(**full | none)).shape == (2, 0, model.config.vocab_size)


def test_rows_equal_a_vmap_over_them(model):
    _, sparse = full_and_sparse(model)
    del sparse["labels"]
    mapped = jax.vmap(lambda row: scores(model(**row)))(jax.tree.map(jnp.asarray, sparse))
    assert max_difference(mapped, scores(model(**sparse))) < FLOAT32


@pytest.mark.parametrize("dtype", [np.int8, np.int64])
def test_every_kind_of_integer(dtype, key):
    """The sequence is longer than an int8 can say."""
    model = BertForMaskedLM(tiny_config(num_hidden_layers=1, max_position_embeddings=200), key=key)
    ids = np.arange(200, dtype=np.int32)[None] % 33
    at = eqx.filter_jit(lambda positions: model(ids, masked_positions=positions).logits)
    positions = np.array([[100, 3, -1]], np.int32)
    expected = at(positions)
    assert np.isnan(expected[0, 2]).all()
    assert np.array_equal(at(positions.astype(dtype)), expected, equal_nan=True)


@pytest.mark.parametrize("value", [SEQ, -1, -SEQ])
def test_positions_out_of_range(value):
    model = same_model(reference_model(BertForMaskedLM, num_hidden_layers=1))
    _, sparse = full_and_sparse(model)
    sparse["masked_positions"][1, 0] = value
    message = rf"masked_positions contains {value}, .* 0 to 6 \(the sequence's length is 7\)"
    for array in (np.asarray, jnp.asarray):
        with pytest.raises(ValueError, match=message):
            model(**sparse | {"masked_positions": array(sparse["masked_positions"])})

    # Compiled code cannot raise. There the loss is NaN, and of the scores those of that slot.
    loss, logits = eqx.filter_jit(lambda m, i: m(**i)[:2])(model, sparse)
    assert np.isnan(loss)
    assert np.isnan(logits[1, 0]).all()
    assert np.isfinite(np.delete(np.asarray(logits).reshape(-1, 33), SLOTS, axis=0)).all()


def test_a_wrong_position_without_a_label_is_not_hidden_when_compiled():
    """Were the loss finite while gradients are not, weights would be lost without a warning."""
    model = same_model(reference_model(BertForMaskedLM, num_hidden_layers=1))
    _, sparse = full_and_sparse(model)
    sparse["masked_positions"][:, -1] = -1
    assert np.all(sparse["labels"][:, -1] == IGNORED_LABEL)
    function = jax.jit(jax.value_and_grad(lambda model, inputs: model(**inputs).loss))
    loss, gradient = function(model, sparse)
    is_finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.isnan(loss) == (not is_finite)


def test_a_training_step_costs_less(key):
    """In operations, and no array of scores at all positions is made."""
    config = tiny_config(num_hidden_layers=1, vocab_size=3001)
    model = BertForMaskedLM(config, key=key)
    inputs = labelled_inputs(BertForMaskedLM, (2,), 16, vocab_size=3001)
    labels = inputs.pop("labels")

    def compiled(**more: np.ndarray) -> Any:
        step = jax.grad(lambda model, inputs: model(**inputs).loss)
        return jax.jit(step).lower(model, inputs | more).compile()

    full = compiled(labels=labels)
    sparse = compiled(labels=labels[:, :2], masked_positions=np.zeros((2, 2), np.int32))
    assert sparse.cost_analysis()["flops"] < full.cost_analysis()["flops"] / 4
    assert "[2,16,3001]" in full.as_text()
    assert "[2,16,3001]" not in sparse.as_text()
    assert "[32,3001]" not in sparse.as_text()
