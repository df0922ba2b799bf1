"""What stands above and below each figure of a report: its title, how it is read, and why it may be missing."""

from __future__ import annotations

from nachim.app.record import Record

NO_RUN = "Not drawn: no run of the ladder has finished yet."
NOT_YET = "Not drawn: it needs a law, which is fitted when every run of the ladder has ended."
NO_LAW = "Not drawn: it needs a law, and no law could be fitted to the ladder."


def captions(record: Record) -> dict[str, tuple[str, str, str]]:
    """Of each figure, in the order of the page: title, caption, and what is said where it cannot be drawn."""
    why = NO_LAW if (record.root / "observations.csv").exists() else NOT_YET
    return {
        "compute": (
            "Loss against compute",
            "Each point is one finished run, an open one a repeat with another seed; lower is better. The grey line is "
            "the law's loss when compute is split best between model and data, with the 90 % prediction interval of "
            "one run (smoothed). C = M·D, the output head apart; bpb is bits per byte of raw text, on held-out text.",
            NO_RUN,
        ),
        "isoflop": (
            "Equal compute, other shapes",
            "Each colour is one budget: small models on many tokens at the left, large ones on few at the right. Lines "
            "are the law; a cross is the lowest point of the budget's own parabola, a second opinion that knows no "
            "law. M is non-embedding training FLOP a token, attention over the whole context included.",
            why,
        ),
        "surface": (
            "The loss surface",
            "Darker is lower. Along the dashed line compute is split best; runs stand around it, and the target should "
            "stand near it. Contours are even steps of log loss by the law; both axes are logarithmic.",
            why,
        ),
        "allocation": ("What to build with more compute", _allocation(record), why),
        "sweep": (
            "Learning rate and batch",
            "One shape at the cheapest budget, trained with other learning rates and other batches. The dashed line is "
            "what was chosen: the lowest point of a parabola through the runs, the batch then rounded to a power of "
            "two of sequences. It corrects DeepSeek's laws, which carry it to the other budgets.",
            "Not drawn: no run of the sweep has finished yet.",
        ),
        "residuals": (
            "What the law does not explain",
            f"How far each run lies above or below the law, in percent of bpb. {_noise(record)} A pattern by shape or "
            "by compute would say that the law's form is wrong.",
            why,
        ),
        "curves": (
            "Training curves",
            "Training loss in nat/token, averaged over equal steps of log tokens; runs of one shape share their first "
            "part where one chain made them. Diamonds are the target's validation losses.",
            "Not drawn: no run of the ladder has written metrics yet.",
        ),
        "rollouts": (
            "Would it have been right before?",
            "The cheap runs alone were fitted and asked for each dearer run; up is worse than forecast. The number "
            "beside a law is its mean absolute miss, far forecasts counting more. The smaller the miss, the "
            "larger a law's share in the forecast, whose interval is stretched until it would have covered these.",
            "Not drawn: too few runs to fit the cheap ones alone." if record.reading else why,
        ),
    }


def _allocation(record: Record) -> str:
    reading = record.reading
    if not reading:
        return ""
    m, d, ends = reading.exponents["model"], reading.exponents["data"], reading.exponents_interval90
    said = (
        f"By the law, the best M grows as C^{m:.3f} ({ends['model'][0]:.3f} to {ends['model'][1]:.3f}) and the best D "
        f"as C^{d:.3f} ({ends['data'][0]:.3f} to {ends['data'][1]:.3f}), 90 % intervals over all laws."
    )
    if record.second:
        low, high = record.second.exponent_interval90
        said += f" The parabolas say C^{record.second.exponent:.3f} ({low:.3f} to {high:.3f}) for M."
    return said + " Dashed: M ∝ C^0.5243, D ∝ C^0.4757 of DeepSeek (arXiv 2401.02954), on other data and other shapes."


def _noise(record: Record) -> str:
    if record.repeats is None:
        return "Run noise was not measured: no run was repeated with another seed."
    return f"The band holds 90 % of runs that differ in their seed alone (measured: {100 * record.repeats:.2f} %, 1 σ)."
