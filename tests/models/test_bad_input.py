"""Wrong inputs of the model: each is refused with a message that helps."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, run_python, tiny_config

import eqxbert
from eqxbert import BertModel

IDS = np.zeros((2, 5), np.int32)


@pytest.fixture(scope="module")
def model() -> BertModel:
    return BertModel(tiny_config(), key=jax.random.key(0))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("input_ids", 33, r"input_ids contains 33, but valid ids are 0 to 32 \(vocab_size is 33\)"),
        ("input_ids", -1, "input_ids contains -1"),
        ("token_type_ids", 2, r"token_type_ids contains 2, .*type_vocab_size is 2"),
        ("token_type_ids", -3, "token_type_ids contains -3"),
        ("position_ids", 17, r"position_ids contains 17, .*max_position_embeddings is 17"),
        ("position_ids", -1, "position_ids contains -1"),
    ],
)
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_ids_out_of_range(model, argument, value, message, array):
    wrong = IDS.copy()
    wrong[1, 3] = value
    arguments = {"input_ids": array(IDS)} | {argument: array(wrong)}
    with pytest.raises(ValueError, match=message):
        model(**arguments)

    # Compiled code cannot raise: there the row is NaN, and only that one.
    states = np.asarray(jax.jit(lambda m, a: m(**a).last_hidden_state)(model, arguments))
    assert np.isnan(states[1]).all()
    assert np.isfinite(states[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give either input_ids or inputs_embeds; neither was given"),
        ({"input_ids": IDS, "inputs_embeds": np.zeros((2, 5, 12), np.float32)}, "both were given"),
        ({"input_ids": np.zeros((2, 18), np.int32)}, "18 tokens, .* positions for 17"),
        ({"input_ids": np.zeros((2, 0), np.int32)}, "sequence is empty"),
        (
            {"input_ids": IDS, "attention_mask": np.ones((2, 4), np.int32)},
            r"attention_mask .*\(2, 4\)",
        ),
        (
            {"input_ids": IDS, "attention_mask": np.ones((2, 5, 4), bool)},
            r"\(2, 5\) or \(2, 5, 5\)",
        ),
        ({"input_ids": IDS, "head_mask": np.ones((3, 3), np.float32)}, r"head_mask .* \(2, 3\)"),
    ],
)
def test_wrong_shapes(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(**arguments)


# These break the annotations too. What is tested is the message where nobody checks them.
UNTYPED = {
    "BertModel": [
        ("np.zeros((2, 5), np.float32)", "input_ids must hold integers, got an array of float32"),
        ("[[1, 2, 3]]", "input_ids must be an array of integers, got list"),
        ("'some text'", "input_ids must be an array of integers, got str. Text goes through"),
        ("np.int32(3)", "input_ids must be an array of integers, got int32"),
        ("np.array(3)", "input_ids is a single number"),
        ("ids, np.ones((2, 5), np.float32)", "attention_mask must be boolean or integer"),
        (
            "ids, None, np.zeros((2, 4), np.int32)",
            "token_type_ids has shape (2, 4), expected (2, 5)",
        ),
        ("ids, None, None, np.zeros((3, 5), np.int32)", "position_ids has shape (3, 5)"),
        ("inputs_embeds=np.zeros((2, 5, 11), np.float32)", "expected (*batch, seq, 12)"),
        ("ids, output_positions=[0]", "output_positions must be an array of integers, got list"),
        ("ids, output_positions=1.0 * two", "output_positions must hold integers, got an array of"),
        ("ids, output_positions=slots[:, None]", "(2, 1, 3), which cannot be broadcast to (2, 3)"),
        ("ids, output_positions=np.array(0)", "output_positions is a single number"),
    ],
    "BertForPreTraining": [
        ("ids, labels=two", "labels has shape (2,), expected (2, 5)"),
        ("ids, labels=ids, next_sentence_label=ids", "next_sentence_label has shape (2, 5), exp"),
        ("ids, next_sentence_label=two.astype(bool)", "next_sentence_label must hold integers, g"),
        ("ids, masked_positions=two", "masked_positions has shape (2,), expected (2, 2)"),
        ("ids, labels=ids, masked_positions=slots", "labels has shape (2, 5), expected (2, 3)"),
    ],
    "BertForMaskedLM": [
        ("ids, labels=ids[:, 1:]", "labels has shape (2, 4), expected (2, 5)"),
        ("ids, labels=1.0 * ids", "labels must hold integers, got an array of float64"),
        ("ids, labels=[[1, 2]]", "labels must be an array of integers, got list"),
        ("ids, masked_positions=1.0 * slots", "masked_positions must hold integers, got an array"),
        ("ids, masked_positions=[0]", "masked_positions must be an array of integers, got list"),
        ("ids, masked_positions=slots[:1]", "masked_positions has shape (1, 3), expected (2, 3)"),
        ("ids, labels=ids, masked_positions=slots", "labels has shape (2, 5), expected (2, 3)"),
        ("ids[0], masked_positions=np.array(1)", "masked_positions has shape (), expected"),
    ],
    "BertForCausalLM": [
        ("ids, labels=ids[:, 1:]", "labels has shape (2, 4), expected (2, 5)"),
        ("ids, labels=ids == 0", "labels must hold integers, got an array of bool"),
    ],
    "BertForNextSentencePrediction": [
        ("ids, labels=two[:, None]", "labels has shape (2, 1), expected (2,)"),
        ("ids, labels=1.0 * two", "labels must hold integers, got an array of float64"),
        ("ids, labels=0", "labels must be an array of integers, got int"),
    ],
    "BertForSequenceClassification": [
        ("ids, labels=ids", "labels has shape (2, 5), expected (2,)"),
        ("ids, labels=1.0 * two", "labels has shape (2,), expected (2, 2)"),
        ("ids, labels=two == 0", "labels has shape (2,), expected (2, 2)"),
        ("ids, labels=1j * two", "labels must hold numbers, got an array of complex128"),
        ("ids, labels=['good', 'bad']", "labels must be an array of numbers, got list"),
        ("ids, kind='regression', labels=two", "labels has shape (2,), expected (2, 2)"),
        ("ids, kind='regression', labels=[1, 2]", "labels must be an array of numbers, got list"),
        ("ids, kind='multi_label_classification', labels=two", "has shape (2,), expected (2, 2)"),
        ("ids, kind='multi_label_classification', labels=[[1, 2]]", "labels must be an array of"),
        ("ids, kind='single_label_classification', labels=1.0 * two", "labels must hold integers"),
        ("ids, num_labels=1, labels=ids", "labels has shape (2, 5), expected (2,) or (2, 1)"),
    ],
    "BertForMultipleChoice": [
        ("ids[0]", "expected input_ids of shape (*batch, choices, seq), got (5,)."),
        ("ids[None], labels=two", "labels has shape (2,), expected (1,)"),
        ("ids, labels=1.0 * two[0]", "labels must be an array of integers, got float64"),
    ],
    "BertForTokenClassification": [
        ("ids, labels=two", "labels has shape (2,), expected (2, 5)"),
        ("ids, labels=1.0 * ids", "labels must hold integers, got an array of float64"),
    ],
    "BertForQuestionAnswering": [
        ("ids, start_positions=two", "Only start_positions was given; give both positions"),
        ("ids, end_positions=two", "Only end_positions was given; give both positions"),
        ("ids, start_positions=ids, end_positions=two", "start_positions has shape (2, 5), expec"),
        ("ids, start_positions=two, end_positions=ids", "end_positions has shape (2, 5), expected"),
        ("ids, start_positions=two, end_positions=1.0 * two", "end_positions must hold integers"),
        ("ids, start_positions=[1], end_positions=two", "start_positions must be an array of int"),
    ],
}


def test_wrong_types_without_type_checking():
    cases = [(name, *case) for name, cases in UNTYPED.items() for case in cases]
    calls = ",\n".join(f"lambda: call({name!r}, {arguments})" for name, arguments, _ in cases)
    result = run_python(f"""
