"""The options every verb that starts a study shares."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
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
    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The text: `stdlib` (the embedded corpus: Python's own library; the default), a file or folder (.txt,
    .jsonl[.zst|.gz], .parquet, any text), or `hf:NAME` for a Hugging Face data set. `nachim ladder` takes several,
    each after a --data of its own."""
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
        return Path("runs") / f"{'-'.join(self.names())}-{self.minutes:g}min-{self.design}-s{self.seed}"

    def names(self) -> tuple[str, ...]:
        """A short name of each corpus. Raises UserError when two share one."""
        names = tuple(Path(text.removeprefix("hf:")).name or "text" for text in self.data or ("stdlib",))
        if len(set(names)) < len(names):
            raise UserError(f"--data names two corpora alike ({', '.join(names)}): rename a file or folder")
        return names

    def corpus(self) -> Corpus:
        """The corpus part that `data` names. Raises UserError when it names several, or no file."""
        if len(self.data) > 1:
            raise UserError(f"--data was given {len(self.data)} times: only `nachim ladder` takes several corpora")
        text, held_out = self.data[0] if self.data else "stdlib", self.validation_bytes
        if text == "stdlib":
            return Stdlib(validation_bytes=held_out)
        if text.startswith("hf:"):
            name = text.removeprefix("hf:")
            return HuggingFace(name=name, text_column=self.text_column, validation_bytes=held_out)
        if not Path(text).exists():
            raise UserError(f"--data {text}: no such file or folder; give a path, `stdlib`, or hf:NAME")
        return Files(path=str(Path(text).resolve()), text_column=self.text_column, validation_bytes=held_out)

    def study(self, view: TerminalView) -> Study:
        """The study these options ask for."""
        from nachim.lab.study import Question, Study

        data = Data(corpus=self.corpus(), tokenizer=BPE(vocab_size=self.vocab_size), seq_len=self.seq_len)
        question = Question(minutes=self.minutes, data=data, design=self.design, seed=self.seed)
        return Study(self.folder(), question, CACHE, view, BEGAN)

    def each(self) -> dict[str, Ask]:
        """One question a corpus, by its name: an equal share of the minutes, in a folder below this one's."""
        share, root = self.minutes / len(self.data), self.folder()
        texts = zip(self.names(), self.data, strict=True)
        return {name: replace(self, data=(text,), minutes=share, out=root / name) for name, text in texts}


def open_study(directory: Path, view: TerminalView) -> Study:
    """The study that stands in `directory`. Raises UserError when there is none."""
    from nachim.lab.study import Question, Study

    path = directory / "study.json"
    if not path.exists():
        raise UserError(f"{directory} holds no study: it has no study.json; make one with `nachim ladder --out`")
    return Study(directory, Question.load(path), CACHE, view, BEGAN)
