"""eqxbert: the checkout itself."""

import equinox as eqx
import jax
import numpy as np
from inputs import token_ids
from protocol import Prepared, Workload, serve

import eqxbert


def prepare_forward(workload: Workload) -> Prepared:
    model = eqxbert.BertModel.from_pretrained(workload.model, dtype=workload.dtype)
    call = eqx.filter_jit(model)
    ids, mask = jax.device_put(token_ids(workload.shape, np.int32))
    return Prepared(
        run=lambda: jax.block_until_ready(call(ids, mask)),
        to_numpy=lambda out: np.asarray(out.last_hidden_state, np.float32),
    )


def prepare_encode(workload: Workload) -> Prepared:
    encoder = eqxbert.SentenceEncoder.from_pretrained(workload.model, dtype=workload.dtype)
    return Prepared(run=lambda: encoder.encode(workload.texts), to_numpy=np.asarray)


serve(("eqxbert", "jax", "equinox"), forward=prepare_forward, encode=prepare_encode)
