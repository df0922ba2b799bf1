"""Checkpoints and runs small enough to be taken in and given out by the tests of both verbs."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PretrainedConfig

from nachim.data.tokenize import EOT
from nachim.lab.work import Place, carry_out
from nachim.spec import BPE, WSD, AdamW, Data, Decoder, Files, Run, Train, Validation, plain
from tests.model.hf.parity import SMALL, reference

TEXT = "the cat sat on a mat and the dog ran to it while rain fell over old town roofs then sun came. "


def trained(root: Path, model: Decoder | None = None) -> Path:
    """The folder of a run of a few steps on a page of text, under `root`."""
    text, out = root / "text", root / "run"
    text.mkdir()
    for number in range(200):
        (text / f"{number}.txt").write_text(f"{number} {TEXT * (number % 7 + 1)}")
    data = Data(
        corpus=Files(path=str(text), validation_bytes=4000, near_duplicates=True),
        tokenizer=BPE(vocab_size=300),
        seq_len=16,
    )
    run = Run(
        model=model or plain(d_model=16, n_layers=2, d_head=8, vocab_size=300),
        data=data,
        train=Train(
            tokens=16 * 64,
            batch_tokens=64,
            optimizer=AdamW(lr=0.01),
            schedule=WSD(warmup_tokens=64),
            seed=0,
            precision="fp32",
        ),
        validation=Validation(tokens=64),
    )
    carry_out(run, out, Place(cache=root / "cache"), lambda run, step, loss: None)
    return out


def checkpoint(folder: Path, config: PretrainedConfig | None = None, **save: object) -> Path:
    """A checkpoint of transformers in `folder`, with a tokenizer and a chat template."""
    reference(config or LlamaConfig(**SMALL)).save_pretrained(folder, **save)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}", "eos_token": EOT}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder
