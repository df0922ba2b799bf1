"""The verb `nachim import`: a Hugging Face checkpoint as a run folder of ours."""

from __future__ import annotations

import json as jsonlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nachim.spec import UserError
from nachim.spec.disk import new_folder

if TYPE_CHECKING:
    from nachim.model.hf import Checkpoint

FILES = ("*.safetensors", "*.safetensors.index.json", "config.json")
"""What is fetched of a repository on the Hub, beside the files that are carried along."""


def import_(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR|NAME")],
    out: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    json: bool = False,
) -> int:
    """Read a Hugging Face checkpoint into a run folder: run.json, weights, and its tokenizer and config as they are.

    DIR is a folder with config.json and safetensors files; NAME, such as Qwen/Qwen3-0.6B, is fetched from the Hugging
    Face Hub (needs the `hf` extra). Every tensor keeps its precision, and `nachim export` gives the same bytes back.
    Nothing is written when a tensor is missing, extra or misshapen, or the config has an option that is not computed
    here exactly.

    Example: nachim import Qwen/Qwen3-0.6B --out runs/qwen && nachim cost runs/qwen

    Args:
        source: A folder, or a repository's name.
        out: The run folder to write; it must be new or empty.
        json: Print one JSON object instead of sentences.
    """
    from nachim.model.hf import open_checkpoint

    folder = Path(source) if Path(source).is_dir() else fetched(source)
    summary = written(open_checkpoint(folder), out)
    print(jsonlib.dumps(summary) if json else "\n".join(_sentences(summary)))
    return 0


def fetched(name: str) -> Path:
    """The folder of a repository's files, fetched from the Hub or kept from before. Raises UserError when it cannot."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UserError(f"there is no folder {name}, and a repository of the Hugging Face Hub is named OWNER/NAME")
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"there is no folder {name}; to fetch it by name, install nachim[hf]") from error
    from nachim.model.hf.checkpoint import CARRIED

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*FILES, *CARRIED]))
    except (OSError, ValueError) as error:  # not there, gated, offline, a name that cannot be
        why = str(error).strip().splitlines()[0]
        raise UserError(f"there is no folder {name}, and the Hugging Face Hub does not give it: {why}") from error


def written(found: Checkpoint, out: Path) -> dict[str, Any]:
    """Write `found` as a run folder; what was written, as plain JSON values."""
    from nachim.model.hf.checkpoint import CONFIG, ORIGIN, carry
    from nachim.model.hf.source import save
    from nachim.model.load import RUN
    from nachim.model.weights import CHECKPOINT, WEIGHTS, path_at

    with new_folder(out) as folder:
        weights = found.weights()
        step, origin = path_at(folder / CHECKPOINT, 0), folder / ORIGIN
        for made in (step, origin):
            made.mkdir(parents=True)
        save(weights, step / WEIGHTS)
        shutil.copyfile(found.folder / CONFIG, origin / CONFIG)
        carried = carry(found.folder, origin)
        found.decoder.save(folder / RUN)
    decoder = found.decoder
    return {
        "out": str(out),
        "model_type": found.family.model_type,
        "params_total": decoder.params_total,
        "params_non_embedding": decoder.params_non_embedding,
        "tensors": len(found.source),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}),
        "carried": carried,
        "unread": found.config.unknown,
    }


def _sentences(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"{summary['out']}: {summary['model_type']}, {summary['params_total']:,} parameters "
        f"in {', '.join(summary['dtypes'])}",
    ]
    if summary["carried"]:
        lines.append(f"carried along: {', '.join(summary['carried'])}")
    if summary["unread"]:
        keys = ", ".join(summary["unread"])
        lines.append(f"kept, and without effect here as in the family's own implementation: {keys}")
    return lines
