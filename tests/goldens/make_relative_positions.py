"""Makes `relative_positions.npz`: what BERTs with relative positions compute and which gradients
they have, by transformers 4, the last to support them.

    pip install torch==2.13.0 "transformers==4.57.6"
    python tests/goldens/make_relative_positions.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers

SIZES = {
    "vocab_size": 33,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 17,
}


def golden(position_type: str, seq: int) -> dict[str, np.ndarray]:
    config = transformers.BertConfig(
        **SIZES, position_embedding_type=position_type, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    ids = torch.randint(0, 33, (2, seq))
    mask = (torch.rand(2, seq) < 0.8).long()
    mask[:, 0] = 1
    out = model(ids, mask, output_attentions=True)
    weight = torch.randn_like(out.last_hidden_state)
    (out.last_hidden_state * weight).sum().backward()
    arrays = {
        "input_ids": ids.int(),
        "attention_mask": mask.int(),
        "last_hidden_state": out.last_hidden_state,
        "attention": out.attentions[-1],
        "weight": weight,
    }
    for name, parameter in model.named_parameters():
        arrays[f"state/{name}"] = parameter
        if "distance_embedding" in name:
            arrays[f"gradient/{name}"] = parameter.grad
    return {name: array.detach().numpy() for name, array in arrays.items()}


def main() -> None:
    arrays = {
        f"{position_type}/{seq}/{name}": array
        for position_type in ("relative_key", "relative_key_query")
        for seq in (7, 17)
        for name, array in golden(position_type, seq).items()
    }
    np.savez_compressed(Path(__file__).parent / "relative_positions.npz", **arrays)


if __name__ == "__main__":
    main()
