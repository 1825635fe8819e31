"""Makes `pruned_heads.npz`: models that transformers 4, the last to know how, has pruned heads of,
as it saves them, and what they compute.

    pip install torch==2.13.0 "transformers==4.57.6"
    python tests/goldens/make_pruned_heads.py
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

SIZES = {
    "vocab_size": 33,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 17,
    "num_labels": 4,
}


def golden(position_type: str) -> dict[str, np.ndarray]:
    config = transformers.BertConfig(
        **SIZES, position_embedding_type=position_type, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = transformers.BertForTokenClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.prune_heads({0: [2]})
    model.prune_heads({0: [0], 1: [1]})
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        state = load_file(Path(folder, "model.safetensors"))
        arrays = {f"state/{name}": array for name, array in state.items()}
        arrays["config.json"] = np.array(Path(folder, "config.json").read_text(encoding="utf-8"))

    model = model.double()
    ids = torch.randint(0, 33, (2, 7))
    mask = torch.ones(2, 7).long()
    mask[1, 4:] = 0
    out = model(ids, mask, output_attentions=True)
    weight = torch.randn_like(out.logits)
    (out.logits * weight).sum().backward()
    arrays |= {"input_ids": ids.int(), "attention_mask": mask.int(), "weight": weight}
    arrays |= {"logits": out.logits, "attention_0": out.attentions[0]}
    arrays["attention_1"] = out.attentions[1]
    for name, parameter in model.named_parameters():
        if "encoder.layer.0.attention" in name and name.endswith(".weight"):
            arrays[f"gradient/{name}"] = parameter.grad
    return {name: np.asarray(_detached(array)) for name, array in arrays.items()}


def _detached(array: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    return array.detach() if isinstance(array, torch.Tensor) else array


def main() -> None:
    arrays = {
        f"{position_type}/{name}": array
        for position_type in ("absolute", "relative_key_query")
        for name, array in golden(position_type).items()
    }
    np.savez_compressed(Path(__file__).parent / "pruned_heads.npz", **arrays)


if __name__ == "__main__":
    main()
