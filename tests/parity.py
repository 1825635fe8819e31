"""The same BERT in transformers and here, inputs for both, and how their results are compared."""

import re
from typing import Any

import numpy as np
import torch
import transformers
from helpers import TINY, max_difference

import eqxbert

# Models as small as these have nothing to share out: threads would wait for one another.
torch.set_num_threads(1)

LAYERS, HEADS = TINY["num_hidden_layers"], TINY["num_attention_heads"]


# Our classes with a head. Each is transformers' of the same name, but for one.
WITH_HEADS: tuple[type[Any], ...] = (
    eqxbert.BertForPreTraining,
    eqxbert.BertForMaskedLM,
    eqxbert.BertForCausalLM,
    eqxbert.BertForNextSentencePrediction,
    eqxbert.BertForSequenceClassification,
    eqxbert.BertForMultipleChoice,
    eqxbert.BertForTokenClassification,
    eqxbert.BertForQuestionAnswering,
)
LANGUAGE_MODELS = WITH_HEADS[:3]


def reference_class(model_class: type[Any]) -> type[Any]:
    """transformers' class."""
    name = model_class.__name__
    return getattr(transformers, {"BertForCausalLM": "BertLMHeadModel"}.get(name, name))


def reference_model(
    model_class: type[Any] = eqxbert.BertModel, *, seed: int = 0, **changes: Any
) -> Any:
    """A random model of transformers in which no parameter is 0 or 1, so that each one counts."""
    options = {k: changes.pop(k) for k in ("add_pooling_layer",) if k in changes}
    if model_class is eqxbert.BertForCausalLM:
        changes["is_decoder"] = True
    config = transformers.BertConfig(**TINY | changes, attn_implementation="eager", use_cache=False)
    torch.manual_seed(seed)
    # Without .float(), the parameters of xIELU would be in bfloat16.
    model = reference_class(model_class)(config, **options).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 2 else 0.1
            parameter.copy_(scale * torch.randn_like(parameter))
            if name.endswith("LayerNorm.weight"):
                parameter += 1
    return model.eval()


