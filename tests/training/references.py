"""PyTorch's training of transformers' models, and the same models and batches for ours."""

import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from generation.references import PAD, START, eager, randomize, same_encoder_decoder
from helpers import TINY, max_difference
from jaxtyping import Array, Float, Int
from parity import labelled_inputs, reference_model, same_model

import eqxbert
from eqxbert.nn import Embedding, Linear

# One layer, since compiling takes its time, and no dropout, which no two libraries share.
SMALL: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Task(NamedTuple):
    """A model with a head, and what its configuration has besides `SMALL`."""

    model_class: type[Any]
    changes: dict[str, Any]


TASKS = {
    "pretraining": Task(eqxbert.BertForPreTraining, {}),
    "masked words": Task(eqxbert.BertForMaskedLM, {}),
    "next words": Task(eqxbert.BertForCausalLM, {}),
    "next sentence": Task(eqxbert.BertForNextSentencePrediction, {}),
    "class": Task(eqxbert.BertForSequenceClassification, {"num_labels": 3}),
    "score": Task(eqxbert.BertForSequenceClassification, {"num_labels": 1}),
    "several classes": Task(
        eqxbert.BertForSequenceClassification,
        {"num_labels": 4, "problem_type": "multi_label_classification"},
    ),
    "choice": Task(eqxbert.BertForMultipleChoice, {}),
    "classes of tokens": Task(eqxbert.BertForTokenClassification, {"num_labels": 5}),
    "answer": Task(eqxbert.BertForQuestionAnswering, {}),
    "translation": Task(eqxbert.EncoderDecoderModel, {}),
}


def reference_of(task: str) -> Any:
    """A random model of transformers for a task."""
    model_class, own = TASKS[task]
    if model_class is eqxbert.EncoderDecoderModel:
        config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.BertConfig(**TINY | SMALL),
            transformers.BertConfig(**TINY | SMALL),
            decoder_start_token_id=START,
            pad_token_id=PAD,
        )
        model = eager(transformers.EncoderDecoderModel(config))
        randomize(model, 0)
        return model
    return reference_model(model_class, **SMALL | own)


def model_of(reference: Any, dtype: Any = None) -> Any:
    """Our model with the reference's weights."""
    if isinstance(reference, transformers.EncoderDecoderModel):
        return same_encoder_decoder(reference, dtype)
    return same_model(reference, dtype)


def batch_of(task: str, examples: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs and labels for a task, some of these missing where they may be."""
    model_class, changes = TASKS[task]
    rng = np.random.default_rng(seed)
    if model_class is eqxbert.EncoderDecoderModel:
        labels = rng.integers(1, TINY["vocab_size"], (examples, 5), np.int32)
        labels[rng.random(labels.shape) < 0.3] = -100
        labels[:, 0] = 3
        ids = rng.integers(2, TINY["vocab_size"], (examples, 6), np.int32)
        mask = (rng.random(ids.shape) < 0.7).astype(np.int32)
        mask[:, 0] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}
    inputs = labelled_inputs(model_class, (examples,), seed=seed, **changes)
    if task == "several classes":
        inputs["labels"] = rng.random((examples, 4)).astype(np.float32)
    return inputs


class TorchTraining:
    """PyTorch's AdamW with transformers' linear schedule; matrices alone decay."""

    def __init__(
        self,
        reference: Any,
        *,
        learning_rate: float,
        total_steps: int,
        warmup: int,
        weight_decay: float,
        max_grad_norm: float,
    ):
        parameters = list(reference.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.reference = reference
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate)
        self.schedule = transformers.get_linear_schedule_with_warmup(
            self.optimizer, warmup, total_steps
        )
        self.max_grad_norm = max_grad_norm

    def step(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        """One update, with what a step of ours tells of it."""
        self.optimizer.zero_grad()
        loss = torch_loss(self.reference, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.reference.parameters(), self.max_grad_norm)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        return {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}


def torch_loss(reference: Any, batch: dict[str, np.ndarray]) -> torch.Tensor:
    dtype = next(reference.parameters()).dtype
    tensors = {
        name: torch.tensor(x).to(dtype if x.dtype.kind == "f" else torch.int64)
        for name, x in batch.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of another way to compute the loss
        out = reference(**tensors)
    if isinstance(reference, transformers.BertLMHeadModel):  # it rounds the scores to float32
        scores, labels = out.logits[:, :-1].mT, tensors["labels"][:, 1:]
        return torch.nn.functional.cross_entropy(scores, labels)
    return out.loss


def parameters_of(model: Any) -> dict[str, np.ndarray]:
    """The parameters of a model, ours or transformers', by their names in checkpoints."""
    if isinstance(model, torch.nn.Module):
        return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    return {name: np.asarray(x) for name, x in eqxbert.convert.to_state_dict(model).items()}


def without_gradient(reference: Any) -> set[str]:
    """The parameters that a loss does not depend on. What PyTorch and JAX find for their gradients
    is rounding, which Adam, dividing it by its own size, turns into steps as long as any.
    """
    # A key's bias shifts all scores of a query alike, to which a softmax is blind.
    names = {name for name, _ in reference.named_parameters() if name.endswith("key.bias")}
    if isinstance(reference, transformers.BertForMultipleChoice):
        names.add("classifier.bias")  # shifts the scores of all choices
    if isinstance(reference, transformers.BertForQuestionAnswering):
        # These shift the scores of all positions.
        last = reference.config.num_hidden_layers - 1
        names |= {"qa_outputs.bias", f"bert.encoder.layer.{last}.output.LayerNorm.bias"}
    return names


def unused(reference: Any) -> set[str]:
    """The parameters that play no part in a loss: their gradients are zero here, and none at all in
    PyTorch, whose AdamW then does not even let them decay.
    """
    if isinstance(reference, transformers.EncoderDecoderModel):
        return {f"encoder.pooler.dense.{part}" for part in ("weight", "bias")}
    return set()


def assert_same_parameters(
    ours: Any, theirs: Any, tolerance: float, *, leave_out: set[str] | None = None
) -> None:
    found, expected = parameters_of(ours), parameters_of(theirs)
    assert expected.keys() <= found.keys()
    for name in expected.keys() - (leave_out or set()):
        assert max_difference(found[name], expected[name]) < tolerance, name


class Toy(eqx.Module):
    """A model that compiles in no time: words, and two linear maps of their mean."""

    words: Embedding
    layers: tuple[Linear, ...]

    def __init__(self, *, key: Any):
        keys = jax.random.split(key, 3)
        self.words = Embedding(11, 4, initializer_range=0.5, key=keys[0])
        self.layers = tuple(Linear(4, 4, initializer_range=0.5, key=k) for k in keys[1:])

    def __call__(self, input_ids: Int[Array, "batch seq"]) -> Float[Array, "batch 4"]:
        x = jnp.mean(self.words(input_ids), axis=1)
        for layer in self.layers:
            x = jnp.tanh(layer(x.astype(layer.weight.dtype)))
        return x


def toy_loss(model: Toy, batch: Any, key: Any) -> Float[Array, ""]:
    """The mean squared distance from targets."""
    distance = model(batch["input_ids"]).astype(jnp.float32) - batch["targets"]
    return jnp.mean(jnp.square(distance))


def toy_batch(examples: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "input_ids": rng.integers(0, 11, (examples, 3), np.int32),
        "targets": rng.normal(size=(examples, 4)).astype(np.float32),
    }
