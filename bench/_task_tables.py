"""Tables for `nachim tasks` from published runs: `git clone` the two repositories, then

    python bench/_task_tables.py --olmo OLMo-ladder --gadre scaling --out tables
    nachim tasks tables/olmo_small.csv --holdout tables/olmo_large.csv
    nachim tasks tables/gadre_small.csv --holdout tables/gadre_large.csv --unit nats

allenai/OLMo-ladder (arXiv 2412.04403): 16 runs from 190M to 1.3B parameters, bits per byte of the right answer; the 7B
and 13B models are held out. mlfoundations/scaling (arXiv 2403.08540): runs on three corpora, whose loss is that on C4
validation, in nats; the 1.4B and 6.9B models are held out. Their code and figures are read, not copied.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

Row = dict[str, str | float]
OLMO = {
    "mmlu": ([f"mmlu_{part}_test" for part in ("stem", "humanities", "social_sciences", "other")], 1 / 4, 14042),
    "hellaswag": (["hellaswag_val"], 1 / 4, 10042),
    "arc_challenge": (["arc_challenge_test"], 1 / 4, 1172),
    "arc_easy": (["arc_easy_test"], 1 / 4, 2376),
    "piqa": (["piqa_val"], 1 / 2, 1838),
    "csqa": (["csqa_val"], 1 / 5, 1221),
    "socialiqa": (["socialiqa_val"], 1 / 3, 1954),
    "openbookqa": (["openbookqa_test"], 1 / 4, 500),
    "boolq": (["boolq_val"], 1 / 2, 3270),
    "winogrande": (["winogrande_val"], 1 / 2, 1267),
}
"""Sets of questions, chance and number of questions of each task."""
STEPS = "throughput/total_tokens"


def main(out: Path, olmo: Path | None = None, gadre: Path | None = None) -> None:
    """Write the tables.

    Args:
        out: Folder for the tables.
        olmo: Clone of github.com/allenai/OLMo-ladder.
        gadre: Clone of github.com/mlfoundations/scaling.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, clone, rows_of in (("olmo", olmo, olmo_rows), ("gadre", gadre, gadre_rows)):
        if clone is None:
            continue
        rows = list(rows_of(clone))
        for size, large in (("small", False), ("large", True)):
            write(out / f"{name}_{size}.csv", [row for is_large, row in rows if is_large == large])


def write(path: Path, rows: list[Row]) -> None:
    """Write `rows` as CSV and say so."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{path}: {len(rows)} rows")


def olmo_rows(clone: Path) -> Iterator[tuple[bool, Row]]:
    """Whether a run is held out, and its row for each task: the last evaluation of every run of the paper's list."""
    for runs in json.loads(show(clone, "src/scripts/paper/configs/final.json")).values():
        for path in runs["paths"]:
            table = [row for row in csv.DictReader(io.StringIO(show(clone, path))) if tokens_of(row)]
            last = max(table, key=tokens_of)
            for task, (sets, chance, items) in OLMO.items():
                score = "acc" if task == "boolq" else "len_norm"
                loss = [last.get(f"eval/downstream_bpb/{each}_rc_5shot_bpb") for each in sets]
                accuracy = [last.get(f"eval/downstream/{each}_rc_5shot_{score}") for each in sets]
                if all(loss) and all(accuracy):
                    yield (
                        runs["mode"] == "eval",
                        {
                            "task": task,
                            "params": runs["n"],
                            "tokens": tokens_of(last),
                            "flops": runs["flops"] * tokens_of(last),
                            "task_loss": float(np.mean(np.array(loss, float))),
                            "accuracy": float(np.mean(np.array(accuracy, float))),
                            "chance": chance,
                            "items": items,
                        },
                    )


def tokens_of(row: dict[str, str]) -> float:
    """Tokens seen at a row of a training log, 0 where it does not say."""
    if row.get(STEPS):
        return float(row[STEPS])
    return float(row["_step"]) * float(row["batch_size_in_tokens"]) if row.get("batch_size_in_tokens") else 0.0


def gadre_rows(clone: Path) -> Iterator[tuple[bool, Row]]:
    """Whether a run is held out, and its row for each task, named with the corpus that it was trained on."""
    files = git(clone, "ls-tree", "-r", "--name-only", "HEAD").split()
    evaluations = {Path(name).name: name for name in files if "/evals/" in name}
    known = {row["Eval Task"]: row for row in csv.DictReader(io.StringIO(show(clone, "exp_data/eval_metadata.csv")))}
    for path in (name for name in files if "/models/" in name):
        name = Path(path).stem
        evaluation = evaluations.get(f"evaluation_{name}_heavy.json")
        model = json.loads(show(clone, path))
        losses = [each["loss"] for each in model["results"] if "c4_val" in str(each)]
        if evaluation is None or not losses:
            continue
        size = model["hyperparameters"]
        for task, accuracy in json.loads(show(clone, evaluation))["eval_metrics"]["icl"].items():
            if task in known:
                yield (
                    "open_lm" in name,
                    {
                        "task": f"{model['dataset_name']}/{task}",
                        "params": size["params"],
                        "tokens": size["tokens"],
                        "task_loss": losses[-1],
                        "accuracy": accuracy,
                        "chance": float(known[task]["Random baseline"]) / 100,
                        "items": int(known[task]["#datapoints"]),
                    },
                )


def show(clone: Path, path: str) -> str:
    """A file of the clone's newest commit."""
    return git(clone, "show", f"HEAD:{path}")


def git(clone: Path, *words: str) -> str:
    """What git says of the clone."""
    return subprocess.run(["git", "-C", str(clone), *words], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    tyro.cli(main)
