"""The decoder: embedding, blocks, norm, head."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from nachim.model import (  # noqa: F401 - each registers the modules of its parts
    attention,
    bias,
    delta,
    griffin,
    infini,
    linear,
    mamba,
    mamba2,
    mla,
    mlp,
    moe,
    norm,
    position,
    table,
)
from nachim.model.build import build
from nachim.model.cache import Cache
from nachim.model.depths import block_of
from nachim.model.frame import Frame
from nachim.model.loss import capped, head_loss
from nachim.model.mtp import MTPModule, further
from nachim.model.position import PositionModule
from nachim.model.recompute import Passage
from nachim.model.router import RouterModule
from nachim.spec import Decoder, UserError
from nachim.spec.parametrisation import Role


class DecoderModule(nn.Module):
    """Token ids [B, T] to logits [B, T, V]. Weights are drawn by `initialise`, from a seed."""

    def __init__(self, spec: Decoder) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.d_model)
        added = spec.blocks[0].position
        self.position = build(added, spec.d_model) if added.added else PositionModule()
        if spec.embedding_norm:
            self.embedding_norm = build(spec.norm, spec.d_model)
        self.blocks = nn.ModuleList(block_of(spec, block) for block in spec.blocks)
        if spec.residual.last:
            self.norm = build(spec.norm, spec.d_model)
        self.head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        if spec.tied:
            self.head.weight = self.embedding.weight
        self.output = spec.parametrisation.output(spec.d_model) * spec.logit_scale
        if spec.mtp is not None:
            self.mtp = nn.ModuleList(MTPModule(spec) for _ in range(spec.mtp.depth))
        self.routers = [module for module in self.modules() if hasattr(module, "auxiliary")]
        self.passage: Passage | None = None
        """How blocks are passed through when gradients are wanted, where not plainly."""

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

    def start(self, depth: int = 0) -> Cache:
        """An empty cache: of the decoder, or of its module for the token `depth` further."""
        return Cache(1 if depth else len(self.blocks))

    def stream(
        self,
        ids_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """What the last block gives, [B, T, D], before the last norm."""
        frame = _frame(ids_BT, documents_BT, cache, positions)
        x_BTD = self.embed(ids_BT, frame)
        if cache is None and self.passage is not None and torch.is_grad_enabled():
            return self.passage.through(self.blocks, x_BTD, frame)
        memories = [None] * len(self.blocks) if cache is None else cache.layers
        for block, memory in zip(self.blocks, memories, strict=True):
            x_BTD = block(x_BTD, frame, memory)
        return x_BTD

    def ahead(
        self,
        x_BTD: Tensor,
        next_BT: Tensor,
        documents_BT: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        depth: int = 1,
    ) -> Tensor:
        """The stream of module `depth`, [B, T, D]: `logits(., depth)` of it are those of the token after `next_BT`.

        `x_BTD` is the stream one module before (for the first `stream`'s) of T tokens, `next_BT` the tokens `depth`
        after each of them. Other arguments are as in `forward`, the documents those of the T tokens; `cache` is one of
        its own (`start(depth)`). Raises UserError where the decoder has no such module.
        """
        if self.spec.mtp is None or not 1 <= depth <= self.spec.mtp.depth:
            raise UserError(f"this decoder has no module that looks {depth} further: its mtp is {self.spec.mtp}")
        frame = _frame(next_BT, documents_BT, cache, positions)
        module = self.mtp[depth - 1]
        x_BTD = module.joined(self.normed(x_BTD, depth - 1), self.embed(next_BT, frame))
        if cache is None and self.passage is not None and torch.is_grad_enabled():
            return self.passage.through([module.block], x_BTD, frame, len(self.blocks) + depth - 1)
        return module.block(x_BTD, frame, None if cache is None else cache.layers[0])

    def draft(
        self, x_BTD: Tensor, next_BT: Tensor, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Tensor:
        """Logits [B, V] of the token after the last of `next_BT`, by the first module for multi-token prediction.

        `x_BTD` is what `stream` gave for the last T tokens read, `next_BT` the tokens that were found to follow each of
        them. `cache`, begun by `start(1)`, takes them in: every token is given once, when the one after it is certain.
        """
        return self.logits(self.ahead(x_BTD, next_BT, documents_BT, cache)[:, -1:], 1)[:, 0]

    def embed(self, ids_BT: Tensor, frame: Frame) -> Tensor:
        """Tokens as the first block reads them, [B, T, D]."""
        x_BTD = self.embedding(ids_BT)
        if self.spec.embedding_scale != 1:
            x_BTD = x_BTD * torch.tensor(self.spec.embedding_scale, dtype=x_BTD.dtype)
        x_BTD = self.position.embed(x_BTD, frame)
        return self.embedding_norm(x_BTD) if self.spec.embedding_norm else x_BTD

    def normed(self, x_BTD: Tensor, depth: int = 0) -> Tensor:
        """The stream after its last norm, where there is one."""
        if not self.spec.residual.last:
            return x_BTD
        return self.mtp[depth - 1].norm(x_BTD) if depth else self.norm(x_BTD)

    def read(self, x_BTD: Tensor, depth: int = 0) -> Tensor:
        """What the head reads of the decoder's stream, or of that of module `depth`, [B, T, D]: normed and scaled."""
        x_BTD = self.normed(x_BTD, depth)
        return x_BTD if self.output == 1 else x_BTD * self.output

    def logits(self, x_BTD: Tensor, depth: int = 0) -> Tensor:
        """Logits [B, T, V] of the decoder's stream, or of that of module `depth`: last norm, head, cap."""
        return capped(self.head(self.read(x_BTD, depth)), self.spec.logit_cap)

    def stream_loss(self, x_BTD: Tensor, targets_BT: Tensor, depth: int = 0) -> Tensor:
        """Mean cross-entropy, nat/token in fp32, of the logits of a stream: as they say, but not all made at once."""
        x_ND = self.read(x_BTD, depth).flatten(0, 1)
        return head_loss(x_ND, self.head.weight, targets_BT.flatten(), self.spec.logit_cap)

    def loss(self, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Mean cross-entropy, nat/token, computed in fp32.

        Its gradient is also that of what `mtp` adds for tokens further ahead, and of what modules add to keep loads
        even (`auxiliary`); its value is not, so that it compares with that of models without them.
        """
        x_BTD = self.stream(ids_BT, documents_BT)
        loss = self.stream_loss(x_BTD, targets_BT)
        if self.spec.mtp is not None:
            beside = self.further_loss(x_BTD, targets_BT, documents_BT)
            loss = loss + (beside - beside.detach())
        for router in self.routers:
            if router.auxiliary is not None:
                loss = loss + (router.auxiliary - router.auxiliary.detach())
                router.auxiliary = None
        return loss

    def further_loss(self, x_BTD: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """The weighted mean of the losses of the modules for multi-token prediction, from the stream of all tokens."""
        beside = torch.zeros((), device=x_BTD.device)
        for depth in range(1, self.spec.mtp.depth + 1):
            next_BT, wanted_BT = further(targets_BT, documents_BT, depth)
            x_BTD = self.ahead(x_BTD, next_BT, documents_BT, depth=depth)
            beside = beside + self.stream_loss(x_BTD, wanted_BT, depth)
        return self.spec.mtp.weight / self.spec.mtp.depth * beside

    def after_step(self) -> dict[str, float]:
        """What changes without a gradient moves, once after an optimizer step; what the step was, by name.

        `imbalance` is the largest load of an expert over the mean load of its layer, in the worst layer.
        """
        found = [module.after_step() for module in self.routers if isinstance(module, RouterModule)]
        return {"imbalance": torch.stack(found).max().item()} if found else {}


def _frame(ids_BT: Tensor, documents_BT: Tensor | None, cache: Cache | None, positions: Tensor | None) -> Frame:
    """Where new tokens stand; a cache takes them in."""
    shape, start = tuple(ids_BT.shape), 0
    if cache is not None:
        start = cache.length
        documents_BT = cache.extend(documents_BT, shape, ids_BT.device)
    return Frame(shape, ids_BT.device, start, documents_BT, positions)


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a parameter is a matrix, or a stack of them, that tokens are multiplied by.

    By convention those are the parameters called `weight` that have at least two axes; every other parameter (gain,
    bias, decay, convolution) has another name, or one axis.
    """
    return weight.ndim >= 2 and name.rpartition(".")[2] == "weight"


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All that makes a trained model, by name: its parameters, a tied table once, and its persistent buffers."""
    state = model.state_dict(keep_vars=True)
    return dict(model.named_parameters()) | {name: held for name, held in model.named_buffers() if name in state}


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
        return "last gain" if re.fullmatch(r"(mtp\.\d+\.)?norm\.weight", name) else "gain"
    if name == "embedding.weight":
        return "embedding"
    return "head" if name == "head.weight" else "hidden"


@build.register
def _(part: Decoder, d_model: int | None = None) -> nn.Module:
    return DecoderModule(part)
