"""What goes on inside a model while it trains: norms, updates, activations, attention's scores, loads of experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor, nn

from nachim.model.attend import Rule
from nachim.model.decoder import DecoderModule
from nachim.model.frame import Frame
from nachim.model.router import RouterModule
from nachim.spec import Run, UserError
from nachim.train.onlooker import Onlooker
from nachim.train.samples import SCHEMA, STATISTICS, read, write
from nachim.train.step import Stepper

LEAST_EVERY, MOST_SAMPLES = 20, 500
"""Steps between samples are at least so many; a run has at most about so many samples."""
ROWS = 128
"""Queries whose scores are looked at together."""


class Statistics(Onlooker):
    """Samples a run every so many steps into `statistics.parquet`, a row a number; bit for bit the run stays the same.

    Norms are of the fp32 weights and of the whole batch's gradient; loads are the whole batch's. Activations and scores
    are those of the step's first sequence, by a pass of its own, without gradients. A sample needs a copy of the
    weights while its step is taken.
    """

    def __init__(self, every: int | None = None) -> None:
        """`every` so many steps, from the first on; by default so that a run has some hundreds of samples."""
        self.every = every
        self.past, self.rows = SCHEMA.empty_table(), list[dict[str, object]]()
        self.written = True
        self._release: list[Callable[[], None]] = []
        self._sample: _Sample | None = None

    def begin(self, out: Path, run: Run, step: int, say: Callable[[str], None]) -> None:
        """Take up the samples of the first `step` steps in `out`."""
        self.end()
        self.path, self.rows = out / STATISTICS, []
        self.every = self.every or max(LEAST_EVERY, math.ceil(run.train.steps / MOST_SAMPLES))
        try:
            self.past, self.written = read(self.path, step), True
        except UserError as error:
            say(f"{error}; statistics begin again at step {step}")
            self.past, self.written = SCHEMA.empty_table(), False

    def before(self, stepper: Stepper, step: int, x_BT: Tensor) -> None:
        """Where the step is to be sampled: look at the activations, keep the weights, wait for the gradients."""
        if step % self.every:
            return
        self._sample = sample = _Sample(stepper, x_BT)
        optimizer = next(iter(stepper.optimizer.members.values()))
        self._release = [optimizer.register_step_pre_hook(lambda *_: sample.gradients()).remove]

    def after(self, row: Mapping[str, float | None]) -> None:
        """Finish the sample, if the step was one and changed the weights."""
        sample = self._sample
        self.end()
        if sample is not None and sample.taken:
            step = row["step"]
            found = sample.rows(row["grad_norm"])
            self.rows += [{"step": step, "quantity": what, "name": name, "value": value} for what, name, value in found]
            self.written = False

    def saving(self, step: int) -> Callable[[], None] | None:
        """The table is written before the checkpoint: what a kill between the two leaves too much is cut off again."""
        if self.written:
            return None
        if self.rows:
            self.past = pa.concat_tables([self.past, pa.Table.from_pylist(self.rows, schema=SCHEMA)]).combine_chunks()
        self.rows, self.written = [], True
        table, path = self.past, self.path
        return lambda: write(table, path)

    def end(self) -> None:
        """Let go of the optimizer."""
        for release in self._release:
            release()
        self._release, self._sample = [], None


class _Sample:
    """One step, as it is taken."""

    def __init__(self, stepper: Stepper, x_BT: Tensor) -> None:
        self.weights, self.names = stepper.masters.weights, stepper.masters.names
        self.routers = [(name, one) for name, one in stepper.model.named_modules() if isinstance(one, RouterModule)]
        self.forward = activations(stepper.model, x_BT[:1, :-1])
        with torch.no_grad():
            self.before = [weight.detach().clone() for weight in self.weights]
        self.norms: Tensor | None = None
        self.loads: list[Tensor] = []

    @property
    def taken(self) -> bool:
        """Whether the optimizer made its step."""
        return self.norms is not None

    @torch.no_grad()
    def gradients(self) -> None:
        """The batch's gradients and loads stand whole: the optimizer is about to take them."""
        self.norms = _norms([weight.new_zeros(()) if weight.grad is None else weight.grad for weight in self.weights])
        self.loads = [router.load.clone() for _, router in self.routers]

    @torch.no_grad()
    def rows(self, grad_norm: float | None) -> Iterator[tuple[str, str, float]]:
        """(quantity, name, value), the optimizer's step being done; `grad_norm` is that of the whole gradient."""
        held = _norms(self.before)
        torch._foreach_sub_(self.before, self.weights)
        assert self.norms is not None
        table = torch.stack([held, self.norms, _norms(self.before)]).double().tolist()
        clipped = math.sqrt(sum(each * each for each in table[1]))
        factor = grad_norm / clipped if grad_norm is not None and clipped > 0 else 1.0
        for name, weight, gradient, update in zip(self.names, *table, strict=True):
            yield "weight", name, weight
            yield "gradient", name, gradient * factor
            if weight > 0:
                yield "update", name, update / weight
        yield from self.forward
        for (name, _), load_X in zip(self.routers, self.loads, strict=True):
            shares = (load_X * len(load_X) / load_X.sum().clamp_min(1)).tolist()
            yield from (("load", f"{name}.{expert}", share) for expert, share in enumerate(shares))


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))


