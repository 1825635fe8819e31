"""ONNX Runtime: all graph optimisations, on the CPU."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from inputs import in_input_order, load_tokenizer, text_batches, token_ids, unit_mean
from protocol import Prepared, Workload, serve


def load(workload: Workload) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = workload.threads
    options.inter_op_num_threads = 1  # BERT's graph is a chain: nothing to run side by side
    path = Path(workload.model, "model.onnx")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def hidden_states(session: ort.InferenceSession, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    hidden, _pooled = session.run(None, {"input_ids": ids, "attention_mask": mask})
    return hidden


def prepare_forward(workload: Workload) -> Prepared:
    session = load(workload)
    ids, mask = token_ids(workload.shape, np.int64)
    return Prepared(run=lambda: hidden_states(session, ids, mask), to_numpy=np.asarray)


def prepare_encode(workload: Workload) -> Prepared:
    session = load(workload)
    tokenizer = load_tokenizer(workload.model)

    def run() -> np.ndarray:
        batches = text_batches(tokenizer, workload.texts, np.int64)
        return in_input_order(
            [
                (rows, unit_mean(hidden_states(session, ids, mask), mask))
                for rows, ids, mask in batches
            ]
        )

    return Prepared(run, to_numpy=np.asarray)


serve(("onnxruntime",), forward=prepare_forward, encode=prepare_encode)
