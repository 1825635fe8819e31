"""The same BERT in transformers and here, and inputs for both."""

from typing import Any

import numpy as np
import torch
import transformers
from helpers import TINY

import eqxbert

LAYERS, HEADS = TINY["num_hidden_layers"], TINY["num_attention_heads"]


def reference_model(seed: int = 0, **changes: Any) -> transformers.BertModel:
    """A random transformers BERT in which no parameter is 0 or 1, so that each one counts."""
    add_pooling_layer = changes.pop("add_pooling_layer", True)
    config = transformers.BertConfig(**TINY | changes, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.BertModel(config, add_pooling_layer=add_pooling_layer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 2 else 0.1
            parameter.copy_(scale * torch.randn_like(parameter))
            if name.endswith("LayerNorm.weight"):
                parameter += 1
    return model.eval()


def same_model(reference: transformers.BertModel, dtype: Any = None) -> eqxbert.BertModel:
    """Our model with the reference's weights."""
    return eqxbert.convert.from_state_dict(
        eqxbert.BertModel,
        eqxbert.BertConfig.from_dict(reference.config.to_dict()),
        reference.state_dict(),
        add_pooling_layer=reference.pooler is not None,
        dtype=dtype,
    )


def random_inputs(
    batch: tuple[int, ...] = (2,), seq: int = 7, seed: int = 0, **changes: Any
) -> dict[str, np.ndarray]:
    """Token ids, types, positions out of order, and a mask with holes in it."""
    rng = np.random.default_rng(seed)
    sizes = TINY | changes
    mask = (rng.random((*batch, seq)) < 0.7).astype(np.int32)
    mask[..., 0] = 1
    return {
        "input_ids": rng.integers(0, sizes["vocab_size"], (*batch, seq), np.int32),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, sizes["type_vocab_size"], (*batch, seq), np.int32),
        "position_ids": rng.integers(0, sizes["max_position_embeddings"], (*batch, seq), np.int32),
    }


def as_torch(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {
        name: torch.tensor(array).long() if array.dtype == np.int32 else torch.tensor(array)
        for name, array in inputs.items()
    }
