"""sentence-transformers: its own tokenizing, sorting and batching, on PyTorch."""

import numpy as np
import torch
from protocol import Prepared, Workload, serve
from sentence_transformers import SentenceTransformer


def prepare_encode(workload: Workload) -> Prepared:
    torch.set_num_threads(workload.threads)
    model = SentenceTransformer(
        workload.model,
        device="cuda" if workload.device == "gpu" else "cpu",
        model_kwargs={"dtype": getattr(torch, workload.dtype), "attn_implementation": "sdpa"},
    )
    return Prepared(
        run=lambda: model.encode(workload.texts, show_progress_bar=False),
        to_numpy=lambda vectors: vectors.astype(np.float32),
    )


serve(("sentence-transformers", "torch", "transformers"), encode=prepare_encode)
