"""The verb `nachim cost`: what a model costs to train, to read with and to write with, by every convention."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import tyro

from nachim.budget.activations import kept
from nachim.budget.convention import conventions
from nachim.budget.layout import Job, Layout, Recompute
from nachim.spec import Decoder, Learned, Part, Run, UserError
from nachim.spec.known import Known, known

if TYPE_CHECKING:
    from rich.table import Table

SEQ_LEN = 4096
CONTEXTS = (1024, 4096, 32_768, 131_072)
VALUE_BYTES = 2
"""bf16: what the cache and the saved values are counted in."""


@dataclass(frozen=True)
class Asked:
    """What MODEL named: the decoder, how it was called, and the longest context to show where it has one."""

    name: str
    decoder: Decoder
    seq_len: int
    longest: int | None = None
    published: Known | None = None


def cost(
    model: Annotated[str, tyro.conf.Positional],
    seq_len: int | None = None,
    json: bool = False,
) -> int:
    """What a model costs: parameters, training FLOP by every convention, inference, cache, saved activations.

    MODEL is a published model (llama-3-8b, deepseek-v3, jamba-v0.1, ...), a run's directory or its run.json, or a
    JSON file that holds a Decoder part.

    M is the count that every law here is fitted in: training FLOP/token without the head, attention over the
    whole context. The table says by how many percent another convention differs from it for this very model.

    Example: nachim cost llama-3-8b --seq-len 8192

    Args:
        model: A known model's name, or the path of a run or of a Decoder part in JSON.
        seq_len: Tokens of a training sequence; by default a run's own, else 4,096 or the model's context.
        json: Print one JSON object instead of tables.
    """
    found = _read(model)
    summary = summarise(found, found.seq_len if seq_len is None else _possible(seq_len, found.decoder))
    if json:
        print(jsonlib.dumps(summary))
    else:
        _show(summary)
    return 0


def _read(model: str) -> Asked:
    """A file or directory of that name, else a known model. Raises UserError when it is neither."""
    path = Path(model)
    if not path.exists() and path.suffix != ".json" and len(path.parts) == 1:
        published = known(model)
        context = published.context
        return Asked(model.lower(), published.decoder, min(SEQ_LEN, context), context, published)
    path = path / "run.json" if path.is_dir() else path
    part = Part.load(path)
    if isinstance(part, Run):
        return Asked(str(path), part.model, part.data.seq_len)
    if not isinstance(part, Decoder):
        raise UserError(f"{path} holds a {type(part).__name__}; `nachim cost` needs a Run or a Decoder")
    length = _positions(part)
    return Asked(str(path), part, min(SEQ_LEN, length or SEQ_LEN), length)


def _positions(decoder: Decoder) -> int | None:
    """Positions that a learned table has; None without one."""
    return min((block.position.length for block in decoder.kinds if isinstance(block.position, Learned)), default=None)


def _possible(seq_len: int, decoder: Decoder) -> int:
    """`seq_len`. Raises UserError where the decoder has no positions for so many tokens."""
    length = _positions(decoder)
    if length is not None and seq_len > length:
        raise UserError(f"--seq-len is {seq_len}; this model has a table of {length} positions")
    return seq_len


def summarise(model: Asked, seq_len: int) -> dict[str, Any]:
    """Everything `nachim cost` reports, as plain JSON values: parameters, FLOP, bytes; differences in percent."""
    decoder, published = model.decoder, model.published
    rows = conventions(decoder, seq_len)
    wanted = {seq_len, model.longest or seq_len, *CONTEXTS}
    contexts = sorted(tokens for tokens in wanted if tokens <= max(seq_len, model.longest or max(CONTEXTS)))
    return {
        "model": model.name,
        "source": published and published.source,
        "seq_len": seq_len,
        "params": {
            **{name: getattr(decoder, f"params_{name}") for name in ("total", "active", "non_embedding", "embedding")},
            "published_total": published and published.total,
            "published_active": published and published.active,
            "published_active_counts": published and published.active and published.active_counts,
        },
        "flops_per_token": decoder.flops_per_token(seq_len),
        "head_flops_per_token": decoder.head_flops_per_token,
        "conventions": [asdict(row) for row in rows],
        "inference": [_inference(decoder, tokens) for tokens in contexts],
        "state_bytes": decoder.cache_bytes(0, VALUE_BYTES),
        "activations": {recompute: _activations(decoder, seq_len, recompute) for recompute in get_args(Recompute)},
    }


def _inference(decoder: Decoder, context: int) -> dict[str, float]:
    """Forward FLOP and cache bytes of one request of `context` tokens; its prompt is read to the first new token."""
    prefill = decoder.prefill_flops(context)
    held = decoder.cache_bytes(context, VALUE_BYTES)
    return {
        "context": context,
        "prefill_flops_per_token": prefill,
        "prefill_flops": context * prefill + decoder.logit_flops,
        "decode_flops_per_token": decoder.decode_flops(context),
        "kv_bytes_per_token": held - decoder.cache_bytes(context - 1, VALUE_BYTES),
        "kv_bytes_per_request": held,
    }


def _activations(decoder: Decoder, seq_len: int, recompute: Recompute) -> float:
    """Bytes a token that the blocks keep for the backward pass on one GPU, those of multi-token prediction too."""
    job = Job(model=decoder, seq_len=seq_len, batch_tokens=seq_len)
    layout = Layout(recompute=recompute)
    stored = sum(times * kept(block, job, layout, "cuda").stored for block, times in decoder.trained_kinds.items())
    return stored / seq_len


def _show(summary: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    for line in _sizes(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(_conventions_table(summary))
    console.print(_inference_table(summary))
    for line in _notes(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _sizes(summary: dict[str, Any]) -> list[str]:
    params = summary["params"]
    lines = [
        f"{summary['model']}: {params['total']:,} parameters",
        f"  active in a token {params['active']:,}",
        f"  without embedding and head {params['non_embedding']:,}; embedding and head {params['embedding']:,}",
    ]
    if params["published_total"]:
        counts = params["published_active_counts"]
        active = f", {params['published_active'] / 1e9:g} active ({counts})" if counts else ""
        lines.append(f"  published, in billions: {params['published_total'] / 1e9:g}{active}")
    return lines + ([f"  shape from {summary['source']}"] if summary["source"] else [])


def _conventions_table(summary: dict[str, Any]) -> Table:
    table = _table(f"training FLOP/token at sequences of {summary['seq_len']:,}", "convention")
    for head in ("FLOP/token", "of M", "of M + head"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("what it counts")
    for row in summary["conventions"]:
        percents = (f"{row[name]:+.1f} %" for name in ("percent_of_m", "percent_of_m_with_head"))
        table.add_row(row["name"], _short(row["flops_per_token"]).strip(), *percents, row["counts"])
    return table


def _inference_table(summary: dict[str, Any]) -> Table:
    table = _table("one request: forward FLOP, and its cache in bf16", "context")
    for head in ("reading,\nFLOP/token", "the prompt,\nFLOP", "writing,\nFLOP/token", "cache", "a token\nmore adds"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in summary["inference"]:
        flops = (_short(row[name]).strip() for name in list(row)[1:4])
        held = (f"{_short(row[name])}B" for name in ("kv_bytes_per_request", "kv_bytes_per_token"))
        table.add_row(f"{row['context']:,}", *flops, *held)
    return table


def _table(title: str, first: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    return table


def _notes(summary: dict[str, Any]) -> list[str]:
    saved = summary["activations"]
    lines = [
        f"kept for the backward pass, bytes a token in bf16: {_short(saved['none'])}B; with selective recomputation "
        f"{_short(saved['selective'])}B, with full {_short(saved['full'])}B (blocks alone; logits apart)"
    ]
    if summary["state_bytes"]:
        lines.append(f"of the cache {_short(summary['state_bytes'])}B a request is state that does not grow")
    return lines


def _short(value: float) -> str:
    """`value` with three digits and the SI prefix it needs, or none."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "
