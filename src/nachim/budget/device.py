"""Real devices: what their vendors say, what was measured on them, and what an hour of them is rented for.

Peaks are dense. `fp32_flops` is plain single precision, which torch uses unless told otherwise; TF32 rates stand in the
sources. Bandwidths are of one direction. `sustained` is the share of the bf16 peak that large matrix multiplications
hold once the board has reached its power limit, from stas00/ml-engineering (compute/accelerator/README.md): for H200
755 of 989 TFLOP/s in the long run against 834 for the best short burst, for B200 1,429 of 2,250. Where only the best
burst is known it is multiplied by 755 / 834. Watts are the board's, and its share of the whole system where a vendor
gives that. Bytes of memory are the data sheet's, in units of 10^9; what CUDA reports is more (an A100 of 80 GB 79.25
GiB, which are 85.1e9 bytes; an RTX 4090 of 24 GB 23.52 GiB or 25.3e9), and pays for what a process holds beside its
tensors: `CONTEXT`, NCCL's buffers, cuBLAS' workspace. On an L40S it reports less, see there. Prices change: they are
list prices of one day, to be overridden with --dollars-per-hour.
"""

from __future__ import annotations

import re

from nachim.budget.measured import measured_device
from nachim.spec import Cluster, Device, UserError
from nachim.spec.error import nearest

TERA, GIGA = 1e12, 1e9
BURST_TO_LASTING = 755 / 834
CONTEXT = 0.781 * GIGA
"""Bytes that a process of PyTorch holds on a CUDA device before its first tensor (github.com/pytorch/pytorch issue
34323: 781 MB in nvidia-smi)."""
LASTING = "sustained: stas00/ml-engineering compute/accelerator/README.md, "
RENTED = "price: RunPod's list of March 2026 (deploybase.ai/articles/runpod-gpu-pricing)"
NVLINK_LATENCY, NETWORK_LATENCY, PCIE_LATENCY = 3e-6, 10e-6, 8e-6
LATENCIES = (
    "latency: order of magnitude of a step of a NCCL ring (github.com/NVIDIA/nccl-tests doc/PERFORMANCE.md): assumed"
)
NODE_SHARE = 0.4
"""Watts of processors, memory, fans and network for a watt of boards: a DGX H100 draws 10.2 kW, its boards 5.6 kW; half
of the difference is what the system draws beyond them on average. Used where no vendor gives the whole system."""

A100 = {
    "kind": "cuda",
    "fp32_flops": 19.5 * TERA,
    "bf16_flops": 312 * TERA,
    "int8_flops": 624 * TERA,
    "sustained": 271.2 / 312,
    "node_devices": 8,
    "link_bandwidth": 300 * GIGA,
    "link_latency": NVLINK_LATENCY,
    "network_bandwidth": 25 * GIGA,
    "network_latency": NETWORK_LATENCY,
    "watts": 6500 / 8,
}
A100_SOURCES = (
    "NVIDIA A100 datasheet (nvidia.com/en-us/data-center/a100): TF32 156 TFLOP/s, NVLink 600 GB/s both ways, 400 W",
    "NVIDIA DGX A100 datasheet: 8 devices, 8 x 200 Gb/s InfiniBand, 6.5 kW",
    LASTING + "271.2 TFLOP/s; not throttled by power, as whole runs hold 247 (llm-foundry's MPT 13B, 79 % of the peak)",
    LATENCIES,
)
HOPPER = {
    "kind": "cuda",
    "fp32_flops": 66.9 * TERA,
    "bf16_flops": 989.4 * TERA,
    "fp8_flops": 1978.9 * TERA,
    "int8_flops": 1978.9 * TERA,
    "sustained": 755 / 989.4,
    "node_devices": 8,
    "link_bandwidth": 450 * GIGA,
    "link_latency": NVLINK_LATENCY,
    "network_bandwidth": 50 * GIGA,
    "network_latency": NETWORK_LATENCY,
    "watts": 10200 / 8,
}
HOPPER_SOURCES = (
    LASTING + "755 TFLOP/s, measured on H200 (the same chip at the same 700 W)",
    LATENCIES,
    RENTED,
)
PCIE_CARD = {"kind": "cuda", "link_latency": PCIE_LATENCY, "sustained": 252.9 / 312 * BURST_TO_LASTING}
PCIE_SOURCES = (
    "sustained: assumed to be the A100 PCIe's (best burst 252.9 of 312 TFLOP/s, stas00/ml-engineering)",
    f"watts: the board's and {NODE_SHARE} of it for its node, assumed",
    LATENCIES,
    RENTED,
)

