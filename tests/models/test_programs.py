"""What programs are made of, so that what makes them fast is not undone unnoticed: products and
their accumulators, operations, copies. Nothing is timed.
"""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config

import eqxbert
from eqxbert.nn import dot_product_attention
from eqxbert.training import TrainState, adamw, make_train_step
from eqxbert.training.step import _PART

pytestmark = pytest.mark.optimized

# Sizes that occur nowhere else, so that weights are known by their shapes.
SIZES = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 80, "vocab_size": 352}
ROWS, SEQ, SLOTS = 64, 16, 3


@pytest.fixture
def model(key):
    return eqxbert.BertForMaskedLM(tiny_config(**SIZES), key=key)


def batch(rows: int = ROWS) -> dict[str, np.ndarray]:
    return {
        "input_ids": np.ones((rows, SEQ), np.int32),
        "attention_mask": np.ones((rows, SEQ), bool),
        "masked_positions": np.ones((rows, SLOTS), np.int32),
        "labels": np.ones((rows, SLOTS), np.int32),
    }


def lowered_step(model, inputs, **options):
    optimizer = adamw(1e-3, schedule="constant")
    state = TrainState.create(model, optimizer, key=jax.random.key(0))
    return make_train_step(optimizer, **options).lower(state, inputs)


def products(text: str) -> list[tuple[str, str, str]]:
    """The dtypes of the operands and the result of each product in a lowered program."""
    found = re.findall(
        r"stablehlo\.dot_general.*: \(tensor<[\dx]*(\w+)>, tensor<[\dx]*(\w+)>\) -> "
        r"tensor<[\dx]*(\w+)>",
        text,
    )
    assert len(found) == text.count("stablehlo.dot_general")
    return found


class TestHalfPrecision:
    def test_products_accumulate_in_float32(self, model):
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
        text = eqx.filter_jit(half).lower(**batch()).as_text()
        found = products(text)
        # One layer's, which all but the last are lowered as, that one's, and the head's.
        assert len(found) == 8 + 8 + 2
        assert set(found) == {("bf16", "bf16", "f32")}

    def test_gradients_too(self, model):
        text = lowered_step(model, batch(), dtype=jnp.bfloat16).as_text()
        assert {result for *_, result in products(text)} == {"f32"}
        # Those of attention's scores are in float32, as the scores are; all with weights are not.
        halves = [operands for *operands, _ in products(text) if operands == ["bf16", "bf16"]]
        assert len(halves) >= 3 * (6 + 2)


def test_layers_are_lowered_once(model):
    """A deeper model has more calls of the same products, not more of them."""
    config = dataclasses.replace(model.config, num_hidden_layers=2 * model.config.num_hidden_layers)
    deeper = eqxbert.BertForMaskedLM(config, key=jax.random.key(0))
    lengths = [len(products(lowered_step(m, batch()).as_text())) for m in (model, deeper)]
    assert lengths[0] == lengths[1]


def test_masked_positions_save_products(model):
    """In a whole step, by the operations that XLA counts: the head's, and of the last layer all but
    keys and values.
    """
    few = batch(8)
    every = {name: x for name, x in few.items() if name != "masked_positions"}
    every["labels"] = np.ones((8, SEQ), np.int32)

    def operations(inputs) -> float:
        return lowered_step(model, inputs, accumulate=1).cost_analysis()["flops"]

    hidden, wide, vocab = (SIZES[n] for n in ("hidden_size", "intermediate_size", "vocab_size"))
    head = hidden * vocab + hidden * hidden
    layer = 2 * hidden * hidden + 2 * hidden * wide + 2 * SEQ * hidden
    saved = operations(every) - operations(few)
    assert 0.95 < saved / (3 * 2 * 8 * (SEQ - SLOTS) * (head + layer)) < 1.3


def test_a_pooled_head_costs_little_of_the_last_layer(model):
    """By the operations of the products: its keys and values, and the rest at one position."""
    pooled = eqxbert.BertForNextSentencePrediction(model.config, key=jax.random.key(0))

    def operations(function) -> float:
        return jax.jit(function).lower(np.ones((8, SEQ), np.int32)).cost_analysis()["flops"]

    saved = operations(lambda ids: pooled.bert(ids)) - operations(lambda ids: pooled(ids).logits)
    hidden, wide = SIZES["hidden_size"], SIZES["intermediate_size"]
    layer = 2 * hidden * hidden + 2 * hidden * wide + 2 * SEQ * hidden
    assert 0.95 < saved / (2 * 8 * (SEQ - 1) * layer) < 1.3


def test_operations_are_those_of_the_products(model):
    """Nothing is computed twice: the products with weights, and those of attention."""
    hidden, wide = SIZES["hidden_size"], SIZES["intermediate_size"]
    layers, tokens = model.config.num_hidden_layers, 4 * SEQ
    weights = layers * (4 * hidden * hidden + 2 * hidden * wide)
    attention = layers * 2 * SEQ * hidden
    expected = 2 * tokens * (weights + attention)
    ids = np.ones((4, SEQ), np.int32)
    found = jax.jit(lambda ids: model.bert(ids)).lower(ids).cost_analysis()["flops"]
    assert expected < found < 1.3 * expected


def test_no_weight_is_copied(model):
    """Not transposed, not converted: forward, weights are read where they are."""
    leaves, structure = jax.tree.flatten(model)

    def run(leaves, ids):
        return jax.tree.unflatten(structure, leaves)(ids).logits

    text = jax.jit(run).lower(leaves, np.ones((40, SEQ), np.int32)).compile().as_text()
    hidden, wide, vocab = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["vocab_size"]
    shapes = {(hidden, hidden), (hidden, wide), (wide, hidden), (vocab, hidden), (hidden, vocab)}
    made = [
        line.strip()
        for line in text.splitlines()
        for shape in shapes
        if re.search(rf"= f32\[{shape[0]},{shape[1]}\]\S* (?!parameter|get-tuple-element)", line)
    ]
    assert not made, made


class TestAttention:
    ROWS, SEQ, SIZE = 2, 256, 32

    def entry(self, heads, dtype, mask) -> str:
        """The main computation of a compiled program of two attentions with the same mask."""

        def attend(x, mask):
            for _ in range(2):
                x = dot_product_attention(x, x, x, mask)[0]
            return x

        x = jnp.ones((self.ROWS, self.SEQ, heads, self.SIZE), dtype)
        text = jax.jit(attend).lower(x, mask).compile().as_text()
        return text[text.index("ENTRY") :]

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    @pytest.mark.parametrize("heads", [4, 12])
    def test_a_mask_costs_no_scores_in_memory(self, heads, dtype):
        """What is not written without a mask is not with one. (With 12 heads, nothing is.)"""
        of_scores = rf"\[({self.ROWS},{heads}|{self.ROWS * heads}),{self.SEQ},{self.SEQ}\]"

        def written(mask):
            return len(re.findall(of_scores, self.entry(heads, dtype, mask)))

        with_mask = written(jnp.ones((self.ROWS, 1, 1, self.SEQ), bool))
        assert with_mask == written(None)
        assert heads < 12 or with_mask == 0

    def test_products_in_half_precision_stay_in_it(self):
        """XLA would have them of float32, for several axes of matrices."""
        entry = self.entry(12, jnp.bfloat16, None)
        of_heads = rf"\[({self.ROWS},12|{self.ROWS * 12}),{self.SEQ},{self.SIZE}\]"
        assert re.search(f"bf16{of_heads}", entry)
        assert not re.search(f"f32{of_heads}", entry)


class TestPartsOfAStep:
    """On a CPU, unless it is said otherwise, a step is computed in parts."""

    def loops(self, model, inputs, **options) -> int:
        return lowered_step(model, inputs, **options).as_text().count("stablehlo.while")

    def test_are_there_for_large_batches(self, model):
        assert ROWS * SEQ == 2 * _PART
        assert self.loops(model, batch()) > self.loops(model, batch(), accumulate=1)
        assert self.loops(model, batch(ROWS // 2)) == self.loops(model, batch(), accumulate=1)

    def test_change_no_number(self, model):
        inputs = batch()
        inputs["labels"][ROWS // 2 :, 1:] = -100
        optimizer = adamw(1e-3, schedule="constant")
        found = []
        for accumulate in (None, 2):
            state = TrainState.create(model, optimizer, key=jax.random.key(0))
            state, metrics = make_train_step(optimizer, accumulate=accumulate)(state, inputs)
            found.append((float(metrics["loss"]), state.model))
        assert found[0][0] == found[1][0]
        for ours, theirs in zip(*(jax.tree.leaves(m) for _, m in found), strict=True):
            assert np.array_equal(ours, theirs)

    def test_are_not_there_for_another_loss(self, model):
        """It might hold the examples of a batch against one another."""

        def loss(model, batch, key):
            return model(**batch, key=key).loss

        assert self.loops(model, batch(), loss=loss) == self.loops(
            model, batch(), loss=loss, accumulate=1
        )

    def test_need_examples_in_front(self, model):
        inputs = batch() | {"head_mask": np.ones((2, 4), np.float32)}
        assert self.loops(model, inputs) == self.loops(model, inputs, accumulate=1)
