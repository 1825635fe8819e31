"""BERT: embeddings, encoder, and the models composed of them."""

from .bert import BertModel as BertModel
from .bert import Pooler as Pooler
from .embeddings import Embeddings as Embeddings
from .encoder import Encoder as Encoder
from .encoder import EncoderLayer as EncoderLayer
from .encoder import FeedForward as FeedForward
from .pretrained import PretrainedModel as PretrainedModel
