"""BERT in JAX and Equinox.

With `EQXBERT_TYPECHECK=1` in the environment before the import, the shapes and dtypes in every
signature are checked at each call (by jaxtyping and beartype).
"""

import os as _os

if _os.environ.get("EQXBERT_TYPECHECK") == "1":
    from jaxtyping import install_import_hook as _install_import_hook

    _install_import_hook("eqxbert", "beartype.beartype")

from . import (
    convert as convert,
    generation as generation,
    models as models,
    nn as nn,
    training as training,
)
from .compilation_cache import enable_compilation_cache as enable_compilation_cache
from .config import BertConfig as BertConfig
from .encoder_decoder_config import EncoderDecoderConfig as EncoderDecoderConfig
from .export import export_model as export_model
from .freed_memory import keep_freed_memory as _keep_freed_memory
from .generation import generate as generate, stream as stream
from .models import (
    NSP_IS_NEXT as NSP_IS_NEXT,
    NSP_IS_RANDOM as NSP_IS_RANDOM,
    BertForCausalLM as BertForCausalLM,
    BertForMaskedLM as BertForMaskedLM,
    BertForMultipleChoice as BertForMultipleChoice,
    BertForNextSentencePrediction as BertForNextSentencePrediction,
    BertForPreTraining as BertForPreTraining,
    BertForQuestionAnswering as BertForQuestionAnswering,
    BertForSequenceClassification as BertForSequenceClassification,
    BertForTokenClassification as BertForTokenClassification,
    BertModel as BertModel,
    EncoderDecoderModel as EncoderDecoderModel,
)
from .text import SentenceEncoder as SentenceEncoder, Tokenizer as Tokenizer

_keep_freed_memory()

__version__ = "0.1.0"
