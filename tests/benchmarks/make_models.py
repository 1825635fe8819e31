"""Run in the environment that has PyTorch: makes random models, or a model's ONNX file.

python make_models.py bert-base FOLDER
python make_models.py bert-base-mlm FOLDER
python make_models.py bert-large-mlm FOLDER
python make_models.py minilm-mlm FOLDER
python make_models.py minilm-mlm-12 FOLDER
python make_models.py minilm-mlm-24 FOLDER
python make_models.py onnx FOLDER
"""

import sys
from functools import partial
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertModel


def save_bert_base(folder: Path) -> None:
    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)


def save_mlm(folder: Path, hidden_size: int, layers: int, heads: int) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
    )
    BertForMaskedLM(config).save_pretrained(folder)


class TensorsInTensorsOut(torch.nn.Module):
    """A BertModel as the exporter wants it: it cannot pass keywords or take a result object."""

    def __init__(self, model: BertModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).to_tuple()


def export_onnx(folder: Path) -> None:
    """Writes `model.onnx` with free batch and sequence sizes.

    Eager attention and the tracing exporter give the graph that both engines run fastest. From
    PyTorch's fused attention comes one that they fuse less of: at 512 tokens ONNX Runtime took 1.7
    times as long for it and OpenVINO 1.5 times.
    """
    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.ones((2, 8), dtype=torch.int64)  # any: sizes and values are not kept
    axes = {0: "batch", 1: "seq"}
    unfinished = folder / "model.onnx.part"
    torch.onnx.export(
        TensorsInTensorsOut(model),
        (ids, torch.ones_like(ids)),
        unfinished,
        dynamo=False,
        opset_version=17,
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state", "pooler_output"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes},
    )
    unfinished.rename(folder / "model.onnx")


if __name__ == "__main__":
    make = {
        "bert-base": save_bert_base,
        "bert-base-mlm": partial(save_mlm, hidden_size=768, layers=12, heads=12),
        "bert-large-mlm": partial(save_mlm, hidden_size=1024, layers=24, heads=16),
        "minilm-mlm": partial(save_mlm, hidden_size=384, layers=6, heads=12),
        "minilm-mlm-12": partial(save_mlm, hidden_size=384, layers=12, heads=12),
        "minilm-mlm-24": partial(save_mlm, hidden_size=384, layers=24, heads=12),
        "onnx": export_onnx,
    }
    make[sys.argv[1]](Path(sys.argv[2]))
