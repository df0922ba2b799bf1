"""The run that a plan recommends, as `nachim train` reads it."""

from __future__ import annotations

from nachim.budget.place import Placement
from nachim.budget.plan import Plan
from nachim.spec import BPE, WSD, AdamW, Corpus, Data, MultiStep, Muon, Run, Schedule, Train, Validation

WARMUP_STEPS, SMALL_WARMUP_STEPS = 2000, 64
"""Steps of warm-up: DeepSeek's (arXiv 2401.02954, sec. 2.3), and those of the ladder's own recipe."""
VALIDATION_TIMES = 20
"""How often a long run is validated; a run of the ladder's size is at its end."""


def recipe(plan: Plan, placement: Placement, corpus: Corpus) -> Run:
    """The run of one design on `corpus`, its tokenizer trained there.

    Budgets of the ladder's size take its optimizer and schedule, Muon and WSD; larger ones those that the batch and
    learning-rate laws were found with, AdamW and the multi-step schedule (arXiv 2401.02954, sec. 2.3).
    """
    design, small = placement.design, plan.asked.small
    warmup = min(SMALL_WARMUP_STEPS if small else WARMUP_STEPS, design.steps // 4) * design.batch_tokens
    schedule: Schedule = WSD(warmup_tokens=warmup) if small else MultiStep(warmup_tokens=warmup)
    at_once = placement.layout.micro_batch * design.seq_len
    whole = placement.cluster.count > 1 or at_once >= design.batch_tokens or design.batch_tokens % at_once
    train = Train(
        tokens=design.steps * design.batch_tokens,
        batch_tokens=design.batch_tokens,
        optimizer=(Muon if small else AdamW)(lr=design.lr),
        schedule=schedule,
        precision=placement.job.precision,
        micro_batch_tokens=None if whole else at_once,
    )
    data = Data(corpus=corpus, tokenizer=BPE(vocab_size=design.model.vocab_size), seq_len=design.seq_len)
    validation = Validation(times=1 if small else min(VALIDATION_TIMES, design.steps))
    return Run(model=design.model, data=data, train=train, validation=validation)
