"""The Flax BERT that transformers had until version 5, jitted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from compiling import compiling
from inputs import masked_words, token_ids
from protocol import CHECKED_ROWS, Prepared, Workload, serve
from transformers import FlaxBertForMaskedLM, FlaxBertModel


def prepare_forward(workload: Workload) -> Prepared:
    model = FlaxBertModel.from_pretrained(workload.model, dtype=jnp.dtype(workload.dtype))
    to_dtype = model.to_bf16 if workload.dtype == "bfloat16" else model.to_fp32
    params = jax.device_put(to_dtype(model.params))
    ids, mask = jax.device_put(token_ids(workload.shape, np.int32))

    call = jax.jit(lambda params, ids, mask: model(ids, mask, params=params))
    return Prepared(
        run=lambda: call(params, ids, mask),
        wait=jax.block_until_ready,
        to_numpy=lambda out: np.asarray(out.last_hidden_state, np.float32),
    )


def prepare_compile_forward(workload: Workload) -> Prepared:
    model = FlaxBertModel.from_pretrained(workload.model, dtype=jnp.dtype(workload.dtype))
    inputs = jax.device_put(token_ids(workload.shape, np.int32))
    call = jax.jit(lambda params, ids, mask: model(ids, mask, params=params))
    return compiling(lambda: call.lower(model.params, *inputs), model.config.num_hidden_layers)


def start_training(workload: Workload) -> tuple[Any, tuple[Any, ...]]:
    """As in transformers' own example of masked language modelling, but for the labels, which it
    makes one-hot.
    """
    model = FlaxBertForMaskedLM.from_pretrained(workload.model, dtype=jnp.dtype(workload.dtype))
    batch = masked_words(workload.shape, np.int32)
    batch = jax.device_put({n: batch[n] for n in ("input_ids", "attention_mask", "labels")})
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.01))

    def mean_loss(params, batch, key):
        logits = model(
            batch["input_ids"],
            batch["attention_mask"],
            params=params,
            dropout_rng=key,
            train=key is not None,
        ).logits
        counts = batch["labels"] != -100
        labels = jnp.where(counts, batch["labels"], 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
        return jnp.sum(losses * counts) / jnp.sum(counts)

    def step(params, state, batch, key):
        key, dropout_key = jax.random.split(key)
        loss, gradients = jax.value_and_grad(mean_loss)(params, batch, dropout_key)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, key, loss

    params = model.params
    if workload.dtype != "float32":  # the parameters are float32
        params = FlaxBertForMaskedLM.from_pretrained(workload.model).params
    params = jax.tree.map(jnp.copy, params)  # the step takes their memory over
    arguments = params, optimizer.init(params), batch, jax.random.key(0)
    return jax.jit(step, donate_argnums=(0, 1)), arguments


def prepare_compile_train(workload: Workload) -> Prepared:
    step, arguments = start_training(workload)
    layers = FlaxBertForMaskedLM.config_class.from_pretrained(workload.model).num_hidden_layers
    return compiling(lambda: step.lower(*arguments), layers)


def prepare_train(workload: Workload) -> Prepared:
    step, (params, state, batch, key) = start_training(workload)
    # In float32, to be compared.
    model = FlaxBertForMaskedLM.from_pretrained(workload.model)
    names = ("input_ids", "attention_mask", "labels")
    ids, mask, labels = (np.asarray(batch[name])[CHECKED_ROWS] for name in names)
    logits = np.asarray(jax.jit(lambda p: model(ids, mask, params=p).logits)(model.params))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, np.maximum(labels, 0))

    def run() -> Any:
        nonlocal params, state, key
        params, state, key, loss = step(params, state, batch, key)
        return params, state, loss

    fingerprint = float(np.mean(np.asarray(losses)[labels != -100]))
    return Prepared(run, wait=jax.block_until_ready, fingerprint=fingerprint)


serve(
    ("transformers", "flax", "jax"),
    forward=prepare_forward,
    train=prepare_train,
    compile_forward=prepare_compile_forward,
    compile_train=prepare_compile_train,
)
