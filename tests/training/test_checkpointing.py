"""Layers computed again for their gradients: the same numbers, in less memory."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from helpers import tiny_config
from parity import labelled_inputs
from training.references import batch_of, model_of, reference_of

from eqxbert import BertForCausalLM, BertForMaskedLM, BertForSequenceClassification, BertModel
from eqxbert.models.checkpointing import checkpoint_layers
from eqxbert.training import TrainState, adamw, make_train_step

POLICIES = {
    "nothing is kept": None,
    "products are kept": jax.checkpoint_policies.dots_saveable,
    "everything is kept": jax.checkpoint_policies.everything_saveable,
}
ALL = {"output_hidden_states": True, "output_attentions": True}


def deep(model_class: type[Any], **changes: Any) -> Any:
    return model_class(tiny_config(**changes), key=jax.random.key(0))


def with_head_mask() -> tuple[Any, dict[str, Any]]:
    head_mask = np.random.default_rng(0).random((2, 3)).astype(np.float32)
    inputs = labelled_inputs(BertForSequenceClassification)
    return deep(BertForSequenceClassification), inputs | {"head_mask": head_mask}


def with_pruned_heads() -> tuple[Any, dict[str, Any]]:
    model, inputs = with_head_mask()
    return model.prune_heads({0: [1], 1: [0, 2]}), inputs


def with_a_mask_for_each_token() -> tuple[Any, dict[str, Any]]:
    inputs = labelled_inputs(BertForMaskedLM)
    mask = np.random.default_rng(0).random((2, 7, 7)) < 0.6
    model = deep(BertForMaskedLM, position_embedding_type="relative_key_query")
    return model, inputs | {"attention_mask": mask}


def with_cross_attention() -> tuple[Any, dict[str, Any]]:
    states = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)
    inputs = labelled_inputs(BertForCausalLM) | {
        "encoder_hidden_states": states,
        "encoder_attention_mask": np.array([[1, 1, 1, 0, 0], [1] * 5]),
    }
    return deep(BertForCausalLM, is_decoder=True, add_cross_attention=True), inputs


def of_an_encoder_and_a_decoder() -> tuple[Any, dict[str, Any]]:
    return model_of(reference_of("translation")), batch_of("translation")


def in_chunks() -> tuple[Any, dict[str, Any]]:
    model = deep(BertForMaskedLM, chunk_size_feed_forward=3, hidden_act="prelu")
    return model, labelled_inputs(BertForMaskedLM)


def as_float64(x: Any) -> Any:
    return x.astype(np.float64) if x.dtype == np.float32 else x


CASES = {
    "head mask": with_head_mask,
    "pruned heads": with_pruned_heads,
    "mask for each token": with_a_mask_for_each_token,
    "cross-attention": with_cross_attention,
    "encoder and decoder": of_an_encoder_and_a_decoder,
    "chunks": in_chunks,
}


@pytest.mark.parametrize("case", CASES)
def test_no_number_changes(case, key):
    """Of any output, loss or gradient, with dropout too: in float64, in which the order of sums
    does not show.
    """
    with jax.enable_x64(True):
        check_that_no_number_changes(case, key)


def check_that_no_number_changes(case: str, key: jax.Array) -> None:
    model, inputs = jax.tree.map(as_float64, CASES[case]())
    extras = {} if case == "encoder and decoder" else ALL

    def run(model: Any, policy: Any = False) -> Any:
        model = model if policy is False else checkpoint_layers(model, policy)
        out = model(**inputs, **extras, key=key)
        return out.loss, out

    expected = jax.jit(jax.grad(run, has_aux=True))(model)
    kinds = jax.tree.leaves(expected)
    assert sum(np.any(np.asarray(x)) for x in kinds) > 0.9 * len(kinds)
    found = jax.jit(jax.grad(lambda m: run(m, None), has_aux=True))(model)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), found, expected)


def test_a_decoder_may_have_a_cache():
    model = checkpoint_layers(deep(BertModel, is_decoder=True))
    ids = labelled_inputs(BertForCausalLM)["input_ids"]
    cache = model(ids[:, :4], cache=model.init_cache(2, 7)).cache
    out = model(ids[:, 4:], cache=cache)
    expected = deep(BertModel, is_decoder=True)(ids)
    states = expected.last_hidden_state[:, 4:]
    np.testing.assert_allclose(out.last_hidden_state, states, rtol=0, atol=1e-5)


def test_less_is_kept_for_the_gradients():
    """What the backward pass is given by the forward pass, in bytes. Of a layer no more is left
    than its input, and a key for its dropout.
    """
    model = deep(BertForMaskedLM)
    inputs = labelled_inputs(BertForMaskedLM, (8,))

    def kept(policy: Any) -> int:
        def loss(model: Any) -> jax.Array:
            model = model if policy is False else checkpoint_layers(model, policy)
            return model(**inputs, key=jax.random.key(0)).loss

        _, backward = jax.eval_shape(lambda m: jax.vjp(loss, m), model)
        leaves = [x for x in jax.tree.leaves(backward) if hasattr(x, "dtype")]
        return sum(x.size * x.dtype.itemsize for x in leaves if x.dtype.itemsize)

    plain = kept(False)
    nothing, products, everything = map(kept, POLICIES.values())
    assert nothing < products < everything <= plain
    assert nothing < 0.5 * plain

    layers = len(model.bert.encoder.layers)
    assert layers == 2


class TestSteps:
    def test_do_not_change(self, key):
        """Nor does the structure of the state."""
        losses = []
        for remat in (False, True, jax.checkpoint_policies.dots_saveable):
            optimizer = adamw(1e-3, schedule="constant")
            state = TrainState.create(deep(BertForSequenceClassification), optimizer, key=key)
            structure = jax.tree.structure(state)
            step = jax.jit(make_train_step(optimizer, remat=remat))
            for seed in range(2):
                inputs = labelled_inputs(BertForSequenceClassification, (4,), seed=seed)
                state, metrics = step(state, inputs)
            assert jax.tree.structure(state) == structure
            losses.append(float(metrics["loss"]))
        assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)

    def test_take_less_memory(self, key):
        """Of the compiled program, which for a CPU is not so by itself."""
        model = deep(BertForMaskedLM, num_hidden_layers=3, max_position_embeddings=64)
        inputs = labelled_inputs(BertForMaskedLM, (8,), 64, max_position_embeddings=64)
        optimizer = adamw(1e-3, schedule="constant")
        state = TrainState.create(model, optimizer, key=key)

        def memory(remat: Any) -> int:
            program = make_train_step(optimizer, remat=remat).lower(state, inputs).compile()
            return program.memory_analysis().temp_size_in_bytes

        plain = memory(False)
        products = memory(jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        nothing = memory(True)
        assert nothing < products < plain
        assert nothing < 0.7 * plain