_ALL = (
    Device(
        name="A100-40GB",
        memory_bytes=40 * GIGA,
        memory_bandwidth=1555 * GIGA,
        dollars_per_hour=1.19,
        sources=(*A100_SOURCES, "price: assumed to be that of an A100 80GB PCIe in RunPod's list of March 2026"),
        **A100,
    ),
    Device(
        name="A100-80GB",
        memory_bytes=80 * GIGA,
        memory_bandwidth=2039 * GIGA,
        dollars_per_hour=1.39,
        sources=(*A100_SOURCES, RENTED),
        **A100,
    ),
    Device(
        name="H100",
        memory_bytes=80 * GIGA,
        memory_bandwidth=3350 * GIGA,
        dollars_per_hour=2.69,
        sources=(
            "NVIDIA H100 datasheet (nvidia.com/h100), SXM5: TF32 494.7 TFLOP/s, NVLink 900 GB/s, 700 W",
            "NVIDIA DGX H100 datasheet: 8 devices, 8 x 400 Gb/s InfiniBand, 10.2 kW",
            *HOPPER_SOURCES,
        ),
        **HOPPER,
    ),
    Device(
        name="H100-PCIe",
        fp32_flops=51.2 * TERA,
        bf16_flops=756.5 * TERA,
        fp8_flops=1513 * TERA,
        int8_flops=1513 * TERA,
        memory_bytes=80 * GIGA,
        memory_bandwidth=2000 * GIGA,
        node_devices=8,
        link_bandwidth=64 * GIGA,
        network_bandwidth=25 * GIGA,
        network_latency=NETWORK_LATENCY,
        watts=350 * (1 + NODE_SHARE),
        dollars_per_hour=1.99,
        sources=(
            "NVIDIA H100 datasheet and PB-11133-001 (PCIe card): TF32 378 TFLOP/s, PCIe 5.0 x16, 350 W; no bridges",
            "network: one 400 Gb/s adapter for two cards, assumed",
            *PCIE_SOURCES,
        ),
        **PCIE_CARD,
    ),
    Device(
        name="H200",
        memory_bytes=141 * GIGA,
        memory_bandwidth=4800 * GIGA,
        dollars_per_hour=3.59,
        sources=(
            "NVIDIA H200 datasheet (nvidia.com/h200), SXM: TF32 494.7 TFLOP/s, NVLink 900 GB/s, 700 W",
            "NVIDIA DGX H200 datasheet: 8 devices, 8 x 400 Gb/s InfiniBand, 10.2 kW",
            *HOPPER_SOURCES,
        ),
        **HOPPER,
    ),
    Device(
        name="B200",
        kind="cuda",
        fp32_flops=80 * TERA,
        bf16_flops=2250 * TERA,
        fp8_flops=4500 * TERA,
        int8_flops=4500 * TERA,
        sustained=1429 / 2250,
        memory_bytes=180 * GIGA,
        memory_bandwidth=8000 * GIGA,
        node_devices=8,
        link_bandwidth=900 * GIGA,
        link_latency=NVLINK_LATENCY,
        network_bandwidth=50 * GIGA,
        network_latency=NETWORK_LATENCY,
        watts=14300 / 8,
        dollars_per_hour=5.98,
        sources=(
            "NVIDIA HGX B200 specifications (glennklockwood.com/garden/processors/B200): TF32 1,100 TFLOP/s, 1,000 W",
            "NVIDIA DGX B200 datasheet: 8 devices, 1,440 GB, NVLink 1.8 TB/s both ways, 400 Gb/s each, 14.3 kW",
            LASTING + "1,429 TFLOP/s",
            LATENCIES,
            RENTED,
        ),
    ),
    Device(
        name="MI300X",
        kind="rocm",
        fp32_flops=163.4 * TERA,
        bf16_flops=1307.4 * TERA,
        fp8_flops=2614.9 * TERA,
        int8_flops=2614.9 * TERA,
        sustained=668.4 / 1307.4,
        memory_bytes=192 * GIGA,
        memory_bandwidth=5300 * GIGA,
        node_devices=8,
        link_bandwidth=448 * GIGA,
        link_latency=NVLINK_LATENCY,
        network_bandwidth=50 * GIGA,
        network_latency=NETWORK_LATENCY,
        watts=750 * (1 + NODE_SHARE),
        dollars_per_hour=1.99,
        sources=(
            "AMD Instinct MI300X data sheet: TF32 653.7 TFLOP/s, 7 Infinity Fabric links, 896 GB/s both ways, 750 W",
            "network: 400 Gb/s for each device, as its platforms are sold; node's watts assumed",
            LASTING + "668.4 TFLOP/s at 10240 x 15360 x 8192, no short burst",
            LATENCIES,
            "price: median of list prices of 2026-05-18 (cliffcenter.com/research/amd-inference-economics)",
        ),
    ),
    Device(
        name="L40S",
        fp32_flops=91.6 * TERA,
        bf16_flops=362 * TERA,
        fp8_flops=733 * TERA,
        int8_flops=733 * TERA,
        memory_bytes=44.4 * 2**30 - CONTEXT,
        memory_bandwidth=864 * GIGA,
        node_devices=8,
        link_bandwidth=32 * GIGA,
        network_bandwidth=12.5 * GIGA,
        network_latency=NETWORK_LATENCY,
        watts=350 * (1 + NODE_SHARE),
        dollars_per_hour=0.79,
        sources=(
            "NVIDIA L40S datasheet: TF32 183 TFLOP/s, PCIe 4.0 x16, 350 W",
            "memory: 48 GB, of which error correction leaves 44.4 GiB to CUDA (github.com/stepfun-ai/Step-Video-T2V "
            "issue 8), less a process's context",
            "network: one 400 Gb/s adapter for four cards, assumed",
            *PCIE_SOURCES,
        ),
        **PCIE_CARD,
    ),
    Device(
        name="RTX-3090",
        fp32_flops=35.6 * TERA,
        bf16_flops=71 * TERA,
        int8_flops=284 * TERA,
        memory_bytes=24 * GIGA,
        memory_bandwidth=936 * GIGA,
        node_devices=8,
        link_bandwidth=32 * GIGA,
        watts=350 * (1 + NODE_SHARE),
        dollars_per_hour=0.22,
        sources=(
            "NVIDIA Ampere GA102 whitepaper, appendix A: bf16 with fp32 sums, TF32 35.6 TFLOP/s, PCIe 4.0 x16, 350 W",
            *PCIE_SOURCES,
        ),
        **PCIE_CARD,
    ),
    Device(
        name="RTX-4090",
        fp32_flops=82.6 * TERA,
        bf16_flops=165.2 * TERA,
        fp8_flops=330.3 * TERA,
        int8_flops=660.6 * TERA,
        memory_bytes=24 * GIGA,
        memory_bandwidth=1008 * GIGA,
        node_devices=8,
        link_bandwidth=32 * GIGA,
        watts=450 * (1 + NODE_SHARE),
        dollars_per_hour=0.34,
        sources=(
            "NVIDIA Ada GPU architecture whitepaper, appendix A: bf16 and fp8 with fp32 sums, TF32 82.6 TFLOP/s, 450 W",
            *PCIE_SOURCES,
        ),
        **PCIE_CARD,
    ),
    Device(
        name="RTX-5090",
        fp32_flops=104.8 * TERA,
        bf16_flops=209.5 * TERA,
        fp8_flops=419 * TERA,
        int8_flops=838 * TERA,
        memory_bytes=32 * GIGA,
        memory_bandwidth=1792 * GIGA,
        node_devices=8,
        link_bandwidth=64 * GIGA,
        watts=575 * (1 + NODE_SHARE),
        dollars_per_hour=0.69,
        sources=(
            "NVIDIA RTX Blackwell whitepaper, appendix A: bf16 and fp8 with fp32 sums, PCIe 5.0, 575 W",
            *PCIE_SOURCES,
        ),
        **PCIE_CARD,
    ),
    Device(
        name="Xeon-8480+",
        kind="cpu",
        fp32_flops=56 * 2.0e9 * 64,
        bf16_flops=56 * 2.0e9 * 2048,
        int8_flops=56 * 2.0e9 * 4096,
        sustained=0.5,
        memory_bytes=512 * GIGA,
        memory_bandwidth=307.2 * GIGA,
        watts=350 * (1 + NODE_SHARE),
        sources=(
            "Intel Xeon Platinum 8480+ (ark.intel.com): 56 cores, 2.0 GHz base, 8 x DDR5-4800, 350 W; one socket",
            "Intel optimization manual, ch. 20: AMX does 2,048 bf16 FLOP a cycle and core, AVX-512 64 in fp32",
            "memory: 8 modules of 64 GB; sustained: assumed, `nachim measure` finds it out",
        ),
    ),
    Device(
        name="Xeon-8592+",
        kind="cpu",
        fp32_flops=64 * 1.9e9 * 64,
        bf16_flops=64 * 1.9e9 * 2048,
        int8_flops=64 * 1.9e9 * 4096,
        sustained=0.5,
        memory_bytes=512 * GIGA,
        memory_bandwidth=358.4 * GIGA,
        watts=350 * (1 + NODE_SHARE),
        sources=(
            "Intel Xeon Platinum 8592+ (ark.intel.com): 64 cores, 1.9 GHz base, 8 x DDR5-5600, 350 W; one socket",
            "Intel optimization manual, ch. 20: AMX does 2,048 bf16 FLOP a cycle and core, AVX-512 64 in fp32",
            "memory: 8 modules of 64 GB; sustained: assumed, `nachim measure` finds it out",
        ),
    ),
)

DEVICES: dict[str, Device] = {device.name: device for device in _ALL}
ALIASES = {"a100": "A100-80GB", "h100-sxm": "H100", "h200-sxm": "H200"}


def device_named(name: str) -> Device:
    """The device called `name`, whatever its case; "here" is this machine, as `nachim measure` found it.

    Raises UserError with the nearest names when there is none.
    """
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    if wanted == "here":
        return measured_device()
    known = {known.lower(): known for known in DEVICES} | ALIASES
    if wanted not in known:
        hint = nearest(wanted, [*DEVICES, *ALIASES])
        raise UserError(f"no device is called {name!r}{hint} (or 'here', this machine after `nachim measure`)")
    return DEVICES[known[wanted]]


def parse_cluster(text: str) -> Cluster:
    """`8xH200`, `8*H200` or `H200`: so many of one device. Raises UserError when the text says something else."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x*×]\s*)?(\S.*?)\s*", text, re.IGNORECASE)
    if match is None:
        raise UserError(f"{text!r} is no cluster: write a count and a device, such as 8xH200")
    count = int(match[1] or 1)
    if count < 1:
        raise UserError(f"{text!r} asks for {count} devices: ask for at least one, such as 8xH200")
    return Cluster(device=device_named(match[2]), count=count)
