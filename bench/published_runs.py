"""Published training runs: the machine, the model, the layout and the tokens/s of one device that their sources give.

Where a source leaves something open, the choice is said here: torchtitan's pipelines take as many micro-batches as
stages (its default at that commit), Megatron-LM's 2024 table one sequence at a time, and its four runs with one
pipeline stage alone are taken, because the number of chunks of the others is not given. "half" stands for
torchtitan's selective recomputation, which makes every second matrix multiplication again.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass

from nachim.budget.device import DEVICES
from nachim.budget.layout import Job, Layout
from nachim.budget.time import step_time
from nachim.spec import MLP, Attention, Cluster, Decoder, LayerNorm, Learned, SwiGLU

CAPPED = ((500 - 150) / (700 - 150)) ** (1 / 3)
"""Clock of an H100 held at 500 of 700 W: power grows with its cube above the 150 W that memory and leakage draw."""
A100, A100_40, H100, H200 = (DEVICES[name] for name in ("A100-80GB", "A100-40GB", "H100", "H200"))
TETON = dataclasses.replace(
    H100, name="H100 500 W HBM2e", memory_bytes=96e9, memory_bandwidth=2.4e12, sustained=H100.sustained * CAPPED
)
ROCE = dataclasses.replace(A100, name="A100-80GB 1.6 Tb/s")
SLOW_A100 = dataclasses.replace(A100, name="A100-80GB 0.4 Tb/s", network_bandwidth=6.25e9)
SLOW_H100 = dataclasses.replace(H100, name="H100 0.8 Tb/s", network_bandwidth=12.5e9)

TITAN = "torchtitan benchmarks/llama3_h100_202412_torchtitan.md"
TITAN_A100 = "torchtitan docs/performance.md (commit 0413364)"
TITAN_H200 = "torchtitan benchmarks/llama3_8b_h200_2025-06_torchtitan.md"
OLMO = "OLMo-core 1.2.0 README (pypi.org/project/ai2-olmo-core/1.2.0)"
FOUNDRY = "llm-foundry scripts/train/benchmarking/README.md"
MEGATRON = "Megatron-LM images/model_table.png (2024)"
SELENE = "Megatron-LM README of May 2022, arXiv 2205.05198 sec. 6.3"
NEMO = "NeMo 24.07 docs, performance benchmarks"
NEMO_LATER = "Megatron Bridge docs, performance summary 25.09"
FMS = "fms-fsdp README (github.com/foundation-model-stack/fms-fsdp)"


@dataclass(frozen=True)
class Row:
    """One published run. `half` says that half of the forward pass is made again (every second matrix or block)."""

    source: str
    label: str
    cluster: Cluster
    job: Job
    layout: Layout
    published: float
    fused: bool = True
    half: bool = False
    calibration: bool = False

    def predicted(self) -> float:
        """Tokens/s of one device."""
        if not self.half:
            return step_time(self.job, self.layout, self.cluster, self.fused).tokens_per_second
        both = [dataclasses.replace(self.layout, recompute=recompute) for recompute in ("selective", "full")]
        return statistics.harmonic_mean(
            step_time(self.job, layout, self.cluster, self.fused).tokens_per_second for layout in both
        )


def llama(d_model: int, n_layers: int, d_ff: int, vocab: int, kv: int | None = None) -> Decoder:
    heads = d_model // 128
    attention = Attention(n_heads=heads, n_kv_heads=kv or heads, d_head=128)
    return Decoder(vocab_size=vocab, d_model=d_model, n_layers=n_layers, attention=attention, ffn=SwiGLU(d_ff=d_ff))


def gpt(d_model: int, n_layers: int, vocab: int, heads: int, seq_len: int = 2048, tied: bool = True) -> Decoder:
    return Decoder(
        vocab_size=vocab,
        d_model=d_model,
        n_layers=n_layers,
        attention=Attention(n_heads=heads, n_kv_heads=heads, d_head=d_model // heads),
        ffn=MLP(d_ff=4 * d_model),
        norm=LayerNorm(),
        position=Learned(length=seq_len),
        tied=tied,
    )


LLAMA3_8B, LLAMA3_70B = llama(4096, 32, 14336, 128256, 8), llama(8192, 80, 28672, 128256, 8)
LLAMA3_405B = llama(16384, 126, 53248, 128256, 8)
LLAMA2_7B, LLAMA2_13B = llama(4096, 32, 11008, 32000), llama(5120, 40, 13824, 32000)
LLAMA2_70B, CODE_34B = llama(8192, 80, 28672, 32000, 8), llama(8192, 48, 22016, 32000, 8)
OLMO_1B, OLMO_7B, OLMO_13B = (
    llama(2048, 18, 5632, 100352),
    llama(4096, 32, 11008, 100352),
    llama(5120, 40, 13824, 100352),
)
MPT = {
    "1b": gpt(2048, 24, 50368, 16),
    "3b": gpt(2560, 32, 50368, 20),
    "7b": gpt(4096, 32, 50368, 32),
    "13b": gpt(5120, 40, 50368, 40),
    "30b": gpt(7168, 48, 50368, 56),
    "70b": gpt(8192, 80, 50368, 64),
}


def job(model: Decoder, seq_len: int, batch: int, precision: str = "bf16") -> Job:
    return Job(model=model, seq_len=seq_len, batch_tokens=seq_len * batch, precision=precision)


def fsdp(devices: int, micro: int, recompute: str = "none", **more: object) -> Layout:
    tp = more.get("tp", 1) * more.get("pp", 1) * more.get("cp", 1)
    return Layout(dp=devices // tp, zero=3, micro_batch=micro, recompute=recompute, **more)


def megatron(devices: int, micro: int = 1, recompute: str = "none", **more: object) -> Layout:
    """Distributed optimizer and sequence parallelism, interleaved wherever there are chunks."""
    tp = more.get("tp", 1)
    schedule = "interleaved" if more.get("virtual", 1) > 1 else "1f1b"
    dp = devices // (tp * more.get("pp", 1) * more.get("cp", 1))
    return Layout(
        dp=dp,
        zero=int(dp > 1),
        micro_batch=micro,
        recompute=recompute,
        schedule=schedule,
        sequence_parallel=tp > 1,
        **more,
    )


def titan() -> list[Row]:
    def row(devices: int, published: float, what: str, **more: object) -> Row:
        work = job(LLAMA3_8B, 8192, 2 * devices, more.pop("precision", "bf16"))
        return Row(
            TITAN,
            f"Llama-3-8B, {what}",
            Cluster(device=TETON, count=devices),
            work,
            fsdp(devices, 2),
            published,
            half=True,
            **more,
        )

    big, huge = Cluster(device=TETON, count=256), Cluster(device=TETON, count=512)
    seventy = fsdp(256, 16, "full", tp=8, sequence_parallel=True)
    four = {"tp": 8, "pp": 8, "sequence_parallel": True}
    return [
        row(8, 6667, "compiled", calibration=True),
        row(8, 5762, "eager", fused=False),
        row(128, 6514, "compiled"),
        row(128, 5605, "eager", fused=False),
        row(8, 8532, "compiled", precision="fp8"),
        row(128, 8380, "compiled", precision="fp8"),
        Row(TITAN, "Llama-3-70B, async TP", big, job(LLAMA3_70B, 8192, 512, "fp8"), seventy, 876),
        Row(
            TITAN,
            "Llama-3-405B, 1F1B",
            huge,
            job(LLAMA3_405B, 8192, 256, "fp8"),
            fsdp(512, 4, "full", **four),
            100,
        ),
        Row(
            TITAN,
            "Llama-3-405B, interleaved",
            huge,
            job(LLAMA3_405B, 8192, 256, "fp8"),
            fsdp(512, 4, "full", schedule="interleaved", virtual=2, **four),
            128,
        ),
        *(
            Row(
                TITAN_H200,
                "Llama-3-8B, compiled",
                Cluster(device=H200, count=devices),
                job(LLAMA3_8B, 8192, 2 * devices, "fp8"),
                fsdp(devices, 2),
                published,
                half=True,
            )
            for devices, published in ((32, 10938), (64, 10753))
        ),
    ]


def titan_a100() -> list[Row]:
    cluster = Cluster(device=A100, count=64)

    def row(label: str, model: Decoder, seq_len: int, micro: int, recompute: str, published: float) -> Row:
        half = recompute == "half"
        layout = fsdp(64, micro, "none" if half else recompute)
        return Row(
            TITAN_A100,
            label,
            cluster,
            job(model, seq_len, 64 * micro),
            layout,
            published,
            fused=False,
            half=half,
            calibration=half and model is LLAMA3_8B,
        )

    return [
        row("Llama-3-8B", LLAMA3_8B, 8192, 1, "half", 2973),
        row("Llama-3-70B", LLAMA3_70B, 8192, 1, "full", 331),
        row("Llama-2-13B", LLAMA2_13B, 4096, 2, "none", 2162),
        row("Llama-2-13B", LLAMA2_13B, 4096, 2, "half", 1904),
        row("Llama-2-70B", LLAMA2_70B, 4096, 2, "full", 353),
    ]


def olmo() -> list[Row]:
    cluster = Cluster(device=H100, count=8)
    return [
        Row(OLMO, "OLMo 1B (45-47 k)", cluster, job(OLMO_1B, 4096, 1024), fsdp(8, 4), 46000),
        Row(OLMO, "OLMo 7B (9.7-10 k)", cluster, job(OLMO_7B, 4096, 1024), fsdp(8, 2), 9850, calibration=True),
        Row(OLMO, "OLMo 13B (4.4-4.6 k)", cluster, job(OLMO_13B, 4096, 2048), fsdp(8, 1), 4500),
    ]


def foundry() -> list[Row]:
    rows = (
        (H100, "1b", 2048, 8, 14, 112, "none", 45455),
        (H100, "3b", 2048, 64, 6, 1152, "none", 22525),
        (H100, "7b", 2048, 8, 6, 48, "none", 10643),
        (H100, "7b", 4096, 8, 16, 256, "full", 8611),
        (H100, "13b", 2048, 8, 2, 16, "none", 4792),
        (H100, "13b", 2048, 64, 2, 128, "none", 4800),
        (H100, "30b", 2048, 8, 3, 504, "full", 2002),
        (H100, "30b", 2048, 32, 14, 1344, "full", 2308),
        (H100, "70b", 2048, 64, 8, 2048, "full", 1039),
        (ROCE, "1b", 2048, 8, 14, 448, "none", 20513),
        (ROCE, "3b", 2048, 8, 10, 160, "none", 10811),
        (ROCE, "7b", 2048, 8, 6, 96, "none", 4641),
        (ROCE, "7b", 4096, 8, 16, 256, "full", 3684),
        (ROCE, "13b", 2048, 8, 2, 48, "none", 2262),
        (ROCE, "30b", 2048, 8, 3, 504, "full", 916),
        (ROCE, "70b", 2048, 64, 8, 2048, "full", 410),
        (A100_40, "7b", 2048, 128, 18, 2304, "full", 3623),
        (A100_40, "30b", 2048, 128, 6, 768, "full", 865),
    )
    return [
        Row(
            FOUNDRY,
            f"MPT {size}",
            Cluster(device=device, count=devices),
            job(MPT[size], seq_len, batch),
            fsdp(devices, micro, recompute),
            published,
            fused=False,
            calibration=size == "7b" and recompute == "none",
        )
        for device, size, seq_len, devices, micro, batch, recompute, published in rows
    ]


def fms() -> list[Row]:
    return [
        Row(
            FMS,
            "Llama 34B",
            Cluster(device=device, count=devices),
            job(CODE_34B, 4096, 2 * devices),
            fsdp(devices, 2, "full"),
            published,
            fused=False,
        )
        for device, devices, published in ((SLOW_A100, 128, 700), (SLOW_H100, 96, 1550))
    ]


def per_token(flops: float, d_model: int, n_layers: int, vocab: int, seq_len: int) -> float:
    """Tokens/s of a device that does `flops` FLOP/s as arXiv 2104.04473, eq. 3, counts them, without recomputation."""
    share = 1 + seq_len / (6 * d_model) + vocab / (12 * n_layers * d_model)
    return flops / (72 * n_layers * d_model**2 * share)


def megatron_rows() -> list[Row]:
    rows = []
    for heads, d_model, n_layers, tp, devices, teraflops in (
        (16, 2048, 24, 1, 48, 408.8),
        (32, 4096, 30, 2, 96, 465.9),
        (48, 6144, 32, 4, 192, 489.1),
        (56, 7168, 48, 8, 384, 459.6),
    ):
        model = gpt(d_model, n_layers, 131072, heads, 4096, tied=False)
        published = per_token(teraflops * 1e12, d_model, n_layers, 131072, 4096)
        cluster = Cluster(device=H100, count=devices)
        label = f"GPT {model.params_total / 1e9:.1f}B"
        layout = megatron(devices, 1, tp=tp)
        rows.append(Row(MEGATRON, label, cluster, job(model, 4096, 192), layout, published, calibration=tp == 4))
    for heads, d_model, n_layers, pp, virtual, batch, micro, mfu in (
        (64, 6144, 48, 1, 1, 4, 4, 0.415),
        (96, 12288, 96, 8, 3, 64, 1, 0.514),
        (128, 20480, 105, 35, 3, 280, 1, 0.56),
        (160, 25600, 128, 64, 1, 512, 1, 0.563),
    ):
        model = gpt(d_model, n_layers, 51200, heads)
        published = per_token(mfu * 312e12, d_model, n_layers, 51200, 2048)
        cluster = Cluster(device=A100, count=8 * pp)
        layout = megatron(8 * pp, micro, "selective", tp=8, pp=pp, virtual=virtual)
        label = f"GPT {model.params_total / 1e9:.0f}B"
        rows.append(Row(SELENE, label, cluster, job(model, 2048, batch), layout, published, calibration=pp == 8))
    return rows


def nemo() -> list[Row]:
    gpt_5, gpt_20, gpt_175 = gpt(4096, 24, 51200, 32), gpt(6144, 44, 51200, 48), gpt(12288, 96, 51200, 96)
    rows = (
        (NEMO, "GPT-3 5B", gpt_5, 2048, 2048, 64, 4, {}, 23406),
        (NEMO, "GPT-3 20B", gpt_20, 2048, 256, 64, 2, {"tp": 2}, 5851),
        (NEMO, "GPT-3 175B", gpt_175, 2048, 256, 128, 1, {"tp": 4, "pp": 8, "virtual": 6}, 716),
        (NEMO, "GPT-3 175B", gpt_175, 2048, 2048, 512, 2, {"tp": 4, "pp": 8, "virtual": 6}, 825),
        (NEMO, "Llama-2-7B", LLAMA2_7B, 4096, 128, 8, 1, {}, 16934),
        (NEMO, "Llama-2-13B", LLAMA2_13B, 4096, 128, 16, 1, {"pp": 4, "virtual": 10}, 8715),
        (NEMO, "Llama-2-70B", LLAMA2_70B, 4096, 128, 64, 1, {"tp": 4, "pp": 4, "virtual": 20}, 1728),
        (NEMO, "Llama-3-8B", LLAMA3_8B, 8192, 128, 8, 1, {"cp": 2}, 12273),
        (NEMO, "Llama-3-70B", LLAMA3_70B, 8192, 128, 64, 1, {"tp": 4, "pp": 4, "cp": 2, "virtual": 5}, 1524),
        (NEMO_LATER, "Llama-3-70B", LLAMA3_70B, 8192, 128, 64, 1, {"tp": 4, "pp": 8, "virtual": 5}, 1619),
        (
            NEMO_LATER,
            "Llama-3-405B",
            LLAMA3_405B,
            8192,
            512,
            1024,
            1,
            {"tp": 8, "pp": 8, "cp": 2, "virtual": 8},
            302,
        ),
    )
    return [
        Row(
            source,
            label,
            Cluster(device=H100, count=devices),
            job(model, seq_len, batch, "fp8"),
            megatron(devices, micro, **more),
            published,
            calibration=model is gpt_20,
        )
        for source, label, model, seq_len, batch, devices, micro, more, published in rows
    ]


def rows() -> list[Row]:
    """Every published run, source by source."""
    return [*titan(), *titan_a100(), *olmo(), *foundry(), *fms(), *megatron_rows(), *nemo()]
