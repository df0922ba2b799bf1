"""The walk-through of docs/new_part.md is true: its file stands alone, computes its equation, trains and is quoted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from nachim.app.train import run_of
from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import Run
from nachim.train.guard import Guard
from nachim.train.step import Stepper

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "recipes" / "forgetting.py"
ITS_TEST = "test_it_costs_what_it_declares_and_decodes_what_it_trained"


def test_the_file_passes_its_own_test():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{FILE}::{ITS_TEST}"],
        capture_output=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout.decode()


def test_the_module_is_its_equation():
    part = run_of(FILE).model.attention
    module = build(part, 64)
    nn.init.normal_(module.gate.weight)
    x_TD = torch.randn(7, 64)
    q_THE, k_THE, v_THE = module.qkv(x_TD).view(7, 3, part.n_heads, part.d_head).unbind(1)
    forget_TH = torch.sigmoid(module.gate(x_TD))
    rows = []
    for i in range(7):
        for h in range(part.n_heads):
            kept = [forget_TH[j + 1 : i + 1, h].log().sum() for j in range(i + 1)]
            scores = [q_THE[i, h] @ k_THE[j, h] / part.d_head**0.5 + kept[j] for j in range(i + 1)]
            rows.append(torch.stack(scores).softmax(0) @ v_THE[: i + 1, h])
    expected_TD = module.out(torch.stack(rows).view(7, -1))
    frame = Frame((1, 7), x_TD.device)
    torch.testing.assert_close(module(x_TD[None], frame, PositionModule())[0], expected_TD, rtol=1e-4, atol=1e-5)


def test_packed_documents_do_not_see_each_other():
    spec = run_of(FILE).model
    model = build(spec, spec.d_model)
    initialise(model, 0)
    nn.init.normal_(model.head.weight)
    ids_BT = torch.randint(spec.vocab_size, (1, 20))
    documents_BT = torch.tensor([[-1] * 3 + [0] * 9 + [1] * 8])
    packed_BTV = model(ids_BT, documents_BT)
    torch.testing.assert_close(packed_BTV[:, 3:12], model(ids_BT[:, 3:12]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed_BTV[:, 12:], model(ids_BT[:, 12:]), rtol=1e-4, atol=1e-5)


def test_the_loop_trains_it_and_its_run_travels_as_json():
    run = run_of(FILE)
    assert Run.from_json(run.to_json()) == run
    model = build(run.model, run.model.d_model)
    initialise(model, 0)
    stepper, guard = Stepper(run, model, next_token_loss), Guard(run.train.optimizer.lr)
    x_BT = torch.randint(40, (8, 33))
    losses = [stepper.take(80, x_BT, guard).loss for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_walk_through_quotes_the_file():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "new_part.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 5
    for block in blocks:
        assert block in FILE.read_text(encoding="utf-8"), block
    assert len(FILE.read_text(encoding="utf-8").splitlines()) < 150
