"""OpenVINO on the CPU, reading the ONNX file.

Its settings differ with the purpose, as its documentation advises: a forward pass has a fixed shape
and all threads work on it, while a pile of texts is worked on in several requests at a time.
"""

from pathlib import Path

import numpy as np
import openvino as ov
from inputs import in_input_order, load_tokenizer, text_batches, token_ids, unit_mean
from protocol import Prepared, Workload, serve

# Stated for float32 too: left alone, OpenVINO computes in bfloat16 where the processor can.
PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def read(workload: Workload) -> ov.Model:
    return ov.Core().read_model(Path(workload.model, "model.onnx"))


def compile_for(hint: str, model: ov.Model, workload: Workload) -> ov.CompiledModel:
    settings = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": workload.threads,
        "INFERENCE_PRECISION_HINT": PRECISION[workload.dtype],
    }
    return ov.Core().compile_model(model, "CPU", settings)


def prepare_forward(workload: Workload) -> Prepared:
    model = read(workload)
    model.reshape({"input_ids": workload.shape, "attention_mask": workload.shape})
    request = compile_for("LATENCY", model, workload).create_infer_request()
    ids, mask = token_ids(workload.shape, np.int64)
    return Prepared(
        run=lambda: request.infer([ids, mask], share_inputs=True, share_outputs=True),
        to_numpy=lambda outputs: outputs["last_hidden_state"],
    )


def prepare_encode(workload: Workload) -> Prepared:
    compiled = compile_for("THROUGHPUT", read(workload), workload)
    tokenizer = load_tokenizer(workload.model)

    def run() -> np.ndarray:
        pieces = []

        def collect(request: ov.InferRequest, batch: tuple[np.ndarray, np.ndarray]) -> None:
            rows, mask = batch
            hidden = request.get_tensor("last_hidden_state").data
            pieces.append((rows, unit_mean(hidden, mask)))

        requests = ov.AsyncInferQueue(compiled)
        requests.set_callback(collect)
        for rows, ids, mask in text_batches(tokenizer, workload.texts, np.int64):
            requests.start_async([ids, mask], (rows, mask))
        requests.wait_all()
        return in_input_order(pieces)

    return Prepared(run, to_numpy=np.asarray)


serve(("openvino",), forward=prepare_forward, encode=prepare_encode)
