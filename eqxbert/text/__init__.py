"""Text in, vectors out."""

from .batching import plan_batches as plan_batches
from .pooling import (
    Dense as Dense,
    Normalize as Normalize,
    Pooling as Pooling,
    SentenceModel as SentenceModel,
)
from .sentence_encoder import SentenceEncoder as SentenceEncoder
from .tokenizer import Tokenizer as Tokenizer
