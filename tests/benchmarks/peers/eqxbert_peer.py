"""eqxbert: the checkout itself."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from compiling import compiling
from inputs import masked_words, token_ids
from protocol import CHECKED_ROWS, Prepared, Workload, serve

import eqxbert
from eqxbert.training import TrainState, adamw, make_train_step


def prepare_forward(workload: Workload) -> Prepared:
    # (Language models have no pooler: it is drawn anew, as by the peers.)
    key = jax.random.key(0)
    model = eqxbert.BertModel.from_pretrained(workload.model, dtype=workload.dtype, key=key)
    call = jax.jit(eqxbert.BertModel.__call__)
    ids, mask = jax.device_put(token_ids(workload.shape, np.int32))
    return Prepared(
        run=lambda: call(model, ids, mask),
        wait=jax.block_until_ready,
        to_numpy=lambda out: np.asarray(out.last_hidden_state, np.float32),
    )


def prepare_compile_forward(workload: Workload) -> Prepared:
    model = eqxbert.BertForMaskedLM.from_pretrained(workload.model, dtype=workload.dtype).bert
    inputs = jax.device_put(token_ids(workload.shape, np.int32))
    call = jax.jit(eqxbert.BertModel.__call__)
    return compiling(lambda: call.lower(model, *inputs), model.config.num_hidden_layers)


def start_training(workload: Workload) -> tuple[Any, TrainState, dict[str, jax.Array]]:
    """A step, and what it is given."""
    model = eqxbert.BertForMaskedLM.from_pretrained(workload.model)
    batch = masked_words(workload.shape, np.int32)
    batch["labels"] = batch.pop("masked_labels")
    batch = jax.device_put(batch)
    optimizer = adamw(1e-4, schedule="constant")
    dtype = None if workload.dtype == "float32" else jnp.dtype(workload.dtype)
    step = make_train_step(optimizer, dtype=dtype)
    return step, TrainState.create(model, optimizer, key=jax.random.key(0)), batch


def prepare_compile_train(workload: Workload) -> Prepared:
    step, state, batch = start_training(workload)
    return compiling(lambda: step.lower(state, batch), state.model.config.num_hidden_layers)


def prepare_train(workload: Workload) -> Prepared:
    step, state, batch = start_training(workload)
    checked = {name: array[CHECKED_ROWS] for name, array in batch.items()}
    loss = float(eqx.filter_jit(state.model)(**checked).loss)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return state, metrics

    return Prepared(run, wait=jax.block_until_ready, fingerprint=loss)


def prepare_encode(workload: Workload) -> Prepared:
    encoder = eqxbert.SentenceEncoder.from_pretrained(workload.model, dtype=workload.dtype)
    return Prepared(run=lambda: encoder.encode(workload.texts), to_numpy=np.asarray)


serve(
    ("eqxbert", "jax", "equinox"),
    forward=prepare_forward,
    train=prepare_train,
    encode=prepare_encode,
    compile_forward=prepare_compile_forward,
    compile_train=prepare_compile_train,
)
