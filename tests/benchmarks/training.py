"""What training costs: making batches next to what a step consumes, compiling, and memory.

    python tests/benchmarks/training.py [--rounds 5] [--dtype float32]

A BERT of MiniLM's shape learns masked words, 16 rows of 128 tokens in each step, of which 15 % are
masked, with dropout and AdamW. The text is the documentation of Python's standard library. First,
how many tokens a second are cut, encoded and packed (`MaskedTextBatches`, once for a training),
gathered and masked (the same, for each step), and gathered and padded (`TrainBatches`), each as a
multiple of what the step consumes: above 1, one thread that makes batches ahead is enough. These
and the step take turns, and what is given are medians. Then the compiled step: the seconds that
compiling takes, and the memory for what it computes, in the parts that a batch is computed in by
default, and as a whole: without and with `remat`, and with products of weights kept
(`jax.checkpoint_policies.dots_with_no_batch_dims_saveable`).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import eqxbert
from eqxbert.pydoc import MODEL
from eqxbert.pydoc.corpus import standard_library
from eqxbert.text import MaskedTextBatches
from eqxbert.text.tasks.features import Features, TrainBatches
from eqxbert.training import TrainState, adamw, make_train_step

ROWS, SEQ, TEXTS = 16, 128, 2000
# Batches are made in so little time that one of them could not be timed.
BATCHES = 20
STEPS: dict[str, dict[str, Any]] = {
    "default": {},
    "whole": {"accumulate": 1},
    "remat": {"accumulate": 1, "remat": True},
    "products kept": {
        "accumulate": 1,
        "remat": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Batches, steps, compiling and memory.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()

    tokenizer = eqxbert.Tokenizer.from_pretrained(MODEL)
    texts = [entry.text for entry in standard_library()][:TEXTS]
    batches = MaskedTextBatches(tokenizer, texts, seq=SEQ, batch_size=ROWS)
    ids, types = tokenizer.encode(texts, max_length=SEQ)
    features = Features(ids, types, {}, max_length=SEQ, pad_id=tokenizer.pad_id)
    padded = TrainBatches(features, batch_size=ROWS, seed=0)

    config = eqxbert.BertConfig(  # the vocabulary is BERT's, not that of the text
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    model = eqxbert.BertForMaskedLM(config, key=jax.random.key(0))
    optimizer = adamw(1e-4, schedule="constant")
    step = make_train_step(optimizer, dtype=options.dtype)
    state = TrainState.create(model, optimizer, key=jax.random.key(1))

    def train() -> int:
        nonlocal state
        state, metrics = step(state, batches(0))
        return int(metrics["tokens"])

    def gather(made: Callable[[int], Mapping[str, np.ndarray]], name: str) -> Callable[[], int]:
        return lambda: sum(int(np.sum(made(i)[name] != 0)) for i in range(BATCHES))

    calls = {
        "step": train,
        "encode and pack": lambda: (
            MaskedTextBatches(tokenizer, texts, seq=SEQ, batch_size=ROWS).tokens
        ),
        "gather and mask": gather(batches, "segment_ids"),
        "gather and pad": gather(padded, "attention_mask"),
    }
    speeds = tokens_per_second(calls, options.rounds)
    print(f"{options.dtype}, {ROWS} x {SEQ} tokens\n")
    print(f"{'':18}{'tokens/s':>12}{'x step':>9}")
    for name, speed in speeds.items():
        print(f"{name:18}{speed:12,.0f}{speed / speeds['step']:9.1f}")

    print(f"\n{'step':18}{'compiled in':>12}{'memory':>9}")
    for name, how in STEPS.items():
        other = make_train_step(optimizer, dtype=options.dtype, **how)
        seconds, size = compiled(other, state, batches(0))
        print(f"{name:18}{seconds:10.1f} s{size / 1e6:6.0f} MB", flush=True)


def tokens_per_second(calls: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """The medians of the speeds of some calls, in turn, which return the number of their tokens."""
    speeds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():  # which also compiles
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            tokens = call()
            speeds[name].append(tokens / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in speeds.items()}


def compiled(step: Any, state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[float, int]:
    """The seconds in which a step is compiled, and the bytes that it takes besides its arguments
    and results.
    """
    jax.clear_caches()
    lowered = step.lower(state, batch)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    return seconds, program.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    main()
