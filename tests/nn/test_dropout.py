"""What dropout drops looks random, and depends on the key and the place alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqxbert.nn import dropout


def kept(key, shape=(128, 128), rate=0.1):
    return np.asarray(dropout(jnp.ones(shape), rate, key)) > 0


def test_dropout_rate_scale_and_keys(key):
    x = jnp.ones((100, 100))
    dropped = np.asarray(dropout(x, 0.3, key))
    assert abs((dropped == 0).mean() - 0.3) < 0.02
    assert np.allclose(dropped[dropped != 0], 1 / 0.7)
    assert np.array_equal(dropped, dropout(x, 0.3, key))
    assert not np.array_equal(dropped, dropout(x, 0.3, jax.random.key(1)))


@pytest.mark.parametrize(("rate", "with_key"), [(0.5, False), (0.0, True)])
def test_no_dropout_without_key_or_rate(rate, with_key, key):
    x = jnp.arange(6.0)
    assert dropout(x, rate, key if with_key else None) is x


def test_dropout_of_everything_is_zero(key):
    assert not np.asarray(dropout(jnp.ones(3), 1.0, key)).any()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1e-3])
def test_rows_columns_and_keys_drop_their_share(rate):
    keys = jax.random.split(jax.random.key(0), 40)
    dropped = ~np.stack([kept(key, (6, 64, 512), rate) for key in keys])
    for axes in [(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2), (0, 1), (3,)]:
        count = np.prod([dropped.shape[axis] for axis in axes])
        deviation = (rate * (1 - rate) / count) ** 0.5
        score = (dropped.mean(axes) - rate) / deviation
        if count * rate > 10:
            # Of so many normal numbers, the largest; and they are as far apart as those.
            assert np.abs(score).max() < (2 * np.log(score.size + 1)) ** 0.5 + 3
            assert score.size < 100 or abs(score.std() - 1) < 0.15


def test_keys_rows_and_neighbours_are_independent():
    """Keys that differ in one bit are too."""
    words = [np.array([0, 0], np.uint32)]
    words += [np.array([bit, 0], np.uint32) for bit in 2 ** np.arange(32)]
    words += [np.array([0, bit], np.uint32) for bit in 2 ** np.arange(32)]
    masks = np.stack([kept(jax.random.wrap_key_data(w), (2, 64, 128), 0.5) for w in words])
    by_key = 2.0 * masks.reshape(len(words), -1) - 1
    correlations = by_key @ by_key.T / by_key.shape[1] - np.eye(len(words))
    assert np.abs(correlations).max() < 6 / by_key.shape[1] ** 0.5
    by_row = by_key.reshape(-1, 128)[: 20 * 128]
    correlations = by_row @ by_row.T / 128 - np.eye(len(by_row))
    assert abs(correlations.std() * 128**0.5 - 1) < 0.01
    for shift in (1, 2, 16, 64, 127, 128, 129, 64 * 128):
        neighbours = (by_key * np.roll(by_key, shift, axis=1)).mean(1)
        assert np.abs(neighbours).max() < 6 / by_key.shape[1] ** 0.5


def test_patterns_of_neighbours_are_equally_frequent():
    bits = kept(jax.random.key(5), (512, 2048), 0.5).astype(int)
    for place in (1, 3, 8, 17):
        patterns = bits[:, :-32] + 2 * bits[:, place : place - 32] + 4 * bits[:, 32:]
        shares = np.bincount(patterns.ravel(), minlength=8) / patterns.size
        assert np.abs(shares - 1 / 8).max() < 5 * (1 / 8 * 7 / 8 / patterns.size) ** 0.5


def test_it_is_the_same_everywhere():
    """On every machine, compiled or not, mapped or not, and in later versions."""
    key = jax.random.key(2024)
    found = kept(key, (3, 8), 0.3)
    assert ["".join(map(str, row)) for row in found.astype(int)] == [
        "11111101",
        "11101110",
        "10111011",
    ]
    x = jnp.ones((3, 8))
    assert np.array_equal(jax.jit(lambda x: dropout(x, 0.3, key))(x) > 0, found)
    keys = jnp.stack([jax.random.key(0), key])
    assert np.array_equal(jax.vmap(lambda key: dropout(x, 0.3, key))(keys)[1] > 0, found)
    assert np.array_equal(kept(key, (1, 3, 8), 0.3)[0], found)
    assert np.array_equal(kept(key, (2, 3, 8), 0.3)[0], found)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg", "old"])
def test_keys_of_any_kind(kind):
    key = jax.random.PRNGKey(3) if kind == "old" else jax.random.key(3, impl=kind)
    first, second = (kept(key, (64, 64)) for key in jax.random.split(key))
    assert 0.87 < first.mean() < 0.93
    assert not np.array_equal(first, second)


def test_a_scalar():
    values = {float(dropout(jnp.ones(()), 0.5, key)) for key in jax.random.split(jax.random.key(0))}
    assert values <= {0.0, 2.0}
    assert dropout(jnp.ones(()), 0.5, jax.random.key(0)).shape == ()


def test_no_gradient_where_it_is_dropped(key):
    x = jnp.ones((8, 16))
    gradient = jax.grad(lambda x: dropout(x, 0.4, key).sum())(x)
    assert np.array_equal(gradient, dropout(x, 0.4, key))
