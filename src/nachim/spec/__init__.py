"""What a run is, and what each part of it costs. Never imports torch."""

from nachim.spec.attention import Attention
from nachim.spec.data import BPE, Corpus, Data, Files, HuggingFace, Stdlib
from nachim.spec.error import UserError
from nachim.spec.ffn import SwiGLU
from nachim.spec.hardware import Machine
from nachim.spec.model import Decoder, plain
from nachim.spec.norm import RMSNorm
from nachim.spec.part import Difference, Part, diff
from nachim.spec.position import RoPE
from nachim.spec.run import Run, Validation
from nachim.spec.train import WSD, AdamW, Cosine, MultiStep, Muon, Schedule, Train

__all__ = [
    "BPE",
    "WSD",
    "AdamW",
    "Attention",
    "Corpus",
    "Cosine",
    "Data",
    "Decoder",
    "Difference",
    "Files",
    "HuggingFace",
    "Machine",
    "MultiStep",
    "Muon",
    "Part",
    "RMSNorm",
    "RoPE",
    "Run",
    "Schedule",
    "Stdlib",
    "SwiGLU",
    "Train",
    "UserError",
    "Validation",
    "diff",
    "plain",
]
