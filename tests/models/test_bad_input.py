"""Wrong inputs of the model: each is refused with a message that helps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TINY, run_python, tiny_config

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
UNTYPED = [
    ("np.zeros((2, 5), np.float32)", "input_ids must hold integers, got an array of float32"),
    ("[[1, 2, 3]]", "input_ids must be an array of integers, got list"),
    ("'some text'", "input_ids must be an array of integers, got str. Text goes through"),
    ("np.int32(3)", "input_ids must be an array of integers, got int32"),
    ("np.array(3)", "input_ids is a single number"),
    ("ids, np.ones((2, 5), np.float32)", "attention_mask must be boolean or integer"),
    ("ids, None, np.zeros((2, 4), np.int32)", "token_type_ids has shape (2, 4), expected (2, 5)"),
    ("ids, None, None, np.zeros((3, 5), np.int32)", "position_ids has shape (3, 5)"),
    ("inputs_embeds=np.zeros((2, 5, 11), np.float32)", "expected (*batch, seq, 12)"),
]


def test_wrong_types_without_type_checking():
    calls = ",\n".join(f"lambda: model({arguments})" for arguments, _ in UNTYPED)
    result = run_python(f"""
import json, jax, numpy as np, eqxbert
ids = np.zeros((2, 5), np.int32)
model = eqxbert.BertModel(eqxbert.BertConfig(**{TINY}), key=jax.random.key(0))
messages = []
for call in [{calls}]:
    try:
        call()
    except ValueError as error:
        messages.append(str(error))
    else:
        messages.append("no error")
print(json.dumps(messages))
""")
    assert result.returncode == 0, result.stderr
    for (arguments, expected), message in zip(UNTYPED, json.loads(result.stdout), strict=True):
        assert expected in message, arguments


def test_type_checking_finds_wrong_shapes(model):
    from jaxtyping import TypeCheckError

    with pytest.raises(TypeCheckError, match="token_type_ids"):
        model(IDS, token_type_ids=np.zeros((2, 4), np.int32))


def test_unknown_activation(key):
    with pytest.raises(ValueError, match="Unknown activation 'wobble'"):
        BertModel(tiny_config(hidden_act="wobble"), key=key)
