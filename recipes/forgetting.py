"""A new part in one file: attention that forgets (arXiv 2503.02130). docs/new_part.md walks through it.

nachim train recipes/forgetting.py --out runs/forgetting
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nachim.model import build
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import BPE, WSD, Data, Decoder, Muon, NoPosition, Run, SwiGLU, Train
from nachim.spec.cost import Matrix, Mixer, Saved


# What it is, and what it costs.
@dataclass(frozen=True, kw_only=True)
class ForgettingAttention(Mixer):
    """Softmax attention whose scores lose, for every token between, what a gate of that token says (eq. 5)."""

    n_heads: int
    d_head: int

    def check(self) -> None:
        self.require_positive("n_heads", "d_head")

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        width = self.n_heads * self.d_head
        return Matrix(d_model, 3 * width), Matrix(d_model, self.n_heads), Matrix(width, d_model)

    def vectors(self, d_model: int) -> int:
        return self.n_heads  # the gates' biases

    def saved(self, d_model: int) -> Saved:
        return Saved(whole=2 * d_model + self.n_heads, split=5 * self.n_heads * self.d_head)

    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        return 4 * self.n_heads * self.d_head * ((seq_len + 1) / 2 if causal else seq_len)

    def cache_values(self, seq_len: float) -> float:
        return self.n_heads * (2 * self.d_head + 1) * seq_len  # key, value, and what was forgotten before the token


# How it computes.
class ForgettingModule(nn.Module):
    """softmax(q k / sqrt(d) + c_i - c_j) v, with c the running sum of log sigmoid(gate)."""

    def __init__(self, part: ForgettingAttention, d_model: int) -> None:
        super().__init__()
        self.part = part
        width = part.n_heads * part.d_head
        self.qkv = nn.Linear(d_model, 3 * width, bias=False)
        self.gate = nn.Linear(d_model, part.n_heads)
        self.out = nn.Linear(width, d_model, bias=False)

    def forward(
        self, x_BTD: Tensor, frame: Frame, position: PositionModule, memory: dict[str, Tensor] | None = None
    ) -> Tensor:
        """[B, T, D] to [B, T, D]; keys, values and gates of earlier tokens are kept in `memory`."""
        q_BHTE, k_BHTE, v_BHTE = self.qkv(x_BTD).unflatten(-1, (3, self.part.n_heads, -1)).permute(2, 0, 3, 1, 4)
        forgotten_BHT = F.logsigmoid(self.gate(x_BTD).float()).mT.cumsum(-1)
        new = {"k": k_BHTE, "v": v_BHTE, "forgotten": forgotten_BHT}
        if memory:
            new["forgotten"] = forgotten_BHT + memory["forgotten"][:, :, -1:]
            new = {name: torch.cat((memory[name], tensor), 2) for name, tensor in new.items()}
        if memory is not None:
            memory.update(new)
        seen_BHS = new["forgotten"]
        bias_BHTS = seen_BHS[:, :, -frame.T :, None] - seen_BHS[:, :, None]
        if (allowed := frame.allowed()) is not None:
            bias_BHTS = bias_BHTS.masked_fill(~allowed, float("-inf"))
        mask_BHTS = bias_BHTS.to(q_BHTE.dtype)
        y_BHTE = F.scaled_dot_product_attention(q_BHTE, new["k"], new["v"], attn_mask=mask_BHTS)
        return self.out(y_BHTE.transpose(1, 2).flatten(2))


@build.register
def _(part: ForgettingAttention, d_model: int) -> nn.Module:
    return ForgettingModule(part, d_model)


# A recipe: everything else (loop, laws, budget, report) knows the part already.
def run() -> Run:
    """The size of recipes/stdlib.py, with this attention and no other sense of position."""
    blocks = {"attention": ForgettingAttention(n_heads=4, d_head=16), "ffn": SwiGLU(d_ff=168)}
    model = Decoder(vocab_size=512, d_model=64, n_layers=2, position=NoPosition(), **blocks)
    train = Train(tokens=1_024_000, batch_tokens=1024, optimizer=Muon(lr=0.01), schedule=WSD(warmup_tokens=65_536))
    return Run(model=model, data=Data(tokenizer=BPE(vocab_size=512), seq_len=128), train=train)


# Its test.
def test_it_costs_what_it_declares_and_decodes_what_it_trained() -> None:
    """Parameters, FLOP and cache bytes are the counted ones; token by token gives what all at once gives."""
    spec = run().model
    model = build(spec, spec.d_model)
    nn.init.normal_(model.head.weight)
    ids_BT = torch.randint(spec.vocab_size, (2, 24))
    assert sum(weight.numel() for weight in model.parameters()) == spec.params_total
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        whole_BTV = model(ids_BT)
    assert 3 * counter.get_total_flops() == 48 * (spec.flops_per_token(24) + spec.head_flops_per_token)
    cache = model.start()
    steps = [model(ids_BT[:, t : t + 1], cache=cache) for t in range(24)]
    torch.testing.assert_close(torch.cat(steps, 1), whole_BTV, rtol=1e-4, atol=1e-4)
    assert cache.nbytes == 2 * spec.cache_bytes(24, value_bytes=4)
