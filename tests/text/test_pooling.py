"""Pooling against sentence-transformers', on random vectors with padding."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import max_difference, tiny_config
from sentence_transformers.sentence_transformer.modules import Pooling as ReferencePooling
from tolerances import FLOAT32

from eqxbert import BertModel
from eqxbert.text import Pooling, SentenceModel

SEQ, HIDDEN = 9, 5
POOLING_MODES = ReferencePooling.POOLING_MODES
COMBINATIONS = [*((mode,) for mode in POOLING_MODES), ("max", "lasttoken", "cls"), POOLING_MODES]

# Sums of at most nine float32 numbers of size 1, in another order.
POOLED = 1e-6


def random_tokens(*batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*batch, SEQ, HIDDEN)).astype(np.float32)


def ragged_mask(*batch: int, prompt_length: int = 0) -> np.ndarray:
    """Padding on the right, of all lengths that leave a token after the prompt."""
    choices = np.arange(prompt_length + 1, SEQ + 1)
    lengths = np.resize(choices, batch)
    return np.arange(SEQ) < lengths[..., None]


def reference(modes, tokens: np.ndarray, mask: np.ndarray, prompt_length: int = 0) -> np.ndarray:
    pooling = ReferencePooling(HIDDEN, list(modes), include_prompt=prompt_length == 0)
    features = {
        "token_embeddings": torch.tensor(tokens.reshape(-1, SEQ, HIDDEN)),
        "attention_mask": torch.tensor(mask.reshape(-1, SEQ).astype(np.int64)),
        "prompt_length": prompt_length,
    }
    pooled = pooling(features)["sentence_embedding"].numpy()
    return pooled.reshape(*tokens.shape[:-2], len(modes) * HIDDEN)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (9,)], ids=str)
@pytest.mark.parametrize("modes", COMBINATIONS, ids="+".join)
def test_equals_sentence_transformers(modes, batch):
    tokens, mask = random_tokens(*batch), ragged_mask(*batch)
    pooled = Pooling(modes)(jnp.asarray(tokens), jnp.asarray(mask))
    assert pooled.shape == (*batch, len(modes) * HIDDEN)
    assert max_difference(pooled, reference(modes, tokens, mask)) <= POOLED


@pytest.mark.parametrize("modes", COMBINATIONS, ids="+".join)
def test_a_prompt_that_does_not_count_equals_sentence_transformers(modes):
    tokens, mask = random_tokens(6), ragged_mask(6, prompt_length=3)
    without_prompt = mask & (np.arange(SEQ) >= 3)
    pooled = Pooling(modes)(jnp.asarray(tokens), jnp.asarray(without_prompt))
    assert max_difference(pooled, reference(modes, tokens, mask, prompt_length=3)) <= POOLED
    assert max_difference(pooled, reference(modes, tokens, mask)) > 0.01 or modes == ("lasttoken",)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_padding_has_no_influence(mode):
    tokens, mask = random_tokens(9), ragged_mask(9)
    other = np.where(mask[..., None], tokens, 1000)
    pool = Pooling((mode,))
    pooled = pool(jnp.asarray(tokens), jnp.asarray(mask))
    assert max_difference(pooled, pool(jnp.asarray(other), jnp.asarray(mask))) == 0


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_under_vmap(mode):
    tokens, mask = jnp.asarray(random_tokens(2, 3)), jnp.asarray(ragged_mask(2, 3))
    pool = Pooling((mode,))
    mapped = jax.vmap(jax.vmap(pool))(tokens, mask)
    assert max_difference(mapped, pool(tokens, mask)) <= POOLED


# sentence-transformers' maximum over nothing is -inf, which no gradient survives.
@pytest.mark.parametrize("mode", [mode for mode in POOLING_MODES if mode != "max"])
def test_a_fully_masked_row_equals_sentence_transformers(mode):
    tokens, mask = random_tokens(3), ragged_mask(3)
    mask[1] = False
    pooled = Pooling((mode,))(jnp.asarray(tokens), jnp.asarray(mask))
    assert max_difference(pooled, reference((mode,), tokens, mask)) <= POOLED


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_fully_masked_row_has_finite_values_and_gradients(mode):
    tokens, mask = jnp.asarray(random_tokens(3)), ragged_mask(3)
    mask[1] = False
    pool = Pooling((mode,))
    assert np.isfinite(pool(tokens, jnp.asarray(mask))).all()
    gradient = jax.grad(lambda x: jnp.sum(jnp.tanh(pool(x, jnp.asarray(mask)))))(tokens)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).max() > 0


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_gradients_equal_sentence_transformers(mode):
    tokens, mask, weights = random_tokens(9), ragged_mask(9), random_tokens(9, seed=1)[:, 0]

    def loss(x):
        return jnp.sum(Pooling((mode,))(x, jnp.asarray(mask)) * jnp.asarray(weights))

    x = torch.tensor(tokens, requires_grad=True)
    features = {"token_embeddings": x, "attention_mask": torch.tensor(mask.astype(np.int64))}
    pooled = ReferencePooling(HIDDEN, mode)(features)["sentence_embedding"]
    (pooled * torch.tensor(weights)).sum().backward()
    assert x.grad is not None
    assert max_difference(jax.grad(loss)(jnp.asarray(tokens)), x.grad) <= POOLED


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_bfloat16_is_summed_in_float32(mode):
    """Adding ones in bfloat16 gets stuck at 256."""
    tokens = jnp.ones((1000, 1), jnp.bfloat16)
    mask = jnp.ones(1000, bool)
    pooled = Pooling((mode,))(tokens, mask)
    assert pooled.dtype == jnp.bfloat16
    expected = np.sqrt(1000) if mode == "mean_sqrt_len_tokens" else 1
    assert float(pooled[0]) == float(jnp.bfloat16(expected))


@pytest.mark.parametrize("modes", [(), ("average",), ("mean", "sum")])
def test_an_unknown_mode_is_an_error_that_names_the_known_ones(modes):
    with pytest.raises(ValueError, match=r"Unknown pooling modes .*; known are cls, max, mean, "):
        Pooling(modes)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_model_leaves_the_prompt_out_if_its_pooling_says_so(key, include_prompt):
    bert = BertModel(tiny_config(), add_pooling_layer=False, key=key)
    model = SentenceModel(bert, Pooling(("mean",), include_prompt=include_prompt), ())
    ids = np.arange(14, dtype=np.int32).reshape(2, 7)
    mask = np.arange(7) < np.array([[7], [5]])
    vectors = eqx.filter_jit(model)(ids, mask, prompt_length=3)
    tokens = np.asarray(bert(ids, mask).last_hidden_state)
    first = 0 if include_prompt else 3
    expected = [tokens[0, first:7].mean(axis=0), tokens[1, first:5].mean(axis=0)]
    assert max_difference(vectors, np.stack(expected)) <= POOLED


@pytest.mark.parametrize("include_prompt", [True, False])
def test_the_first_token_alone_costs_less(key, include_prompt):
    """The last layer is computed for it alone, with the same result."""
    bert = BertModel(tiny_config(), key=key)
    model = SentenceModel(bert, Pooling(("cls",), include_prompt=include_prompt), ())
    ids = np.arange(14, dtype=np.int32).reshape(2, 7)
    mask = np.arange(7) < np.array([[7], [5]])
    tokens = np.asarray(bert(ids, mask).last_hidden_state)
    expected = tokens[:, 0 if include_prompt else 3]
    assert max_difference(model(ids, mask, prompt_length=3), expected) < FLOAT32

    def operations(modes):
        function = SentenceModel(bert, Pooling(modes), ())
        return jax.jit(lambda ids: function(ids, mask)).lower(ids).cost_analysis()["flops"]

    assert operations(("cls",)) < 0.8 * operations(("cls", "mean"))


@pytest.mark.parametrize("modes", [("cls",), ("mean",)])
def test_a_mask_of_another_shape_is_told_of(modes, key):
    model = SentenceModel(BertModel(tiny_config(), key=key), Pooling(modes), ())
    ids = np.ones((2, 7), np.int32)
    for shape in ((3, 7), (2, 9)):
        mask = np.zeros(shape, bool)
        mask[:, -1] = True
        with pytest.raises(ValueError, match=r"attention_mask has shape \([23], [79]\), expected"):
            model(ids, mask)
