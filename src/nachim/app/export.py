"""The verb `nachim export`: a run folder of ours as a Hugging Face checkpoint, or as a GGUF file for llama.cpp."""

from __future__ import annotations

import json as jsonlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nachim.data.prepared import TOKENIZER
from nachim.data.tokenize import EOT_ID, end_of, load_tokenizer
from nachim.spec import Decoder, Learned, Part, Run, UserError
from nachim.spec.disk import new_folder, read_json, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from nachim.model.hf import Family
    from nachim.model.hf.gguf_blocks import Low
    from nachim.model.quantized.spread import Spread

GGUF, TOLD = "model.gguf", "tokenizer_config.json"
NO_TOKENIZER = "no_vocab"
"""What llama.cpp calls a file without a tokenizer."""
CONTEXT = 2048
"""The longest context that is written for a decoder which was neither trained here nor came with one."""


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    to: Literal["hf", "gguf"] = "hf",
    json: bool = False,
) -> int:
    """Write the newest weights of a run for others: transformers and vLLM (hf), or llama.cpp (gguf).

    The decoder is written in the first family that has all its parts; where none has, nothing is written and the part
    in the way is named. Weights keep their precision; the factors of a parametrisation go into them. What `nachim
    import` read is given back as it was: the same tensors, the same config and tokenizer. What `nachim quantize` wrote
    goes out code for code: to GGUF int8 as Q8_0, int4 as Q4_1, or as Q4_0 where it is symmetric, and to hf in the
    layout of compressed-tensors.

    Example: nachim export runs/first exported && nachim import exported --out runs/again

    Args:
        run: The folder of a run, trained here or imported.
        out: The folder to write; it must be new or empty.
        to: The format. GGUF needs the `gguf` extra.
        json: Print one JSON object instead of sentences.
    """
    summary = exported(run, out) if to == "hf" else exported_gguf(run, out)
    print(jsonlib.dumps(summary) if json else "\n".join(_sentences(summary)))
    return 0


def exported(run: Path, out: Path) -> dict[str, Any]:
    """Write `run` as a Hugging Face checkpoint; what was written, as plain JSON values."""
    from nachim.model.hf import write_checkpoint
    from nachim.model.hf.fold import folded
    from nachim.model.load import open_run
    from nachim.model.quantized.store import is_quantized

    if is_quantized(run):
        return exported_codes(run, out)
    decoder, source = folded(*open_run(run))
    family, config = config_of(run, decoder)
    with new_folder(out) as folder:
        write_checkpoint(folder, family, config, decoder, source)
        carried = carry_tokenizer(run, folder)
    return {"out": str(out), "model_type": family.model_type, "params_total": decoder.params_total, "carried": carried}


def exported_codes(run: Path, out: Path) -> dict[str, Any]:
    """Write a quantised run as a Hugging Face checkpoint in the layout of compressed-tensors; what was written."""
    from nachim.model.hf.compressed import write_compressed

    decoder, model = spread_of(run, "compressed-tensors")
    family, config = config_of(run, decoder)
    with new_folder(out) as folder:
        write_compressed(folder, family, config, decoder, model)
        carried = carry_tokenizer(run, folder)
    return {"out": str(out), "model_type": family.model_type, "params_total": decoder.params_total, "carried": carried}


