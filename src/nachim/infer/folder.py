"""What an engine needs of a folder beside the weights: tokenizer, end-of-text tokens, context."""

from __future__ import annotations

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
        return Loaded(model, load_tokenizer(folder / TOKENIZER), frozenset({EOT_ID}), _table(model.spec, context))
    if (folder / ORIGIN).is_dir():
        folder = folder / ORIGIN
    told = _told(folder)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER)) if (folder / TOKENIZER).is_file() else None
    longest = told.get("max_position_embeddings") or told.get("n_positions") or context
    return Loaded(model, tokenizer, _ends(told), _table(model.spec, longest))


def _told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (CONFIG, "generation_config.json"):
        if (folder / name).is_file():
            values = read_json(folder / name)
            inner = values.get("text_config")
            found |= {**(inner if isinstance(inner, dict) else {}), **values}
    return found


def _ends(told: dict[str, Any]) -> frozenset[int]:
    value = told.get("eos_token_id")
    return frozenset(value if isinstance(value, list) else [] if value is None else [value])


def _table(spec: Decoder, context: int | None) -> int | None:
    lengths = [block.position.length for block in spec.kinds if isinstance(block.position, Learned)]
    return min([*lengths, *([] if context is None else [context])], default=None)
