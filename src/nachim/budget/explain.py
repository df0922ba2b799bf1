"""Why a plan is what it is, and what it does not know: one sentence each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from nachim.budget.designs import EPSILON, Design
from nachim.budget.device import CONTEXT, DEVICES
from nachim.budget.plan import ASSUMED_HOURS, Plan
from nachim.law.published import KnownLaw
from nachim.law.repeat import R_STAR
from nachim.spec import Corpus, Run, Stdlib

MANY_EPOCHS = 4
"""Epochs up to which repeated tokens are nearly as good as fresh ones (arXiv 2305.16264, abstract)."""
EMBEDDED_TOKENS = 2e7
"""More tokens than the embedded corpus can have: Python's library is some 30 MB, at 2 bytes a token or more."""


def reasons(plan: Plan) -> list[tuple[str, str]]:
    """(topic, why) of each decision, in the order in which they were made."""
    return list(_reasons(plan))


def _reasons(plan: Plan) -> Iterator[tuple[str, str]]:
    asked, best, law = plan.asked, plan.best, plan.wish.law
    model = best.design.model
    yield "budget", _budget(plan)
    yield "law", f"{law.name} ({law.source}){f': {law.note}' if law.note else ''}"
    if asked.loss_law is not law:
        yield "loss", f"{law.name} says where the optimum lies, not its loss: losses are {asked.loss_law.name}'s"
    longer = "" if plan.wish.flops else "; each spends the same compute, so slower ones take longer than the budget"
    size = f"; none larger than {plan.found.most:.3g} FLOP/token, which is what fits" if plan.found.refusal else ""
    yield (
        "designs",
        f"all within {100 * EPSILON:g} % of the least loss, ranked by loss in steps of 0.1 %, then by hours; "
        f"shapes of one size differ by less than a law can tell{longer}{size}",
    )
    if model.mtp is not None:
        yield "further tokens", _further(plan)
    yield "shape", f"width / depth = {model.d_model / model.n_layers:.0f}: published decoders have 37 to 136"
    yield (
        "batch, lr",
        f"DeepSeek's laws (arXiv 2401.02954, eq. 1) at {asked.flops:.3g} FLOP; priors: `nachim ladder` measures yours",
    )
    yield "layout", _layout(plan)
    if asked.unique_tokens is not None:
        yield from _data(plan, asked.unique_tokens)


def _further(plan: Plan) -> str:
    """What modules for further tokens take of the compute, and what is not counted for them."""
    design = plan.best.design
    alone = dataclasses.replace(design.model, mtp=None).flops_per_token(design.seq_len)
    return (
        f"predicting {design.model.passes - 1} more (arXiv 2412.19437) takes "
        f"{100 * (1 - alone / design.flops_per_token):.1f} % of M, and the head works {design.model.passes} times on a "
        "token; losses are the decoder's without it: no law says what it is worth to the next token"
    )


def _data(plan: Plan, unique: float) -> Iterator[tuple[str, str]]:
    """What repeats do to the design, and to the law's own optimum."""
    asked, tokens, optimal = plan.asked, plan.best.design.tokens, plan.optimum.tokens
    if tokens > unique:
        yield (
            "data",
            f"{tokens / unique:.3g} epochs of {unique:.3g} unique tokens are worth {asked.worth(tokens):.3g} fresh "
            f"ones (R* = {R_STAR}, arXiv 2305.16264)",
        )
    if optimal > unique:
        yield (
            "optimum",
            f"{plan.wish.law.name} takes all tokens for fresh; its {optimal:.3g} would be {optimal / unique:.3g} "
            f"epochs, worth {asked.worth(optimal):.3g}, at a loss of {plan.optimum_loss:.3f} instead of "
            f"{plan.fresh_loss:.3f}: the designs stand around the least loss with repeats counted",
        )


def _budget(plan: Plan) -> str:
    cluster, wish = plan.cluster, plan.wish
    where = f"{cluster.count} x {cluster.device.name}"
    if wish.flops is not None:
        if not plan.assumed:
            return f"{wish.flops:.3g} FLOP, as asked, on {where}"
        return (
            f"nobody named devices: {where} are the fewest, doubling, that finish within {ASSUMED_HOURS / 24:.0f} days"
        )
    what = f"{wish.hours:g} hours" if wish.hours is not None else f"${wish.dollars:,.0f}"
    return (
        f"{what} of {where} at the {100 * plan.best.mfu:.0f} % of their peak that the layout reaches; worked out "
        f"{plan.rounds} times until compute and hours agreed"
        + (", which they do with these designs kept: at this budget two make each other the better one" * plan.kept)
    )


