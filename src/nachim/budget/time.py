"""Seconds of a training step: a roofline for every part, collectives on the device graph, the pipeline's bubble.

Seven numbers say what software makes of hardware, for all models and devices alike. Three of them, `MATMUL`,
`TENSOR_HIDDEN` and `DATA_HIDDEN`, were calibrated on eight of the published runs that bench/published_throughput.py
replays; docs/throughput.md shows these and the others, which were held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nachim.budget.collective import all_gather, all_reduce, all_to_all, group, reduce_scatter, send
from nachim.budget.layout import Job, Layout, PipelineSchedule, Recompute
from nachim.budget.step_cost import orthogonal_flops
from nachim.spec import MLA, Attention, Block, Cluster, Matrix

MATMUL = 0.75
"""Share of a device's lasting matrix rate that the matrices of a training run reach; calibrated."""
ATTENTION = 0.5
"""The same for causal attention, forward and backward: 165 to 190 of 271 TFLOP/s on A100 (FlashAttention-2, arXiv
2307.08691, fig. 4), 300 (the same kernels) to 500 (FlashAttention-3, arXiv 2407.08608, fig. 5 and 6) of 755 on H100."""
BANDWIDTH = 0.9
"""Share of the memory's bandwidth that large copies reach: 3.02 of 3.35 TB/s on H100."""
TRAFFIC = {True: 2.25, False: 7.5}
"""Transfers of every kept value outside matrix multiplications, forward and backward, counted over the kernels of a
Llama block: 49 d for 21.75 d kept values where a compiler fuses them, 3.3 times that one by one in eager torch."""
LOGIT_BYTES = 26
"""Bytes moved for a logit: 2 written and read, 4 in fp32 written and read twice, its gradient likewise in both."""
TENSOR_HIDDEN = 0.9
"""Share of tensor-parallel traffic that multiplications hide once sequence parallelism cuts it into gathers and
scatters (asynchronous tensor parallelism; --tp-comm-overlap of Megatron-LM); calibrated. Without it nothing is."""
DATA_HIDDEN = 0.5
"""The same for what ZeRO-2 and 3 move for every micro-batch: it runs behind the multiplications of other layers, but
its kernels, and copies into and out of flat buffers, take processors and bandwidth from them; calibrated. What moves
once a step hides but for one layer's share."""

ATTENTION_PASSES = 3.5
"""Backward is 2.5 forward passes: the scores are made again (arXiv 2307.08691, sec. 4.1)."""
GRADIENT_BYTES, HOST_LINK, HOST_MEMORY = 4, 25e9, 100e9
OPTIMIZER_BYTES = {"adamw": 30, "adamw8bit": 18, "muon": 22, "schedule-free": 40}
"""Bytes moved for a parameter: gradient read twice (clipping), master weight and moments read and written, weight
written; schedule-free writes the weight once more, between the average and the iterate that it reads for it."""


class Split(Protocol):
    """What a step's time depends on in a layout; the search hands in lighter values than `Layout`."""

    dp: int
    tp: int
    pp: int
    cp: int
    ep: int
    zero: int
    micro_batch: int
    schedule: PipelineSchedule
    virtual: int
    recompute: Recompute
    sequence_parallel: bool
    offload: bool


@dataclass(frozen=True)
class StepTime:
    """One optimizer step: `seconds` are the sum of the parts up to `optimizer`, on the slowest stage of the pipeline.

    Both MFUs are shares of the peak of the job's precision. `mfu` counts M and the head (arXiv 2401.02954, eq. 2),
    `mfu_palm` 6 FLOP for every active parameter, embeddings included, and attention over the whole context (arXiv
    2204.02311, app. B).
    """

    matmul: float
    attention: float
    memory: float
    recompute: float
    communication: float
    bubble: float
    optimizer: float
    tokens_per_second: float
    mfu: float
    mfu_palm: float

    @property
    def compute(self) -> float:
        """Seconds that the device works on the model: all but waiting and the optimizer."""
        return self.matmul + self.attention + self.memory + self.recompute

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return self.compute + self.communication + self.bubble + self.optimizer


class Work(NamedTuple):
    """Seconds of one micro-batch through all layers; what recomputation repeats stands beside its part."""

    matmul: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    forward: float = 0.0
    cheap: float = 0.0
    exchange: float = 0.0
    exchange_again: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> Work:
        """All of it `factor` times."""
        return Work(*(factor * part for part in self))


