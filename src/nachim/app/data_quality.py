"""The verbs of `nachim data` that look at quality: scores and their page, models to score by, resampling, masking."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from nachim.app.view import TerminalView
from nachim.data import classify, ngram
from nachim.data.arpa import write_arpa
from nachim.data.pii import KINDS
from nachim.data.quality import Classified, Language, MaskPII, Perplexity, Rules, rules_of
from nachim.data.read import Report
from nachim.data.records import records, size_of
from nachim.data.resample import Resample
from nachim.data.rules import FAMILIES, Rule
from nachim.data.scored import Passed, passed, resampled
from nachim.data.stage import PerRow
from nachim.spec.error import UserError

Input = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN.jsonl")]


@dataclass(frozen=True)
class Score:
    """Score every record by rules and models, so that limits are chosen from histograms of your own text.

    Nothing is dropped: --out takes every record with its scores, --page shows each score's histogram with the published
    limits, and the table says what each would drop. What you settle on goes into a recipe, as stages of
    nachim.data.quality: Rules(rules=(GopherWords(least=20),)), Perplexity(model="m.arpa", least=50, most=2000), ...

    Example: nachim data score docs.jsonl --page scores.html
    """

    source: Input
    """Records, one JSON object a line, with `text` (.jsonl, .jsonl.gz, .jsonl.zst)."""
    rules: tuple[str, ...] = tuple(FAMILIES)
    """Families of rules: c4, gopher-quality, gopher-repetition, fineweb."""
    ngram: Annotated[Path | None, tyro.conf.arg(metavar="M.arpa")] = None
    """An n-gram model to take perplexities under (`nachim data ngram` trains one; KenLM's are read)."""
    classifier: Annotated[Path | None, tyro.conf.arg(metavar="M.npz")] = None
    """A classifier that `nachim data classifier` trained; `label` says which probability is the score."""
    label: str = "good"
    """The label of the classifier that is scored."""
    language: Annotated[Path | None, tyro.conf.arg(metavar="M.npz")] = None
    """A classifier of languages (`nachim data classifier --units bytes --fit bayes`)."""
    out: Path | None = None
    """Where every record is written with its scores."""
    page: Path | None = None
    """Where the page of histograms is written."""
    text_column: str = "text"
    """The key that holds the text."""
    json: bool = False
    """Print one JSON object: records, in_bounds, dropped (by the first limit), scores (limits, out, mean), labels."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was found, for a script and for a person."""
        view.stage("scoring")
        rules = rules_of(self.rules)
        found = passed(
            self.source, self._stages(rules), self.text_column, self.out, lambda done: view.share("reading", done)
        )
        told = _told(self.source, found, rules)
        if self.page is not None:
            from nachim.app.quality_page import write_page

            write_page(self.page, told)
        for one in told["scores"].values():
            del one["values"]
        return told, _as_text(told, [place for place in (self.out, self.page) if place is not None])

    def _stages(self, rules: tuple[Rule, ...]) -> list[PerRow]:
        stages: list[PerRow] = [Rules(rules=rules)] if rules else []
        if self.ngram is not None:
            stages.append(Perplexity(model=str(self.ngram)))
        if self.classifier is not None:
            stages.append(Classified(model=str(self.classifier), label=self.label))
        if self.language is not None:
            stages.append(Language(model=str(self.language)))
        if not stages:
            raise UserError("nothing to score by: name --rules, --ngram, --classifier or --language")
        return stages


def _told(source: Path, found: Passed, rules: tuple[Rule, ...]) -> dict[str, Any]:
    limits = {rule.name: rule for rule in rules}
    scores = {}
    for name in [*limits, *sorted(found.ledger.scores.keys() - limits.keys())]:
        rule, values = limits.get(name), [value for _, value in found.ledger.scores.get(name, [])]
        scores[name] = {
            "source": rule.SOURCE if rule else "",
            "least": rule.least if rule else None,
            "most": rule.most if rule else None,
            "out": found.broken.get(name, 0),
            "mean": found.sums[name] / found.ledger.came.rows,
            "values": values,
        }
    return {
        "file": source.name,
        "records": found.ledger.came.rows,
        "in_bounds": found.ledger.kept.rows,
        "dropped": {reason: count.rows for reason, count in found.ledger.dropped.items()},
        "scores": scores,
        "labels": dict(sorted(found.ledger.labels.get("language", {}).items(), key=lambda one: -one[1])),
        "notes": found.report.notes(),
    }


def _as_text(told: dict[str, Any], written: list[Path]) -> str:
    lines = [f"{told['in_bounds']:,} of {told['records']:,} records keep every limit"]
    out = sorted(((one["out"], name) for name, one in told["scores"].items() if one["out"]), reverse=True)
    lines += [f"  {name:28} {count:>9,} out of bounds ({count / told['records']:.1%})" for count, name in out]
    lines += [f"  {name}: {count:,} records" for name, count in list(told["labels"].items())[:10]]
    return "\n".join([*lines, *told["notes"], *(f"written: {place}" for place in written)])


@dataclass(frozen=True)
class NGramModel:
    """Train an n-gram model on text that you trust (modified Kneser-Ney), for perplexities of other text.

    --out takes it as an ARPA file, which KenLM and others read. Lines are sentences, words are in lower case.

    Example: nachim data ngram wikipedia.jsonl --out wikipedia.arpa --order 5
    """

    source: Input
    """Records of the text to train on."""
    out: Annotated[Path, tyro.conf.arg(metavar="M.arpa")]
    """The file to write."""
    order: int = 3
    """The longest n-gram, in words."""
    text_column: str = "text"
    """The key that holds the text."""
    json: bool = False
    """Print one JSON object: ngrams (of each length), sentences, perplexity (of the text itself), seconds."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was made, for a script and for a person."""
        view.stage("training an n-gram model")
        texts = _texts(self.source, self.text_column)
        sentences = [line for text in texts for line in ngram.sentences_of(text)]
        model = ngram.train(sentences, self.order, lambda done: view.share("counting", done))
        write_arpa(model, self.out, lambda done: view.share("writing", done))
        sums, counts = model.score(sentences)
        own = float(10 ** -(sums.sum() / counts.sum()))
        sizes = [len(level.keys) for level in model.levels]
        told = {"ngrams": sizes, "sentences": len(sentences), "perplexity": own}
        said = ", ".join(f"{size:,} of {n} words" for n, size in enumerate(sizes, start=1))
        return told, f"{self.out}: n-grams {said}; {own:.1f} is the perplexity of the text itself"


@dataclass(frozen=True)
class TrainClassifier:
    """Train a classifier that tells records of one file from those of the others, and judge it on held-out records.

    A file's name without its ending is its label: good.jsonl and bad.jsonl, or en.jsonl, ko.jsonl, ... for languages.
    What it says is calibrated: of what is said with 80 %, 80 % is so, and the table shows how nearly.

    Example: nachim data classifier good.jsonl bad.jsonl --out quality.npz
    """

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LABEL.jsonl")]
    """Two files of records or more, one a label."""
    out: Annotated[Path, tyro.conf.arg(metavar="M.npz")]
    """The file to write."""
    units: classify.Units = "words"
    """Features: words for what a text is about, bytes for its language."""
    fit: classify.Fit = "regression"
    """Softmax regression, or naive Bayes, for many labels."""
    seed: int = 0
    """What deals records to training, calibration and judgement."""
    text_column: str = "text"
    """The key that holds the text."""
    json: bool = False
    """Print one JSON object: labels, texts (held out), accuracy, log_loss, error (of calibration), bins."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was made, for a script and for a person."""
        view.stage("training a classifier")
        labels = [path.name.split(".")[0] for path in self.sources]
        if len(set(labels)) < len(labels):
            raise UserError(f"two files have one label among {', '.join(labels)}: name each by its own")
        found = [[text.encode() for text in _texts(path, self.text_column)] for path in self.sources]
        model, report = classify.train(
            list(itertools.chain.from_iterable(found)),
            [label for label, texts in zip(labels, found, strict=True) for _ in texts],
            units=self.units,
            fit=self.fit,
            seed=self.seed,
            tick=lambda done: view.share("fitting", done),
        )
        model.save(self.out)
        lines = [
            f"{self.out}: right on {report.accuracy:.1%} of {report.texts:,} records held out; error of calibration "
            f"{report.error:.3f} ({report.error_before:.3f} before)",
            *(f"  said {one.said:.3f}, true {one.true:.3f} of {one.texts:,}" for one in report.bins),
        ]
        return {"labels": list(model.labels), **asdict(report)}, "\n".join(lines)


@dataclass(frozen=True)
class Resampled:
    """Draw the records that look like a target's: importance resampling of hashed n-grams (DSIR, arXiv 2302.03169).

    Example: nachim data resample raw.jsonl target.jsonl --rows 10000 --out drawn.jsonl
    """

    source: Input
    """The raw records."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET.jsonl")]
    """Records of the kind that is wanted."""
    rows: int
    """How many records to draw."""
    out: Path
    """The file that takes them, byte for byte, in their order."""
    least_words: int = 100
    """Shorter records cannot be drawn."""
    seed: int = 0
    """Of the draw."""
    text_column: str = "text"
    """The key that holds the text, in both files."""
    json: bool = False
    """Print one JSON object: records, candidates, drawn, mean_weight, mean_weight_drawn (nats), seconds."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was drawn, for a script and for a person."""
        view.stage("resampling")
        stage = Resample(
            target=str(self.target), rows=self.rows, least_words=self.least_words, seed=self.seed,
            text_column=self.text_column,
        )  # fmt: skip
        found = resampled(stage, self.source, self.out, lambda done: view.share("reading", done))
        said = (
            f"{found.drawn:,} of {found.records:,} records drawn into {self.out} ({found.candidates:,} were long "
            f"enough); mean log weight {found.mean_weight:.1f} of all, {found.mean_weight_drawn:.1f} of those drawn"
        )
        return asdict(found), "\n".join([said, *found.notes])


@dataclass(frozen=True)
class Mask:
    """Mask what tells of persons: e-mail addresses, public IP addresses, telephone numbers, IBANs, cards, keys.

    Cards and IBANs must pass their checksums. Each finding becomes its kind, as <email>.

    Example: nachim data mask docs.jsonl --out masked.jsonl
    """

    source: Input
    """Records."""
    out: Path
    """The file that takes them, masked, with a count of each kind."""
    text_column: str = "text"
    """The key that holds the text."""
    json: bool = False
    """Print one JSON object: records, found (how many of each kind), seconds."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was found, for a script and for a person."""
        view.stage("masking")
        found = passed(self.source, [MaskPII()], self.text_column, self.out, lambda done: view.share("reading", done))
        counts = {kind.name: int(found.sums[f"pii_{kind.name}"]) for kind in KINDS}
        said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        told = {"records": found.ledger.came.rows, "found": counts}
        return told, "\n".join([f"{told['records']:,} records written to {self.out}: {said}", *found.report.notes()])


def _texts(path: Path, column: str) -> list[str]:
    """The texts of a file of records, all at once. Raises UserError where there is none."""
    size_of(path)
    report = Report()
    texts = [record.text.decode() for record in records(path, column, report)]
    if not texts:
        raise UserError(f"no record in {path}" + "".join(f"; {note}" for note in report.notes()))
    return texts
