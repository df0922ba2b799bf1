"""An active ladder: not every run that is planned, but, round after round, those that tell most about the target.

It begins with the cheapest runs that determine a law. Then it fits, chooses among the runs that are left (a decay on a
trunk that has come so far already costs its decay alone), trains what it chose, and fits again, until the target is
known well enough, nothing that is left would help, or the ladder's time is spent. Each choice is written to
`active.json` before it is carried out, so that a killed ladder makes the same choices again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nachim.lab.ladder import Chain, Ladder, name_of
from nachim.lab.launch.local import carry_out_all
from nachim.lab.size import Plan
from nachim.lab.store import diverged, observe, run_noise
from nachim.lab.study import Study
from nachim.law import Candidates, Observations, Target, next_runs
from nachim.law import study as read_law
from nachim.law.design import Advice
from nachim.law.fit import sample_of
from nachim.law.laws import LAWS
from nachim.spec import Run, UserError
from nachim.spec.disk import read_json, write_text
from nachim.train import checkpoint
from nachim.train.schedule import stable_steps

SPARE = 4
"""Runs that the opening has beyond the coefficients of the smallest law: one through all its points tells no noise."""


@dataclass(frozen=True)
class Round:
    """Runs that were chosen together, by name; `why`, a line each; the target's half-width `percent` before them (None
    in the opening); and the `flops` they cost."""

    runs: tuple[str, ...]
    why: tuple[str, ...]
    percent: float | None
    flops: float


def climb(study: Study, plan: Plan, within: float | None) -> Ladder:
    """Carry out the active ladder of `plan`: the runs that were made, their table in `observations.csv`.

    It ends once the loss at the plan's target is known to `within` percent (90 %, either way), when no run that is left
    would help, or when the plan's ladder time is spent. Raises UserError when `within` is not that of the choices made.
    """
    offer = study.make_ladder(plan)
    log = Log(study.root / "active.json", within)
    table = study.root / "observations.csv"
    if not table.exists():
        study.view.stage("ladder", plan.ladder_seconds)
        while not log.stopped:
            if log.unfinished:
                _carry_out(study, offer, log)
            _choose(study, plan, offer, log)
        study.view.say(log.stopped)
        ladder = made(offer, log.names)
        ladder.save(study.root / "ladder.json")
        observe(study.root / "ladder", ladder.runs).write(table)
        for run in ladder.runs:
            _tidy(study.root / "ladder" / name_of(run) / "checkpoint")
    return Ladder.load(study.root / "ladder.json")


class Log:
    """The choices of an active ladder, in a file that is replaced whole."""

    def __init__(self, path: Path, within: float | None) -> None:
        found: dict[str, Any] = read_json(path) if path.exists() else {"within": within, "seconds": 0.0, "rounds": []}
        if found["within"] != within:
            was = f"--within {found['within']:g}" if found["within"] else "no --within"
            raise UserError(f"{path.parent} holds an active ladder that began with {was}: go on with that")
        self.path, self.within = path, within
        self.rounds = [
            Round(tuple(each["runs"]), tuple(each["why"]), each["percent"], each["flops"]) for each in found["rounds"]
        ]
        self.done: int = found.get("done", 0)
        self.seconds: float = found["seconds"]
        self.stopped: str = found.get("stopped", "")

    @property
    def names(self) -> list[str]:
        """Names of the runs that were chosen, in order."""
        return [name for each in self.rounds for name in each.runs]

    @property
    def unfinished(self) -> bool:
        """Whether the last choice has not been carried out."""
        return self.done < len(self.rounds)

    def write(self) -> None:
        """Replace the file."""
        rounds = [dataclasses.asdict(each) for each in self.rounds]
        about = {"within": self.within, "stopped": self.stopped, "seconds": self.seconds, "done": self.done}
        write_text(self.path, json.dumps({**about, "rounds": rounds}, indent=2) + "\n")


def opening(offer: Ladder) -> list[Run]:
    """The cheapest runs of `offer` that determine the smallest law, with SPARE to spare; all where none suffice."""
    law = next(iter(LAWS.values()))
    runs = sorted(offer.runs, key=lambda run: run.flops)
    for count in range(law.size + SPARE, len(runs)):
        cheap = runs[:count]
        scale = np.array([float(run.flops_per_token) for run in cheap])
        tokens = np.array([float(run.train.tokens) for run in cheap])
        table = Observations(tokens=tokens, loss=np.ones(count), flops_per_token=scale)
        sample = sample_of(table, "flops_per_token")
        if not law.shortfall(sample, np.ones(count, dtype=bool)):
            return cheap
    return runs


def left_over(offer: Ladder, names: Collection[str], lost: Collection[str] = ()) -> tuple[list[Run], Candidates | None]:
    """The runs of `offer` that are not among `names`, and what they cost beside those that are.

    Runs that go on from one that was `lost` are left out: they share its fault.
    """
    runs, trunk, shared, paid = [], [], [], {}
    for number, chain in enumerate(offer.chains):
        for run in chain.runs:
            if name_of(run) in lost:
                break
            prefix = float(run.train.token_at(stable_steps(run.train)) * run.flops_per_token)
            if name_of(run) in names:
                paid[str(number)] = max(paid.get(str(number), 0.0), prefix)
            else:
                runs.append(run)
                trunk.append(str(number))
                shared.append(prefix if len(chain.runs) > 1 else 0.0)
    if not runs:
        return runs, None
    x, tokens, cost = np.array([(run.flops_per_token, run.train.tokens, run.flops) for run in runs], dtype=float).T
    return runs, Candidates(x, tokens, cost, trunk=np.array(trunk), shared=np.array(shared), paid=paid)


def made(offer: Ladder, names: Collection[str]) -> Ladder:
    """The runs of `offer` called `names`, in chains whose trunks keep what those not chosen would start from."""
    chains = []
    for chain in offer.chains:
        chosen = tuple(run for run in chain.runs if name_of(run) in names)
        if chosen:
            rungs = tuple(stable_steps(run.train) for run in chain.runs) if len(chain.runs) > 1 else ()
            chains.append(Chain(runs=chosen, rungs=rungs))
    return Ladder(chains=tuple(chains))


def _choose(study: Study, plan: Plan, offer: Ladder, log: Log) -> None:
    """Add a round to the log, or the reason to stop."""
    if not log.rounds:
        first = opening(offer)
        why = f"one of the {len(first)} cheapest runs, which determine a law"
        log.rounds.append(
            Round(
                tuple(map(name_of, first)),
                (why,) * len(first),
                None,
                made(offer, [name_of(run) for run in first]).flops,
            )
        )
        study.view.say(f"opening: {why.removeprefix('one of ')}")
        log.write()
        return
    lost = diverged(study.root / "ladder", offer)
    runs, candidates = left_over(offer, log.names, lost)
    if candidates is None:
        log.stopped = f"all {len(offer.runs)} runs of the plan are made"
    elif log.seconds > plan.ladder_seconds:
        log.stopped = f"the ladder's {plan.ladder_seconds:.0f} s are spent; {len(runs)} runs of the plan were left out"
    else:
        _ask(study, plan, offer, log, runs, candidates)
    log.write()


def _ask(study: Study, plan: Plan, offer: Ladder, log: Log, runs: list[Run], candidates: Candidates) -> None:
    """Let the law choose as many runs as there are workers; where no law is determined yet, take the cheapest."""
    observed = observe(study.root / "ladder", made(offer, log.names).runs)
    try:
        reading = read_law(observed, scale="flops_per_token", noise=run_noise(observed), seed=study.question.seed)
    except UserError as error:
        pick = int(np.argmin(candidates.charged()))
        _add(
            study,
            log,
            [runs[pick]],
            [f"the cheapest one left, for no law is determined yet: {error}"],
            None,
            float(candidates.charged()[pick]),
        )
        return
    advice = next_runs(reading, candidates, Target(flops=plan.target_flops), within=log.within)
    if not advice.helps or (log.within is not None and advice.percent <= log.within):
        log.stopped = f"stopped: {advice.why}"
        return
    picks = advice.picks[: study.pace().workers]
    why = [reason(advice, number, len(runs)) for number in range(len(picks))]
    _add(study, log, [runs[pick.index] for pick in picks], why, advice.percent, picks[-1].spent)


def reason(advice: Advice, number: int, among: int) -> str:
    """Why the run at place `number` of the plan was chosen, in one line."""
    pick = advice.picks[number]
    before = advice.picks[number - 1].percent if number else advice.percent
    rank = f"place {advice.order.tolist().index(pick.index) + 1} of {among} by what it alone tells for its FLOP"
    return f"brings the target from ±{before:.3g} % to ±{pick.percent:.3g} % for {pick.cost:.3g} FLOP; {rank}"


def _add(study: Study, log: Log, runs: list[Run], why: list[str], percent: float | None, flops: float) -> None:
    log.rounds.append(Round(tuple(map(name_of, runs)), tuple(why), percent, flops))
    for run, line in zip(runs, why, strict=True):
        study.view.say(f"round {len(log.rounds) - 1}: {name_of(run)} {line}")


def _carry_out(study: Study, offer: Ladder, log: Log) -> None:
    """Train what was chosen last."""
    began = time.monotonic()
    wanted = set(log.rounds[-1].runs)
    chains = [chain for chain in made(offer, log.names).chains if any(name_of(run) in wanted for run in chain.runs)]
    chains.sort(key=lambda chain: -chain.runs[-1].flops)
    root = study.root / "ladder"
    view = study.view
    carry_out_all(chains, root, study.place(1), study.pace().workers, view.event, view.stopping)
    if lost := [name for name in diverged(root, Ladder(chains=tuple(chains))) if name in wanted]:
        study.view.say(f"diverged, and left out of the law: {', '.join(lost)}")
    log.seconds += time.monotonic() - began
    log.done = len(log.rounds)
    log.write()


def _tidy(root: Path) -> None:
    """Remove the checkpoints that were kept for runs that might have followed."""
    last = checkpoint.latest(root)
    if last:
        checkpoint.prune(root, frozenset({checkpoint.step_of(last)}))
