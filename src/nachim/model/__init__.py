"""Spec to torch modules: `build` gives the module of any part."""

from nachim.model.build import build
from nachim.model.decoder import DecoderModule

__all__ = ["DecoderModule", "build"]
