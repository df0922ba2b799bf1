"""Does a small decoder collapse on its own text, and how much human text prevents it?

    OMP_NUM_THREADS=1 python ideas/collapse.py --out runs/ideas/collapse

Passages of Python's library, 40 kB of them, are the human text. Two generations of 2 layers x 64 (the shape of
recipes/stdlib.py) learn from what the ones before wrote, drawn at temperature 1: from the last one's text alone, with a
quarter of human text, and with all texts kept. Prints a table of means and ranges over seeds, and where each arm
collapses; the page with the curves is in the folder. What is done is not done again. What came of it: collapse.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from nachim.app.collapse import open_collapse, told_of
from nachim.lab.collapse import Arm, Collapse
from nachim.spec import BPE, WSD, Attention, Data, Decoder, Muon, Run, SwiGLU, Train, Validation

ARMS = (
    Arm(keep="replace", human=0.0),
    Arm(keep="accumulate", human=None),
    Arm(keep="replace", human=0.25),
)


def run() -> Run:
    """How every generation is trained: some four epochs; no document sees another, as none does when it is written."""
    attention = Attention(n_heads=2, n_kv_heads=1, d_head=32, qk_norm=True, previous_key=True)
    model = Decoder(vocab_size=512, d_model=64, n_layers=2, attention=attention, ffn=SwiGLU(d_ff=168))
    data = Data(tokenizer=BPE(vocab_size=512), seq_len=128, packing="best-fit", mask_documents=True)
    train = Train(tokens=73_728, batch_tokens=1024, optimizer=Muon(lr=0.01), schedule=WSD(warmup_tokens=16 * 1024))
    return Run(model=model, data=data, train=train, validation=Validation(tokens=16_384))


def main(out: Annotated[Path, tyro.conf.arg(metavar="DIR")], seeds: int = 2, generations: int = 2) -> None:
    """Train and write what is missing, and print the table."""
    fields = {"generations": generations, "seeds": seeds, "text_bytes": 40_000, "passage": 160}
    print(told_of(open_collapse(Collapse(run=run(), arms=ARMS, **fields), out)))


if __name__ == "__main__":
    tyro.cli(main)
