"""The verb `nachim plan`: a budget in; what to train, how, where, and what it costs, out."""

from __future__ import annotations

import json as jsonlib
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import tyro

from nachim.app.ask import Ask
from nachim.budget.cost import disk_bytes
from nachim.budget.designs import shapes_between
from nachim.budget.device import device_named, parse_cluster
from nachim.budget.explain import reasons, warnings
from nachim.budget.place import Placement
from nachim.budget.plan import Plan, Wish, make_plan
from nachim.budget.recipe import recipe
from nachim.law.published import DEFAULT, known_law
from nachim.law.repeat import effective_tokens
from nachim.spec import MTP, Run, UserError
from nachim.spec.disk import write_text

if TYPE_CHECKING:
    from nachim.budget.deploy import Deployment
    from nachim.budget.serve import Demand

Number, Count, Text, Folder = Optional[float], Optional[int], Optional[str], Optional[Path]  # noqa: UP045
"""What may be left unsaid. Of `float | None` tyro asks typeguard whether None is one, whose import takes 0.07 s."""
SMALLEST_SERVED, LARGEST_SERVED = 1 / 30, 2.0
"""Range of M, over the best design's, of the models that a deployment chooses from."""


@dataclass(frozen=True)
class Serve:
    """What will be asked of the model afterwards."""

    serve_tokens_per_day: Number = None
    """Tokens to serve a day, prompts and answers together: plans for training and serving together."""
    prompt_tokens: int = 1000
    """Tokens of a prompt."""
    answer_tokens: int = 300
    """Tokens of an answer."""
    serve_days: float = 365.0
    """How long it is served."""
    samples: int = 1
    """Answers to a question."""
    max_ttft: Number = None
    """Most seconds to the first token."""
    max_tpot: Number = None
    """Most seconds for each further token."""
    serve_on: Text = None
    """The device that serves; by default the one that trains."""
    weights: str = "bf16"
    """How weights are kept when served: bf16, fp8, int8, int4."""
    cache: str = "bf16"
    """How keys and values are kept when served."""
    acceptance: Number = None
    """Chance that a draft model's guess is accepted: speculative decoding."""
    draft_cost: float = 0.1
    """Cost of the draft model as a share of the model's."""
    loss: Number = None
    """The loss wanted (nat/token); by default the one that the training budget alone reaches."""
    total_dollars: Number = None
    """Instead of a loss: what training and serving may cost together."""

    def demand(self, tokens_per_day: float) -> Demand:
        """What is asked of the model, at `tokens_per_day`. Raises UserError for numbers that make no sense."""
        from nachim.budget.serve import Demand

        return Demand(
            tokens_per_day=tokens_per_day,
            prompt_tokens=self.prompt_tokens,
            answer_tokens=self.answer_tokens,
            days=self.serve_days,
            samples=self.samples,
            max_ttft=self.max_ttft,
            max_tpot=self.max_tpot,
        )


@dataclass(frozen=True)
class Means:
    """The budget, and what is known beside it."""

    flops: Number = None
    """Training FLOP, the head apart (C = M·D)."""
    devices: Text = None
    """Where it runs: a count and a device, such as 8xH200; `here` is this machine, after `nachim measure`."""
    hours: Number = None
    """How long the devices are there."""
    dollars: Number = None
    """What training may cost."""
    dollars_per_hour: Number = None
    """Price of an hour of one device, instead of the list price."""
    law: str = DEFAULT
    """Where the optimum lies: deepseek, chinchilla-1, -2, -3, chinchilla-corrected, kaplan, llama-3, or a file that
    `nachim fit --json` printed."""
    unique_tokens: Number = None
    """Tokens of text there are; more are repeated, and worth less."""
    seq_len: Count = None
    """Tokens of context; by default 128, 2,048 or 4,096, by compute."""
    vocab_size: Count = None
    """Size of the vocabulary; by default 512, 32,768 or 131,072, by compute."""
    shape: Text = None
    """Plan for this decoder, LAYERSxWIDTH[xHEADS[xKV_HEADS]], instead of searching one."""
    mtp: Count = None
    """Modules that predict further tokens, trained beside the decoder, which then drafts for it (DeepSeek-V3: 1)."""
    data: str = "stdlib"
    """The text of the recipe: `stdlib` (embedded), a file or folder, or hf:NAME."""
    text_column: str = "text"
    """The column or key of the data that holds the text."""

    def wish(self) -> Wish:
        """What the planner is asked. Raises UserError for an unknown law or device."""
        said = {name: value for name, value in asdict(self).items() if name not in ("devices", "data", "text_column")}
        cluster = None if self.devices is None else parse_cluster(self.devices)
        mtp = None if self.mtp is None else MTP(depth=self.mtp)
        return Wish(**said | {"law": known_law(self.law), "cluster": cluster, "mtp": mtp})


