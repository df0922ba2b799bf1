"""Bytes that micro-batches leave on one device between their forward and their backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.budget.layout import Job, Layout
from nachim.budget.states import VALUE_BYTES
from nachim.spec import MoE
from nachim.spec.activations import Recompute
from nachim.spec.cost import Layer
from nachim.spec.model import Block

CAPACITY = 1.25
"""Tokens that the experts of one device are prepared for, over the mean: the larger of the capacity factors that suit
Switch Transformers (arXiv 2101.03961, sec. 2.2). Where one device has all experts their loads add up to the mean."""

WHOLE_LOGITS, CHUNK_LOGITS = 2**24, 2**21
"""The most logits that the loss makes at once, and how many where there are more."""


@dataclass(frozen=True)
class Kept:
    """Bytes of one micro-batch in one layer: `stored` until its backward pass, then `remade`, and `working` beside.

    `working` is for gradients of the values between: half of what the larger part of the layer keeps. On the way back
    through a gated feed-forward 2 d_ff + d_model values stand beyond what it kept (of which its output and its
    gates are gone by then), and that is half of its 4 d_ff + 2 d_model; the bench measures how well the rule does.
    """

    stored: float
    remade: float
    working: float


def tokens_at_once(job: Job, layout: Layout) -> float:
    """Tokens of one micro-batch on one device."""
    return layout.micro_batch * job.seq_len / layout.cp


def kept(block: Block, job: Job, layout: Layout, kind: str, grade: Recompute | None = None) -> Kept:
    """What one layer keeps of one micro-batch when `grade` of it, by default `layout.recompute`, is made again.

    Without recomputation all that its parts declare; selective recomputation drops what is cheap to make again; full
    recomputation keeps the layer's input alone (arXiv 2205.05198, sec. 4 and 5).
    """
    tokens = tokens_at_once(job, layout) * block.share
    parts = [_part(layer, job, layout, kind) for layer in block.layers]
    after = _after_norms(block, job, layout)
    whole = tokens * (sum(part[0] for part in parts) + after)
    cheap = tokens * sum(part[1] for part in parts)
    working = tokens * max(part[0] for part in parts) / 2
    grade = grade or layout.recompute
    if grade == "full":
        start = row_bytes(job, layout) * tokens
        return Kept(start, whole - start, working)
    if grade == "selective":
        return Kept(whole - cheap, cheap, working)
    return Kept(whole, 0.0, working)


def _part(layer: Layer, job: Job, layout: Layout, kind: str) -> tuple[float, float]:
    """Bytes a token of one part: all that it keeps, and the part of that which is cheap to make again."""
    value, ways = VALUE_BYTES[job.precision], whole_ways(layout)
    saved = layer.saved(job.model.d_model)
    everything = value * (saved.whole / ways + saved.split / layout.tp)
    cheap = value * (saved.cheap_whole / ways + saved.cheap_split / layout.tp)
    if layout.ep > 1 and isinstance(layer, MoE):
        routed = layer.routed(job.model.d_model)
        everything += (CAPACITY - 1) * value * (routed.whole / ways + routed.split / layout.tp)
        cheap += (CAPACITY - 1) * value * routed.cheap_split / layout.tp
    norms = norm_bytes(job.model.d_model, value, kind) / ways + saved.normed * _twice(value, kind) / layout.tp
    return everything + norms, cheap + norms


def norm_bytes(width: float, value: int, kind: str) -> float:
    """Bytes a token that a norm of `width` keeps beyond its input and its output.

    Torch's RMSNorm is several kernels on a CPU: they keep the normalised values in fp32, and below fp32 an fp32 copy of
    the input in its place. One kernel elsewhere keeps nothing more.
    """
    extra = _twice(value, kind)
    return width * (extra - value if extra and value < 4 else extra)


def _twice(value: int, kind: str) -> int:
    """Bytes a value of the normalised values, and of the fp32 copy of a norm's input where that is not fp32."""
    if kind != "cpu":
        return 0
    return 4 if value == 4 else 8


def _after_norms(block: Block, job: Job, layout: Layout) -> float:
    """Bytes a token of the inputs of norms after sublayers."""
    return len(block.layers) * job.model.residual.after * row_bytes(job, layout)


def row_bytes(job: Job, layout: Layout) -> float:
    """Bytes a token of the residual stream."""
    return job.model.d_model * VALUE_BYTES[job.precision] / whole_ways(layout)


def whole_ways(layout: Layout) -> int:
    """Into how many parts sequence parallelism cuts what tensor parallelism leaves whole."""
    return layout.tp if layout.sequence_parallel else 1


def head_bytes(job: Job, layout: Layout, kind: str) -> float:
    """Bytes that the last norm and the head keep of one micro-batch: their inputs."""
    extra = norm_bytes(job.model.d_model, VALUE_BYTES[job.precision], kind) / whole_ways(layout)
    return tokens_at_once(job, layout) * (2 * row_bytes(job, layout) + extra)


def joining_bytes(job: Job, layout: Layout, kind: str) -> float:
    """Bytes that multi-token prediction keeps of one micro-batch before its blocks: for each module the normalised
    stream, the embedded token, and both, normalised once more, side by side."""
    if job.model.mtp is None:
        return 0.0
    extra = norm_bytes(job.model.d_model, VALUE_BYTES[job.precision], kind) / whole_ways(layout)
    return job.model.mtp.depth * tokens_at_once(job, layout) * (4 * row_bytes(job, layout) + 3 * extra)


def logit_bytes(job: Job, layout: Layout, in_flight: float) -> float:
    """Bytes of the loss at its fullest; tensor parallelism cuts the vocabulary.

    Up to `WHOLE_LOGITS` stand at once: at the start of the backward pass the fp32 log-probabilities of every pass in
    flight (`kept_logit_bytes`), and of one the gradient on them and that of the logits. More come a `CHUNK_LOGITS` at a
    time, while the gradients of the head and of its input are summed.
    """
    tokens, vocab = tokens_at_once(job, layout), job.model.vocab_size / layout.tp
    stay = kept_logit_bytes(job, layout, in_flight)
    if tokens * vocab <= WHOLE_LOGITS:
        return stay + tokens * vocab * 4 * 2
    value, head = VALUE_BYTES[job.precision], vocab * job.model.d_model
    cast = value * (value < 4)
    chunk = CHUNK_LOGITS * (4 + 4 + cast)
    product = CHUNK_LOGITS * (4 + value) + value * head * (value < 4)
    return stay + max(chunk, product, cast * head)


def kept_logit_bytes(job: Job, layout: Layout, passes: float) -> float:
    """Bytes that `passes` of micro-batches through the head keep of the loss until their backward pass: fp32
    log-probabilities, or, where these are too many, the gradients of the head, in fp32, and of its input."""
    tokens, vocab = tokens_at_once(job, layout), job.model.vocab_size / layout.tp
    if tokens * vocab <= WHOLE_LOGITS:
        return passes * tokens * vocab * 4
    width = job.model.d_model
    return passes * (4 * vocab * width + tokens * width * VALUE_BYTES[job.precision])
