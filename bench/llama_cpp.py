"""Our GGUF files in llama.cpp itself: its log-probabilities of the next token against ours.

    pip install xllamacpp   # llama.cpp's server as a Python module; in any environment that has nachim and transformers
    python bench/llama_cpp.py [--json]

For each family a small random model of transformers is taken in, given out as GGUF in fp32, and read by llama.cpp;
three prompts of 40 tokens are read by both. Printed: the largest difference of a log-probability over the vocabulary,
and how far apart the log-probabilities are. llama.cpp computes GELU from a table in fp16, and its approximation where
the family has the exact one: of Gemma, GPT-2, BLOOM, StarCoder2, Falcon, GPT-NeoX and MPT that difference is left.
"""

from __future__ import annotations

import json as jsonlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import PretrainedConfig

import nachim
from bench._llama import silent
from nachim.app.export import exported_gguf
from nachim.app.import_ import written
from nachim.model.hf import open_checkpoint
from tests.app.exported import checkpoint
from tests.model.hf.test_gguf import CONFIGS

VOCABULARY, CONTEXT, LENGTH = 300, 256, 40
NAMES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4 * CONTEXT,
    "n_positions": CONTEXT,
    "original_max_position_embeddings": 2
    * CONTEXT,  # llama.cpp takes the long divisors where its own context is longer
}


def main(json: bool = False) -> None:
    """Print the table, or with --json one object: the largest difference and the spread of each family."""
    try:
        import xllamacpp  # noqa: F401
    except ImportError:
        sys.exit("bench/llama_cpp.py needs llama.cpp as a module: pip install xllamacpp")
    ids_BT = torch.randint(1, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: row(config, ids_BT, Path(folder) / name) for name, config in CONFIGS.items()}
    if json:
        print(jsonlib.dumps(rows))
        return
    table = Table("family", "largest difference", "spread of log-probabilities")
    for name, (error, spread) in rows.items():
        table.add_row(name, f"{error:.1e}", f"{spread:.3g}")
    Console().print(table)


def row(config: PretrainedConfig, ids_BT: torch.Tensor, folder: Path) -> tuple[float, float]:
    """The largest difference, in nats, and the range of our log-probabilities."""
    config = type(config)(
        **{**config.to_dict(), **{key: value for key, value in NAMES.items() if hasattr(config, key)}}
    )
    written(open_checkpoint(checkpoint(folder / "theirs", config)), folder / "run")
    path = exported_gguf(folder / "run", folder / "out")["out"]
    with torch.no_grad():
        ours_BV = torch.log_softmax(nachim.load(folder / "run")(ids_BT)[:, -1], -1)
    with silent():
        answers = [answer for answer in asked(path, ids_BT.tolist())]
    differences = [
        abs(value - float(ours_V[token]))
        for ours_V, answer in zip(ours_BV, answers, strict=True)
        for token, value in answer.items()
    ]
    return max(differences), float(ours_BV.max() - ours_BV.min())


def asked(path: str, prompts: list[list[int]]) -> Iterator[dict[int, float]]:
    """llama.cpp's log-probabilities of the token after each prompt; none for a prompt that it gives none for, which it
    does where the likeliest token is no whole character."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, CONTEXT, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    for prompt in prompts:
        request = {"prompt": prompt, "n_predict": 1, "n_probs": VOCABULARY, "temperature": 0.0, "cache_prompt": False}
        answer: Any = server.handle_completions(request)
        told = answer["choices"][0]["logprobs"]
        yield {one["id"]: one["logprob"] for one in told["content"][0]["top_logprobs"]} if told else {}


if __name__ == "__main__":
    tyro.cli(main)
