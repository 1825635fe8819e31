"""What it saves to compute the scores of the vocabulary for the masked words alone.

    python tests/benchmarks/masked_positions.py [--rounds 7] [--dtype float32]

The loss of a masked language model of MiniLM's shape and its gradient, of 16 rows of 128 tokens of
which 15 % are masked: of all tokens, of the masked ones given by `masked_positions`, and, as the
floor, of the encoder alone. In turn, medians; the losses must agree.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import eqxbert

BATCH, SEQ, MASKED = 16, 128, 19  # 19 of 128 are 15 %


def main() -> None:
    parser = argparse.ArgumentParser(description="Full and masked positions side by side.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()

    config = eqxbert.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    model = eqxbert.BertForMaskedLM(config, key=jax.random.key(0))
    model = jax.tree.map(lambda x: x.astype(options.dtype), model)
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, config.vocab_size, (BATCH, SEQ))
    positions = np.stack([np.sort(rng.permutation(SEQ)[:MASKED]) for _ in range(BATCH)])
    labels = np.full((BATCH, SEQ), -100)
    np.put_along_axis(labels, positions, np.take_along_axis(ids, positions, 1), 1)
    slot_labels = np.take_along_axis(labels, positions, 1)

    def full(model):
        return model(ids, labels=labels).loss

    def masked(model):
        return model(ids, labels=slot_labels, masked_positions=positions).loss

    def encoder(model):
        return jnp.mean(model.bert(ids).last_hidden_state.astype(jnp.float32) ** 2)

    steps = {f.__name__: jax.jit(jax.value_and_grad(f)) for f in (full, masked, encoder)}
    losses = {name: float(step(model)[0]) for name, step in steps.items()}
    assert abs(losses["full"] - losses["masked"]) < 1e-3 * losses["full"], losses
    seconds = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(model))
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{options.dtype}, {BATCH} x {SEQ} tokens, {MASKED} masked in each row")
    for name, median in medians.items():
        print(f"{name:10}{median * 1e3:10.1f} ms   full is {medians['full'] / median:.2f}x")
    print(f"losses: full {losses['full']:.6f}, masked {losses['masked']:.6f}")


if __name__ == "__main__":
    main()
