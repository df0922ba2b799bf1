"""The page of a plan: what stands on it, and that its script works out what the planner does."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from typing import Any

import pytest

from nachim.app.figures import round_ticks, spelt
from nachim.app.plan import Means, Serve, plan
from nachim.app.plan_facts import asked_of, facts_of, models
from nachim.app.plan_page import SCRIPTS, page_of, write_plan_page
from nachim.app.plan_tables import clock
from nachim.budget.deploy import Training, deploy
from nachim.budget.designs import loss_at
from nachim.budget.device import device_named
from nachim.budget.serve import Demand, serve
from nachim.budget.speculate import Speculation
from nachim.law.published import FLOPS_PER_UNIT
from nachim.law.repeat import effective_tokens
from nachim.spec import Device

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
ASKED = {
    "flops": (Means(flops=1e21), Serve()),
    "hours": (Means(devices="8xH200", hours=504, unique_tokens=2e11), Serve(serve_tokens_per_day=2e9)),
    "repeated, int4": (
        Means(flops=2e22, law="chinchilla-corrected", unique_tokens=2e10, dollars_per_hour=2.0),
        Serve(serve_tokens_per_day=5e9, weights="int4", cache="fp8", samples=3, acceptance=0.7, serve_days=100),
    ),
    "elsewhere": (
        Means(flops=3e20, law="kaplan"),
        Serve(serve_tokens_per_day=1e9, serve_on="A100-80GB", max_tpot=0.05),
    ),
    "small": (Means(flops=1e14), Serve()),
    "further tokens": (Means(flops=1e21, law="chinchilla-corrected", mtp=2), Serve(serve_tokens_per_day=1e9)),
    "too large for its card": (Means(devices="1xRTX-4090", hours=2000), Serve(serve_tokens_per_day=1e8)),
}


def planned(means: Means, asked: Serve) -> dict[str, Any]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert plan(means, asked, json=True) == 0
    return json.loads(said.getvalue())


@pytest.fixture(scope="module")
def plans() -> dict[str, dict[str, Any]]:
    return {name: planned(*asked) for name, asked in ASKED.items()}


def in_browser(expression: str, **values: object) -> Any:
    """What `expression` is once the page's scripts are loaded and `values` are there."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to run the page's script")
    scripts = "\n".join(files("nachim.app").joinpath(name).read_text("utf-8") for name in SCRIPTS)
    given = "\n".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
    script = f"{scripts}\n{given}\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run([node, "-"], input=script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def near(value: float | None) -> Any:
    return value if value is None else pytest.approx(value, rel=1e-9)


