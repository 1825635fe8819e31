"""PyTorch: transformers' BertModel, eager, with PyTorch's fused attention."""

import numpy as np
import torch
from inputs import token_ids
from protocol import Prepared, Workload, serve
from transformers import BertModel


def prepare_forward(workload: Workload) -> Prepared:
    torch.set_num_threads(workload.threads)
    device = "cuda" if workload.device == "gpu" else "cpu"
    model = BertModel.from_pretrained(
        workload.model, dtype=getattr(torch, workload.dtype), attn_implementation="sdpa"
    )
    model = model.to(device).eval()
    ids, mask = (torch.from_numpy(x).to(device) for x in token_ids(workload.shape, np.int64))

    @torch.inference_mode()
    def run() -> torch.Tensor:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        if device == "cuda":
            torch.cuda.synchronize()
        return hidden

    return Prepared(run, to_numpy=lambda hidden: hidden.float().cpu().numpy())


serve(("torch", "transformers"), forward=prepare_forward)
