"""What answering costs: a roofline of prefill and decode on a device or a tensor-parallel group. Pure Python.

Reading a prompt is bound by arithmetic; writing a token by memory: every step reads the weights once for the whole
batch and each sequence's cache (arXiv 2211.05102). Prompts and answers are worked on by groups of their own
(arXiv 2401.09670), and every group is kept full. A served engine stays below the roofline: `REACHED`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from nachim.budget.collective import Group, all_reduce
from nachim.budget.speculate import MOST_DRAFTED, Speculation, tokens_per_pass
from nachim.spec import Decoder, Device, Part, UserError
from nachim.spec.cached import Cached
from nachim.spec.error import nearest

SPARE = 0.1
"""Share of the memory left to activations and buffers: vLLM's `gpu_memory_utilization` is 0.9 unless set."""

REACHED = 0.67
"""Share of the roofline that a tuned engine reaches: the median of 60 published throughputs over this roofline (0.43 to
0.98). TensorRT-LLM 1.0, docs/source/performance/perf-overview.md: Llama 3.1 8B and 405B and 3.3 70B in fp8 on H100 and
H200, ten lengths. docs/serving.md has the table, and a model that is not behind the number."""


@dataclass(frozen=True)
class Format:
    """How a number is stored: `bits` it carries, `bytes` it takes with its scales, the type that multiplies it."""

    bits: int
    bytes: float
    compute: Literal["bf16", "fp8", "int8"]
    cached: Cached | None = None
    """What the engine's own cache of this name is, with its steps; `bytes` is a token's value in any other cache."""


FORMATS = {
    "bf16": Format(16, 2.0, "bf16"),
    "fp8": Format(8, 1.0, "fp8"),
    "int8": Format(8, 1.0, "int8", "int8"),
    "int4": Format(4, 0.5 + 2 / 128, "bf16", "int4"),
}
"""int4 has a bf16 scale for every 128 weights and is multiplied in bf16, as GPTQ's kernels do (arXiv 2210.17323)."""