def activations(model: nn.Module, ids_BT: Tensor) -> list[tuple[str, str, float]]:
    """Activations and scores of every block of a decoder that reads `ids_BT` [B, T]; none of another model's.

    A pass without gradients, and not compiled: it leaves nothing behind in the model.
    """
    if not isinstance(model, DecoderModule):
        return []
    found: list[tuple[str, str, Tensor]] = []
    handles = [
        handle for number, block in enumerate(model.blocks) for handle in _watch(block, f"blocks.{number}", found)
    ]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model.stream(ids_BT)
    finally:
        for handle in handles:
            handle.remove()
    values = torch.stack([value for _, _, value in found]).tolist() if found else []
    largest: dict[tuple[str, str], float] = {}
    for (what, name, _), value in zip(found, values, strict=True):  # some mixers attend in several pieces
        largest[what, name] = max(value, largest.get((what, name), -math.inf))
    return [(what, name, value) for (what, name), value in largest.items()]


def _watch(
    block: nn.Module, name: str, found: list[tuple[str, str, Tensor]]
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Hooks that put into `found` what goes on in one block."""
    parts = {name: block} | {
        f"{name}.{part}": getattr(block, part) for part in ("attention", "ffn") if hasattr(block, part)
    }
    for called, module in parts.items():

        def outcome(module: nn.Module, given: tuple, y_BTD: Tensor, called: str = called) -> None:
            wide = torch.promote_types(y_BTD.dtype, torch.float32)
            found.append(("activation", called, y_BTD.to(wide).square().mean().sqrt().float()))

        yield module.register_forward_hook(outcome)

    def look(q_BHTE: Tensor, k_BKSE: Tensor, frame: Frame, rule: Rule) -> None:
        found.append(("score", f"{name}.attention", largest_score(q_BHTE, k_BKSE, frame, rule)))

    def ready(module: nn.Module, given: tuple) -> None:
        given[1].look = look

    yield block.attention.register_forward_pre_hook(ready)


def largest_score(q_BHTE: Tensor, k_BKSE: Tensor, frame: Frame, rule: Rule) -> Tensor:
    """The largest scale q.k over all pairs of a token and one it sees (S_max of arXiv 2507.20534, sec. 2.1), [], fp32.

    Scores stand in memory `ROWS` queries at a time. Keys are those of the frame's last tokens.
    """
    T, keys, E = q_BHTE.shape[2], k_BKSE.shape[2], q_BHTE.shape[3]
    groups, scale = q_BHTE.shape[1] // k_BKSE.shape[1], E**-0.5 if rule.scale is None else rule.scale
    best = q_BHTE.new_full((), -math.inf, dtype=torch.float32)
    for begin in range(0, T, ROWS):
        end = min(begin + ROWS, T)
        seen = keys - T + end
        q_BKGTE = q_BHTE[:, :, begin:end].unflatten(1, (-1, groups))
        score_BKGTS = q_BKGTE @ k_BKSE[:, :, None, :seen].transpose(-1, -2)
        allowed = frame.part(begin, end).allowed(rule.window, seen)
        if allowed is not None:
            score_BKGTS = score_BKGTS.masked_fill(~allowed[:, :, None], -math.inf)
        best = torch.maximum(best, score_BKGTS.amax().float())
    return best * scale
