"""Text in, vectors out."""

from .batching import plan_batches as plan_batches
from .pooling import Dense as Dense
from .pooling import Normalize as Normalize
from .pooling import Pooling as Pooling
from .pooling import SentenceModel as SentenceModel
from .sentence_encoder import SentenceEncoder as SentenceEncoder
from .tokenizer import Tokenizer as Tokenizer
