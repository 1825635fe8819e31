"""Text from decoders."""

from .generate import (
    GenerationOutput as GenerationOutput,
    generate as generate,
    stream as stream,
)
from .options import GenerationOptions as GenerationOptions
from .processors import Processor as Processor
