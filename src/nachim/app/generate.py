"""The verb `nachim generate`: text that a model goes on with."""

from __future__ import annotations

import dataclasses
import json as jsonlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from nachim.spec import UserError

if TYPE_CHECKING:
    from nachim.infer.engine import Engine
    from nachim.infer.request import Completion, Sampling


@dataclass(frozen=True)
class How:
    """How tokens are chosen, and when a sample ends."""

    max_tokens: int = 128
    """Tokens to generate at most."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from the likeliest K tokens only."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this share together only."""
    min_p: float = 0.0
    """Draw from tokens of at least this share of the likeliest one's probability only."""
    repetition_penalty: float = 1.0
    """Divide the logits of tokens that stand in the text already."""
    seed: int | None = None
    """Of the random numbers; drawn where not given."""
    n: int = 1
    """Samples of each prompt."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text that ends a sample; may be given several times."""
    ignore_eos: bool = False
    """Go on after an end-of-text token."""
    logprobs: bool = False
    """With --json, the log-probability of each token."""


def generate(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    tokens: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    how: Annotated[How, tyro.conf.arg(name="")] = How(),
    draft: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    cache: Literal["int8", "int4"] | None = None,
    context: int | None = None,
    json: bool = False,
) -> int:
    """Generate text with a model: a run trained here, or a Hugging Face checkpoint.

    One prompt is printed as it grows; several are served together, each as if it were alone. The same seed gives the
    same text again, whatever else is served.

    Example: nachim generate runs/first --prompt "def parse(" --max-tokens 64 --temperature 0.7 --seed 1

    Args:
        folder: The folder of a run or checkpoint.
        prompt: What to go on from; may be given several times. Without any, standard input is one prompt.
        tokens: A prompt as token ids, such as "12 7 99"; may be given several times.
        how: How tokens are chosen.
        draft: Guess tokens for the model to check, several a pass: ngram, mtp, or the folder of a smaller model.
        dtype: Precision of the weights.
        cache: Bits of the keys and values that are kept; by default as they were computed.
        context: Tokens of a sequence at most; by default those of the training.
        json: Print one JSON object.
    """
    from nachim.infer.engine import Engine
    from nachim.infer.request import Sampling

    sampling = Sampling(**dataclasses.asdict(how))
    prompts = [*prompt, *(_ids(text) for text in tokens)] or [sys.stdin.read()]
    engine = Engine(folder, dtype, cache=cache, context=context, draft=draft)
    begin = time.perf_counter()
    if len(prompts) == 1 and how.n == 1 and not json and engine.tokenizer is not None:
        count = _stream(engine, prompts[0], sampling)
    else:
        count = _together(engine, prompts, sampling, json)
    seconds = time.perf_counter() - begin
    Console(stderr=True).print(f"{count} tokens in {seconds:.1f} s, {count / seconds:.0f} a second", style="dim")
    return 0


def _together(engine: Engine, prompts: list[Any], sampling: Sampling, json: bool) -> int:
    """Print all samples at the end; their tokens."""
    found = engine.serve(prompts, sampling)
    samples = [sample for one in found for sample in one.samples or (one,)]
    if json:
        print(jsonlib.dumps({"completions": [_plain(sample) for sample in samples], "engine": engine.facts()}))
    else:
        _show(samples)
    return sum(len(sample.tokens) for sample in samples)


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise UserError(f"--tokens is {text!r}; give token ids, such as '12 7 99'") from error


def _stream(engine: Engine, prompt: str | list[int], sampling: Sampling) -> int:
    """Print a sample as it grows; its tokens."""
    engine.add(prompt, sampling)
    count = 0
    while not engine.idle:
        for chunk in engine.step():
            print(chunk.text, end="", flush=True)
            count += len(chunk.tokens)
    print()
    return count


def _show(samples: list[Completion]) -> None:
    for sample in samples:
        print(f"[{sample.request}.{sample.sample}, {sample.finish_reason}]")
        print(sample.text or " ".join(map(str, sample.tokens)))


def _plain(sample: Completion) -> dict[str, Any]:
    return {
        "request": sample.request,
        "sample": sample.sample,
        "prompt_tokens": list(sample.prompt),
        "tokens": list(sample.tokens),
        "text": sample.text,
        "logprobs": None if sample.logprobs is None else list(sample.logprobs),
        "finish_reason": sample.finish_reason,
    }