def _layout(plan: Plan) -> str:
    best, layout = plan.best, plan.best.layout
    free = plan.cluster.device.memory_bytes - best.memory.total
    split = ", ".join(
        f"{name} {getattr(layout, name)}" for name in ("dp", "tp", "pp", "cp", "ep") if getattr(layout, name) > 1
    )
    return (
        f"the fastest that fits: {split or 'one device'}, ZeRO-{layout.zero}, micro-batch {layout.micro_batch}, "
        f"recomputing {layout.recompute}; {free / 1e9:.1f} GB stay free on the fullest device"
    )


def warnings(plan: Plan, run: Run) -> list[str]:
    """What a person must know before believing the plan."""
    return [
        *_about_the_room(plan),
        *_about_the_law(plan),
        *_about_the_data(plan, run.data.corpus),
        *_about_the_run(plan),
    ]


def _about_the_room(plan: Plan) -> Iterator[str]:
    """Designs that fit no layout, and what it costs to do without them."""
    device = plan.cluster.device
    where = f"{plan.cluster.count} x {device.name}"
    free = device.memory_bytes - plan.best.memory.total
    if device.kind != "cpu" and device.name not in DEVICES and free < CONTEXT:
        yield (
            f"{free / 1e6:.0f} MB stay free on the device, and a process holds {CONTEXT / 1e6:.0f} MB beside its "
            "tensors: it may run out of memory"
        )
    homeless = sorted(plan.found.homeless, key=lambda one: one.loss)
    if plan.found.refusal is None:
        if homeless:
            yield f"{', '.join(map(_shape, homeless))} fit no layout on {where}, and are left out"
        return
    best, least = plan.best.design, homeless[0]
    yield (
        f"no design near the least loss fits ({plan.found.refusal}); {_shape(best)} is the best that does, and at the "
        f"same compute costs {100 * (best.loss / least.loss - 1):.2g} % more loss than {_shape(least)} would "
        f"({best.loss:.3f}, not {least.loss:.3f}), trained on {best.tokens / best.model.params_total:.0f} tokens a "
        "parameter"
    )


def _shape(design: Design) -> str:
    return f"{design.model.n_layers} layers x {design.model.d_model}"


def _about_the_law(plan: Plan) -> Iterator[str]:
    law, loss_law, flops = plan.wish.law, plan.asked.loss_law, plan.asked.flops
    yield from _beyond(law, "the optimum", flops)
    if loss_law is not law:
        yield from _beyond(loss_law, "the loss", flops)
    guess = math.log(plan.asked.vocab_size)
    if plan.best.design.loss > guess:
        yield (
            f"a loss of {plan.best.design.loss:.3g} is worse than guessing ({guess:.3g} with {plan.asked.vocab_size} "
            "tokens): the law says nothing at this size; `nachim ladder` measures one that does, --law takes its file"
        )
    if plan.optimum_interval is None:
        yield f"the loss has no interval: {loss_law.name} gives none"


def _beyond(law: KnownLaw, what: str, flops: float) -> Iterator[str]:
    if law.measured and not law.measured[0] / 3 <= flops <= 3 * law.measured[1]:
        low, high = law.measured
        far = math.log10(flops / high if flops > high else low / flops)
        side = "beyond" if flops > high else "below"
        yield (
            f"{what} is extrapolated: {flops:.3g} FLOP lie 10^{far:.1f} {side} the runs behind {law.name} "
            f"({low:.3g} to {high:.3g})"
        )


def _about_the_data(plan: Plan, corpus: Corpus) -> Iterator[str]:
    tokens, epochs = plan.best.design.tokens, plan.epochs
    if epochs is None and isinstance(corpus, Stdlib) and tokens > EMBEDDED_TOKENS:
        yield (
            f"the recipe reads the embedded corpus, Python's own library, which has far fewer than {tokens:.3g} "
            "tokens: name your text with --data, and its size with --unique-tokens"
        )
    if epochs is not None and epochs > MANY_EPOCHS:
        yield f"{epochs:.3g} epochs: beyond about {MANY_EPOCHS} repeated tokens are worth less (arXiv 2305.16264)"


def _about_the_run(plan: Plan) -> Iterator[str]:
    best = plan.best
    if best.cluster.count > 1:
        yield (
            f"`nachim train` trains on one device today: the recipe holds model, data and schedule; the layout over "
            f"{best.cluster.count} devices is for the launcher you have"
        )
    elif best.layout.offload:
        yield "the layout keeps the optimizer's state in host memory; `nachim train` does not: it would run out"
    elif best.layout.recompute != "none":
        yield f"the layout recomputes to fit: give `nachim train` --recompute {best.layout.recompute}"
    if best.dollars is None:
        yield f"nobody knows what an hour of {best.cluster.device.name} costs: give --dollars-per-hour"
