"""Blocks that know nothing of BERT. Every one takes any number of leading axes, and every leaf is
an array.
"""

from .activation import (
    ACTIVATIONS as ACTIVATIONS,
    Activation as Activation,
    get_activation as get_activation,
)
from .attention import (
    Attention as Attention,
    dot_product_attention as dot_product_attention,
    relative_position_scores as relative_position_scores,
)
from .cache import (
    KVCache as KVCache,
    extend_slots as extend_slots,
    write_slots as write_slots,
)
from .dropout import dropout as dropout, split_key as split_key
from .embedding import Embedding as Embedding
from .linear import Linear as Linear
from .loss import (
    IGNORED_LABEL as IGNORED_LABEL,
    binary_cross_entropy as binary_cross_entropy,
    cross_entropy as cross_entropy,
    mean_squared_error as mean_squared_error,
)
from .mask import (
    causal_mask as causal_mask,
    key_mask as key_mask,
    pair_mask as pair_mask,
    segment_mask as segment_mask,
    segment_positions as segment_positions,
)
from .normalization import LayerNorm as LayerNorm
from .numerics import (
    Size as Size,
    accumulation_dtype as accumulation_dtype,
    align_trailing as align_trailing,
    as_int32 as as_int32,
)
from .platform import platform as platform
from .product import affine as affine, linear_product as linear_product