def same_model(reference: Any, dtype: Any = None) -> Any:
    """Our model with the reference's weights."""
    classes = (eqxbert.BertModel, *WITH_HEADS)
    ours = next(ours for ours in classes if reference_class(ours) is type(reference))
    options = {}
    if ours is eqxbert.BertModel:
        options["add_pooling_layer"] = reference.pooler is not None
    return eqxbert.convert.from_state_dict(
        ours,
        eqxbert.BertConfig.from_dict(reference.config.to_dict()),
        reference.state_dict(),
        dtype=dtype,
        **options,
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


CHOICES = 3


def labelled_inputs(
    model_class: type[Any], batch: tuple[int, ...] = (2,), seq: int = 7, seed: int = 0, **sizes: Any
) -> dict[str, np.ndarray]:
    """Inputs of a model with a head, and labels; where some may be missing, some are."""
    rng = np.random.default_rng(seed + 1000)

    def labels(limit: int, *shape: int) -> np.ndarray:
        return rng.integers(0, limit, (*batch, *shape), np.int32)

    def some_labels(limit: int) -> np.ndarray:
        drawn = np.where(rng.random((*batch, seq)) < 0.5, labels(limit, seq), -100)
        drawn[..., 1] = labels(limit)
        return drawn

    leading = batch
    num_labels = sizes.get("num_labels", 2)
    match model_class.__name__:
        case "BertForPreTraining":
            words = some_labels(sizes.get("vocab_size", TINY["vocab_size"]))
            given = {"labels": words, "next_sentence_label": labels(2)}
        case "BertForMaskedLM" | "BertForCausalLM":
            given = {"labels": some_labels(sizes.get("vocab_size", TINY["vocab_size"]))}
        case "BertForNextSentencePrediction":
            given = {"labels": labels(2)}
        case "BertForSequenceClassification" if num_labels == 1:
            given = {"labels": rng.normal(size=(*batch, 1)).astype(np.float32)}
        case "BertForSequenceClassification":
            given = {"labels": labels(num_labels)}
        case "BertForMultipleChoice":
            leading = (*batch, CHOICES)
            given = {"labels": labels(CHOICES)}
        case "BertForTokenClassification":
            given = {"labels": some_labels(num_labels)}
        case "BertForQuestionAnswering":
            given = {"start_positions": labels(seq), "end_positions": labels(seq)}
    return random_inputs(leading, seq, seed, **sizes) | given


LABELS = ("labels", "next_sentence_label", "start_positions", "end_positions")


def without_labels(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in inputs.items() if name not in LABELS}


def outputs_of(out: Any) -> dict[str, Any]:
    """The arrays of a result, ours or transformers', those in tuples by name and number."""
    named = {}
    for name, value in dict(out).items():
        if isinstance(value, tuple):
            named |= {f"{name}[{i}]": array for i, array in enumerate(value)}
        else:
            named[name] = value
    return named


def assert_same_outputs(ours: Any, theirs: Any, tolerance: float) -> None:
    """That two results have the same fields, and these the same values. (transformers merges the
    axes of batch and choices in the states and attentions of `BertForMultipleChoice`.)
    """
    found, expected = outputs_of(ours), outputs_of(theirs)
    assert found.keys() == expected.keys()
    merged = isinstance(ours, eqxbert.outputs.MultipleChoiceModelOutput)
    for name, array in expected.items():
        array = array.detach().numpy()
        if merged and name.startswith(("hidden_states", "attentions")):
            array = array.reshape(-1, CHOICES, *array.shape[1:])
        assert max_difference(found[name], array) < tolerance, name


def assert_same_gradients(ours: Any, theirs: Any, tolerance: float) -> None:
    """That a gradient with respect to our model is another one, or what backward() left in a model
    of transformers: for each of the parameters, relative to the largest entry.
    """
    found, expected = gradients_of(ours), gradients_of(theirs)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        scale = np.abs(expected[_comparable(name, ours)]).max()
        assert max_difference(found[name], array) <= tolerance * scale, name


def gradients_of(model: Any) -> dict[str, np.ndarray]:
    """A gradient, ours or that of a model of transformers, by name."""
    if isinstance(model, torch.nn.Module):
        named = {name: parameter.grad for name, parameter in model.named_parameters()}
        return {name: gradient.numpy() for name, gradient in named.items() if gradient is not None}
    named = eqxbert.convert.to_state_dict(model)
    if "cls.predictions.decoder.weight" in named:
        del named["cls.predictions.bias"]  # idle in transformers, whose decoder has its own
    return {name: np.asarray(gradient) for name, gradient in named.items()}


def _comparable(name: str, model: Any) -> str:
    """Whose gradient that of a parameter is to be held against: its own, unless that is a small
    difference of large numbers.
    """
    if name.endswith("self.key.bias"):  # shifts all scores of a query alike, to no effect
        return name.replace("key", "query")
    if "_act_fn." in name:  # one number, a sum over all that enters the activation
        return re.sub(r"\w+_act_fn\.\w+$", "dense.bias", name)
    shifts = ()  # of the scores of all choices, or of all positions
    if isinstance(model, eqxbert.BertForMultipleChoice):
        shifts = ("classifier.bias",)
    if isinstance(model, eqxbert.BertForQuestionAnswering):
        last = model.config.num_hidden_layers - 1
        shifts = ("qa_outputs.bias", f"bert.encoder.layer.{last}.output.LayerNorm.bias")
    return name.replace("bias", "weight") if name in shifts else name


def scale_heads(reference: transformers.BertModel, factors: np.ndarray) -> None:
    """Does what a head mask does, which transformers 5 does not have: with the rows and biases of a
    head's value projection scaled, its context is scaled alike.
    """
    with torch.no_grad():
        for layer, row in zip(reference.encoder.layer, factors, strict=True):
            value = layer.attention.self.value
            rows = torch.tensor(row).repeat_interleave(value.out_features // len(row))
            value.weight *= rows[:, None]
            value.bias *= rows