def settings(facts: dict[str, Any]) -> list[dict[str, float | None]]:
    """Where the sliders stand at first, and several places they may be moved to."""
    first = facts["start"]
    tokens = first["flops"] / facts["shapes"][len(facts["shapes"]) // 2]["flopsPerToken"]
    low = next(knob["low"] for knob in facts["knobs"] if knob["name"] == "flops")
    moved = [
        {"flops": first["flops"] * 4, "served": 3e9, "price": 1.5},
        {"flops": max(low, first["flops"] / 5), "served": 1e8, "days": 30.0, "mfu": 0.2},
        {"unique": tokens / 20, "served": 1e11},
        {"unique": None, "served": 1e6, "days": 1000.0},
    ]
    return [first, *(first | one for one in moved)]


CASES = [(name, place) for name in ASKED for place in range(5)]


@pytest.fixture(scope="module")
def browsed(plans) -> dict[str, tuple[dict[str, Any], list[Any]]]:
    """Of each plan its facts, and of each setting what the script makes of it."""
    found = {}
    for name, made in plans.items():
        facts = facts_of(made)
        each = (
            "{setting, best: optimum(facts, setting), design: bestDesign(facts, setting),"
            " spent: spent(facts, setting), dollars: trainDollars(facts, facts.shapes[0], 1e9, setting),"
            " deployment: deployment(facts, setting)}"
        )
        made_of = in_browser(f"list.map((setting) => ({each}))", facts=facts, list=settings(facts))
        found[name] = facts, made_of
    return found


@pytest.mark.parametrize(("name", "place"), CASES)
def test_the_optimum_of_the_script_is_the_laws(plans, browsed, name, place):
    setting, best = (browsed[name][1][place][key] for key in ("setting", "best"))
    asked = asked_of(plans[name])
    law = asked.law.optimum(setting["flops"])
    assert best["x"] == near(law.x)
    assert best["tokens"] == near(law.tokens)
    worth = law.tokens if setting["unique"] is None else effective_tokens(law.tokens, setting["unique"])
    x = setting["flops"] / (FLOPS_PER_UNIT[asked.loss_law.scale] * law.tokens)
    assert best["loss"] == near(asked.loss_law.surface.loss(x, worth))


@pytest.mark.parametrize(("name", "place"), CASES)
def test_the_losses_and_the_best_shape_of_the_script_are_the_planners(plans, browsed, name, place):
    setting, spent, design = (browsed[name][1][place][key] for key in ("setting", "spent", "design"))
    asked = dataclasses.replace(asked_of(plans[name]), unique_tokens=setting["unique"])
    losses = [loss_at(asked, one["shape"]["x"], setting["flops"] / one["shape"]["flopsPerToken"]) for one in spent]
    assert [one["loss"] for one in spent] == [near(loss) for loss in losses]
    assert design["loss"] <= 1.001 * min(losses) * (1 + 1e-9)


@pytest.mark.parametrize(("name", "place"), CASES)
def test_the_deployment_of_the_script_is_the_planners(plans, browsed, name, place):
    made, (facts, results) = plans[name], browsed[name]
    setting, found = (results[place][key] for key in ("setting", "deployment"))
    if setting["served"] == 0:
        assert found["chosen"] == found["chinchilla"]
        assert found["breakEven"] is None
        return
    asked, said = asked_of(made), Serve(**made["asked"]["serve"])
    own = dataclasses.replace(Device.from_json(made["asked"]["device"]), dollars_per_hour=setting["price"])
    low, high = (times * results[place]["design"]["shape"]["flopsPerToken"] for times in facts["offered"])
    answer = deploy(
        asked.law,
        [model for model in models(made, asked) if low <= model.flops_per_token(asked.seq_len) <= high],
        Training(device=own, seq_len=asked.seq_len, mfu=setting["mfu"], unique_tokens=setting["unique"]),
        device_named(said.serve_on) if said.serve_on else own,
        demand(said, setting["served"], setting["days"]),
        loss=found["loss"],
        weights=said.weights,
        cache=said.cache,
        speculation=None if said.acceptance is None else Speculation(acceptance=said.acceptance, draft_cost=0.1),
    )
    assert len(found["curve"]) == len({point.model for point in answer.curve})
    for one, other in ((found["chosen"], answer.chosen), (found["chinchilla"], answer.chinchilla)):
        assert one["shape"]["params"] == other.model.params_total
        assert one["tokens"] == near(other.tokens)
        assert one["train"] == near(other.train_dollars)
        assert one["serve"] == near(other.serve_dollars)
        assert one["total"] == near(other.dollars)
    even = answer.break_even_tokens
    assert found["breakEven"] == (even if even is None else pytest.approx(even, rel=1e-7))  # of differences


def demand(said: Serve, tokens_per_day: float, days: float) -> Demand:
    return Demand(
        tokens_per_day=tokens_per_day,
        prompt_tokens=said.prompt_tokens,
        answer_tokens=said.answer_tokens,
        days=days,
        samples=said.samples,
        max_ttft=said.max_ttft,
        max_tpot=said.max_tpot,
    )


def test_training_dollars_of_the_script_are_the_deployments(plans, browsed):
    made, (facts, results) = plans["hours"], browsed["hours"]
    asked = asked_of(made)
    model = min(models(made, asked), key=lambda one: one.flops_per_token(asked.seq_len))
    device = Device.from_json(made["asked"]["device"])
    training = Training(device=device, seq_len=asked.seq_len, mfu=facts["start"]["mfu"])
    assert results[0]["dollars"] == near(1e9 * training.dollars_per_token(model))


@pytest.mark.parametrize("name", ["hours", "repeated, int4", "elsewhere", "too large for its card"])
def test_before_it_is_moved_the_script_says_what_the_plan_says(plans, browsed, name):
    made, first = plans[name], browsed[name][1][0]
    assert first["design"]["shape"]["rank"] == 0
    assert first["design"]["shape"]["params"] == made["designs"][0]["params_total"]
    for which in ("chosen", "chinchilla"):
        one, other = first["deployment"][which], made["serving"][which]
        assert one["tokens"] == near(other["tokens"])
        assert one["total"] == near(other["total_dollars"])
    assert first["deployment"]["loss"] == near(made["serving"]["loss"])
    assert len(first["deployment"]["curve"]) == len(made["serving"]["curve"])


def test_a_shape_that_was_asked_for_stays():
    made = planned(Means(flops=1e21, shape="60x1536x12x4"), Serve(serve_tokens_per_day=1e9))
    facts = facts_of(made)
    first = in_browser("deployment(facts, facts.start)", facts=facts)
    assert first["loss"] == near(made["serving"]["loss"])
    assert first["chosen"]["total"] == near(made["serving"]["chosen"]["total_dollars"])
    moved = facts["start"] | {"flops": 5e21}
    assert in_browser("bestDesign(facts, moved).shape.name", facts=facts, moved=moved) == "60\xa0×\xa01,536"


def test_the_least_loss_of_a_total_stays():
    made = planned(Means(dollars=20000.0), Serve(serve_tokens_per_day=2e9, total_dollars=50000.0))
    first = in_browser("deployment(facts, facts.start)", facts=facts_of(made))
    assert first["loss"] == near(made["serving"]["loss"])
    assert first["chosen"]["total"] == near(made["serving"]["chosen"]["total_dollars"])


def test_a_wanted_loss_stays_where_sliders_are_moved():
    made = planned(Means(flops=1e21), Serve(serve_tokens_per_day=1e9, loss=2.4))
    facts = facts_of(made)
    moved = facts["start"] | {"flops": 3e21}
    assert in_browser("deployment(facts, moved).loss", facts=facts, moved=moved) == 2.4


def test_what_cannot_be_served_is_not_chosen(plans):
    facts = facts_of(plans["hours"])
    for shape in facts["shapes"]:
        shape["hoursPerToken"] = None
    assert in_browser("deployment(facts, facts.start)", facts=facts) is None


def test_shapes_carry_the_counts_of_their_models(plans):
    made = plans["hours"]
    asked, facts = asked_of(made), facts_of(made)
    shapes = {(one["name"], one["params"]): one for one in facts["shapes"]}
    own = Device.from_json(made["asked"]["device"])
    for model in models(made, asked):
        shape = shapes[f"{model.n_layers}\xa0×\xa0{model.d_model:,}", model.params_total]
        assert shape["flopsPerToken"] == model.flops_per_token(asked.seq_len)
        assert shape["headFlops"] == model.head_flops_per_token
        served = serve(model, own, demand(Serve(), 2e9, 365.0)).dollars_per_token
        assert shape["hoursPerToken"] * own.dollars_per_hour == near(served)


def test_sliders_and_the_address_keep_a_setting(plans):
    facts = facts_of(plans["hours"])
    knobs = facts["knobs"]
    assert [knob["name"] for knob in knobs] == ["flops", "served", "days", "price", "mfu", "unique"]
    for knob in knobs:
        assert 0 < knob["low"] <= facts["start"][knob["name"]] <= knob["high"]
    back = in_browser(
        "facts.knobs.map((knob) => [0, 1, 500, 999, 1000].map((at) => placeOf(knob, valueAt(knob, at))))", facts=facts
    )
    assert back == [[0, 1, 500, 999, 1000]] * len(knobs)
    ends = in_browser("facts.knobs.map((knob) => [valueAt(knob, 0), valueAt(knob, 1000)])", facts=facts)
    assert ends[1][0] == 0
    assert ends[5][1] is None
    moved = facts["start"] | {"flops": 1e22, "served": 0, "unique": None}
    assert in_browser("hashOf(facts, facts.start)", facts=facts) == ""
    assert in_browser("hashOf(facts, moved)", facts=facts, moved=moved) == "flops=1e22&served=none&unique=none"
    assert in_browser("settingOf(facts, '#' + hashOf(facts, moved))", facts=facts, moved=moved) == moved
    spoilt = "#flops=-3&mfu=many&price=none&days=1e99&unknown=1"
    assert in_browser(f"settingOf(facts, {spoilt!r})", facts=facts) == facts["start"]


@pytest.mark.parametrize("ends", [(3e8, 5e11), (1.1e9, 2.3e9), (9e9, 1.05e10), (0.2, 7e5), (123.0, 124.0)])
def test_ticks_of_the_script_are_those_of_the_other_figures(plans, ends):
    facts = facts_of(plans["flops"])
    ticks = in_browser("roundTicks(facts, ...ends_)", facts=facts, ends_=ends)
    assert ticks == round_ticks(*ends)
    assert in_browser("ticks.map(spelt)", ticks=ticks) == [spelt(tick) for tick in ticks]


def test_hours_are_said_as_in_the_terminal():
    hours = [1e-4, 0.02, 0.5, 1.9, 30.0, 71.0, 73.0, 1234.5]
    assert in_browser("hours.map(clock)", hours=hours) == [clock(each) for each in hours]


@pytest.mark.parametrize("name", ASKED)
def test_every_figure_gets_as_many_traces_as_it_has(plans, name):
    from nachim.app.plan_figures import moving

    facts = facts_of(plans[name])
    filled = in_browser(
        "{surface: surfaceTraces(facts, s), slice: sliceTraces(facts, s), cost: costTraces(facts, s, found),"
        " split: splitTraces(found), cards: answers(facts, s, found), rivals: rivals(found).length}".replace(
            "found", "deployment(facts, s)"
        ),
        facts=facts,
        s=facts["start"] | {"served": 1e9},
    )
    for figure, drawn in moving(facts).items():
        assert len(filled[figure]) == len(drawn.data)
        for trace in filled[figure]:
            assert len(trace["x"]) == len(trace["z"][0] if "z" in trace else trace["y"])
            assert all(x > 0 and math.isfinite(x) for x in trace["x"])
    assert len(filled["cards"]) == 7
    assert 1 <= filled["rivals"] <= 5


@pytest.mark.parametrize("name", ASKED)
def test_the_page_carries_all_it_shows(plans, name, tmp_path):
    path = write_plan_page(plans[name], tmp_path / "plan.html")
    page = path.read_text(encoding="utf-8")
    assert page.count("plotly.js v") == 1
    assert page.count("Plotly.newPlot(") == 6
    assert "default-src 'none'" in page
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=(?!\"data:)", markup)
    assert not re.search(r"<script[^>]+src=", page[page.index("<body>") :])
    assert "://" not in markup
    for wanted in (
        "What if",
        "The loss surface",
        "Break-even",
        "Designs",
        "Memory",
        "One step",
        "Why",
        "How to repeat it",
    ):
        assert f">{wanted}</h2>" in markup
    assert (">Serving</h2>" in markup) == (plans[name]["serving"] is not None)


def test_no_text_of_a_plan_becomes_markup(plans):
    made = json.loads(json.dumps(plans["hours"]))
    made["warnings"].append(EVIL)
    made["asked"]["command"] = EVIL
    made["why"].append({"topic": EVIL, "because": EVIL})
    made["layout"]["device"] = EVIL
    made["asked"]["device"]["name"] = EVIL
    page = page_of(made)
    assert "alert('x')" in page.replace("&#x27;", "'")
    assert "<script>alert" not in page
    assert "<img" not in page[page.index("<body>") :]


def test_the_verb_writes_the_page_beside_the_plan(tmp_path, capsys):
    out = tmp_path / "out"
    assert plan(Means(flops=1e14), out=out) == 0
    assert "nachim plan" in (out / "plan.html").read_text(encoding="utf-8")
    assert json.loads((out / "plan.json").read_text())["budget"]["flops"] == 1e14


def test_without_a_folder_nothing_waits_for_plotly():
    script = (
        "import sys; from nachim.app.plan import Means, plan; plan(Means(flops=1e21), json=True);"
        "assert 'plotly' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_device_without_a_price_is_taken_at_a_dollar(plans):
    made = json.loads(json.dumps(plans["flops"]))
    made["asked"]["device"]["dollars_per_hour"] = made["asked"]["device"]["watts"] = None
    made["dollars"] = made["energy_kwh"] = None
    for design in made["designs"]:
        design["dollars"] = None
    assert facts_of(made)["start"]["price"] == 1.0
    page = page_of(made)
    assert "$1 an hour stands in for it" in page
    assert not re.search(r">money</span>|>energy</span>", page)
