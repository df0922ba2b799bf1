"""A tiny checkpoint that can be talked to: seeded weights, byte-level tokens, a chat template with tools."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nachim.model.build import build
from nachim.model.decoder import initialise, tensors
from nachim.model.hf.checkpoint import ORIGIN
from nachim.model.hf.source import own, save
from nachim.model.load import RUN
from nachim.model.weights import CHECKPOINT, WEIGHTS, path_at
from nachim.spec import plain

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("the", " a", " and", "in", "er", '": "', '", "', '{"', '"}', "<tool_call>", "</tool_call>", "name", "true")
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'forbidden' %}{{ raise_exception('no such role') }}{% endif -%}
<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tokenizer() -> Tokenizer:
    """Bytes, a few merged words, and the marks of a chat, which come first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    made.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    return made


def checkpoint(folder: Path, seed: int = 0, width: int = 32, context: int = 1024) -> Path:
    """Write the checkpoint into `folder`, as an imported run; nothing was trained, so answers are noise."""
    made = tokenizer()
    decoder = plain(d_model=width, n_layers=2, d_head=width // 2, vocab_size=made.get_vocab_size())
    module = build(decoder, decoder.d_model)
    initialise(module, seed)
    with torch.no_grad():
        module.head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    step, origin = path_at(folder / CHECKPOINT, 0), folder / ORIGIN
    step.mkdir(parents=True)
    origin.mkdir()
    save({name: own(tensor.detach()) for name, tensor in tensors(module).items()}, step / WEIGHTS)
    decoder.save(folder / RUN)
    made.save(str(origin / "tokenizer.json"))
    config = {"eos_token_id": made.token_to_id("<|endoftext|>"), "max_position_embeddings": context}
    told = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    for name, value in (("config.json", config), ("tokenizer_config.json", told)):
        (origin / name).write_text(json.dumps(value), encoding="utf-8")
    return folder
