"""Readers and writers of the files that weights come in."""

from .safetensors import (
    read_safetensors as read_safetensors,
    write_safetensors as write_safetensors,
)
from .tensor import LazyTensor as LazyTensor
