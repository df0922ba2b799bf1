"""What an engine needs of a folder beside the weights: tokenizer, end-of-text tokens, context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from nachim.data.prepared import TOKENIZER
from nachim.data.tokenize import EOT_ID, load_tokenizer
from nachim.model import DecoderModule
from nachim.model.hf.checkpoint import CONFIG, ORIGIN
from nachim.model.load import RUN, load
from nachim.spec import Decoder, Learned, Part, Run, UserError
from nachim.spec.disk import read_json


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model and what was said beside it; without a tokenizer it is given and gives token ids."""

    model: DecoderModule
    tokenizer: Tokenizer | None
    ends: frozenset[int]
    context: int | None


def opened(folder: Path | str, dtype: str | None = "float32") -> Loaded:
    """The model in `folder`. Raises UserError for one that is none, or whose weights are not finite."""
    folder = Path(folder)
    model = load(folder, dtype)
    for name, weight in model.named_parameters():
        # One pass that makes no tensor of the weight's size; NaN goes through to both ends.
        if not torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all():
            raise UserError(f"the weight {name} of {folder} is not finite: nothing can be generated from it")
    part = Part.load(folder / RUN) if (folder / RUN).is_file() else None
    context = part.data.seq_len if isinstance(part, Run) else None
    if isinstance(part, Run) and (folder / TOKENIZER).is_file():
        tokenizer = tokenizer_at(folder / TOKENIZER, load_tokenizer)
        return Loaded(model, tokenizer, frozenset({EOT_ID}), _table(model.spec, context))
    if (folder / ORIGIN).is_dir():
        folder = folder / ORIGIN
    told = _told(folder)
    tokenizer = tokenizer_at(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else None
    longest = told.get("max_position_embeddings") or told.get("n_positions") or context
    if not (longest is None or (type(longest) is int and longest > 0)):
        raise UserError(f"{folder / CONFIG} says that the context is {longest!r}; it must be a number of tokens")
    return Loaded(model, tokenizer, _ends(told), _table(model.spec, longest))


def files_of(folder: Path) -> Path:
    """Where the tokenizer's files of a run or a checkpoint stand. Raises UserError where there are none."""
    for files in (folder / ORIGIN, folder):
        if (files / TOKENIZER).is_file():
            return files
    if not any((folder / name).is_file() for name in (RUN, CONFIG)):
        raise UserError(f"{folder} is neither a run nor a checkpoint: it has no {RUN} and no {CONFIG}")
    raise UserError(f"{folder} has no {TOKENIZER}: text needs one")


def tokenizer_at(path: Path, read: Callable[[Any], Tokenizer] = Tokenizer.from_file) -> Tokenizer:
    """The tokenizer in the file `path`. Raises UserError for a file that holds none."""
    try:
        return read(str(path))
    except Exception as error:  # what the Rust library raises has no narrower name
        raise UserError(f"{path} holds no tokenizer that can be read ({error}): copy or download it again") from error


def _told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (CONFIG, "generation_config.json"):
        if (folder / name).is_file():
            values = read_json(folder / name)
            if not isinstance(values, dict):
                raise UserError(f"{folder / name} is not a JSON object")
            inner = values.get("text_config")
            found |= {**(inner if isinstance(inner, dict) else {}), **values}
    return found


def _ends(told: dict[str, Any]) -> frozenset[int]:
    value = told.get("eos_token_id")
    ends = value if isinstance(value, list) else [] if value is None else [value]
    if wrong := [token for token in ends if type(token) is not int]:
        raise UserError(f"eos_token_id in the model's config is {wrong[0]!r}; it must be a token id, or a list of them")
    return frozenset(ends)


def _table(spec: Decoder, context: int | None) -> int | None:
    lengths = [block.position.length for block in spec.kinds if isinstance(block.position, Learned)]
    return min([*lengths, *([] if context is None else [context])], default=None)
