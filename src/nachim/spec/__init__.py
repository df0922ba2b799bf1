"""What a run is, and what each part of it costs. Never imports torch."""

from nachim.spec.activations import Activations
from nachim.spec.attention import MLA, Attention
from nachim.spec.cost import FFN, Layer, Matrix, Mixer, Saved
from nachim.spec.data import (
    BPE,
    Corpus,
    Data,
    Files,
    HuggingFace,
    Ingredient,
    Mixture,
    Reweight,
    Stdlib,
    TokenizerFile,
    Unigram,
)
from nachim.spec.error import UserError
from nachim.spec.ffn import MLP, Gated, GeGLU, MoE, SwiGLU
from nachim.spec.hardware import Cluster, Device, Machine
from nachim.spec.infini import InfiniAttention
from nachim.spec.mixer import LinearAttention, Mamba, Mamba2
from nachim.spec.model import Block, Decoder, plain
from nachim.spec.mtp import MTP
from nachim.spec.norm import LayerNorm, Norm, RMSNorm
from nachim.spec.optimizer import AdamW, AdamW8, Muon, ScheduleFreeAdamW
from nachim.spec.parametrisation import CompleteP, MuP, Parametrisation, Standard
from nachim.spec.part import Difference, Part, diff
from nachim.spec.pattern import MixtureOfDepths, Pattern
from nachim.spec.position import FIRE, ALiBi, Learned, MRoPE, NoPosition, Position, RoPE, Sinusoidal
from nachim.spec.quantize import NF4, Int4, Int8, Quantized
from nachim.spec.recurrent import RGLRU, GatedDeltaNet
from nachim.spec.residual import OutputNorm, Parallel, PostNorm, PreNorm, Residual, SandwichNorm
from nachim.spec.run import EWC, Run, Start, Validation
from nachim.spec.safety import Keep, OnSpike, RollBack, SkipStep, Stop
from nachim.spec.scaling import DynamicNTK, Interpolated, Llama3Scaling, LongRoPE, NTKAware, Scaling, YaRN
from nachim.spec.train import WSD, Constant, Cosine, Growth, MultiStep, Schedule, Train

__all__ = [
    "BPE",
    "EWC",
    "FFN",
    "FIRE",
    "MLA",
    "MLP",
    "MTP",
    "NF4",
    "RGLRU",
    "WSD",
    "ALiBi",
    "Activations",
    "AdamW",
    "AdamW8",
    "Attention",
    "Block",
    "Cluster",
    "CompleteP",
    "Constant",
    "Corpus",
    "Cosine",
    "Data",
    "Decoder",
    "Device",
    "Difference",
    "DynamicNTK",
    "Files",
    "Gated",
    "GatedDeltaNet",
    "GeGLU",
    "Growth",
    "HuggingFace",
    "InfiniAttention",
    "Ingredient",
    "Int4",
    "Int8",
    "Interpolated",
    "Keep",
    "Layer",
    "LayerNorm",
    "Learned",
    "LinearAttention",
    "Llama3Scaling",
    "LongRoPE",
    "MRoPE",
    "Machine",
    "Mamba",
    "Mamba2",
    "Matrix",
    "Mixer",
    "Mixture",
    "MixtureOfDepths",
    "MoE",
    "MuP",
    "MultiStep",
    "Muon",
    "NTKAware",
    "NoPosition",
    "Norm",
    "OnSpike",
    "OutputNorm",
    "Parallel",
    "Parametrisation",
    "Part",
    "Pattern",
    "Position",
    "PostNorm",
    "PreNorm",
    "Quantized",
    "RMSNorm",
    "Residual",
    "Reweight",
    "RoPE",
    "RollBack",
    "Run",
    "SandwichNorm",
    "Saved",
    "Scaling",
    "Schedule",
    "ScheduleFreeAdamW",
    "Sinusoidal",
    "SkipStep",
    "Standard",
    "Start",
    "Stdlib",
    "Stop",
    "SwiGLU",
    "TokenizerFile",
    "Train",
    "Unigram",
    "UserError",
    "Validation",
    "YaRN",
    "diff",
    "plain",
]
