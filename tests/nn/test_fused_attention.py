"""Attention on GPUs. Without one, our kernels are interpreted, and JAX's own attention stands in
for that of cuDNN.
"""

import contextlib
import importlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import max_difference
from jax.custom_batching import custom_vmap

import eqxbert
from eqxbert.nn import Linear, dot_product_attention, dropout
from eqxbert.nn.flash_attention import flash_attention

fused_module = importlib.import_module("eqxbert.nn.fused_attention")

BATCH, HEADS, RATE = 2, 3, 0.25
# Of queries, keys and heads: whole tiles; parts of them; odd ones; a size that is no power of two.
SIZES = [(128, 64, 32), (70, 33, 16), (5, 7, 8), (16, 80, 24)]
MASKS = ["none", "keys", "one column", "pairs", "each head", "empty row"]


def inputs(q_seq, kv_seq, size, dtype=jnp.float32):
    """Query, keys, values and a gradient of the context."""
    rng = np.random.default_rng(0)
    lengths = q_seq, kv_seq, kv_seq, q_seq
    return [jnp.asarray(rng.normal(size=(BATCH, n, HEADS, size)), dtype) for n in lengths]


def make_mask(kind, q_seq, kv_seq):
    rng = np.random.default_rng(1)
    if kind == "none":
        return None
    shape = {"keys": (BATCH, 1, 1), "each head": (BATCH, HEADS, q_seq)}.get(kind, (1, 1, q_seq))
    mask = rng.random((*shape, 1 if kind == "one column" else kv_seq)) < 0.6
    if kind == "empty row":
        mask[..., 2, :] = False
    return jnp.asarray(mask)


def plain(query, keys, values, mask, kept):
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys) * query.shape[-1] ** -0.5
    allowed = jnp.ones(scores.shape, bool) if mask is None else jnp.broadcast_to(mask, scores.shape)
    weights = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
    weights = jnp.where(jnp.any(allowed, -1, keepdims=True), weights, 0.0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights * kept / (1 - RATE), values)


def kept_by(key, q_seq, kv_seq):
    """What `dropout` keeps of the weights."""
    return dropout(jnp.full((BATCH, HEADS, q_seq, kv_seq), 1 - RATE), RATE, key)


@pytest.mark.parametrize("rate", [0.0, RATE])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("sizes", SIZES)
def test_kernels_equal_the_formula(sizes, kind, rate):
    q_seq, kv_seq, _ = sizes
    *arguments, gradient = inputs(*sizes)
    mask, key = make_mask(kind, q_seq, kv_seq), jax.random.key(2)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:3], kv_seq))
    kept = kept_by(key, q_seq, kv_seq) if rate else 1 - RATE

    def kernels(q, k, v):
        return flash_attention(q, k, v, mask, dropout_rate=rate, key=key, interpret=True)

    found, backward = jax.vjp(kernels, *arguments)
    expected, expected_backward = jax.vjp(lambda q, k, v: plain(q, k, v, mask, kept), *arguments)
    assert max_difference(found, expected) < 1e-5
    for ours, theirs in zip(backward(gradient), expected_backward(gradient), strict=True):
        assert max_difference(ours, theirs) < 1e-5
    if kind == "empty row":
        assert np.all(np.asarray(found)[:, 2] == 0)
        assert np.all(np.asarray(backward(gradient)[0])[:, 2] == 0)


@pytest.mark.parametrize("rate", [0.0, RATE])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("sizes", SIZES)
def test_kernels_are_lowered_for_a_gpu(sizes, kind, rate):
    """They are no more than that here; but much that Triton does not know shows then."""
    query, keys, values, _ = inputs(*sizes, jnp.bfloat16)
    mask = make_mask(kind, *sizes[:2])
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:3], sizes[1]))

    def total(q, k, v):
        context = flash_attention(q, k, v, mask, dropout_rate=rate, key=jax.random.key(0))
        return jnp.sum(context.astype(jnp.float32))

    with as_if_for_a_gpu():
        traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(query, keys, values)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for name in ("forward", "query", "key_value"):
        assert f"{name}_kernel" in text


