"""`nachim plan` through the real command line: the contract of its JSON, its files and its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nachim.app.fit import summarise
from nachim.app.plan import Means, Serve, plan
from nachim.app.train import run_of
from nachim.law import LAWS, study
from nachim.spec import MTP, Run, UserError
from tests.law.ladders import ladder

KEYS = {"budget", "law", "optimum", "designs", "layout", "memory", "hours", "dollars", "serving", "recipe"}
DESIGN = {
    *("n_layers", "d_model", "n_heads", "n_kv_heads", "params_total", "flops_per_token", "tokens", "loss"),
    *("batch_tokens", "lr", "kv_bytes_per_token"),
}


def nachim(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from nachim.app.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_contract():
    done = nachim("plan", "--flops", "1e21", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.keys() >= KEYS
    assert said["budget"]["flops"] == 1e21
    assert said["optimum"].keys() >= {"flops_per_token", "tokens", "loss", "low", "high"}
    assert said["optimum"]["low"] < said["optimum"]["loss"] < said["optimum"]["high"]
    assert said["optimum"]["flops_per_token"] * said["optimum"]["tokens"] == pytest.approx(1e21)
    assert said["designs"] and all(one.keys() >= DESIGN for one in said["designs"])
    for one in said["designs"]:
        assert one["flops_per_token"] * one["tokens"] == pytest.approx(1e21, rel=0.002)
        assert one["n_heads"] % one["n_kv_heads"] == 0
        assert one["kv_bytes_per_token"] == 2 * 2 * one["n_layers"] * one["n_kv_heads"] * one["d_head"]
    assert said["memory"]["total"] <= said["memory"]["device_bytes"]
    assert said["serving"] is None
    assert (said["law"], said["law_scale"], said["loss_law"]) == (
        "deepseek",
        "flops_per_token",
        "chinchilla-corrected",
    )
    assert said["law_source"].startswith("arXiv")
    run = Run.from_json(said["recipe"])
    assert run.model.n_layers == said["designs"][0]["n_layers"]
    assert run.train.tokens == said["designs"][0]["tokens"]


def test_further_tokens_take_compute_time_and_memory_and_stand_in_the_recipe(capsys):
    made = {}
    for depth in (None, 1):
        plan(Means(flops=1e21, devices="8xH200", shape="24x2048x16x8", mtp=depth), json=True)
        made[depth] = json.loads(capsys.readouterr().out)
    plain, ahead = made[None], made[1]
    run = Run.from_json(ahead["recipe"])
    assert run.model.mtp == MTP(depth=1) and Run.from_json(plain["recipe"]).model.mtp is None
    assert run.flops == pytest.approx(1e21, rel=0.002)
    assert ahead["designs"][0]["further_tokens"] == 1 and plain["designs"][0]["further_tokens"] == 0
    assert ahead["designs"][0]["tokens"] < plain["designs"][0]["tokens"]
    assert ahead["designs"][0]["kv_bytes_per_token"] == plain["designs"][0]["kv_bytes_per_token"]
    assert ahead["layout"]["seconds_per_step"] > plain["layout"]["seconds_per_step"]
    assert ahead["memory"]["weights"] > plain["memory"]["weights"]
    assert any(reason["topic"] == "further tokens" for reason in ahead["why"])


def test_bad_input_is_one_sentence_and_status_two():
    done = nachim("plan", "--flops", "1e6", "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("nachim: 1e+06 FLOP is too little: the smallest decoder")
    assert done.stderr.count("\n") == 1


def test_out_leaves_the_plan_and_a_run_that_train_reads(tmp_path, capsys):
    assert plan(Means(flops=1e12), out=tmp_path / "mine", json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["recipe"] == str(tmp_path / "mine" / "run.json")
    assert json.loads((tmp_path / "mine" / "plan.json").read_text()) == said
    assert run_of(Path(said["recipe"])).flops == pytest.approx(1e12, rel=0.002)


def test_a_fitted_law_file_plans(tmp_path, capsys):
    runs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.005)
    path = tmp_path / "law.json"
    path.write_text(json.dumps(summarise(study(runs, law="chinchilla"), runs, None)))
    plan(Means(flops=1e20, law=str(path)), json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["law"] == said["loss_law"] == "law.json"
    assert said["optimum"]["x_interval"][0] < said["optimum"]["x"] < said["optimum"]["x_interval"][1]
    assert said["optimum"]["low"] < said["optimum"]["loss"] < said["optimum"]["high"]


def test_serving_moves_the_optimum_to_a_smaller_model():
    words = ("--serve-tokens-per-day", "2e9", "--prompt-tokens", "500", "--weights", "fp8", "--acceptance", "0.7")
    done = nachim("plan", "--devices", "8xH200", "--hours", "504", *words, "--json")
    assert done.returncode == 0, done.stderr
    serving = json.loads(done.stdout)["serving"]
    chosen, chinchilla = serving["chosen"], serving["chinchilla"]
    assert chosen["total_dollars"] <= chinchilla["total_dollars"]
    assert chosen["params_total"] < chinchilla["params_total"]
    assert chosen["loss"] == pytest.approx(chinchilla["loss"], rel=1e-6)


def test_the_tables_say_what_why_and_what_not(capsys):
    plan(Means(devices="8xH200", hours=504.0, unique_tokens=2e10), Serve(serve_tokens_per_day=2e9))
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        *("Budget and optimum", "Designs, best first", "Memory of the fullest device", "Training and serving together"),
        *(
            "deepseek (arXiv 2401.02954",
            "no interval is published",
            "epochs",
            "kWh",
            "$",
            "MFU",
            "warning:",
            "--out DIR",
        ),
    ):
        assert words in said


def test_wrong_names_have_near_ones():
    with pytest.raises(UserError, match="did you mean 'H200'"):
        plan(Means(devices="8xH20", hours=3.0))
    with pytest.raises(UserError, match="did you mean 'deepseek'"):
        plan(Means(flops=1e21, law="deepsek"))
    with pytest.raises(UserError, match="give --serve-tokens-per-day too"):
        plan(Means(flops=1e21), Serve(weights="int4"))
    with pytest.raises(UserError, match=r"MTP\.depth is 0"):
        plan(Means(flops=1e21, mtp=0))
    with pytest.raises(UserError, match="no such file or folder"):
        plan(Means(flops=1e21, data="/nowhere"))


def test_a_plan_loads_neither_numpy_nor_rich_nor_plotly():
    code = "from nachim.app.cli import main\nimport sys\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "print({'numpy', 'scipy', 'rich', 'plotly', 'torch'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", "--flops", "1e21", "--json"], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "set()"
