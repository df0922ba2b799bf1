"""llama.cpp as a side of a bench: a GGUF file of a Llama shape with drawn weights, and its server in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter, TokenType

BLOCKS = {Kind.Q4_0: 18, Kind.Q8_0: 34}
"""Bytes of a block of 32 weights: a scale in fp16, then the codes."""


def written(path: Path, *, width: int, layers: int, heads: int, keys: int, inner: int, vocabulary: int) -> Path:
    """A file whose matrices are Q4_0 and whose tied table is Q8_0, as `llama-quantize` has it for such widths."""
    writer, draw = GGUFWriter(path, "llama"), np.random.default_rng(0)
    facts: dict[str, Any] = {
        "vocab_size": vocabulary,
        "context_length": 2048,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": inner,
        "head_count": heads,
        "head_count_kv": keys,
        "rope_dimension_count": width // heads,
        "layer_norm_rms_eps": 1e-5,
        "tokenizer_model": "llama",
        "token_list": [f"<0x{n:02X}>" if n < 256 else f"t{n}" for n in range(vocabulary)],
        "token_scores": [0.0] * vocabulary,
        "token_types": [TokenType.BYTE if n < 256 else TokenType.NORMAL for n in range(vocabulary)],
    }
    for name, value in facts.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tensor("token_embd.weight", drawn(draw, vocabulary, width, Kind.Q8_0), raw_dtype=Kind.Q8_0)
    shapes = {"attn_q": (width, width), "attn_output": (width, width), "ffn_gate": (inner, width)}
    shapes |= {name: (width // heads * keys, width) for name in ("attn_k", "attn_v")}
    shapes |= {"ffn_up": (inner, width), "ffn_down": (width, inner)}
    for layer in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", drawn(draw, *shape, Kind.Q4_0), raw_dtype=Kind.Q4_0)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def drawn(draw: np.random.Generator, outputs: int, inputs: int, kind: Kind) -> npt.NDArray[np.uint8]:
    """The blocks of a matrix with drawn codes and one scale."""
    blocks = draw.integers(0, 256, (outputs, inputs // 32, BLOCKS[kind]), dtype=np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(0.004 if kind is Kind.Q4_0 else 0.0003).tobytes(), np.uint8)
    return blocks.reshape(outputs, -1)


class Llama:
    """Up to `most` requests at once, of prompts and answers that are `length` tokens together."""

    def __init__(self, path: Path, most: int, length: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), most * length, most, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.verbosity = -1
        with silent():
            self.server = xllamacpp.Server(params)
        self.pool = ThreadPoolExecutor(most)

    def answers(self, prompts: Sequence[list[int]], count: int, kept: bool = True) -> list[Any]:
        """`count` tokens after each prompt, all prompts at once; `kept` goes on from what was read of them before."""
        asked = [
            {"prompt": prompt, "n_predict": count, "temperature": 0.0, "ignore_eos": True, "cache_prompt": kept}
            | {"id_slot": slot}
            for slot, prompt in enumerate(prompts)
        ]
        found = list(self.pool.map(self.server.handle_completions, asked))
        told = [answer["usage"]["completion_tokens"] for answer in found]
        if told != [count] * len(prompts):
            raise RuntimeError(f"llama.cpp gave {told} tokens, and {count} each were asked for")
        return found


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what llama.cpp writes to the terminal."""
    kept = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
