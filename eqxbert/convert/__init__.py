"""Checkpoints to trees and back: Hugging Face's names, files and folders."""

from .files import Location as Location
from .pretrained import Loaded as Loaded
from .pretrained import load as load
from .pretrained import save as save
from .report import CheckpointError as CheckpointError
from .report import LoadReport as LoadReport
from .staging import staged_folder as staged_folder
from .state_dict import from_state_dict as from_state_dict
from .state_dict import to_state_dict as to_state_dict
