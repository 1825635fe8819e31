"""The Flax BERT that transformers had until version 5, jitted."""

import jax
import jax.numpy as jnp
import numpy as np
from inputs import token_ids
from protocol import Prepared, Workload, serve
from transformers import FlaxBertModel


def prepare_forward(workload: Workload) -> Prepared:
    model = FlaxBertModel.from_pretrained(workload.model, dtype=jnp.dtype(workload.dtype))
    to_dtype = model.to_bf16 if workload.dtype == "bfloat16" else model.to_fp32
    params = jax.device_put(to_dtype(model.params))
    ids, mask = jax.device_put(token_ids(workload.shape, np.int32))

    call = jax.jit(lambda params, ids, mask: model(ids, mask, params=params))
    return Prepared(
        run=lambda: jax.block_until_ready(call(params, ids, mask)),
        to_numpy=lambda out: np.asarray(out.last_hidden_state, np.float32),
    )


serve(("transformers", "flax", "jax"), forward=prepare_forward)
