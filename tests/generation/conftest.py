"""What the tests of generation share: a decoder that knows what to say."""

import pytest
import transformers
from generation.references import same_reference, trained_decoder

from eqxbert import BertForCausalLM


@pytest.fixture(scope="session")
def trained() -> tuple[BertForCausalLM, transformers.BertLMHeadModel]:
    """A decoder that has learnt a toy language, here and in transformers."""
    model = trained_decoder()
    return model, same_reference(model)
