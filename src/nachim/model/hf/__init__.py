"""Hugging Face checkpoints in and out: a family is one file of this package."""

from nachim.model.hf.checkpoint import Checkpoint, carry, config_for, open_checkpoint, read_config, write_checkpoint
from nachim.model.hf.families import FAMILIES
from nachim.model.hf.family import Family

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "Family",
    "carry",
    "config_for",
    "open_checkpoint",
    "read_config",
    "write_checkpoint",
]