def exported_gguf(run: Path, out: Path) -> dict[str, Any]:
    """Write `run` as `model.gguf`; what was written, as plain JSON values."""
    try:
        from nachim.model.hf.gguf import write_gguf
        from nachim.model.hf.gguf_known import arch_of
    except ImportError as error:
        raise UserError("GGUF files are written by the package gguf: install nachim[gguf]") from error
    from nachim.model.hf.fold import folded
    from nachim.model.load import open_run
    from nachim.model.quantized.store import is_quantized

    decoder, source, low = low_of_run(run) if is_quantized(run) else (*folded(*open_run(run)), None)
    family, config = config_of(run, decoder)
    lengths = (config.get(name) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    context = next(filter(None, lengths), CONTEXT)
    arch = arch_of(family.model_type, decoder, context)
    tokens = tokens_of(run, config, decoder.vocab_size)
    with new_folder(out) as folder:
        write_gguf(folder / GGUF, arch, decoder, source, context, tokens, low)
    told = [TOKENIZER] if tokens["tokenizer_model"] != NO_TOKENIZER else []
    return {
        "out": str(out / GGUF),
        "model_type": family.model_type,
        "params_total": decoder.params_total,
        "carried": told,
    }


def low_of_run(run: Path) -> tuple[Decoder, Mapping[str, Tensor], Low]:
    """The decoder of a quantised run, its weights, and what their codes are as blocks of GGUF."""
    from nachim.model.hf.gguf_blocks import low_of

    decoder, model = spread_of(run, "GGUF")
    return decoder, model.values, low_of(model)


def spread_of(run: Path, to: str) -> tuple[Decoder, Spread]:
    """A quantised run for the format `to`, in the standard parametrisation: its factors are multiplied into scales."""
    from nachim.model.hf.fold import folded
    from nachim.model.load import open_quantized
    from nachim.model.quantized.spread import spread
    from nachim.model.quantized.store import TOLD

    decoder, kept, coded = open_quantized(run)
    model = spread(Part.load(run / TOLD).scheme, coded, kept, to)
    values, scales, lows = (folded(decoder, each)[1] for each in (model.values, model.scales, model.lows))
    plain, _ = folded(decoder, model.values)
    return plain, model._replace(values=values, scales=scales, lows=lows)


def tokens_of(run: Path, config: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """What a GGUF file says of a run's tokenizer, and its chat template."""
    from nachim.model.hf.checkpoint import ORIGIN
    from nachim.model.hf.gguf_tokens import token_facts

    folder = run / ORIGIN if (run / ORIGIN).is_dir() else run
    path = folder / TOKENIZER
    found = token_facts(read_json(path), config, vocab_size) if path.is_file() else None
    if found is None:
        return {"tokenizer_model": NO_TOKENIZER}
    template = folder / "chat_template.jinja"
    told = read_json(folder / TOLD) if (folder / TOLD).is_file() else {}
    chat = template.read_text(encoding="utf-8") if template.is_file() else told.get("chat_template")
    return found if chat is None else {**found, "chat_template": chat}


def config_of(run: Path, decoder: Decoder) -> tuple[Family, dict[str, Any]]:
    """The family of a run's decoder, and its config: the one it was imported with where that still holds."""
    from nachim.model.hf import config_for
    from nachim.model.hf.checkpoint import CONFIG, ORIGIN
    from nachim.model.load import RUN

    if (run / ORIGIN / CONFIG).is_file():
        kept = read_json(run / ORIGIN / CONFIG)
        return config_for(decoder, context_of(decoder, kept), kept)
    part = Part.load(run / RUN)
    context = part.data.seq_len if isinstance(part, Run) else context_of(decoder, {})
    family, config = config_for(decoder, context)
    _, end_id = end_of_text(run)
    return family, {**config, "bos_token_id": end_id, "eos_token_id": end_id}


def end_of_text(run: Path) -> tuple[str, int]:
    """The token at which documents end in a run trained here, and its number."""
    from nachim.model.load import RUN

    part = Part.load(run / RUN)
    end = end_of(part.data.tokenizer.to_json() if isinstance(part, Run) else {})
    known = (run / TOKENIZER).is_file()
    return end, load_tokenizer(run / TOKENIZER).token_to_id(end) if known else EOT_ID


def context_of(decoder: Decoder, config: dict[str, Any]) -> int:
    """The longest context of a decoder, by its table of positions or by a config."""
    tables = [block.position.length for block in decoder.kinds if isinstance(block.position, Learned)]
    return min([*tables, config.get("max_position_embeddings", CONTEXT)])


def carry_tokenizer(run: Path, folder: Path) -> list[str]:
    """Write the tokenizer and what else came with an imported run, or the tokenizer of one trained here; the names."""
    from nachim.model.hf.checkpoint import ORIGIN, carry

    if (run / ORIGIN).is_dir():
        return carry(run / ORIGIN, folder)
    if not (run / TOKENIZER).is_file():
        return []
    shutil.copyfile(run / TOKENIZER, folder / TOKENIZER)
    end, _ = end_of_text(run)
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end}
    write_text(folder / TOLD, jsonlib.dumps(told, indent=2) + "\n")
    return [TOKENIZER, TOLD]


def _sentences(summary: dict[str, Any]) -> list[str]:
    carried = ", ".join(summary["carried"]) or "none, for the run has none of a kind that can be written"
    lines = [f"{summary['out']}: {summary['model_type']}, {summary['params_total']:,} parameters"]
    return [*lines, f"tokenizer and other files: {carried}"]
