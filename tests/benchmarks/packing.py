"""What is won by texts that share rows, on texts as long as they are.

    python tests/benchmarks/packing.py [--rounds 3] [--dtype float32]

A BERT of MiniLM's shape reads the documentation of Python's standard library, up to 256 tokens of
each function's, in batches of as many tokens: with a text in each row, in the order in which they
come, padded to the longest of a batch (`padded`); the same, texts of similar lengths together, as
`SentenceEncoder` has them (`by length`); and packed, several texts in each row of 256
(`pack_sequences`). It computes the vectors of tokens, and learns masked words, 15 % of them, with
dropout and AdamW. Training by length is left out: batches are to be drawn at random.

The ways take turns. What is given are real tokens a second, without padding, as medians; and how
many of those that are computed are real.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
from training import tokens_per_second

import eqxbert
from eqxbert.pydoc import MODEL
from eqxbert.pydoc.corpus import standard_library
from eqxbert.text.batching import buckets, plan_batches
from eqxbert.text.tokenizer import pad_rows
from eqxbert.training import (
    TrainState,
    adamw,
    make_train_step,
    mask_tokens,
    pack_sequences,
)

SEQ, TEXTS, BATCH_TOKENS = 256, 320, 4096
Texts = list[np.ndarray]
Batches = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed rows next to padded ones.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()

    tokenizer = eqxbert.Tokenizer.from_pretrained(MODEL)
    entries = standard_library()
    chosen = np.random.default_rng(0).choice(len(entries), TEXTS, replace=False)
    ids, _ = tokenizer.encode([entries[i].text for i in chosen], max_length=SEQ)
    lengths = sorted(len(row) for row in ids)
    quartiles = ", ".join(str(lengths[len(ids) * part // 4]) for part in (1, 2, 3))
    print(f"{options.dtype}, {TEXTS} texts, {sum(lengths):,} tokens; quartiles {quartiles}\n")

    config = eqxbert.BertConfig(  # the vocabulary is BERT's, not that of the text
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    ways = {"padded": padded(ids), "by length": by_length(ids), "packed": packed(ids)}
    model = eqxbert.BertModel(config, key=jax.random.key(0), add_pooling_layer=False)
    model = jax.tree.map(lambda x: x.astype(options.dtype), model)
    calls = {name: partial(read, model, batches) for name, batches in ways.items()}
    compare("vectors of tokens", calls, ways, options.rounds)

    del ways["by length"]
    learner = eqxbert.BertForMaskedLM(config, key=jax.random.key(0))
    optimizer = adamw(1e-4, schedule="constant")
    step = make_train_step(optimizer, dtype=options.dtype)
    special = [tokenizer.token_to_id(token) for token in tokenizer.special_tokens.values()]
    mask = partial(
        mask_tokens,
        vocab_size=tokenizer.vocab_size,
        mask_id=tokenizer.mask_id,
        special_ids=special,
        seed=0,
        step=0,
    )
    compare(
        "training",
        {
            name: Training(
                step,
                TrainState.create(learner, optimizer, key=jax.random.key(1)),
                [batch | mask(batch["input_ids"]) for batch in batches],
            )
            for name, batches in ways.items()
        },
        ways,
        options.rounds,
    )


def padded(ids: Texts) -> Batches:
    """In their order, padded to the length of the longest, rounded up so that shapes are few."""
    rows = BATCH_TOKENS // SEQ
    batches = [ids[start : start + rows] for start in range(0, len(ids), rows)]
    longest = [max(map(len, batch)) for batch in batches]
    sizes = [min(size for size in buckets(SEQ) if size >= length) for length in longest]
    return [one_a_row(batch, (rows, size)) for batch, size in zip(batches, sizes, strict=True)]


def by_length(ids: Texts) -> Batches:
    plan = plan_batches([len(row) for row in ids], max_length=SEQ, tokens_per_batch=BATCH_TOKENS)
    return [one_a_row([ids[i] for i in batch.indices], (batch.rows, batch.seq)) for batch in plan]


def packed(ids: Texts) -> Batches:
    inputs, packing = pack_sequences(ids, seq=SEQ)
    rows = BATCH_TOKENS // SEQ
    count = -(-packing.shape[0] // rows) * rows
    inputs, _ = pack_sequences(ids, seq=SEQ, rows=count)
    return [
        {name: array[start : start + rows] for name, array in inputs.items()}
        for start in range(0, count, rows)
    ]


def one_a_row(texts: Texts, shape: tuple[int, int]) -> dict[str, Any]:
    """Their tokens, padded, and which are real."""
    real = [np.ones_like(row) for row in texts]
    return {"input_ids": pad_rows(texts, shape, 0), "attention_mask": pad_rows(real, shape, 0)}


def real_tokens(batches: Batches) -> int:
    return sum(
        int(np.sum(batch[name] != 0))
        for batch in batches
        for name in ("attention_mask", "segment_ids")
        if name in batch
    )


@eqx.filter_jit
def forward(model: eqxbert.BertModel, batch: dict[str, Any]) -> jax.Array:
    return model(**batch).last_hidden_state


def read(model: eqxbert.BertModel, batches: Batches) -> int:
    for batch in batches:
        forward(model, batch).block_until_ready()
    return real_tokens(batches)


class Training:
    """Called, it goes through all batches."""

    def __init__(self, step: Any, state: TrainState, batches: Batches):
        self.step, self.state, self.batches = step, state, batches

    def __call__(self) -> int:
        for batch in self.batches:
            self.state, metrics = self.step(self.state, batch)
            metrics["loss"].block_until_ready()
        return real_tokens(self.batches)


def compare(
    title: str, calls: Mapping[str, Callable[[], int]], ways: dict[str, Batches], rounds: int
) -> None:
    speeds = tokens_per_second(calls, rounds)
    print(f"{title:18}{'tokens/s':>12}{'x padded':>9}{'real':>7}{'shapes':>8}")
    for name, speed in speeds.items():
        shapes = [batch["input_ids"].shape for batch in ways[name]]
        computed = sum(rows * seq for rows, seq in shapes)
        real = real_tokens(ways[name]) / computed
        ratio = speed / speeds["padded"]
        print(f"{name:18}{speed:12,.0f}{ratio:9.2f}{real:7.0%}{len({*shapes}):8}")
    print(flush=True)


if __name__ == "__main__":
    main()
