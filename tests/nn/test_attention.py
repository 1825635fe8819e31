"""Attention against PyTorch's, and what masks, dropout and gradients must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import max_difference, run_python
from tolerances import FLOAT32

from eqxbert.nn import Attention, KVCache, causal_mask, dot_product_attention, key_mask, pair_mask

Q_SEQ, KV_SEQ, HEADS, HEAD_SIZE = 5, 7, 3, 4
MASK_SHAPES = (
    (KV_SEQ,),
    (Q_SEQ, KV_SEQ),
    (HEADS, 1, KV_SEQ),
    (HEADS, Q_SEQ, KV_SEQ),
    (1, 1, KV_SEQ),
)


def random_inputs(batch: tuple[int, ...] = (2,), seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)

    def normal(seq: int) -> np.ndarray:
        return rng.normal(size=(*batch, seq, HEADS, HEAD_SIZE)).astype(np.float32)

    return normal(Q_SEQ), normal(KV_SEQ), normal(KV_SEQ)


def torch_attention(q, k, v, mask=None) -> np.ndarray:
    q, k, v = (torch.tensor(np.swapaxes(x, -2, -3)) for x in (q, k, v))
    mask = None if mask is None else torch.tensor(mask).expand(*q.shape[:-1], KV_SEQ)
    context = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return np.swapaxes(context.numpy(), -2, -3)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("mask_shape", [None, *MASK_SHAPES])
def test_equals_pytorch_with_masks_of_any_shape(batch, mask_shape):
    q, k, v = random_inputs(batch)
    mask = None
    if mask_shape is not None:
        mask = np.random.default_rng(1).random(mask_shape) < 0.5
        mask[..., 2] = True
    context, weights = dot_product_attention(
        *map(jnp.asarray, (q, k, v)), None if mask is None else jnp.asarray(mask)
    )
    assert weights is None
    assert max_difference(context, torch_attention(q, k, v, mask)) < FLOAT32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,)])
@pytest.mark.parametrize("mask_shape", [None, *MASK_SHAPES])
@pytest.mark.parametrize("q_seq", [1, Q_SEQ])
def test_half_precision_is_float32_rounded(q_seq, mask_shape, batch, dtype):
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(x, dtype) for x in random_inputs(batch))
    q = q[..., -q_seq:, :, :]
    bias = jnp.asarray(rng.normal(size=(HEADS, 1, KV_SEQ)), dtype)
    mask = None
    if mask_shape is not None:
        mask = jnp.asarray(rng.random(mask_shape) < 0.5)
        mask = mask[..., -q_seq:, :] if Q_SEQ in mask_shape else mask

    def attend(*qkv):
        options = {"bias": bias, "head_mask": jnp.array([0.5, 2, 0]), "return_weights": True}
        return dot_product_attention(*qkv, mask, **options)

    exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)))
    for found, expected in zip(attend(q, k, v), exact, strict=True):
        assert found.dtype == dtype
        assert found.shape == expected.shape
        if found.size > 0:
            assert max_difference(found.astype(jnp.float32), expected) < 4 * jnp.finfo(dtype).eps


def test_weights_sum_to_one_and_give_the_context():
    q, k, v = map(jnp.asarray, random_inputs())
    mask = jnp.asarray(np.random.default_rng(1).random((2, 1, Q_SEQ, KV_SEQ)) < 0.7)
    context, weights = dot_product_attention(q, k, v, mask, return_weights=True)
    assert weights is not None
    assert weights.shape == (2, HEADS, Q_SEQ, KV_SEQ)
    assert np.all(np.asarray(weights)[~np.broadcast_to(mask, weights.shape)] == 0)
    assert max_difference(weights.sum(-1), np.ones(weights.shape[:-1])) < FLOAT32
    assert max_difference(jnp.einsum("bhqk,bkhd->bqhd", weights, v), context) < FLOAT32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_query_that_may_attend_to_nothing_gets_zeros_and_finite_gradients(dtype):
    q, k, v = (jnp.asarray(x, dtype) for x in random_inputs())
    mask = np.ones((2, 1, Q_SEQ, KV_SEQ), bool)
    mask[0, :, 1] = False
    mask[1] = False

    def total(q, k, v):
        context, _ = dot_product_attention(q, k, v, jnp.asarray(mask))
        return jnp.sum(context.astype(jnp.float32) ** 2), context

    gradients, context = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    assert np.all(np.asarray(context[0, 1]) == 0)
    assert np.all(np.asarray(context[1]) == 0)
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients)
    assert np.all(np.asarray(gradients[0][1]) == 0)

    # The other rows are what they are without the masked ones, to the last bit.
    alone, _ = dot_product_attention(q[:1], k[:1], v[:1], jnp.ones((1, 1, 1, KV_SEQ), bool))
    others = [0, 2, 3, 4]
    assert np.array_equal(np.asarray(context[0, others]), np.asarray(alone[0, others]))


def test_scores_too_large_for_an_exponential_do_not_overflow():
    q, k, v = (jnp.asarray(100 * x) for x in random_inputs())
    context, _ = dot_product_attention(q, k, v, key_mask(jnp.asarray([[True] * 6 + [False]] * 2)))
    assert np.isfinite(np.asarray(context)).all()


def test_head_mask_scales_heads_and_is_differentiable():
    q, k, v = map(jnp.asarray, random_inputs())
    factors = jnp.asarray([0.0, 0.5, 1.0])
    full, _ = dot_product_attention(q, k, v)
    masked, weights = dot_product_attention(q, k, v, head_mask=factors, return_weights=True)
    assert max_difference(masked, full * factors[None, None, :, None]) < FLOAT32
    assert weights is not None
    assert max_difference(weights.sum(-1)[0, :, 0], factors) < FLOAT32

    gradient = jax.grad(lambda f: dot_product_attention(q, k, v, head_mask=f)[0].sum())(factors)
    assert max_difference(gradient, full.sum((0, 1, 3))) < FLOAT32


def test_dropout_is_elementwise_over_batch_and_heads_and_keeps_the_mean(key):
    x = jnp.ones((4, 32, HEADS, HEAD_SIZE))
    _, weights = dot_product_attention(x, x, x, dropout_rate=0.25, key=key, return_weights=True)
    kept = np.asarray(weights) != 0
    assert abs(kept.mean() - 0.75) < 0.02
    assert abs(float(weights.sum(-1).mean()) - 1) < 0.02
    assert not np.array_equal(kept[0], kept[1])
    assert not np.array_equal(kept[:, 0], kept[:, 1])


@pytest.mark.parametrize("seqs", [(3, 3), (2, 5), (1, 4)])
def test_causal_mask_lets_the_last_queries_see_what_is_before_them(seqs):
    q_seq, kv_seq = seqs
    expected = [[k <= q + kv_seq - q_seq for k in range(kv_seq)] for q in range(q_seq)]
    assert np.array_equal(causal_mask(q_seq, kv_seq), [expected])


def test_masks_broadcast_against_scores():
    may_attend = jnp.asarray([[True, False, True]])
    assert np.array_equal(key_mask(may_attend), [[[[True, False, True]]]])
    pairs = jnp.asarray([[[True, False], [True, True]]])
    assert pair_mask(pairs).shape == (1, 1, 2, 2)


def test_module_equals_pytorchs_multi_head_attention(key):
    hidden = HEADS * HEAD_SIZE
    ours = Attention(hidden, HEADS, initializer_range=0.5, key=key)
    theirs = torch.nn.MultiheadAttention(hidden, HEADS, batch_first=True)
    weights = [np.asarray(part.weight) for part in (ours.query, ours.key, ours.value)]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.tensor(np.concatenate(weights)))
        theirs.in_proj_bias.zero_()
        theirs.out_proj.weight.copy_(torch.tensor(np.asarray(ours.output.weight)))
        theirs.out_proj.bias.zero_()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, Q_SEQ, hidden)).astype(np.float32)
    states = rng.normal(size=(2, KV_SEQ, hidden)).astype(np.float32)

    output, weights = ours(jnp.asarray(x), ours.project(jnp.asarray(states)), return_weights=True)
    with torch.no_grad():
        expected, expected_weights = theirs(
            torch.tensor(x), torch.tensor(states), torch.tensor(states), average_attn_weights=False
        )
    assert max_difference(output, expected) < FLOAT32
    assert max_difference(weights, expected_weights) < FLOAT32


def test_relative_positions_count_from_the_end_of_the_keys(key):
    """The last queries alone, as in decoding, get what they get among all."""
    attention = Attention(
        12, 3, position_type="relative_key_query", max_positions=5, initializer_range=0.5, key=key
    )
    x = jax.random.normal(key, (5, 12))
    full, _ = attention(x)
    last, _ = attention(x[3:], attention.project(x))
    assert max_difference(last, full[3:]) < FLOAT32


@pytest.mark.parametrize("position_type", ["relative_key", "relative_key_query"])
def test_relative_positions_may_be_given(position_type, key):
    """As for keys in other places than in the order of their positions."""
    attention = Attention(
        12, 3, position_type=position_type, max_positions=9, initializer_range=0.5, key=key
    )
    x = jax.random.normal(key, (2, 5, 12))
    full, _ = attention(x)
    order = np.array([[4, 2, 0, 3, 1], [0, 1, 4, 3, 2]])
    shuffled = jnp.take_along_axis(x, order[..., None], axis=1)
    positions = jnp.asarray(order + 4)  # only distances count
    moved, _ = attention(shuffled, attention.project(shuffled), positions=(positions, positions))
    assert (
        max_difference(moved, np.take_along_axis(np.asarray(full), order[..., None], 1)) < FLOAT32
    )
    alone, _ = attention(
        x[:, 3:],
        attention.project(shuffled),
        positions=(jnp.full((2, 2), 7).at[:, 1].set(8), positions),
    )
    assert max_difference(alone, full[:, 3:]) < FLOAT32


def test_keys_and_values_in_slots(key):
    """Written into a larger cache, with the others masked, they give what they give alone."""
    attention = Attention(12, 3, initializer_range=0.5, key=key)
    x = jax.random.normal(key, (2, 5, 12))
    expected, _ = attention(x)
    cache = KVCache.empty((2,), 8, 3, 4, x.dtype)
    cache = cache.write(attention.project(x[:, :3]), jnp.asarray(1))
    cache = cache.write(attention.project(x[:, 3:]), jnp.asarray(4))
    mask = (jnp.arange(8) >= 1) & (jnp.arange(8) < 6)
    output, _ = attention(x, cache, mask[None, None, None])
    assert max_difference(output, expected) < FLOAT32
    assert not cache.keys[..., 0, :].any()
    assert not cache.values[..., 6:, :].any()


def test_more_positions_than_are_embedded(key):
    attention = Attention(12, 3, position_type="relative_key", max_positions=4, key=key)
    with pytest.raises(ValueError, match=r"5 positions, but .* embedded for 4"):
        attention(jnp.ones((5, 12)))


def test_a_mask_that_is_not_boolean():
    """A mask that is added to scores, taken for one of truth values, would mean its opposite."""
    result = run_python("""
import jax.numpy as jnp
from eqxbert.nn import dot_product_attention
x = jnp.ones((2, 1, 4))
dot_product_attention(x, x, x, jnp.asarray([0.0, -1e9]))
""")
    assert "ValueError: mask must be boolean (True: may attend), got float32" in result.stderr


def test_every_leaf_is_an_array(key):
    for position_type in ("absolute", "relative_key", "relative_key_query"):
        attention = Attention(12, 3, position_type=position_type, max_positions=9, key=key)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(attention))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 13, "num_heads": 3}, r"hidden_size \(13\) .* num_heads \(3\).* 1"),
        ({"position_type": "rotary"}, "'rotary'. Known are: absolute, relative_key"),
        ({"position_type": "relative_key"}, "'relative_key' needs max_positions"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, key):
    with pytest.raises(ValueError, match=message):
        Attention(**{"hidden_size": 12, "num_heads": 3} | arguments, key=key)
