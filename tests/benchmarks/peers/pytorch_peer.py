"""PyTorch: transformers' models with PyTorch's fused attention; as they are, or compiled with
`--compile`.
"""

import sys
from typing import Any

import numpy as np
import torch
from inputs import masked_words, token_ids
from protocol import CHECKED_ROWS, Prepared, Workload, serve
from transformers import BertForMaskedLM, BertModel


def compiled(model: Any) -> Any:
    if "--compile" not in sys.argv:
        return model
    torch.compiler.reset()  # or a second shape would be compiled for any
    return torch.compile(model, dynamic=False)


def wait(result: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def prepare_forward(workload: Workload) -> Prepared:
    torch.set_num_threads(workload.threads)
    device = "cuda" if workload.device == "gpu" else "cpu"
    model = BertModel.from_pretrained(
        workload.model, dtype=getattr(torch, workload.dtype), attn_implementation="sdpa"
    )
    model = compiled(model.to(device).eval())
    ids, mask = (torch.from_numpy(x).to(device) for x in token_ids(workload.shape, np.int64))

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return model(input_ids=ids, attention_mask=mask).last_hidden_state

    return Prepared(run, wait, to_numpy=lambda hidden: hidden.float().cpu().numpy())


def prepare_train(workload: Workload) -> Prepared:
    torch.set_num_threads(workload.threads)
    device = "cuda" if workload.device == "gpu" else "cpu"
    model = BertForMaskedLM.from_pretrained(workload.model, attn_implementation="sdpa").to(device)
    words = masked_words(workload.shape, np.int64)
    names = ("input_ids", "attention_mask", "labels")
    batch = {name: torch.from_numpy(words[name]).to(device) for name in names}
    with torch.inference_mode():
        checked = {name: tensor[CHECKED_ROWS] for name, tensor in batch.items()}
        loss = model.eval()(**checked).loss.item()
    model = compiled(model.train())
    parameters = list(model.parameters())
    is_on_gpu = device == "cuda"
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=is_on_gpu)
    is_half = workload.dtype == "bfloat16"

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=is_half):
            model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Prepared(run, wait, fingerprint=loss)


serve(("torch", "transformers"), forward=prepare_forward, train=prepare_train)
