"""nachim: a compute budget in, a sealed forecast and a verified model out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nachim.infer.engine import Engine as Engine
    from nachim.model import DecoderModule

__version__ = "0.1.0"


def load(folder: Path | str, dtype: str | None = "float32") -> DecoderModule:
    """The model in `folder`, a run of ours or a Hugging Face checkpoint: a torch module, token ids to logits [B, T, V].

    See `nachim.model.load.load`. torch is loaded by the call, not by the import of this package.
    """
    from nachim.model.load import load as loaded

    return loaded(folder, dtype)


def __getattr__(name: str) -> object:
    """`nachim.Engine`, see `nachim.infer.engine.Engine`: torch is loaded when it is first asked for."""
    if name != "Engine":
        raise AttributeError(f"module 'nachim' has no attribute {name!r}")
    from nachim.infer.engine import Engine

    return Engine
