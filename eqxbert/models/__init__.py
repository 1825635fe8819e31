"""BERT: embeddings, encoder, and the models composed of them."""

from .bert import BertModel as BertModel, Pooler as Pooler
from .embeddings import Embeddings as Embeddings
from .encoder import Encoder as Encoder, EncoderLayer as EncoderLayer, FeedForward as FeedForward
from .pretrained import PretrainedModel as PretrainedModel