def bubble_share(schedule: PipelineSchedule, stages: int, micro_batches: int, virtual: int = 1) -> float:
    """Idle over busy time of a stage: (p - 1) / m for GPipe and 1F1B alike, a `virtual`th of it interleaved.

    arXiv 2104.04473, sec. 2.2; zero-bubble is ZB-H1, a third of 1F1B (arXiv 2401.10241, sec. 2.3, equal thirds of
    forward and the two halves of backward). The bubble's share of the whole is (p - 1) / (m + p - 1).
    """
    kept = {"gpipe": 1.0, "1f1b": 1.0, "interleaved": 1 / virtual, "zero-bubble": 1 / 3}[schedule]
    return kept * (stages - 1) / micro_batches


def step_time(job: Job, layout: Layout, cluster: Cluster, fused: bool = True) -> StepTime:
    """Time of one step of `job` on `cluster`; `fused` says whether a compiler merges the small kernels.

    Raises UserError when the device lacks units for the job's precision or a link that the layout needs.
    """
    return Clock(job, cluster, fused).step(layout)


class Clock:
    """Step times of one job on one cluster: what its layouts have in common is worked out once."""

    def __init__(self, job: Job, cluster: Cluster, fused: bool = True) -> None:
        self.job, self.cluster, self.fused = job, cluster, fused
        device, model = cluster.device, job.model
        self.value_bytes = 4 if job.precision == "fp32" else 2
        plain = "fp32" if job.precision == "fp32" else "bf16"
        self.rate = device.peak(job.precision) * device.sustained * MATMUL
        self.head_rate = device.peak(plain) * device.sustained * MATMUL
        self.mixing_rate = device.peak(plain) * device.sustained * ATTENTION
        self.bandwidth = device.memory_bandwidth * BANDWIDTH
        self.flops = model.flops_per_token(job.seq_len) + model.head_flops_per_token
        self.flops_palm = 6 * model.params_active + 3 * model.trained_mixing_flops(job.seq_len)
        self.muon = orthogonal_flops(model) if job.optimizer == "muon" else 0.0
        self._work: dict[tuple[object, ...], Work] = {}
        self._heads: dict[tuple[object, ...], Work] = {}
        self._params: dict[tuple[int, int, int], tuple[float, float]] = {}
        self._replicas: dict[tuple[int, ...], tuple[float, float]] = {}

    def step(self, layout: Split) -> StepTime:
        """Time of one step in `layout`."""
        job = self.job
        micro_batches = max(1, round(job.batch / (layout.dp * layout.micro_batch)))
        layers, head = self.layers(layout), self.head(layout)
        stage = layers.times(-(-job.model.n_layers // layout.pp) / job.model.n_layers) + head
        again = {"none": 0.0, "selective": stage.cheap, "full": stage.forward}[layout.recompute]
        exchange = stage.exchange + self.pipeline(layout)
        if layout.recompute == "full":
            exchange += stage.exchange_again
        busy = stage.matmul + stage.attention + stage.memory + again
        waits = bubble_share(layout.schedule, layout.pp, micro_batches, layout.virtual)
        bubble = waits * micro_batches * (busy + exchange)
        data = self.data(layout, micro_batches, busy)
        optimizer = self.optimizer(layout, micro_batches * busy)
        seconds = micro_batches * (busy + exchange) + data + bubble + optimizer
        tokens = micro_batches * layout.dp * layout.micro_batch * job.seq_len
        devices = layout.dp * layout.tp * layout.pp * layout.cp
        speed = tokens / seconds / devices
        peak = self.cluster.device.peak(job.precision)
        return StepTime(
            matmul=micro_batches * stage.matmul,
            attention=micro_batches * stage.attention,
            memory=micro_batches * stage.memory,
            recompute=micro_batches * again,
            communication=micro_batches * exchange + data,
            bubble=bubble,
            optimizer=optimizer,
            tokens_per_second=speed,
            mfu=speed * self.flops / peak,
            mfu_palm=speed * self.flops_palm / peak,
        )

    def layers(self, layout: Split) -> Work:
        """One micro-batch through all layers, three passes."""
        key = (layout.tp, layout.cp, layout.ep, layout.micro_batch, layout.sequence_parallel)
        if key not in self._work:
            kinds = self.job.model.kinds.items()
            self._work[key] = sum((self._block(block, layout).times(times) for block, times in kinds), start=Work())
        return self._work[key]

    def _block(self, block: Block, layout: Split) -> Work:
        job, d_model = self.job, self.job.model.d_model
        tokens = block.share * layout.micro_batch * job.seq_len / layout.cp
        matrices = [matrix for layer in block.layers for matrix in layer.matrices(d_model)]
        multiply = sum(self.multiply(matrix, tokens, layout) for matrix in matrices)
        length = max(1.0, block.share * job.seq_len)
        mixing = tokens * block.mixer.mixing_flops(length, causal=True) / layout.tp / self.mixing_rate
        passes = ATTENTION_PASSES if isinstance(block.mixer, (Attention, MLA)) else 3
        whole, split, cheap = self._kept(block, layout)
        moved = TRAFFIC[self.fused] * self.value_bytes * tokens / self.bandwidth
        casts = sum(self.cast(matrix, tokens, layout) for matrix in matrices) if job.precision == "fp8" else 0.0
        memory = moved * (whole + split) + casts
        tensor, again = self._tensor(block, tokens, layout)
        context = max(0.0, self._context(block, layout) - passes * mixing)
        return Work(
            matmul=3 * multiply,
            attention=passes * mixing,
            memory=memory,
            forward=multiply + mixing + memory / 3,
            cheap=moved / 2 * cheap,
            exchange=tensor + context + self._experts(matrices, tokens, layout),
            exchange_again=again,
        )

    def multiply(self, matrix: Matrix, tokens: float, layout: Split, rate: float | None = None) -> float:
        """Seconds of one pass of `tokens` through `matrix`: arithmetic or memory, whichever takes longer."""
        ways = min(layout.tp, matrix.pieces or layout.tp) if matrix.split else 1
        rows = matrix.rows / (ways if matrix.split == "rows" else 1)
        columns = matrix.columns / (ways if matrix.split == "columns" else 1)
        values = tokens * matrix.used * (rows + columns) + matrix.params_on_device(layout.tp, layout.ep)
        flops = 2 * tokens * matrix.used * rows * columns
        return max(flops / (rate or self.rate), self.value_bytes * values / self.bandwidth)

    def cast(self, matrix: Matrix, tokens: float, layout: Split) -> float:
        """Seconds of making fp8 of a matrix and what meets it: read for the maximum, read, written, and transposed."""
        ways = min(layout.tp, matrix.pieces or layout.tp) if matrix.split else 1
        rows = matrix.rows / (ways if matrix.split == "rows" else 1)
        columns = matrix.columns / (ways if matrix.split == "columns" else 1)
        values = tokens * matrix.used * (rows + columns) + matrix.params_on_device(layout.tp, layout.ep)
        return 7 * values / self.bandwidth

    def _kept(self, block: Block, layout: Split) -> tuple[float, float, float]:
        """Values of a token that a device keeps: whole, split by tensor parallelism, and the cheap ones of both."""
        whole = split = cheap = 0.0
        for layer in block.layers:
            saved = layer.saved(self.job.model.d_model)
            ways = layout.tp if layout.sequence_parallel else 1
            whole += saved.whole / ways
            split += saved.split / layout.tp
            cheap += saved.cheap_whole / ways + saved.cheap_split / layout.tp
        return whole, split, cheap

    def _tensor(self, block: Block, tokens: float, layout: Split) -> tuple[float, float]:
        """Exposed tensor-parallel traffic of a block, and of its forward pass alone (arXiv 1909.08053, sec. 3).

        An all-reduce forward and one backward for each part; with sequence parallelism a gather and a scatter each, and
        another gather backward (arXiv 2205.05198, sec. 4.2.2).
        """
        if layout.tp == 1:
            return 0.0, 0.0
        size = tokens * self.job.model.d_model * self.value_bytes
        once = len(block.layers) * all_reduce(size, group(self.cluster, layout.tp))
        if not layout.sequence_parallel:
            return 2 * once, once
        return (1 - TENSOR_HIDDEN) * 2.5 * once, (1 - TENSOR_HIDDEN) * once

    def _context(self, block: Block, layout: Split) -> float:
        """Keys and values, or a state, around the ring of context parallelism (arXiv 2310.01889), three passes."""
        if layout.cp == 1:
            return 0.0
        mixer = block.mixer
        held = mixer.cache_bytes(self.job.seq_len, self.value_bytes) / layout.cp / min(layout.tp, mixer.cache_pieces)
        size = layout.micro_batch * held
        return 3 * (layout.cp - 1) * send(size, group(self.cluster, layout.cp, layout.tp))

    def _experts(self, matrices: list[Matrix], tokens: float, layout: Split) -> float:
        """Tokens sent to their experts and back, forward and backward (arXiv 2006.16668, sec. 3.2); none is hidden."""
        used = next((matrix.used for matrix in matrices if matrix.expert), 0)
        if layout.ep == 1 or not used:
            return 0.0
        size = tokens * used * self.job.model.d_model * self.value_bytes
        return 4 * all_to_all(size, group(self.cluster, layout.ep, layout.tp))

    def head(self, layout: Split) -> Work:
        """One micro-batch through the output head and the loss, and what multi-token prediction has beside them on the
        last stage, three passes."""
        key = (layout.tp, layout.cp, layout.ep, layout.micro_batch, layout.sequence_parallel)
        if key not in self._heads:
            model = self.job.model
            tokens = layout.micro_batch * self.job.seq_len / layout.cp
            matrix = Matrix(model.d_model, model.vocab_size, split="columns")
            head = Work(
                matmul=3 * self.multiply(matrix, tokens, layout, self.head_rate),
                memory=tokens * model.vocab_size / layout.tp * LOGIT_BYTES / self.bandwidth,
            )
            if model.mtp is not None:
                joining = self.multiply(model.mtp.matrix(model.d_model), tokens, layout)
                further = head + self._block(model.blocks[-1], layout) + Work(matmul=3 * joining, forward=joining)
                head += further.times(model.mtp.depth)
            self._heads[key] = head
        return self._heads[key]

    def pipeline(self, layout: Split) -> float:
        """Activations to the next stage and their gradients back, for every chunk of layers."""
        if layout.pp == 1:
            return 0.0
        tokens = layout.micro_batch * self.job.seq_len / layout.cp
        size = tokens * self.job.model.d_model * self.value_bytes / (layout.tp if layout.sequence_parallel else 1)
        stride = layout.tp * layout.cp * layout.dp
        return 2 * layout.virtual * send(size, group(self.cluster, layout.pp, stride))

    def params(self, layout: Split) -> tuple[float, float]:
        """Parameters on the fullest stage that every replica holds, and those of experts."""
        key = (layout.tp, layout.ep, layout.pp)
        if key not in self._params:
            model, ways = self.job.model, (layout.tp, layout.ep)
            tables = 1 if model.tied or (layout.pp > 1 and model.mtp is None) else 2
            dense, experts = tables * model.vocab_size * model.d_model / layout.tp, 0.0
            if model.mtp is not None:
                dense += model.mtp.depth * model.mtp.matrix(model.d_model).params_on_device(*ways)
            for block, times in model.trained_kinds.items():
                further = times - model.kinds[block]
                for matrix in (matrix for layer in block.layers for matrix in layer.matrices(model.d_model)):
                    held = (model.kinds[block] / layout.pp + further) * matrix.params_on_device(*ways)
                    dense, experts = (dense, experts + held) if matrix.expert else (dense + held, experts)
            self._params[key] = dense, experts
        return self._params[key]

    def data(self, layout: Split, micro_batches: int, busy: float) -> float:
        """Gradients summed and weights gathered over the replicas: what `busy` seconds of a micro-batch cannot hide.

        ZeRO-1 scatters gradients and gathers weights once a step, stage 2 scatters after every micro-batch, stage 3
        gathers twice as well (arXiv 1910.02054, sec. 7). One layer's share has nothing to hide behind.
        """
        if layout.dp * layout.cp == 1:
            return 0.0
        scatter, gather = self.replicas(layout)
        once, each = {
            0: (2 * scatter, 0.0),
            1: (scatter + gather, 0.0),
            2: (gather, scatter),
            3: (0.0, scatter + 2 * gather),
        }[layout.zero]
        first = layout.pp / self.job.model.n_layers
        bare = max(first, 1 - DATA_HIDDEN)
        return max(once - busy, first * once) + micro_batches * max(each - busy, bare * each)

    def replicas(self, layout: Split) -> tuple[float, float]:
        """Seconds of scattering all gradients, and of gathering all weights, over the replicas of both."""
        key = (layout.tp, layout.pp, layout.cp, layout.ep, layout.dp)
        if key not in self._replicas:
            scatter = gather = 0.0
            for params, share in zip(self.params(layout), (1, layout.ep), strict=True):
                among = group(self.cluster, layout.dp * layout.cp // share, layout.tp * share)
                scatter += reduce_scatter(GRADIENT_BYTES * params, among)
                gather += all_gather(self.value_bytes * params, among)
            self._replicas[key] = scatter, gather
        return self._replicas[key]

    def optimizer(self, layout: Split, busy: float) -> float:
        """Reading and writing the optimizer's state, Muon's iterations, and the way to the host and back."""
        dense, experts = self.params(layout)
        cut = layout.dp * layout.cp if layout.zero else 1
        held = dense / cut + experts / max(1, cut // layout.ep)
        moved = OPTIMIZER_BYTES[self.job.optimizer] * held
        orthogonal = self.muon / (layout.tp * layout.pp * cut) / self.head_rate
        if not layout.offload:
            return moved / self.bandwidth + orthogonal
        kept = self.job.seq_len * self.job.batch / (layout.dp * layout.cp) * self.job.model.d_model * self.value_bytes
        blocks = 2 * kept * self.job.model.n_layers / layout.pp / HOST_LINK
        state = held * (GRADIENT_BYTES + self.value_bytes) / HOST_LINK
        return state + moved / HOST_MEMORY + orthogonal + max(0.0, blocks - busy)