def as_if_for_a_gpu():
    """Since version 0.11, JAX wants to know for which."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA H100", 132, "gpu")
    mesh = jax.sharding.AbstractMesh(
        (1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), abstract_device=device
    )
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.fixture
def calls(monkeypatch):
    """As on a GPU: the names of the kernels that are called."""
    calls = []
    jax_attention = jax.nn.dot_product_attention

    @custom_vmap
    def refusing(x):
        return x

    @refusing.def_vmap
    def _(*_):
        raise AssertionError("cuDNN's attention is mapped")

    unmapped = jax.custom_vjp(refusing)
    unmapped.defvjp(lambda x: (refusing(x), None), lambda _, gradient: (gradient,))

    def cudnn(query, keys, values, *, mask, implementation):
        assert implementation == "cudnn"
        assert query.dtype in (jnp.bfloat16, jnp.float16)
        assert query.shape[1] % 2 == keys.shape[1] % 2 == 0
        assert mask is None or mask.shape[-2:] == (query.shape[1], keys.shape[1])
        calls.append("cudnn")
        wide = [unmapped(x).astype(jnp.float32) for x in (query, keys, values)]
        return jax_attention(*wide, mask=mask, implementation="xla").astype(query.dtype)

    def interpreted(*arguments, **options):
        calls.append("flash")
        return flash_attention(*arguments, **options, interpret=True)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    monkeypatch.setattr(fused_module, "_imported_flash_attention", lambda: interpreted)
    monkeypatch.setattr(fused_module, "_is_new_enough", lambda: True)
    fused_module._log_once.cache_clear()
    jax.clear_caches()  # of what was traced for another platform
    yield calls
    jax.clear_caches()


def kernel_for(gpus, monkeypatch):
    """On so many GPUs: the kernel for masks."""
    monkeypatch.setattr(jax, "device_count", lambda: gpus)
    return "flash" if gpus == 1 else "cudnn"


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("sizes", SIZES)
def test_kernels_are_called_as_they_can_be(sizes, kind, dtype, gpus, calls, monkeypatch):
    kernel = kernel_for(gpus, monkeypatch)
    *arguments, gradient = inputs(*sizes, dtype)
    mask = make_mask(kind, *sizes[:2])
    (found, weights), backward = jax.vjp(
        lambda q, k, v: dot_product_attention(q, k, v, mask), *arguments
    )
    assert weights is None
    assert calls == ["cudnn" if kind == "none" else kernel]
    wide = [x.astype(jnp.float32) for x in arguments]
    expected, expected_backward = jax.vjp(lambda q, k, v: plain(q, k, v, mask, 1 - RATE), *wide)
    assert found.dtype == dtype
    assert max_difference(found.astype(jnp.float32), expected) < 0.03
    gradients = backward((gradient, None)), expected_backward(gradient.astype(jnp.float32))
    for ours, theirs in zip(*gradients, strict=True):
        assert max_difference(ours.astype(jnp.float32), theirs) < 0.05


@pytest.mark.parametrize(("gpus", "rate"), [(1, 0.0), (2, 0.0), (1, RATE)])
@pytest.mark.parametrize("batch", [(), (4,), (2, 2)])
def test_any_batch(batch, gpus, rate, calls, monkeypatch):
    kernel = kernel_for(gpus, monkeypatch)
    rng = np.random.default_rng(0)
    query = jnp.asarray(rng.normal(size=(*batch, 6, HEADS, 8)), jnp.bfloat16)
    mask = jnp.asarray(rng.random((*batch[-1:], 1, 1, 6)) < 0.7).at[..., 0].set(True)
    key = jax.random.key(0) if rate else None
    found, _ = dot_product_attention(query, query, query, mask, dropout_rate=rate, key=key)
    assert calls == [kernel]
    assert found.shape == query.shape
    if not rate:
        expected, _ = dot_product_attention(*[query.astype(jnp.float32)] * 3, mask)
        assert max_difference(found.astype(jnp.float32), expected) < 0.03


@pytest.mark.parametrize("queries", [0, 1])
def test_next_to_no_queries_need_no_kernel(queries, calls):
    *arguments, _ = inputs(queries, 6, 8, jnp.bfloat16)
    found, _ = dot_product_attention(*arguments, dropout_rate=RATE, key=jax.random.key(0))
    assert found.shape == (BATCH, queries, HEADS, 8)
    assert not calls


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("mapped_mask", [0, None])
@pytest.mark.parametrize("mapped_keys", [0, None])
def test_vmap(mapped_mask, mapped_keys, gpus, calls, monkeypatch):
    """Of values and gradients, with a mask for all heads: the same as one after the other."""
    kernel = kernel_for(gpus, monkeypatch)
    rng = np.random.default_rng(0)
    query, keys = jnp.asarray(rng.normal(size=(2, 3, BATCH, 6, HEADS, 8)), jnp.bfloat16)
    mask = jnp.asarray(rng.random((3, BATCH, 1, 1, 6)) < 0.7).at[..., 0].set(True)
    keys = keys if mapped_keys == 0 else keys[0]
    mask = mask if mapped_mask == 0 else mask[0]

    def total(query, keys, mask):
        return jnp.sum(jnp.square(dot_product_attention(query, keys, keys, mask)[0]))

    differentiate = jax.value_and_grad(total, (0, 1))
    axes = 0, mapped_keys, mapped_mask
    found = jax.vmap(jax.jit(differentiate), axes)(query, keys, mask)
    for i in range(3):
        one = [
            x if axis is None else x[i] for x, axis in zip((query, keys, mask), axes, strict=True)
        ]
        for ours, theirs in zip(*map(jax.tree.leaves, (found, differentiate(*one))), strict=True):
            difference = max_difference(ours[i].astype(jnp.float32), theirs.astype(jnp.float32))
            assert difference < 0.03 * float(jnp.abs(theirs).max())
    assert set(calls) == {kernel}


@pytest.mark.parametrize(("size", "kernel"), [(64, "flash"), (72, "cudnn")])
def test_masks_for_large_heads_are_left_to_cudnn(size, kernel, calls):
    *arguments, _ = inputs(6, 6, size, jnp.bfloat16)
    mask = make_mask("keys", 6, 6)
    dot_product_attention(*arguments, mask)
    dot_product_attention(*arguments, mask, dropout_rate=RATE, key=jax.random.key(0))
    assert calls == [kernel, "flash"]


def test_vmap_with_dropout(calls):
    """For keys of their own, or one for all."""
    rng = np.random.default_rng(0)
    query = jnp.asarray(rng.normal(size=(3, BATCH, 6, HEADS, 8)), jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), 3)

    def total(query, key):
        context, _ = dot_product_attention(query, query, query, dropout_rate=RATE, key=key)
        return jnp.sum(jnp.square(context))

    differentiate = jax.value_and_grad(total)
    for key, axis in ((keys, 0), (keys[0], None)):
        found = jax.vmap(jax.jit(differentiate), (0, axis))(query, key)
        for i in range(3):
            one = differentiate(query[i], key if axis is None else key[i])
            for ours, theirs in zip(*map(jax.tree.leaves, (found, one)), strict=True):
                difference = max_difference(ours[i].astype(jnp.float32), theirs.astype(jnp.float32))
                assert difference < 0.03 * float(jnp.abs(theirs).max())
    assert set(calls) == {"flash"}


@pytest.mark.parametrize("gpus", [1, 2])
def test_models_train_with_kernels(gpus, calls, monkeypatch):
    """A loss and its gradients are those of float32 elsewhere; with dropout, they are finite."""
    kernel = kernel_for(gpus, monkeypatch)
    config = eqxbert.BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    model = eqxbert.BertForMaskedLM(config, key=jax.random.key(0))
    ids = jnp.asarray(np.random.default_rng(0).integers(1, 99, (3, 10)))
    mask = (jnp.arange(10)[None] < jnp.asarray([[10], [7], [4]])).astype(jnp.int32)

    def loss(model, key=None):
        return model(ids, mask, labels=ids, key=key).loss

    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    found, gradients = jax.value_and_grad(loss)(half)
    assert set(calls) == {kernel}
    expected, expected_gradients = jax.value_and_grad(loss)(model)
    assert abs(float(found) - float(expected)) < 0.02 * float(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (gradients, expected_gradients)), strict=True):
        scale = float(jnp.abs(theirs).max()) + 1e-3
        assert max_difference(ours.astype(jnp.float32), theirs) < 0.1 * scale
    calls.clear()
    dropped = jax.grad(loss)(half, jax.random.key(1))
    assert set(calls) == ({"flash"} if gpus == 1 else set())
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(dropped))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"return_weights": True}, "weights are asked for"),
        ({"head_mask": jnp.ones(HEADS)}, "head mask"),
        ({"bias": jnp.zeros((1, 1, 6, 6))}, "relative"),
        ({"dropout_rate": 1.0, "key": jax.random.key(0)}, "all of the weights"),
        ({"dtype": jnp.float32}, "computed in float32"),
        ({"size": 12}, "heads of size 12"),
        ({"size": 136}, "heads of size 136"),
    ],
)
def test_what_no_kernel_computes_is_said_once(options, reason, calls, caplog):
    dtype = options.get("dtype", jnp.bfloat16)
    *arguments, _ = inputs(6, 6, options.get("size", 8), dtype)
    others = {k: v for k, v in options.items() if k not in ("dtype", "size")}
    with caplog.at_level(logging.WARNING, logger="eqxbert"):
        for _ in range(2):
            context, _ = dot_product_attention(*arguments, **others)
    assert calls == []
    assert context.shape == arguments[0].shape
    [record] = caplog.records
    assert reason in record.message


def test_keys_in_another_dtype(calls, caplog):
    query, *others, _ = inputs(6, 6, 8, jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in others]
    with jax.numpy_dtype_promotion("standard"):
        dot_product_attention(query, *wide)
    assert calls == []
    assert "keys and values are in float32" in caplog.text


def test_dropout_on_several_gpus_is_left_to_xla(calls, monkeypatch, caplog):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    *arguments, _ = inputs(6, 6, 8, jnp.bfloat16)
    dot_product_attention(*arguments, dropout_rate=RATE, key=jax.random.key(0))
    assert calls == []
    assert "not for several" in caplog.text
    dot_product_attention(*arguments)
    assert calls == ["cudnn"]


def test_programs_for_a_cpu_beside_a_gpu(calls):
    *arguments, _ = inputs(6, 6, 8, jnp.bfloat16)
    for device in (jax.devices("cpu")[0], "cpu"):
        with jax.default_device(device):
            dot_product_attention(*arguments)
    assert calls == []


def test_older_gpus_have_no_kernels(calls, monkeypatch, caplog):
    monkeypatch.setattr(fused_module, "_is_new_enough", lambda: False)
    *arguments, _ = inputs(6, 6, 8, jnp.bfloat16)
    dot_product_attention(*arguments)
    assert calls == []
    assert "compute capability" in caplog.text


def test_one_query_needs_no_kernel(calls, caplog):
    *arguments, _ = inputs(1, 6, 8, jnp.bfloat16)
    dot_product_attention(*arguments)
    assert calls == []
    assert not caplog.records


@pytest.mark.parametrize("use_bias", [True, False])
def test_products_are_in_half_precision(use_bias, calls):
    """On a GPU, they come out in it; what is added up is in float32 all the same."""
    linear = Linear(48, 32, use_bias=use_bias, key=jax.random.key(0))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), linear)
    x = jax.random.normal(jax.random.key(1), (4, 16, 48), jnp.bfloat16)

    def gradients_of(m, x):
        return jax.grad(lambda m, x: jnp.sum(m(x).astype(jnp.float32)), argnums=(0, 1))(m, x)

    text = str(jax.make_jaxpr(gradients_of)(half, x))
    assert text.count("dot_general") == text.count("preferred_element_type=bfloat16") > 0

    wide = [jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in (half, x)]
    found, backward = jax.vjp(lambda m, x: m(x), half, x)
    expected, expected_backward = jax.vjp(lambda m, x: m(x), *wide)
    gradient = jax.random.normal(jax.random.key(2), found.shape, jnp.bfloat16)
    assert max_difference(found.astype(jnp.float32), expected) < 0.02
    gradients = backward(gradient), expected_backward(gradient.astype(jnp.float32))
    for ours, theirs in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert ours.dtype == jnp.bfloat16
        assert max_difference(ours.astype(jnp.float32), theirs) < 0.01 * float(
            jnp.abs(theirs).max()
        )
