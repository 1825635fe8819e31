"""Text in, vectors out."""

from .batching import plan_batches as plan_batches
from .fill_mask import FilledMask as FilledMask, fill_mask as fill_mask
from .pooling import (
    Dense as Dense,
    Normalize as Normalize,
    Pooling as Pooling,
    SentenceModel as SentenceModel,
)
from .pretraining import (
    MaskedTextBatches as MaskedTextBatches,
    masked_text_metrics as masked_text_metrics,
    train_tokenizer as train_tokenizer,
)
from .sentence_encoder import SentenceEncoder as SentenceEncoder
from .tokenizer import Tokenizer as Tokenizer
