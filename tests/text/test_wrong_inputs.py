"""What users see who pass something else than texts.

In an interpreter of its own: shape checking, which the test suite has on, would refuse some of
these before the library can say what is wrong.
"""

import json

import pytest
from helpers import run_python

SCRIPT = """
import json, sys
import numpy as np
import eqxbert
encoder = eqxbert.SentenceEncoder.from_pretrained({folder!r})
encode, tokenizer = encoder.encode, encoder.tokenizer
errors = {{}}
for code in {codes!r}:
    try:
        errors[code] = ["", repr(eval(code))]
    except BaseException as error:
        errors[code] = [type(error).__name__, str(error)]
print(json.dumps(errors))
"""

EXPECTED = {
    "encode(['a', b'b'])": "sentences[1] must be a string, got bytes: b'b'",
    "encode(['a', 'b', 3])": "sentences[2] must be a string, got int: 3",
    "encode([None])": "sentences[0] must be a string, got NoneType: None",
    "encode([['a', 'b']])": "sentences[0] must be a string, got list: ['a', 'b']",
    "encode([{'text': 'a'}])": "sentences[0] must be a string, got dict",
    "encode([float('nan')])": "sentences[0] must be a string, got float: nan",
    "encode(['a', None], prompt='the ')": "sentences[1] must be a string, got NoneType",
    "encode({'a': 'b'})": "sentences must be a sequence of strings, got dict",
    "encode(b'a')": "sentences must be a sequence of strings, got bytes",
    "encode(None)": "sentences must be a sequence of strings, got NoneType",
    "encode(3)": "sentences must be a sequence of strings, got int",
    "encode({'a'})": "sentences must be a sequence of strings, got set",
    "encode(iter(['a']))": "sentences must be a sequence of strings, got list_iterator",
    "encode(np.array([1, 2]))": "sentences[0] must be a string, got int64",
    "encode(np.array('a'))": "sentences must be a sequence of strings, got ",
    "encode(['a', 'b\\ud800'])": "sentences[1] is not valid Unicode: it contains a lone surrogate",
    "encode('\\udcff')": "sentences[0] is not valid Unicode",
    "encode(['a'], prompt='\\udcff')": "prompt is not valid Unicode",
    "encode(['a'], prompt=3)": "prompt must be a string, got int",
    "encode(['a'], output_value='tokens')": "output_value is 'tokens'; known are sentence_emb",
    "encode(['a'], output_value=None)": "output_value is None; known are sentence_embedding, tok",
    "encode(['a'], truncate_dim=0)": "truncate_dim must be a positive number, got 0",
    "encode(['a'], prompt_name='x')": "There is no prompt 'x'; the prompts are [",
    "tokenizer([1])": "texts[0] must be a string, got int: 1",
    "tokenizer(b'a')": "texts must be a sequence of strings, got bytes",
    "tokenizer(['a', 'b'], ['c'])": "There are 2 texts, but 1 text_pairs",
    "tokenizer(['a'], 'b')": "text_pairs must be a sequence of strings, got str",
    "tokenizer('a', ['b', 'c'])": "text_pairs",
    "tokenizer(['a'], [None])": "text_pairs[0] must be a string, got NoneType",
    "tokenizer(['a'], ['\\udcff'])": "text_pairs[0] is not valid Unicode",
    "tokenizer(['a'], max_length=2)": "max_length is 2, but the special tokens alone are 2",
    "tokenizer(['a'], max_length=0)": "max_length is 0, but the special tokens alone are 2",
    "tokenizer(['a'], max_length=-1)": "max_length is -1, but the special tokens alone are 2",
    "tokenizer(['a'], ['b'], max_length=2)": "max_length is 2, but the special tokens alone are 3",
    "eqxbert.SentenceEncoder(encoder.model, tokenizer, similarity_fn_name='l2')": (
        "similarity_fn_name is 'l2'; known are cosine, dot, euclidean, manhattan"
    ),
}


@pytest.fixture(scope="module")
def errors(sentence_model) -> dict[str, list[str]]:
    script = SCRIPT.format(folder=str(sentence_model), codes=list(EXPECTED))
    finished = run_python(script)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("code", EXPECTED)
def test_the_error_says_what_is_wrong(errors, code):
    kind, message = errors[code]
    assert kind == "ValueError", message
    assert EXPECTED[code] in message
