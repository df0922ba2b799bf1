"""The decoder: embedding, blocks, norm, head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model import (  # noqa: F401 - each registers the modules of its parts
    attention,
    bias,
    mla,
    mlp,
    norm,
    position,
    table,
)
from nachim.model.block import BlockModule
from nachim.model.build import build
from nachim.model.cache import Cache
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import Decoder, UserError
from nachim.spec.parametrisation import Role


class DecoderModule(nn.Module):
    """Token ids [B, T] to logits [B, T, V]. Weights are drawn by `initialise`, from a seed."""

    def __init__(self, spec: Decoder) -> None:
        super().__init__()
        if spec.depth is not None:
            raise UserError("no module computes a mixture of depths: it can be planned, not trained")
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        added = spec.blocks[0].position
        self.position = build(added, spec.d_model) if added.added else PositionModule()
        if spec.embedding_norm:
            self.embedding_norm = build(spec.norm, spec.d_model)
        self.blocks = nn.ModuleList(BlockModule(spec, block) for block in spec.blocks)
        if spec.residual.last:
            self.norm = build(spec.norm, spec.d_model)
        self.head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        if spec.tied:
            self.head.weight = self.embedding.weight
        self.output = spec.parametrisation.output(spec.d_model)

    def forward(
        self,
        ids_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] in the precision of the weights.

        `documents_BT` numbers the document of each token: packed documents do not see each other, and padding is a
        document of its own (`documents_of` reads a mask). With a `cache` the tokens follow those it holds, and it takes
        them in. `positions` stand in place of the counted ones (see `Frame`).
        """
        return self.logits(self.stream(ids_BT, documents_BT, cache, positions))

    def start(self) -> Cache:
        """An empty cache."""
        return Cache(len(self.blocks))

    def stream(
        self,
        ids_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """What the last block gives, [B, T, D], before the last norm."""
        shape, start, documents_BS = tuple(ids_BT.shape), 0, documents_BT
        if cache is not None:
            start = cache.length
            documents_BS = cache.extend(documents_BT, shape, ids_BT.device)
        frame = Frame(shape, ids_BT.device, start, documents_BS, positions)
        x_BTD = self.embed(ids_BT, frame)
        memories = [None] * len(self.blocks) if cache is None else cache.layers
        for block, memory in zip(self.blocks, memories, strict=True):
            x_BTD = block(x_BTD, frame, memory)
        return x_BTD

    def embed(self, ids_BT: Tensor, frame: Frame) -> Tensor:
        """Tokens as the first block reads them, [B, T, D]."""
        x_BTD = self.embedding(ids_BT)
        if self.spec.embedding_scale != 1:
            x_BTD = x_BTD * torch.tensor(self.spec.embedding_scale, dtype=x_BTD.dtype)
        x_BTD = self.position.embed(x_BTD, frame)
        return self.embedding_norm(x_BTD) if self.spec.embedding_norm else x_BTD

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Logits [B, T, V] of the stream: last norm, head, cap."""
        if self.spec.residual.last:
            x_BTD = self.norm(x_BTD)
        logits_BTV = self.head(x_BTD if self.output == 1 else x_BTD * self.output)
        cap = self.spec.logit_cap
        return logits_BTV if cap is None else cap * torch.tanh(logits_BTV / cap)

    def loss(self, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Mean cross-entropy, nat/token, computed in fp32."""
        return F.cross_entropy(self(ids_BT, documents_BT).flatten(0, 1).float(), targets_BT.flatten())


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a parameter is a matrix, or a stack of them, that tokens are multiplied by.

    By convention those are the parameters called `weight` that have at least two axes; every other parameter (gain,
    bias, decay, convolution) has another name, or one axis.
    """
    return weight.ndim >= 2 and name.rpartition(".")[2] == "weight"


def initialise(model: DecoderModule, seed: int) -> None:
    """Draw all weights from `seed`: each matrix N(0, 1/fan_in), residual outputs a further 1/sqrt(2 n_layers).

    The embedding is N(0, 1/4) and an untied head starts at zero, so that the first loss is ln(vocab_size).
    A tied table is drawn N(0, 1/d_model): as a head, larger weights would make the first logits wild.
    Where a parametrisation has a base, its width and depth stand in these for the table's and residual outputs' own.
    Gains start at 1 and biases at 0; a module with a method `draw(generator)` then draws what it alone knows.
    """
    generator = torch.Generator().manual_seed(seed)
    spec = model.spec
    table_std = (spec.d_model / spec.parametrisation.wider(spec.d_model)) ** -0.5 if spec.tied else 0.5
    residual_std = (2 * spec.n_layers / spec.parametrisation.deeper(spec.n_layers)) ** -0.5
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(weight)
        elif not is_matrix(name, weight):
            nn.init.ones_(weight)
        elif name == "embedding.weight":
            nn.init.normal_(weight, std=table_std, generator=generator)
        elif name == "head.weight":
            nn.init.zeros_(weight)
        else:
            depth = residual_std if name.endswith((".out.weight", ".down.weight")) else 1.0
            nn.init.normal_(weight, std=depth * weight.shape[-1] ** -0.5, generator=generator)
    for module in model.modules():
        if hasattr(module, "draw"):
            module.draw(generator)


def role(name: str, weight: Tensor) -> Role:
    """What the weight `name` of a decoder is to its parametrisation."""
    if not is_matrix(name, weight):
        return "last gain" if name == "norm.weight" else "gain"
    if name == "embedding.weight":
        return "embedding"
    return "head" if name == "head.weight" else "hidden"


@build.register
def _(part: Decoder, d_model: int | None = None) -> nn.Module:
    return DecoderModule(part)
