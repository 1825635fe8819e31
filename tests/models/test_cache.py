"""Decoding with a cache against the whole sequence at once, on the last layer."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, max_difference, tiny_config
from tolerances import ERROR_RATIO, FLOAT32, FLOAT32_GRADIENT, FLOAT64

from eqxbert import BertForCausalLM, BertModel
from eqxbert.outputs import CausalLMOutput, DecoderCache

SEQ, SLOTS, ENCODER_SEQ = 7, 9, 4

# None; left, right; in the middle; before the middle and at the end; all but the last.
MASK = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 0, 1, 0, 0, 1, 1],
        [0, 1, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ],
    bool,
)
ROWS = len(MASK)
IDS = np.random.default_rng(0).integers(0, TINY["vocab_size"], (ROWS, SEQ), np.int32)
COUNTED = np.maximum(np.cumsum(MASK, axis=-1) - 1, 0).astype(np.int32)
# The same rows with their padding at the end.
ORDER = np.argsort(~MASK, axis=-1, kind="stable")
COMPACT_IDS, COMPACT_MASK = (np.take_along_axis(x, ORDER, axis=-1) for x in (IDS, MASK))
ENCODER_MASK = np.random.default_rng(1).random((ROWS, ENCODER_SEQ)) < 0.7

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cross": {"add_cross_attention": True},
    "relative_key": {"position_embedding_type": "relative_key"},
    "relative_key_query": {"position_embedding_type": "relative_key_query"},
    "relative_key_query cross": {
        "position_embedding_type": "relative_key_query",
        "add_cross_attention": True,
    },
    "pruned cross": {"add_cross_attention": True},
}


def decoder(kind: str = "plain", dtype: Any = None, **changes: Any) -> BertForCausalLM:
    """A decoder in which no array is 0 or 1 throughout, so that each one counts."""
    config = tiny_config(is_decoder=True, **CONFIGURATIONS[kind] | changes)
    model = BertForCausalLM(config, key=jax.random.key(0))
    if kind.startswith("pruned"):
        model = model.prune_heads({0: [1], 1: [0, 2]})
    leaves, structure = jax.tree.flatten(model)
    rng = np.random.default_rng(0)
    noisy = [np.asarray(x) + 0.1 * rng.normal(size=x.shape) for x in leaves]
    return jax.tree.unflatten(structure, [jnp.asarray(x, dtype or jnp.float32) for x in noisy])


def encoder_states(kind: str, dtype: Any = None) -> dict[str, Any]:
    if "cross" not in kind:
        return {}
    states = np.random.default_rng(2).normal(size=(ROWS, ENCODER_SEQ, 12))
    return {
        "encoder_hidden_states": states.astype(dtype or np.float32),
        "encoder_attention_mask": ENCODER_MASK,
    }


@jax.jit
def call(model: BertForCausalLM, ids: Any, mask: Any, options: Any) -> CausalLMOutput:
    return model(ids, mask, output_hidden_states=True, output_attentions=True, **options)


def decode(
    model: BertForCausalLM,
    ids: np.ndarray,
    mask: np.ndarray,
    chunks: tuple[int, ...],
    **first: Any,
) -> CausalLMOutput:
    """All tokens, in chunks, the first one with `first` as well. What is returned is put together
    along the sequence.
    """
    cache, outputs, start = model.init_cache(ids.shape[:-1], SLOTS), [], 0
    for size in chunks:
        part = (..., slice(start, start + size))
        out = call(model, ids[part], mask[part], {"cache": cache, **first})
        cache, start, first = out.cache, start + size, {}
        outputs.append(eqx.tree_at(lambda o: o.cache, out, None))

    def joined(*parts: jax.Array) -> np.ndarray:
        return np.concatenate(parts, axis=-2)

    joint = jax.tree.map(joined, *outputs)
    return eqx.tree_at(lambda o: o.cache, joint, cache, is_leaf=lambda x: x is None)


def assert_same_attentions(ours: CausalLMOutput, whole: CausalLMOutput, tolerance: float) -> None:
    """In the last layer, over the slots that are filled; there are none in the others."""
    assert max_difference(ours.attentions[-1][..., :SEQ], whole.attentions[-1]) < tolerance
    assert not np.any(ours.attentions[-1][..., SEQ:])
    if whole.cross_attentions is not None:
        assert max_difference(ours.cross_attentions[-1], whole.cross_attentions[-1]) < tolerance


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_rows_decode_as_they_are_without_padding(kind, dtype):
    tolerance = FLOAT64 if dtype == "float64" else FLOAT32
    with jax.enable_x64(dtype == "float64"):
        model, states = decoder(kind, dtype), encoder_states(kind, dtype)
        whole = call(model, COMPACT_IDS, COMPACT_MASK, states)
        out = decode(model, IDS, MASK, (3, 1, 1, 1, 1), **states)
        assert out.logits.dtype == dtype
        for ours, expected in (
            (out.logits, whole.logits),
            (out.hidden_states[-1], whole.hidden_states[-1]),
        ):
            assert max_difference(ours[MASK], np.asarray(expected)[COMPACT_MASK]) < tolerance
        # The first row is the same for both.
        of_first = jax.tree.map(lambda x: x[:1] if x.ndim else x, (out, whole))
        assert_same_attentions(*of_first, tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_chunks_equal_the_whole(dtype):
    """With the positions counted without padding. What is computed for the padding agrees too."""
    tolerance = FLOAT64 if dtype == "float64" else FLOAT32
    with jax.enable_x64(dtype == "float64"):
        model = decoder(dtype=dtype)
        whole = call(model, IDS, MASK, {"position_ids": COUNTED})
        for chunks in ((3, 1, 1, 1, 1), (3, 3, 1), (1,) * 7, (7,), (2, 5)):
            out = decode(model, IDS, MASK, chunks)
            assert max_difference(out.logits, whole.logits) < tolerance
            assert max_difference(out.hidden_states[-1], whole.hidden_states[-1]) < tolerance
            assert_same_attentions(out, whole, tolerance)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("kind", [kind for kind in CONFIGURATIONS if "pruned" not in kind])
def test_any_chunks_of_any_batch_equal_rows_without_padding(kind, batch):
    """The rows, of several lengths and with padding anywhere, as they are computed at once without
    it. (In float64: with relative positions, errors of float32 add up to 1e-5 on some machines.
    Few sizes of chunks, so that few programs are compiled.)
    """
    with jax.enable_x64(True):
        model, states = decoder(kind, "float64"), encoder_states(kind, "float64")
        whole = call(model, COMPACT_IDS, COMPACT_MASK, states)
        logits, hidden = (np.asarray(x) for x in (whole.logits, whole.hidden_states[-1]))
        for chunks in ((3, 1, 1, 1, 1), (3, 3, 1), (1,) * 7, (1, 3, 3)):
            for rows in np.arange(ROWS).reshape(-1, *batch):
                of_rows = {name: x[rows] for name, x in states.items()}
                out = decode(model, IDS[rows], MASK[rows], chunks, **of_rows)
                is_token, expected = MASK[rows], COMPACT_MASK[rows]
                assert max_difference(out.logits[is_token], logits[rows][expected]) < FLOAT64
                ours = out.hidden_states[-1]
                assert max_difference(ours[is_token], hidden[rows][expected]) < FLOAT64


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_a_row_decodes_the_same_alone_and_in_any_batch(batch):
    model, states = decoder("cross"), encoder_states("cross")
    together = decode(model, IDS, MASK, (3, 1, 1, 1, 1), **states)

    def some(x: np.ndarray) -> np.ndarray:
        return x.reshape(*batch, *x.shape[1:]) if batch else x[3]

    states = {name: some(x) for name, x in states.items()}
    out = decode(model, some(IDS), some(MASK), (3, 1, 1, 1, 1), **states)
    for ours, expected in (
        (out.logits, together.logits),
        (out.attentions[-1], together.attentions[-1]),
        (out.cross_attentions[-1], together.cross_attentions[-1]),
    ):
        assert max_difference(ours, some(expected)) < FLOAT32


def test_vmap_over_rows_and_their_caches():
    model = decoder()
    expected = decode(model, IDS, MASK, (3, 1, 1, 1, 1))

    def step(ids: jax.Array, mask: jax.Array, cache: DecoderCache) -> tuple[Any, DecoderCache]:
        out = model(ids, mask, cache=cache)
        return out.logits, out.cache

    mapped = jax.jit(jax.vmap(step))
    cache = jax.vmap(lambda _: model.init_cache((), SLOTS))(jnp.arange(ROWS))
    for i in range(SEQ):
        logits, cache = mapped(IDS[:, i : i + 1], MASK[:, i : i + 1], cache)
        assert max_difference(logits[:, 0], expected.logits[:, i]) < FLOAT32
    assert np.array_equal(cache.length, np.full(ROWS, SEQ))


def test_steps_compile_once_and_agree_with_those_that_are_not_compiled():
    model, traces = decoder(), []

    @eqx.filter_jit
    def step(model: BertForCausalLM, ids: np.ndarray, cache: DecoderCache) -> CausalLMOutput:
        traces.append(ids.shape)
        return model(ids, cache=cache)

    cache = before = model.init_cache(ROWS, SLOTS)
    for i in range(SEQ):
        last, out = cache, step(model, IDS[:, i : i + 1], cache)
        cache = out.cache
    assert traces == [(ROWS, 1)]
    assert not before.valid.any()
    assert int(cache.length) == SEQ
    whole = call(model, IDS, np.ones_like(MASK), {})
    assert max_difference(out.logits[:, 0], whole.logits[:, -1]) < FLOAT32
    assert max_difference(model(IDS[:, -1:], cache=last).logits, out.logits) < FLOAT32


def test_bfloat16():
    """The error of the steps is that of the whole."""
    exact = np.asarray(call(decoder(), IDS, MASK, {"position_ids": COUNTED}).logits)
    model = decoder(dtype=jnp.bfloat16)
    out = decode(model, IDS, MASK, (3, 1, 1, 1, 1))
    whole = call(model, IDS, MASK, {"position_ids": COUNTED})
    assert out.logits.dtype == jnp.bfloat16
    assert out.cache.layers[0].keys.dtype == jnp.bfloat16

    def error(logits: Any) -> float:
        return float(np.sqrt(np.mean((np.asarray(logits, np.float32) - exact) ** 2)))

    assert error(out.logits) < ERROR_RATIO * error(whole.logits)


def test_arguments_of_the_whole_with_a_cache():
    """Token types, positions and embeddings of each chunk, a head mask, and the last logits."""
    rng = np.random.default_rng(3)
    model = decoder("pruned cross")
    of_tokens = {
        "token_type_ids": rng.integers(0, 2, (ROWS, SEQ), np.int32),
        "position_ids": rng.integers(0, 17, (ROWS, SEQ), np.int32),
    }
    head_mask = rng.random((2, 3), np.float32)
    whole = call(model, IDS, MASK, of_tokens | {"head_mask": head_mask})
    embeds = model.bert.embeddings.word.weight[IDS]

    @jax.jit
    def last_logits(mask: Any, options: Any) -> CausalLMOutput:
        return model(attention_mask=mask, head_mask=head_mask, logits_to_keep=2, **options)

    cache = model.init_cache(ROWS, SLOTS)
    for part in (slice(0, 2), slice(2, 7)):
        chunk = {name: array[:, part] for name, array in of_tokens.items()}
        out = last_logits(MASK[:, part], chunk | {"cache": cache, "inputs_embeds": embeds[:, part]})
        cache = out.cache
        assert max_difference(out.logits, whole.logits[:, part.stop - 2 : part.stop]) < FLOAT32


def test_positions_may_be_shared_by_the_batch():
    model = decoder()
    positions = np.array([4, 2, 0], np.int32)
    outputs = [
        call(model, IDS[:, :3], None, {"position_ids": x, "cache": model.init_cache(ROWS, SLOTS)})
        for x in (positions, np.tile(positions, (ROWS, 1)))
    ]
    assert max_difference(outputs[0].logits, outputs[1].logits) < FLOAT32
    counted = call(model, IDS[:, :3], None, {"cache": model.init_cache(ROWS, SLOTS)})
    assert max_difference(outputs[0].logits, counted.logits) > FLOAT32


def test_positions_that_are_given_play_no_part_in_relative_ones():
    """With a cache as without."""
    model = decoder("relative_key")
    options = {"position_ids": np.array([4, 2, 0], np.int32)}
    whole = call(model, IDS[:, :3], None, {})
    for cache in ({}, {"cache": model.init_cache(ROWS, SLOTS)}):
        out = call(model, IDS[:, :3], None, options | cache)
        assert max_difference(out.logits, whole.logits) < FLOAT32


def test_gradients_through_a_cache():
    """They flow through the keys and values of earlier calls."""
    model = decoder()
    weight = np.random.default_rng(0).normal(size=(ROWS, SEQ, 33)).astype(np.float32)

    def in_chunks(model: BertForCausalLM) -> jax.Array:
        first = model(IDS[:, :4], MASK[:, :4], cache=model.init_cache(ROWS, SLOTS))
        rest = model(IDS[:, 4:], MASK[:, 4:], cache=first.cache)
        return jnp.sum(jnp.concatenate([first.logits, rest.logits], axis=1) * weight)

    def whole(model: BertForCausalLM) -> jax.Array:
        return jnp.sum(model(IDS, MASK, position_ids=COUNTED).logits * weight)

    ours, expected = (jax.jit(jax.grad(f))(model) for f in (in_chunks, whole))
    named = dict(jax.tree.leaves_with_path(expected))
    scales = {jax.tree_util.keystr(path): np.abs(x).max() for path, x in named.items()}
    for path, array in jax.tree.leaves_with_path(ours):
        name = jax.tree_util.keystr(path)
        # A key's bias shifts all scores of a query alike: it has no gradient but for rounding.
        scale = scales[name.replace(".key.bias", ".query.bias")]
        assert max_difference(array, named[path]) < FLOAT32_GRADIENT * scale, name


TOKENS = np.arange(SEQ)
CAUSAL = TOKENS[:, None] >= TOKENS
# The last four are of two continuations in turn: none attends to the other's. (Nor to later ones,
# but for that there is no need of a mask.)
SIDE_BY_SIDE = (TOKENS < 3) | ((TOKENS[:, None] - TOKENS) % 2 == 0) | ~CAUSAL


@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.parametrize("mask", [None, SIDE_BY_SIDE], ids=["no mask", "side by side"])
@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_tokens_have_gradients_from_those_they_attend_to(kind, mask, with_cache):
    """And from no others."""
    model = decoder(kind)
    first = {name: x[0] for name, x in encoder_states(kind).items()}
    by_slot = None if mask is None else np.pad(mask, ((0, 0), (0, SLOTS - SEQ)))

    def logits(embeds: jax.Array) -> jax.Array:
        if not with_cache:
            return model(inputs_embeds=embeds, attention_mask=mask, **first).logits
        cache, parts, options = model.init_cache((), SLOTS), [], first
        for part in (slice(0, 3), slice(3, SEQ)):
            rows = None if by_slot is None else by_slot[part]
            out = model(inputs_embeds=embeds[part], attention_mask=rows, cache=cache, **options)
            cache, options = out.cache, {}
            parts.append(out.logits)
        return jnp.concatenate(parts)

    embeds = model.bert.embeddings.word.weight[IDS[0]]
    jacobian = np.abs(jax.jit(jax.jacfwd(logits))(embeds)).max(axis=(1, 3))  # (of, from)
    assert np.array_equal(jacobian > 0, CAUSAL if mask is None else CAUSAL & mask)


def test_overflow():
    """The Flax models of transformers move what no longer fits back, over the last slots."""
    model = decoder()
    cache = call(model, IDS[:, :3], None, {"cache": model.init_cache(ROWS, 4)}).cache
    with pytest.raises(ValueError, match=r"overflows: 3 of its 4 slots are filled.* 2 new"):
        model(IDS[:, 3:5], cache=cache)

    for i in (3, 4, 5):
        out = call(model, IDS[:, i : i + 1], None, {"cache": cache})
        cache = out.cache
        assert np.isfinite(out.logits).all() if i == 3 else np.isnan(out.logits).all()


@pytest.mark.parametrize("kind", ["plain", "relative_key"])
def test_more_tokens_than_positions(kind):
    """Padding has no position of its own, so a cache may have more slots than there are positions.
    The causal masks of the Flax models of transformers are no longer than the positions.
    """
    model = decoder(kind, max_position_embeddings=5)

    def step(start: int, end: int, mask: Any, cache: DecoderCache) -> CausalLMOutput:
        return call(model, IDS[:2, start:end], np.asarray(mask, bool), {"cache": cache})

    cache = step(0, 4, MASK[:2, :4], model.init_cache(2, SLOTS)).cache
    cache = step(4, 5, [[1], [1]], cache).cache  # the fifth token of the first row
    with pytest.raises(ValueError, match=r"6 in a row, .* positions for 5"):
        model(IDS[:2, 5:6], cache=cache)
    assert np.isnan(step(5, 6, [[1], [1]], cache).logits).all()
    assert np.isfinite(step(5, 6, [[0], [1]], cache).logits).all()


def test_wrong_caches():
    model = decoder()
    cache = model.init_cache(2, SLOTS)
    with pytest.raises(ValueError, match=r"cache is for a batch of shape \(2,\).* \(6,\)"):
        model(IDS, cache=cache)
    with pytest.raises(ValueError, match=r"for a batch of shape \(2,\).* of \(\)"):
        model(IDS[0], cache=cache)
    with pytest.raises(ValueError, match="of a model with 1 layers, this one has 2"):
        model(IDS[:2], cache=decoder(num_hidden_layers=1).init_cache(2, SLOTS))
    pruned = model.prune_heads({1: [0]})
    with pytest.raises(ValueError, match=r"The cache .* 3 heads .* 2"):
        pruned(IDS[:2], cache=cache)
    with pytest.raises(ValueError, match=r"has shape \(2, 7, 7\), expected \(2, 7\)"):
        model(IDS[:2], np.ones((2, 7, 7), bool), cache=cache)
    for arguments in ((0, 4), (2, 0), ((2, -1), 4)):
        with pytest.raises(ValueError, match="must be positive"):
            model.init_cache(*arguments)
    for dtype in (jnp.bfloat16, jnp.float16):
        of_another = decoder(dtype=dtype).init_cache(2, SLOTS)
        with pytest.raises(ValueError, match=rf"in {jnp.dtype(dtype)}, this one is in float32"):
            model(IDS[:2], cache=of_another)


@pytest.mark.parametrize("wrong", [lambda cache: cache.layers[0], lambda cache: (1, 2)])
def test_what_is_no_cache(wrong):
    model = decoder()
    with pytest.raises((ValueError, TypeError), match="DecoderCache"):
        model(IDS, cache=wrong(model.init_cache(ROWS, SLOTS)))


def test_a_cache_with_an_encoders_output_for_a_model_without_cross_attention():
    cache = decode(decoder("cross"), IDS, MASK, (3,), **encoder_states("cross")).cache
    with pytest.raises(ValueError, match="this one has none"):
        decoder()(IDS[:, :1], cache=cache)


@pytest.mark.parametrize("sizes", [(True, 5), (2, 5.0), (2, 0), ((2, 0), 5), ("2", 5)])
def test_wrong_sizes(sizes):
    with pytest.raises((ValueError, TypeError), match=r"positive integers|init_cache"):
        decoder().init_cache(*sizes)


def test_sizes_of_numpy():
    model = decoder().bert
    for batch in (np.int32(2), (np.int64(2),), [np.int32(2)]):
        cache = model.init_cache(batch, np.int32(5)).extend(np.int64(2))
        assert cache.valid.shape == (2, 7)


def test_a_cache_cannot_shrink():
    with pytest.raises(ValueError, match="count must not be negative"):
        decoder().init_cache(2, 5).extend(-1)
    for count in (1.5, True, "2"):
        with pytest.raises((ValueError, TypeError), match="count"):
            decoder().init_cache(2, 5).extend(count)


def test_an_encoder_has_no_cache(key):
    encoder = BertModel(tiny_config(), key=key)
    with pytest.raises(ValueError, match=r"no decoder .* no use for a cache"):
        encoder.init_cache(2, SLOTS)
    with pytest.raises(ValueError, match=r"no decoder .* no use for a cache"):
        encoder(IDS[:2], cache=decoder().init_cache(2, SLOTS))


def test_a_decoder_without_a_head_has_a_cache():
    """In the Flax models of transformers, `init_cache` gives the positions of the tokens for their
    types, and fails where a model's module has no such argument; and only decoders with
    cross-attention use a cache.
    """
    model = decoder().bert
    for batch, shape in ((3, (3,)), ((), ()), ((2, 3), (2, 3))):
        assert model.init_cache(batch, 4).valid.shape == (*shape, 4)
    ids = IDS.reshape(2, 3, SEQ)
    states = jax.jit(lambda cache: model(ids, cache=cache).last_hidden_state)
    whole = call(decoder(), IDS, np.ones_like(MASK), {}).hidden_states[-1]
    ours = states(model.init_cache((2, 3), SLOTS))
    assert max_difference(ours, whole.reshape(2, 3, SEQ, 12)) < FLOAT32


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_continuations_side_by_side(kind):
    """Two continuations of each row in one cache, in which each token attends to the prompt, to its
    own ones before it, and to itself.
    """
    model, rng = decoder(kind), np.random.default_rng(3)
    prompt, mask = IDS[:, :3], MASK[:, :3].copy()
    mask[:, 2] = True
    new = rng.integers(0, TINY["vocab_size"], (ROWS, 2, 3), np.int32)
    first = encoder_states(kind)

    def alone(which: int) -> np.ndarray:
        ids = np.concatenate([prompt, new[:, which]], axis=-1)
        all_mask = np.concatenate([mask, np.ones((ROWS, 3), bool)], axis=-1)
        return decode(model, ids, all_mask, (6,), **first).logits[:, 3:]

    cache = call(model, prompt, mask, {"cache": model.init_cache(ROWS, SLOTS), **first}).cache
    attended = np.zeros((ROWS, 2, SLOTS), bool)
    attended[:, :, :3] = mask[:, None]
    logits = []
    for step in range(3):
        for which in range(2):
            attended[:, which, 3 + 2 * step + which] = True
        out = call(model, new[:, :, step], attended.copy(), {"cache": cache})
        cache = out.cache
        logits.append(out.logits)
    for which in range(2):
        together = np.stack([x[:, which] for x in logits], axis=1)
        assert max_difference(together, alone(which)) < FLOAT32


def test_more_tokens_side_by_side_than_positions():
    """There are 17 positions; these 20 have the same one, the one after the prompt's. As many of
    one sequence are too many.
    """
    model, count = decoder(), 20
    cache = call(model, IDS[:, :3], None, {"cache": model.init_cache(ROWS, 3)}).cache.extend(count)
    new = np.random.default_rng(0).integers(0, TINY["vocab_size"], (ROWS, count), np.int32)
    own = np.pad(np.eye(count, dtype=bool), ((0, 0), (3, 0)))
    attended = np.tile(own | (np.arange(3 + count) < 3)[None, :], (ROWS, 1, 1))
    out = call(model, new, attended, {"cache": cache})
    assert np.array_equal(out.cache.positions[:, 3:], np.full((ROWS, count), 3))
    for which in (0, 19):
        ids = np.concatenate([IDS[:, :3], new[:, which, None]], axis=-1)
        alone = call(model, ids, None, {}).logits[:, -1]
        assert max_difference(out.logits[:, which], alone) < FLOAT32

    with pytest.raises(ValueError, match=r"sequence has 20 tokens, .* positions for 17"):
        model(new, np.ones((ROWS, count), bool), cache=cache)
    everything = np.ones_like(attended)
    with pytest.raises(ValueError, match=r"23 in a row, .* positions for 17"):
        model(new, everything, cache=cache)
    assert np.isnan(call(model, new, everything, {"cache": cache}).logits).all()


def test_a_mask_of_slots_shows_neither_later_ones_nor_padding():
    model = decoder()
    mask = MASK.copy()
    mask[:, 0] = [1, 0, 1, 0, 0, 0]
    cache = call(model, IDS[:, :3], mask[:, :3], {"cache": model.init_cache(ROWS, SLOTS)}).cache
    everything = np.ones((ROWS, 2, SLOTS), bool)
    by_slot = call(model, IDS[:, 3:5], everything, {"cache": cache})
    by_token = call(model, IDS[:, 3:5], np.ones((ROWS, 2), bool), {"cache": cache})
    assert np.array_equal(by_slot.logits, by_token.logits)
    assert np.array_equal(by_slot.cache.positions, by_token.cache.positions)

    # Whoever attends to nothing is padding.
    everything[:, 0] = False
    padding = call(model, IDS[:, 3:5], everything, {"cache": cache}).cache
    assert not np.any(padding.valid[:, 3])
    assert np.all(padding.valid[:, 4])


def test_a_cache_with_more_room():
    model = decoder("cross")
    full = decode(model, IDS, MASK, (7,), **encoder_states("cross"))
    small = model.init_cache(ROWS, 4)
    options = {"cache": small, **encoder_states("cross")}
    cache = call(model, IDS[:, :4], MASK[:, :4], options).cache
    with pytest.raises(ValueError, match="overflows: 4 of its 4 slots"):
        model(IDS[:, 4:], MASK[:, 4:], cache=cache)
    out = call(model, IDS[:, 4:], MASK[:, 4:], {"cache": cache.extend(3)})
    assert max_difference(out.logits, full.logits[:, 4:]) < FLOAT32


@pytest.mark.parametrize("kind", ["plain", "cross", "pruned cross"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_size_in_memory(kind, dtype):
    """Two vectors for each layer, head and slot; a truth value and a position for each slot."""
    model = decoder(kind, dtype)
    heads = 2 + 1 if kind.startswith("pruned") else 3 + 3
    of_a_token = 2 * 4 * jnp.dtype(dtype).itemsize  # in each head, whose size is 4
    expected = 6 * SLOTS * (heads * of_a_token + 1 + 4) + 4

    cache = model.init_cache((2, 3), SLOTS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(cache))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) == expected

    if "cross" in kind:  # where nothing is pruned
        states = jnp.ones((2, 3, ENCODER_SEQ, 12), dtype)
        ids = IDS.reshape(2, 3, SEQ)
        after = eqx.filter_eval_shape(model, ids, cache=cache, encoder_hidden_states=states).cache
        sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(after)]
        assert sum(sizes) == expected + 6 * ENCODER_SEQ * 6 * of_a_token


def test_rows_of_a_cache_can_be_taken_and_reordered():
    model = decoder()
    every = decode(model, IDS, MASK, (3, 1, 1, 1, 1))
    cache = decode(model, IDS, MASK, (3,)).cache
    order = np.array([2, 0, 5, 5, 1, 3])
    cache = jax.tree.map(lambda x: x[order] if x.ndim else x, cache)
    out = call(model, IDS[order, 3:4], MASK[order, 3:4], {"cache": cache})
    assert max_difference(out.logits[:, 0], every.logits[order, 3]) < FLOAT32
