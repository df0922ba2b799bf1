"""The verbs of `nachim data` that ask a model what it has read: membership of texts, exposure of canaries."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nachim.app.view import TerminalView
from nachim.data.canary import canary, exposure
from nachim.data.read import Report
from nachim.data.records import lines_to, records, size_of
from nachim.spec.error import UserError

if TYPE_CHECKING:
    from nachim.infer.folder import Loaded

Model = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
SHOWN = 10


@dataclass(frozen=True)
class Membership:
    """Say how familiar texts are to a model: whether benchmark items, say, were in what it was trained on.

    Four scores of every text, all higher for what was read: the mean log-probability, that over zlib's bits, and
    Min-k% and Min-k%++, which look at the least likely tokens. A score means little alone: give texts that are known to
    be read and unread (--label), and the table says how well each score tells them apart.

    Example: nachim data membership runs/first items.jsonl --label read
    """

    model: Model
    """A run, or a Hugging Face checkpoint, with its tokenizer."""
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN.jsonl")]
    """Texts, one JSON object a line (.jsonl, .jsonl.gz, .jsonl.zst)."""
    share: float = 0.2
    """The share of tokens, the least likely ones, that Min-k% takes."""
    label: str | None = None
    """The key that says with true or false whether a text was read."""
    out: Path | None = None
    """Where each record's id and scores are written, one JSON object a line."""
    text_column: str = "text"
    """The key that holds the text."""
    json: bool = False
    """Print one JSON object: texts (id and scores of each), areas (of each score, with its interval), notes."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was found, for a script and for a person."""
        from nachim.evaluate.memory import FEWEST, Familiarity, area, familiarity

        if not 0 < self.share <= 1:
            raise UserError(f"--share is {self.share:g}; it must be above 0 and at most 1")
        loaded, report, size = _opened(self.model), Report(), max(1, size_of(self.source))
        view.stage("asking the model")
        texts: list[dict[str, Any]] = []
        with lines_to(self.out) as write:
            for record in records(self.source, self.text_column, report):
                ids = loaded.tokenizer.encode(record.text.decode(), add_special_tokens=False).ids
                if len(ids) < FEWEST:
                    report.skip("fewer than two tokens", record.id)
                    continue
                scores = asdict(familiarity(loaded.model, ids, record.text, self.share, loaded.context))
                texts.append({"id": record.id, **scores, **self._read(jsonlib.loads(record.line), record.id)})
                write(jsonlib.dumps(texts[-1], ensure_ascii=False).encode() + b"\n")
                view.share("reading", min(1.0, report.bytes / size))
        if not texts:
            raise UserError(f"no text in {self.source} that can be judged" + "".join(f"; {n}" for n in report.notes()))
        areas: dict[str, dict[str, float]] = {}
        if self.label is not None:
            read = [text["read"] for text in texts]
            for name in (field.name for field in fields(Familiarity)):
                found = area([text[name] for text in texts], read)
                areas[name] = dict(zip(("area", "low", "high"), found, strict=True))
        told = {"texts": texts, "areas": areas, "notes": report.notes()}
        return told, "\n".join([*_familiar(texts), *_told(areas), *report.notes()])

    def _read(self, record: dict[str, Any], name: str) -> dict[str, bool]:
        if self.label is None:
            return {}
        value = record.get(self.label)
        if not isinstance(value, bool | int) or value not in (0, 1):
            raise UserError(f"record {name} of {self.source} does not say true or false under {self.label!r}")
        return {"read": bool(value)}


@dataclass(frozen=True)
class Exposed:
    """Say how far a model remembers the canaries that `nachim.data.canary.Canaries` put into its training text.

    The loss of each canary is held against lines of its kind that stand nowhere: exposure is log2 of how many there are
    less log2 of the canary's rank among them. What was read often and is not remembered has 1.44 bits in the mean.

    Example: nachim data exposure runs/first --canaries 4 --references 1000
    """

    model: Model
    """A run, or a Hugging Face checkpoint, with its tokenizer."""
    canaries: int = 1
    """How many canaries the pipeline's stage put in: the length of its `counts`."""
    references: int = 1000
    """How many lines that stand nowhere to rank them among, at least 10."""
    seed: int = 0
    """The stage's seed."""
    json: bool = False
    """Print one JSON object: canaries (text, loss, ranked and fitted exposure in bits), references, most (bits)."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was found, for a script and for a person."""
        from nachim.evaluate.memory import token_scores

        if self.canaries < 1:
            raise UserError(f"--canaries is {self.canaries}; it must be 1 or more")
        loaded = _opened(self.model)
        view.stage("asking the model")
        losses = []
        for number in range(total := self.canaries + self.references):
            ids = loaded.tokenizer.encode(canary(self.seed, number), add_special_tokens=False).ids
            losses.append(-float(token_scores(loaded.model, ids, loaded.context)[0].sum()))
            view.share("lines", (number + 1) / total)
        found = exposure(losses[: self.canaries], losses[self.canaries :])
        told = [
            {"text": canary(self.seed, number), "loss": losses[number], **asdict(one)}
            for number, one in enumerate(found)
        ]
        lines = [
            f"{one['text']}  {one['loss']:.2f} nat, exposed by {one['ranked']:.2f} bits ({one['fitted']:.2f} by fit)"
            for one in told
        ]
        return {"canaries": told, "references": self.references}, "\n".join(lines)


def _opened(folder: Path) -> Loaded:
    from nachim.infer.folder import opened

    loaded = opened(folder)
    if loaded.tokenizer is None:
        raise UserError(f"{folder} has no tokenizer: what a text's tokens are cannot be told")
    return loaded


def _familiar(texts: list[dict[str, Any]]) -> list[str]:
    lines = [f"{len(texts):,} texts; the most familiar by Min-k%++:"]
    for text in sorted(texts, key=lambda text: -text["min_k_plus"])[:SHOWN]:
        lines.append(
            f"  {text['id']}: loss {-text['loss']:.3f} nat, min-k {text['min_k']:.2f}, min-k++ {text['min_k_plus']:.2f}"
        )
    return lines


def _told(areas: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"{name} puts a text that was read above one that was not in {one['area']:.1%} of pairs "
        f"({one['low']:.1%} to {one['high']:.1%})"
        for name, one in areas.items()
    ]
