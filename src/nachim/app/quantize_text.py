"""The text that a model is calibrated and measured on when its weights go into few bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nachim.app.ask import CACHE, Ask
from nachim.data.prepared import TOKENIZER
from nachim.spec import Data, Part, Run, TokenizerFile, UserError

if TYPE_CHECKING:
    from nachim.data.pack import Batches
    from nachim.infer.folder import Loaded
    from nachim.lab.mixture import Mixed

SEQ_LEN = 256
"""Tokens of a sequence where the model does not say what it was trained on."""
VALIDATION_BYTES = 200_000
ROWS = 4
"""Sequences that the error of each layer is measured on."""


@dataclass(frozen=True, eq=False)
class Text:
    """Tokenized text: some to calibrate on, some held out."""

    batches: Batches | Mixed

    def calibration(self, count: int) -> np.ndarray:
        """The first `count` sequences of the train split, [count, T]."""
        return self.batches.batch(0, count)[:, :-1]

    def measured(self, model: Any, tokens: int) -> dict[str, float]:
        """`loss` and `bpb` on the validation split."""
        from nachim.data.pack import Batches
        from nachim.evaluate.bpb import Windows, measure, measure_each

        def windows(source: Batches) -> Windows:
            ids = source.validation(tokens)
            return Windows(ids, source.target_bytes(ids))

        if isinstance(self.batches, Batches):
            return measure(model, windows(self.batches))
        each = {name: windows(source) for name, source in self.batches.sources.items()}
        return measure_each(model, each, self.batches.last_shares)

    def held_out(self) -> np.ndarray:
        """A few sequences of the validation split, [ROWS, T]."""
        from nachim.data.pack import Batches

        one = self.batches if isinstance(self.batches, Batches) else next(iter(self.batches.sources.values()))
        return one.validation(ROWS * one.seq_len)[:, :-1]


def text_of(folder: Path, loaded: Loaded, wanted: str | None) -> Text | None:
    """The text `wanted` (as --data says), else what a run was trained on, else the embedded corpus, in its tokens.

    None where the folder has no tokenizer. Raises UserError as `prepare` does.
    """
    from nachim.lab.work import open_batches

    data = _data(folder, loaded, wanted)
    return None if data is None else Text(open_batches(data, CACHE))


def _data(folder: Path, loaded: Loaded, wanted: str | None) -> Data | None:
    from nachim.model.hf.checkpoint import ORIGIN
    from nachim.model.load import RUN

    part = Part.load(folder / RUN) if (folder / RUN).is_file() else None
    if isinstance(part, Run) and wanted is None:
        return part.data
    held = [path for path in (folder / ORIGIN / TOKENIZER, folder / TOKENIZER) if path.is_file()]
    if loaded.tokenizer is None or not held:
        if wanted is not None:
            raise UserError(f"{folder} has no {TOKENIZER}: --data cannot be read as its tokens")
        return None
    end = next((loaded.tokenizer.id_to_token(number) for number in sorted(loaded.ends)), None)
    if end is None:
        raise UserError(f"{folder} does not say which token ends a text (eos_token_id): its text cannot be measured")
    tokenizer = TokenizerFile(path=str(held[0].resolve()), vocab_size=loaded.model.spec.vocab_size, end=end)
    asked = Ask(data=() if wanted is None else (wanted,), validation_bytes=VALIDATION_BYTES)
    if isinstance(part, Run):
        return replace(part.data, corpus=asked.corpus(), tokenizer=tokenizer, fingerprint_of_tokens="")
    return Data(corpus=asked.corpus(), tokenizer=tokenizer, seq_len=min(SEQ_LEN, loaded.context or SEQ_LEN))
