"""A block: its mixer, its feed-forward, and how both meet the residual stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nachim.model.build import build
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import MLA, Attention, Decoder, Parallel, PostNorm, RoPE
from nachim.spec.model import Block

Memory = dict[str, Tensor]
"""What one layer remembers of the tokens it has read: empty at first, then whatever its mixer puts there."""


class BlockModule(nn.Module):
    """[B, T, D] to [B, T, D]. What a sublayer adds is multiplied by the parametrisation's residual factor."""

    def __init__(self, spec: Decoder, block: Block) -> None:
        super().__init__()
        scheme, width = spec.residual, spec.d_model
        self.scheme = scheme
        self.factor = spec.parametrisation.residual(spec.n_layers)
        one_norm = isinstance(scheme, Parallel) and scheme.shared
        if scheme.before or isinstance(scheme, PostNorm):
            self.attention_norm = build(spec.norm, width)
        self.attention = build(block.mixer, width)
        if scheme.after:
            self.attention_output_norm = build(spec.norm, width)
        self.position = PositionModule() if block.position.added else build(block.position, width)
        if block.ffn is not None:
            if (scheme.before or isinstance(scheme, PostNorm)) and not one_norm:
                self.ffn_norm = build(spec.norm, width)
            self.ffn = build(block.ffn, width)
            if scheme.after:
                self.ffn_output_norm = build(spec.norm, width)
        score = _score(spec, block)
        if score != 1:
            self.attention.scale = score * block.mixer.factor

    def forward(self, x_BTD: Tensor, frame: Frame, memory: Memory | None = None) -> Tensor:
        """The stream after this block; what must be remembered goes into `memory`."""
        if isinstance(self.scheme, Parallel):
            return self._parallel(x_BTD, frame, memory)
        x_BTD = self._joined(x_BTD, "attention", lambda x: self.attention(x, frame, self.position, memory))
        return self._joined(x_BTD, "ffn", self.ffn) if hasattr(self, "ffn") else x_BTD

    def _joined(self, x_BTD: Tensor, name: str, sublayer: nn.Module) -> Tensor:
        scheme = self.scheme
        y_BTD = sublayer(getattr(self, f"{name}_norm")(x_BTD) if scheme.before else x_BTD)
        if scheme.after:
            y_BTD = getattr(self, f"{name}_output_norm")(y_BTD)
        x_BTD = torch.add(x_BTD, y_BTD, alpha=self.factor)
        return getattr(self, f"{name}_norm")(x_BTD) if isinstance(scheme, PostNorm) else x_BTD

    def _parallel(self, x_BTD: Tensor, frame: Frame, memory: Memory | None) -> Tensor:
        read_BTD = self.attention_norm(x_BTD)
        y_BTD = self.attention(read_BTD, frame, self.position, memory)
        if hasattr(self, "ffn"):
            y_BTD = y_BTD + self.ffn(self.ffn_norm(x_BTD) if hasattr(self, "ffn_norm") else read_BTD)
        return torch.add(x_BTD, y_BTD, alpha=self.factor)


def _score(spec: Decoder, block: Block) -> float:
    """Factor on the scores of a block's attention beside its own: of width, and of a context made longer."""
    if isinstance(block.mixer, Attention):
        return spec.parametrisation.score(block.mixer.d_head)
    if not isinstance(block.mixer, MLA):
        return 1.0
    stretched = isinstance(block.position, RoPE) and block.position.scaling is not None
    longer = block.position.scaling.latent_score if stretched else 1.0
    return spec.parametrisation.score(block.mixer.key_width) * longer
