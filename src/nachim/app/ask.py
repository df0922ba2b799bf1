"""The options every verb that starts a study shares."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nachim.spec import BPE, Corpus, Data, Files, HuggingFace, Stdlib, UserError

if TYPE_CHECKING:
    from nachim.app.view import TerminalView
    from nachim.lab.study import Study

BEGAN = time.monotonic()
"""When this process began to be nachim: minutes count from here."""
CACHE = Path.home() / ".cache" / "nachim"


@dataclass(frozen=True)
class Ask:
    """What to study, and with how much of this machine."""

    minutes: float = 10.0
    """How long the whole study may take, target run included."""
    data: str = "stdlib"
    """The text: `stdlib` (the embedded corpus: Python's own library), a file or folder (.txt, .jsonl[.zst|.gz],
    .parquet, any text), or `hf:NAME` for a Hugging Face data set."""
    text_column: str = "text"
    """The column or key that holds the text."""
    validation_bytes: int = 2_000_000
    """Bytes of text held out for validation."""
    vocab_size: int = 512
    """Size of the byte-level BPE vocabulary trained on the text."""
    seq_len: int = 128
    """Tokens of context."""
    design: Literal["trunks", "isoflop"] = "trunks"
    """`trunks`: one constant-rate run a shape, decayed at every budget; `isoflop`: separate runs."""
    seed: int = 0
    """Draws weights, the order of the data and the bootstraps."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The study's folder; by default runs/ and a name made of the options. The same command goes on where it was."""

    def folder(self) -> Path:
        """Where the study lives."""
        if self.out is not None:
            return self.out
        name = Path(self.data.removeprefix("hf:")).name or "text"
        return Path("runs") / f"{name}-{self.minutes:g}min-{self.design}-s{self.seed}"

    def corpus(self) -> Corpus:
        """The corpus part that `data` names."""
        held_out = self.validation_bytes
        if self.data == "stdlib":
            return Stdlib(validation_bytes=held_out)
        if self.data.startswith("hf:"):
            name = self.data.removeprefix("hf:")
            return HuggingFace(name=name, text_column=self.text_column, validation_bytes=held_out)
        if not Path(self.data).exists():
            raise UserError(f"--data {self.data}: no such file or folder; give a path, `stdlib`, or hf:NAME")
        return Files(path=str(Path(self.data).resolve()), text_column=self.text_column, validation_bytes=held_out)

    def study(self, view: TerminalView) -> Study:
        """The study these options ask for."""
        from nachim.lab.study import Question, Study

        data = Data(corpus=self.corpus(), tokenizer=BPE(vocab_size=self.vocab_size), seq_len=self.seq_len)
        question = Question(minutes=self.minutes, data=data, design=self.design, seed=self.seed)
        return Study(self.folder(), question, CACHE, view, BEGAN)


def open_study(directory: Path, view: TerminalView) -> Study:
    """The study that stands in `directory`. Raises UserError when there is none."""
    from nachim.lab.study import Question, Study

    path = directory / "study.json"
    if not path.exists():
        raise UserError(f"{directory} holds no study: it has no study.json; make one with `nachim ladder --out`")
    return Study(directory, Question.load(path), CACHE, view, BEGAN)
