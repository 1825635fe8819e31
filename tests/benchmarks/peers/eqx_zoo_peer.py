"""eqx-zoo: BERT in Equinox for one sequence, to be mapped over the batch by its user."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from eqx_zoo import Encoder
from inputs import in_input_order, load_tokenizer, text_batches, token_ids
from protocol import Prepared, Workload, serve

# Every new shape is compiled; lengths in steps leave eight of them up to 256 tokens.
PAD_TO_MULTIPLE_OF = 32


def prepare_forward(workload: Workload) -> Prepared:
    model = Encoder.from_pretrained(workload.model, dtype=jnp.dtype(workload.dtype))
    call = eqx.filter_jit(lambda model, ids, mask: jax.vmap(model)(ids, mask))
    ids, mask = jax.device_put(token_ids(workload.shape, np.int32))
    return Prepared(
        run=lambda: call(model, ids, mask),
        wait=jax.block_until_ready,
        to_numpy=lambda hidden: np.asarray(hidden, np.float32),
    )


def prepare_encode(workload: Workload) -> Prepared:
    model = Encoder.from_pretrained(workload.model, dtype=jnp.dtype(workload.dtype))
    call = eqx.filter_jit(lambda model, ids, mask: jax.vmap(model.embed)(ids, mask))
    tokenizer = load_tokenizer(workload.model)

    def run() -> np.ndarray:
        batches = text_batches(tokenizer, workload.texts, np.int32, PAD_TO_MULTIPLE_OF)
        pieces = [(rows, call(model, ids, mask)) for rows, ids, mask in batches]
        return in_input_order([(rows, np.asarray(vectors)) for rows, vectors in pieces])

    return Prepared(run, to_numpy=lambda vectors: vectors.astype(np.float32))


serve(("eqx-zoo", "jax", "equinox"), forward=prepare_forward, encode=prepare_encode)