import json, jax, numpy as np, eqxbert
ids, two, slots = (np.zeros(shape, np.int32) for shape in ((2, 5), (2,), (2, 3)))
def call(name, *args, kind=None, num_labels=2, **kwargs):
    config = eqxbert.BertConfig(**{TINY}, problem_type=kind, num_labels=num_labels)
    return getattr(eqxbert, name)(config, key=jax.random.key(0))(*args, **kwargs)
messages = []
for call_ in [{calls}]:
    try:
        call_()
    except Exception as error:
        messages.append(f"{{type(error).__name__}}: {{error}}")
    else:
        messages.append("no error")
print(json.dumps(messages))
""")
    assert result.returncode == 0, result.stderr
    messages = json.loads(result.stdout)
    wrong = [
        f"{name}({arguments}): {message}\n    instead of: {expected}"
        for (name, arguments, expected), message in zip(cases, messages, strict=True)
        if not (message.startswith("ValueError: ") and expected in message)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "model_class",
    [
        eqxbert.BertForPreTraining,
        eqxbert.BertForNextSentencePrediction,
        eqxbert.BertForSequenceClassification,
        eqxbert.BertForMultipleChoice,
    ],
)
def test_a_head_that_reads_the_pooler_misses_it(model_class, key):
    model = eqx.tree_at(lambda m: m.bert.pooler, model_class(tiny_config(), key=key), None)
    with pytest.raises(ValueError, match=r"pooler is None, but the head .* add_pooling_layer=True"):
        model(IDS)


def test_type_checking_finds_wrong_shapes(model):
    from jaxtyping import TypeCheckError

    with pytest.raises(TypeCheckError, match="token_type_ids"):
        model(IDS, token_type_ids=np.zeros((2, 4), np.int32))


def test_unknown_activation(key):
    with pytest.raises(ValueError, match="Unknown activation 'wobble'"):
        BertModel(tiny_config(hidden_act="wobble"), key=key)
