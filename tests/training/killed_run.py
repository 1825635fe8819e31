"""A run of training that a test stops."""

from multiprocessing.connection import Connection
from pathlib import Path

import jax
import numpy as np

import eqxbert
from eqxbert.training import adamw, fit

STEPS = 120


def batch(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    ids = rng.integers(0, 30, (4, 6))
    return {"input_ids": ids, "labels": np.where(rng.random(ids.shape) < 0.3, ids, -100)}


OPTIMIZER = adamw(1e-3, total_steps=STEPS, warmup=0.1)


def new_model() -> eqxbert.BertForMaskedLM:
    config = eqxbert.BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=6,
    )
    return eqxbert.BertForMaskedLM(config, key=jax.random.key(0))


def train(folder: Path, result: Path, events: Connection) -> None:
    """Sends "began", then the number of each step, and writes what came out of it."""
    events.send("began")
    out = fit(
        new_model(),
        batch,
        OPTIMIZER,
        key=jax.random.key(1),
        steps=STEPS,
        evaluate=[batch(STEPS + number) for number in range(3)],
        evaluate_every=25,
        folder=folder,
        save_every=3,
        log_every=1,
        callbacks=[lambda state, record: events.send(record["step"])],
        progress=False,
    )
    leaves = {
        str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves((out.model, out.state.model)))
    }
    losses = np.array([record["loss"] for record in out.history])
    np.savez(result, losses=losses, **leaves)
