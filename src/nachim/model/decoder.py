"""The decoder: embedding, blocks, norm, head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model import attention, mlp, norm  # noqa: F401 - each registers the module of its part
from nachim.model.build import build
from nachim.model.position import rotations
from nachim.spec import Decoder, RoPE, UserError
from nachim.spec.parametrisation import Role


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)), what is added times the parametrisation's residual factor."""

    def __init__(self, spec: Decoder) -> None:
        super().__init__()
        self.attention_norm = build(spec.norm, spec.d_model)
        self.attention = build(spec.attention, spec.d_model)
        self.ffn_norm = build(spec.norm, spec.d_model)
        self.ffn = build(spec.ffn, spec.d_model)
        self.residual = spec.parametrisation.residual(spec.n_layers)
        score = spec.parametrisation.score(spec.attention.d_head)
        if score != 1:
            self.attention.scale = score * spec.attention.d_head**-0.5

    def forward(self, x_BTD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        mixed_BTD = self.attention(self.attention_norm(x_BTD), cos_TE, sin_TE)
        x_BTD = torch.add(x_BTD, mixed_BTD, alpha=self.residual)
        return torch.add(x_BTD, self.ffn(self.ffn_norm(x_BTD)), alpha=self.residual)


class DecoderModule(nn.Module):
    """Token ids [B, T] to logits [B, T, V]. Weights are drawn by `initialise`, from a seed."""

    def __init__(self, spec: Decoder) -> None:
        super().__init__()
        refuse_unbuilt(spec)
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.n_layers))
        self.norm = build(spec.norm, spec.d_model)
        self.head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        if spec.tied:
            self.head.weight = self.embedding.weight
        self.output = spec.parametrisation.output(spec.d_model)
        self._angles: tuple[Tensor, Tensor] | None = None

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits [B, T, V] in the precision of the weights."""
        x_BTD = self.embedding(ids_BT)
        cos_TE, sin_TE = self._rotations(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos_TE, sin_TE)
        x_BTD = self.norm(x_BTD)
        return self.head(x_BTD if self.output == 1 else x_BTD * self.output)

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy, nat/token, computed in fp32."""
        return F.cross_entropy(self(ids_BT).flatten(0, 1).float(), targets_BT.flatten())

    def _rotations(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        T = x_BTD.shape[1]
        cached = self._angles
        if cached is None or len(cached[0]) < T or cached[0].dtype != x_BTD.dtype or cached[0].device != x_BTD.device:
            with torch.inference_mode(False):  # whoever asks first, training must be able to use them
                angles = rotations(self.spec.position, self.spec.attention.d_head, T)
                self._angles = cached = (angles[0].to(x_BTD), angles[1].to(x_BTD))
        return cached[0][:T], cached[1][:T]


def refuse_unbuilt(spec: Decoder) -> None:
    """Raise UserError, naming it, where `spec` asks for what has a declared cost but no module yet."""
    asked = {
        "layers that differ": len(spec.kinds) > 1,
        "blocks without a feed-forward": spec.ffn is None,
        "sandwich norms": spec.sandwich,
        "a mixture of depths": spec.depth is not None,
        f"the position {type(spec.position).__name__}": not isinstance(spec.position, RoPE),
    }
    for what, there in asked.items():
        if there:
            raise UserError(f"no module computes {what}: it can be planned, not trained")


def initialise(model: DecoderModule, seed: int) -> None:
    """Draw all weights from `seed`: each matrix N(0, 1/fan_in), residual outputs a further 1/sqrt(2 n_layers).

    The embedding is N(0, 1/4) and an untied head starts at zero, so that the first loss is ln(vocab_size).
    A tied table is drawn N(0, 1/d_model): as a head, larger weights would make the first logits wild.
    Where a parametrisation has a base, its width and depth stand in these for the table's and residual outputs' own.
    """
    generator = torch.Generator().manual_seed(seed)
    spec = model.spec
    table_std = (spec.d_model / spec.parametrisation.wider(spec.d_model)) ** -0.5 if spec.tied else 0.5
    residual_std = (2 * spec.n_layers / spec.parametrisation.deeper(spec.n_layers)) ** -0.5
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            nn.init.ones_(weight)
        elif name == "embedding.weight":
            nn.init.normal_(weight, std=table_std, generator=generator)
        elif name == "head.weight":
            nn.init.zeros_(weight)
        else:
            residual = name.endswith(("attention.out.weight", "ffn.down.weight"))
            depth = residual_std if residual else 1.0
            nn.init.normal_(weight, std=depth * weight.shape[1] ** -0.5, generator=generator)


def role(name: str, weight: Tensor) -> Role:
    """What the weight `name` of a decoder is to its parametrisation."""
    if weight.ndim < 2:
        return "last gain" if name == "norm.weight" else "gain"
    if name == "embedding.weight":
        return "embedding"
    return "head" if name == "head.weight" else "hidden"


@build.register
def _(part: Decoder, d_model: int | None = None) -> nn.Module:
    return DecoderModule(part)
