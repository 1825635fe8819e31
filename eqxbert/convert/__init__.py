"""Checkpoints to trees and back: Hugging Face's names, files and folders."""

from .checkpoint import (
    Inspection as Inspection,
    convert_checkpoint as convert_checkpoint,
    inspect_checkpoint as inspect_checkpoint,
)
from .pretrained import Loaded as Loaded, load as load, save as save
from .report import CheckpointError as CheckpointError, LoadReport as LoadReport
from .staging import staged_file as staged_file, staged_folder as staged_folder
from .state_dict import (
    from_state_dict as from_state_dict,
    to_state_dict as to_state_dict,
    with_config as with_config,
)