def plan(
    means: Annotated[Means, tyro.conf.arg(name="")] = Means(),
    serve: Annotated[Serve, tyro.conf.arg(name="")] = Serve(),
    out: Annotated[Folder, tyro.conf.arg(metavar="DIR")] = None,
    json: bool = False,
) -> int:
    """What should this budget train? Designs near the optimum, their layout, hours, money, and a run to start.

    The budget is compute (--flops), devices for some time (--devices 8xH200 --hours 72), or money (--dollars). Without
    --devices the fewest H100s that finish within 30 days are taken.

    Example: nachim plan --devices 8xH200 --hours 504 --unique-tokens 2e11

    Args:
        means: The budget, and what is known beside it.
        serve: What will be asked of the model afterwards.
        out: Folder for plan.html (the page), plan.json, and run.json (the recipe).
        json: Print one JSON object instead of tables.
    """
    corpus = Ask(data=(means.data,), text_column=means.text_column).corpus()
    made = make_plan(means.wish())
    deployment = deployed(made, serve)
    run = recipe(made, made.best, corpus)
    summary = summarise(made, run, deployment) | {"asked": _asked(made, means.law, serve)}
    if out is not None:
        run.save(out / "run.json")
        summary["recipe"] = str(out / "run.json")
        write_text(out / "plan.json", jsonlib.dumps(summary, indent=2) + "\n")
        from nachim.app.plan_page import write_plan_page

        write_plan_page(summary, out / "plan.html")
    if json:
        print(jsonlib.dumps(summary))
    else:
        from nachim.app.plan_tables import show

        show(summary)
    return 0


def deployed(made: Plan, serve: Serve) -> Deployment | None:
    """The model of least total cost under the demand; None where nothing is to be served."""
    if serve.serve_tokens_per_day is None:
        if serve != Serve():
            raise UserError("nothing says how much is to be served: give --serve-tokens-per-day too")
        return None
    from nachim.budget.deploy import Training, deploy
    from nachim.budget.speculate import Speculation

    best, asked = made.best, made.asked
    demand = serve.demand(serve.serve_tokens_per_day)
    device = made.cluster.device
    training = Training(
        device=device,
        seq_len=asked.seq_len,
        mfu=min(1.0, best.mfu),
        precision=best.job.precision,
        unique_tokens=asked.unique_tokens,
    )
    cost = best.design.flops_per_token
    draft = serve.acceptance is not None
    loss = best.design.loss if serve.loss is None and serve.total_dollars is None else serve.loss
    return deploy(
        made.wish.law,
        shapes_between(asked, SMALLEST_SERVED * cost, min(LARGEST_SERVED * cost, made.found.most)),
        training,
        device_named(serve.serve_on) if serve.serve_on else device,
        demand,
        loss=loss,
        dollars=serve.total_dollars,
        weights=serve.weights,
        cache=serve.cache,
        speculation=Speculation(acceptance=serve.acceptance or 0.0, draft_cost=serve.draft_cost) if draft else None,
    )


def summarise(made: Plan, run: Run, deployment: Deployment | None) -> dict[str, Any]:
    """The plan as plain JSON values: FLOP, tokens, nat/token, bytes, hours, dollars, kWh."""
    best, wish, optimum = made.best, made.wish, made.optimum
    interval = made.optimum_interval
    law = wish.law
    return {
        "budget": {
            "flops": made.asked.flops,
            "devices": f"{made.cluster.count}x{made.cluster.device.name}",
            "devices_assumed": made.assumed,
            "hours": wish.hours,
            "dollars": wish.dollars,
        },
        "law": law.name,
        "law_source": law.source,
        "law_scale": law.scale,
        "law_note": law.note,
        "loss_law": made.asked.loss_law.name,
        "optimum": {
            "flops_per_token": optimum.flops / optimum.tokens,
            "tokens": optimum.tokens,
            "loss": made.optimum_loss,
            "low": interval and interval[0],
            "high": interval and interval[1],
            "x": optimum.x,
            "x_interval": optimum.x_interval,
            "tokens_interval": optimum.tokens_interval,
            "interval_percent": law.level if optimum.x_interval else None,
        },
        "designs": [_design(placement) for placement in made.placements],
        "layout": _layout(best),
        "time": asdict(best.placed.time),
        "memory": {**best.memory.as_dict(), "device_bytes": made.cluster.device.memory_bytes},
        "hours": best.hours,
        "dollars": best.dollars,
        "energy_kwh": best.kilowatt_hours,
        "disk_bytes": disk_bytes(run),
        "data": _data(made),
        "serving": deployment and deployment.to_json(),
        "recipe": run.to_json(),
        "why": [{"topic": topic, "because": because} for topic, because in reasons(made)],
        "warnings": warnings(made, run),
    }


def _asked(made: Plan, law: str, serve: Serve) -> dict[str, Any]:
    """What the page works out anew: the question as it was put, what was filled in, and the device at its price."""
    return {
        "command": shlex.join(["nachim", *sys.argv[1:]]),
        "law": law,
        "shape": made.wish.shape,
        "seq_len": made.asked.seq_len,
        "vocab_size": made.asked.vocab_size,
        "mtp": made.wish.mtp and made.wish.mtp.to_json(),
        "ladder": made.asked.small,
        "most": made.found.most if made.found.refusal else None,
        "device": made.cluster.device.to_json(),
        "serve": asdict(serve),
    }


def _design(placement: Placement) -> dict[str, Any]:
    return {
        **placement.design.to_json(),
        "hours": placement.hours,
        "dollars": placement.dollars,
        "mfu": placement.mfu,
        "tokens_per_second": placement.tokens_per_second,
    }


def _layout(best: Placement) -> dict[str, Any]:
    return {
        **asdict(best.layout),
        "devices": best.cluster.count,
        "device": best.cluster.device.name,
        "precision": best.job.precision,
        "optimizer": best.job.optimizer,
        "seconds_per_step": best.seconds_per_step,
        "tokens_per_second": best.tokens_per_second,
        "mfu": best.mfu,
    }


def _data(made: Plan) -> dict[str, Any]:
    unique, tokens = made.wish.unique_tokens, made.best.design.tokens
    return {
        "tokens": tokens,
        "unique_tokens": unique,
        "epochs": made.epochs,
        "effective_tokens": tokens if unique is None else effective_tokens(tokens, unique),
    }