def format_named(name: str) -> Format:
    """The format called `name`. Raises UserError with the nearest name when there is none."""
    if name not in FORMATS:
        raise UserError(f"no number format is called {name!r}{nearest(name, FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True, kw_only=True)
class Demand(Part):
    """What must be served: `tokens_per_day`, prompts and one answer to each together, for `days`.

    Every question has `prompt_tokens` and is given `samples` answers of `answer_tokens`; the prompt is read once and
    only the answers multiply. `max_ttft` and `max_tpot` limit the time to the first token and the time per output
    token, in seconds, without queueing.
    """

    tokens_per_day: float
    prompt_tokens: int
    answer_tokens: int
    days: float
    samples: int = 1
    max_ttft: float | None = None
    max_tpot: float | None = None

    def check(self) -> None:
        self.require_positive("tokens_per_day", "prompt_tokens", "answer_tokens", "days", "samples")
        self.require_positive(*(name for name in ("max_ttft", "max_tpot") if getattr(self, name) is not None))

    @property
    def tokens(self) -> float:
        """All tokens served over the horizon, one answer to a question."""
        return self.tokens_per_day * self.days

    @property
    def questions(self) -> float:
        """Questions over the horizon."""
        return self.tokens / (self.prompt_tokens + self.answer_tokens)

    @property
    def processed(self) -> float:
        """Tokens read and written over the horizon, every answer counted."""
        return self.questions * (self.prompt_tokens + self.samples * self.answer_tokens)

    @property
    def position(self) -> float:
        """Tokens in the cache of a sequence, averaged over its answer."""
        return self.prompt_tokens + self.answer_tokens / 2


@dataclass(frozen=True, eq=False)
class Replica:
    """A model on `tp` devices: what each of them holds, reads and computes. `draft` is the share a draft model adds.

    Embeddings, head and vectors stay in bf16. A state or cache is cut into as many pieces as its mixer has.
    """

    model: Decoder
    device: Device
    tp: int
    weights: Format
    cache: Format
    draft: float = 0.0
    reached: float = REACHED

    @functools.cached_property
    def matrix_bytes(self) -> tuple[float, tuple[tuple[float, float], ...]]:
        """Bytes on a device of the matrices that every token meets, and of each set of experts with the share met."""
        dense, experts = 0.0, []
        for block, times in self.model.kinds.items():
            for layer in block.layers:
                for matrix in layer.matrices(self.model.d_model):
                    size = times * matrix.params_on_device(self.tp) * self.weights.bytes
                    if matrix.expert:
                        experts.append((size, matrix.used / matrix.count))
                    else:
                        dense += size
        return dense, tuple(experts)

    @functools.cached_property
    def head_bytes(self) -> float:
        """Bytes of the output head on a device."""
        return 2 * self.model.d_model * self.model.vocab_size / self.tp

    @functools.cached_property
    def weight_bytes(self) -> float:
        """Bytes of all weights on a device, the draft's too."""
        model = self.model
        matrices = sum(
            times * matrix.params
            for block, times in model.kinds.items()
            for layer in block.layers
            for matrix in layer.matrices(model.d_model)
        )
        dense, experts = self.matrix_bytes
        rest = 2 * (model.params_non_embedding - matrices) + 2 * model.params_embedding / self.tp
        return (dense + sum(size for size, _ in experts) + rest) * (1 + self.draft)

    def cache_bytes(self, tokens: float) -> float:
        """Bytes on a device of one sequence of `tokens`."""
        value_bytes = 2.0 if self.cache.cached else self.cache.bytes
        return sum(
            times * block.cache_bytes(tokens, value_bytes, self.cache.cached) / min(self.tp, block.mixer.cache_pieces)
            for block, times in self.model.kinds.items()
        )

    @property
    def cache_room(self) -> float:
        """Bytes that a device has left for caches; negative when the weights do not fit."""
        return (1 - SPARE) * self.device.memory_bytes - self.weight_bytes

    def read_bytes(self, tokens: float) -> float:
        """Bytes of weights that a device reads for a step of `tokens`, head included.

        Of experts those that some token meets: a share 1-(1-k/E)^tokens of them, tokens choosing independently.
        """
        dense, experts = self.matrix_bytes
        met = sum(size * (1 - (1 - share) ** tokens) for size, share in experts) if experts else 0.0
        return dense + self.head_bytes + met

    @functools.cached_property
    def rate(self) -> float:
        """FLOP/s of the group in large matrix multiplications, in bf16 where the device has no units for the format."""
        device = self.device
        peak = getattr(device, f"{self.weights.compute}_flops") or device.bf16_flops
        return self.tp * peak * device.sustained

    @functools.cached_property
    def summing(self) -> tuple[float, float]:
        """Seconds of a pass's all-reduces, in all and a token more: one after each mixer and each feed-forward."""
        if self.tp == 1:
            return 0.0, 0.0
        group = Group(self.device, self.tp, self.tp)
        times = sum(times * len(block.layers) for block, times in self.model.kinds.items())
        start = all_reduce(0.0, group)
        return times * start, times * (all_reduce(2 * self.model.d_model, group) - start)

    def seconds(self, flops: float, device_bytes: float, tokens: float) -> float:
        """One pass: the longer of arithmetic and reading, then the all-reduces of `tokens` x d_model values."""
        start, each = self.summing
        found = max(flops / self.rate, device_bytes / self.device.memory_bandwidth)
        return (found + start + tokens * each) / self.reached

    def prefill_seconds(self, prompts: int, length: int, flops: float, cache_bytes: float) -> float:
        """Reading `prompts` prompts of `length` tokens at once, `flops` and `cache_bytes` each."""
        tokens = prompts * length
        return self.seconds(prompts * flops, self.read_bytes(tokens) + prompts * cache_bytes, tokens)

    def decode_seconds(self, batch: int, flops: float, cache_bytes: float, drafted: int = 0) -> float:
        """One step of `batch` sequences: `drafted` steps of the draft, then a pass over `drafted` + 1 tokens of each.

        `flops` and `cache_bytes` are those of a token and of a sequence. The verifying pass reads a cache once.
        """
        passed = batch * (drafted + 1)
        step = self.seconds(passed * flops, self.read_bytes(passed) + batch * cache_bytes, passed)
        if not drafted:
            return step
        plain = self.seconds(batch * flops, self.read_bytes(batch) + batch * cache_bytes, batch)
        return step + drafted * self.draft * plain


@dataclass(frozen=True)
class Serving:
    """How a model is served, and what that costs. Rates are tokens/s of one device; times are seconds.

    `devices` is the whole number of them that the demand needs, prompts and answers on groups of `tp` of their own;
    `dollars` pays for the device-hours that are worked, over the horizon. `limit` is what bounds the batch.
    """

    tp: int
    batch: int
    drafted: int
    ttft: float
    tpot: float
    prompt_rate: float
    answer_rate: float
    dollars_per_million_prompt: float
    dollars_per_million_answer: float
    dollars_per_token: float
    dollars: float
    devices: int
    limit: Literal["memory", "latency"]

    def to_json(self) -> dict[str, Any]:
        """Plain values under the field names."""
        return asdict(self)


def serve(
    model: Decoder,
    device: Device,
    demand: Demand,
    *,
    weights: str = "bf16",
    cache: str = "bf16",
    speculation: Speculation | None = None,
) -> Serving:
    """The cheapest way to serve `demand`: over groups of 1, 2, 4 ... devices of a node, batches and drafts.

    Modules for multi-token prediction are left out, as they may be (arXiv 2412.19437, sec. 2.2).
    Raises UserError when the device has no price, when the model fits no group of a node (by how many bytes, and what
    would fit), or when no batch meets the latency limits (with the best that is reachable).
    """
    if device.dollars_per_hour is None:
        raise UserError(f"nobody knows the price of {device.name}: give its dollars per hour to plan what it serves")
    if model.mtp is not None:
        model = replace(model, mtp=None)
    stored, cached = format_named(weights), format_named(cache)
    found, plain = [], [Replica(model, device, tp, stored, cached) for tp in degrees(device)]
    for draft in (None, speculation) if speculation else (None,):
        replicas = [replace(replica, draft=draft.draft_cost) for replica in plain] if draft else plain
        room = [replica for replica in replicas if replica.cache_room >= _held(replica, demand)]
        found += [way for replica in room for way in ways(replica, demand, draft)]
    if not found:
        raise UserError(_does_not_fit(plain[-1], demand, weights))
    meets = [way for way in found if _in_time(way, demand)]
    if not meets:
        raise UserError(_too_slow(found, device, demand))
    return min(meets, key=lambda way: way.dollars)


def degrees(device: Device) -> list[int]:
    """Sizes of tensor-parallel groups within a node: 1, 2, 4 ... devices, as far as there is a link between them."""
    most = device.node_devices if device.link_bandwidth else 1
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


def _held(replica: Replica, demand: Demand) -> float:
    """Bytes a sequence's cache holds on a device: halfway through its answer, its prompt shared by the samples."""
    prompt = replica.cache_bytes(demand.prompt_tokens)
    own = replica.cache_bytes(demand.position) - prompt
    return (prompt / demand.samples + own) * (1 + replica.draft)


def ways(replica: Replica, demand: Demand, speculation: Speculation | None) -> list[Serving]:
    """Serving on this group with every length of draft: the largest batch in time, or a single sequence."""
    length = demand.prompt_tokens
    prompt = (
        length * replica.model.prefill_flops(length) + replica.model.logit_flops,
        replica.cache_bytes(length),
    )
    prompts, ttft = _prefill(replica, length, *prompt, demand.max_ttft)
    held, limit = _held(replica, demand), demand.max_tpot or math.inf
    token = replica.model.decode_flops(demand.position), replica.cache_bytes(demand.position)
    most = int(replica.cache_room / held)
    found, fastest = [], 0.0
    for drafted in range(1, MOST_DRAFTED + 1) if speculation else (0,):
        gained = tokens_per_pass(speculation.acceptance, drafted) if speculation else 1.0
        if most * gained / replica.decode_seconds(most, *token, drafted) <= fastest:
            continue  # slower than what is found even without a limit
        batch = _largest(most, lambda b: replica.decode_seconds(b, *token, drafted) <= limit * gained)  # noqa: B023
        tpot = replica.decode_seconds(batch, *token, drafted) / gained
        fastest = max(fastest, batch / tpot if tpot <= limit else 0.0)
        bound = "memory" if batch == most else "latency"
        found.append(_priced(replica, demand, (prompts, ttft), (batch, tpot), drafted, bound))
    return found


def _prefill(replica: Replica, length: int, flops: float, cache_bytes: float, limit: float | None) -> tuple[int, float]:
    """Prompts read at once, and the seconds: as many as make the pass bound by arithmetic, within the limit."""
    spare = flops / replica.rate - cache_bytes / replica.device.memory_bandwidth
    weights = replica.read_bytes(length) / replica.device.memory_bandwidth
    most = max(1, math.ceil(weights / spare)) if spare > 0 else 1
    within = limit or math.inf
    prompts = _largest(most, lambda n: replica.prefill_seconds(n, length, flops, cache_bytes) <= within)
    return prompts, replica.prefill_seconds(prompts, length, flops, cache_bytes)


def _largest(most: int, fits: Any) -> int:
    """The largest number up to `most` that `fits`, which smaller ones do too; 1 where none does."""
    if fits(most):
        return most
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _priced(
    replica: Replica,
    demand: Demand,
    prefill: tuple[int, float],
    decode: tuple[int, float],
    drafted: int,
    limit: Literal["memory", "latency"],
) -> Serving:
    (prompts, ttft), (batch, tpot) = prefill, decode
    prompt_rate = prompts * demand.prompt_tokens / ttft / replica.tp
    answer_rate = batch / tpot / replica.tp
    price = replica.device.dollars_per_hour / 3600
    prompt_work = demand.prompt_tokens / prompt_rate
    answer_work = demand.samples * demand.answer_tokens / answer_rate
    a_second = demand.questions / demand.days / 86400
    groups = sum(math.ceil(a_second * work / replica.tp) for work in (prompt_work, answer_work))
    dollars = demand.questions * (prompt_work + answer_work) * price
    return Serving(
        tp=replica.tp,
        batch=batch,
        drafted=drafted,
        ttft=ttft,
        tpot=tpot,
        prompt_rate=prompt_rate,
        answer_rate=answer_rate,
        dollars_per_million_prompt=1e6 * price / prompt_rate,
        dollars_per_million_answer=1e6 * price / answer_rate,
        dollars_per_token=dollars / demand.tokens,
        dollars=dollars,
        devices=groups * replica.tp,
        limit=limit,
    )


def _in_time(way: Serving, demand: Demand) -> bool:
    return way.ttft <= (demand.max_ttft or math.inf) and way.tpot <= (demand.max_tpot or math.inf)


def _too_slow(found: list[Serving], device: Device, demand: Demand) -> str:
    """Which limit nothing meets, and the best there is."""
    for name, limit in (("ttft", demand.max_ttft), ("tpot", demand.max_tpot)):
        best = min(found, key=lambda way: getattr(way, name))
        if limit and getattr(best, name) > limit:
            kind = {"ttft": "first token", "tpot": "time per output token"}[name]
            return (
                f"no batch on {device.name} meets a {kind} of {1e3 * limit:.3g} ms: the best is "
                f"{1e3 * getattr(best, name):.3g} ms on {best.tp} of them; allow that, or take a faster device"
            )
    return (
        f"no group of {device.name} meets both latency limits at once: "
        "allow more time to the first token or per output token"
    )


def _does_not_fit(largest: Replica, demand: Demand, weights: str) -> str:
    """By how many bytes the largest group of a node fails, and what would fit."""
    short = (_held(largest, demand) - largest.cache_room) * largest.tp
    fitting = [
        name
        for name, stored in FORMATS.items()
        if (other := replace(largest, weights=stored)).cache_room >= _held(other, demand)
    ]
    more = 2
    while (wider := replace(largest, tp=largest.tp * more)).cache_room < _held(wider, demand) and more < 1024:
        more *= 2
    cure = f"its weights in {fitting[0]}" if fitting else f"a node of {largest.tp * more} such devices"
    return (
        f"the model with its weights in {weights} and one sequence of {demand.position:.0f} tokens lacks {short:.4g} "
        f"bytes on {largest.tp} x {largest.device.name}; {cure} would fit"
    )
