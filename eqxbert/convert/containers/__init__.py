"""Readers and writers of the files that weights come in."""

from .container import read_container as read_container
from .safetensors import write_safetensors as write_safetensors
from .tensor import LazyTensor as LazyTensor
