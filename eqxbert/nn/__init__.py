"""Blocks that know nothing of BERT. Every one takes any number of leading axes, and every leaf is an array."""

from .activation import ACTIVATIONS as ACTIVATIONS
from .activation import Activation as Activation
from .activation import get_activation as get_activation
from .attention import Attention as Attention
from .attention import PositionType as PositionType
from .attention import dot_product_attention as dot_product_attention
from .attention import relative_position_scores as relative_position_scores
from .dropout import dropout as dropout
from .dropout import split_key as split_key
from .embedding import Embedding as Embedding
from .linear import Linear as Linear
from .mask import causal_mask as causal_mask
from .mask import key_mask as key_mask
from .mask import pair_mask as pair_mask
from .normalization import LayerNorm as LayerNorm
