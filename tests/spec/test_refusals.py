"""Bad input is answered in one sentence that names the field, the part and the nearest right name."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

from nachim.spec import (
    BPE,
    MLP,
    WSD,
    AdamW,
    Attention,
    Cluster,
    Corpus,
    Cosine,
    Data,
    Decoder,
    GeGLU,
    Learned,
    MixtureOfDepths,
    MultiStep,
    Part,
    Pattern,
    RMSNorm,
    RoPE,
    Run,
    SwiGLU,
    UserError,
    Validation,
    plain,
)
from tests.spec.examples import (
    ATTENTION,
    DATA,
    DEVICE,
    EXPERTS,
    HEADED_STATE,
    HYBRID,
    LATENT,
    LINEAR,
    LOCAL,
    MACHINE,
    MODEL,
    RUN,
    STATE,
    TRAIN,
    decoder,
)

HEADS = {"n_heads": 4, "n_kv_heads": 4, "d_head": 8}


def refused(make: object, *said: str) -> None:
    """Assert that `make()` raises UserError, in one line with each of `said` in it."""
    with pytest.raises(UserError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("part", "fields", "said"),
    [
        (Attention, HEADS | {"n_kv_head": 2}, ("Attention", "'n_kv_head'", "did you mean 'n_kv_heads'?")),
        (AdamW, {"lr": 1.0, "learning_rate": 2.0}, ("AdamW", "'learning_rate'")),
        (RoPE, {"zzz": 1.0}, ("RoPE", "'zzz'", "known: dim, scaling, theta")),
        (RMSNorm, {"cls": 1.0}, ("RMSNorm", "'cls'", "known: eps")),
        (Attention, HEADS | {"n_heads": 4.0}, ("Attention.n_heads", "4.0", "not int")),
        (Attention, HEADS | {"n_heads": True}, ("Attention.n_heads", "True", "not int")),
        (Attention, HEADS | {"n_heads": None}, ("Attention.n_heads", "None", "not int")),
        (Attention, HEADS | {"qk_norm": 1}, ("Attention.qk_norm", "1", "not bool")),
        (AdamW, {"lr": "3e-4"}, ("AdamW.lr", "'3e-4'", "not a finite number")),
        (AdamW, {"lr": True}, ("AdamW.lr", "True", "not a finite number")),
        (AdamW, {"lr": math.nan}, ("AdamW.lr", "nan")),
        (AdamW, {"lr": math.inf}, ("AdamW.lr", "inf")),
        (AdamW, {"lr": 1e-3, "weight_decay": math.nan}, ("AdamW.weight_decay", "nan")),
        (BPE, {"vocab_size": "300"}, ("BPE.vocab_size", "'300'")),
        (Cosine, {"warmup_tokens": 1.5}, ("Cosine.warmup_tokens", "1.5")),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_a_wrong_field_is_named(part, fields, said):
    refused(lambda: part(**fields), *said)
    refused(lambda: part.from_json({"part": part.__name__, **fields}), *said)


def test_a_part_of_another_kind_is_named():
    refused(
        lambda: decoder(ffn=RoPE()),
        "Decoder.ffn",
        "RoPE(theta=10000.0, dim=None, scaling=None)",
        "not FFN | Pattern | None",
    )
    refused(lambda: dataclasses.replace(MODEL, attention=SwiGLU(d_ff=8)), "Decoder.attention", "not Mixer | Pattern")
    refused(lambda: Pattern(parts=[ATTENTION]), "Pattern.parts", "not tuple[Part, ...]")
    refused(lambda: dataclasses.replace(TRAIN, precision="fp4"), "Train.precision", "'fp4'", "fp32", "bf16", "fp16")
    refused(lambda: dataclasses.replace(TRAIN, micro_batch_tokens="8"), "Train.micro_batch_tokens", "'8'")
    refused(lambda: Decoder.from_json(RUN.to_json()), "expected a Decoder", "found a Run")


def test_a_missing_field_is_named():
    value = RUN.to_json()
    del value["model"]["attention"]["d_head"]
    refused(lambda: Run.from_json(value), "Attention lacks the field 'd_head'")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"part": "Atention", **HEADS}, ("'Atention'", "did you mean 'Attention'?")),
        ({"part": ["Attention"]}, ("unknown part", "Attention")),
        ({"part": None}, ("unknown part",)),
        ({"part": "Part"}, ("unknown part",)),
        (HEADS, ("not a part", "'part'")),
        ([1, 2], ("not a part",)),
        ("Attention", ("not a part",)),
        (None, ("not a part",)),
        ({"part": "Decoder", "attention": {"n_heads": 4}}, ("Decoder.attention", "not a part")),
        ({"part": "Decoder", "attention": {"part": "Mixer"}}, ("Decoder.attention", "unknown part 'Mixer'")),
        ({"part": "Decoder", "attention": {"part": "SwiGlu", "d_ff": 4}}, ("Decoder.attention", "'SwiGLU'?")),
    ],
    ids=str,
)
def test_json_that_is_no_part_is_refused(value, said):
    refused(lambda: Part.from_json(value), *said)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "run.json"
    refused(lambda: Run.load(path), "no such file", str(path))
    for content in (b"{", b"", b"\xff\xfe\x00", b"not json"):
        path.write_bytes(content)
        refused(lambda: Run.load(path), str(path), "not JSON")
    MACHINE.save(path)
    refused(lambda: Run.load(path), str(path), "expected a Run", "found a Machine")
    path.write_text(json.dumps(TRAIN.optimizer.to_json()).replace("0.003", "NaN"), encoding="utf-8")
    refused(lambda: AdamW.load(path), str(path), "AdamW.lr", "nan")
    path.write_text(json.dumps(TRAIN.optimizer.to_json()).replace("0.003", "1e999"), encoding="utf-8")
    refused(lambda: AdamW.load(path), str(path), "AdamW.lr", "inf")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dataclasses.replace(ATTENTION, n_kv_heads=3), "Attention.n_kv_heads is 3; it must divide n_heads=4"),
        (lambda: dataclasses.replace(ATTENTION, n_heads=0), "Attention.n_heads is 0; it must be above 0"),
        (lambda: dataclasses.replace(ATTENTION, n_kv_heads=-1), "Attention.n_kv_heads is -1; it must be above 0"),
        (lambda: dataclasses.replace(ATTENTION, d_head=0), "Attention.d_head is 0; it must be above 0"),
        (lambda: SwiGLU(d_ff=0), "SwiGLU.d_ff is 0; it must be above 0"),
        (lambda: RMSNorm(eps=0), "RMSNorm.eps is 0.0; it must be above 0"),
        (lambda: RoPE(theta=-1), "RoPE.theta is -1.0; it must be above 0"),
        (lambda: decoder(vocab_size=0), "Decoder.vocab_size is 0; it must be above 0"),
        (lambda: decoder(d_model=-8), "Decoder.d_model is -8; it must be above 0"),
        (lambda: decoder(n_layers=0), "Decoder.n_layers is 0; it must be above 0"),
        (lambda: decoder(d_head=7), "Decoder.attention has d_head=7; RoPE turns pairs, so it must be even"),
        (lambda: plain(d_model=32, n_layers=1, d_head=12, vocab_size=300), "Attention.d_head is 12; it must divide"),
        (lambda: plain(d_model=8, n_layers=1, d_head=16, vocab_size=300), "Attention.d_head is 16; it must divide"),
        (lambda: Corpus(validation_bytes=0), "Corpus.validation_bytes is 0; it must be above 0"),
        (lambda: BPE(vocab_size=256), "BPE.vocab_size is 256; bytes and the end-of-text token need at least 257"),
        (lambda: Data(tokenizer=BPE(vocab_size=257), seq_len=0), "Data.seq_len is 0; it must be above 0"),
        (lambda: AdamW(lr=0), "AdamW.lr is 0.0; it must be above 0"),
        (lambda: AdamW(lr=1, eps=0), "AdamW.eps is 0.0; it must be above 0"),
        (lambda: AdamW(lr=1, beta1=1), "AdamW.beta1 is 1.0; it must be at least 0 and below 1"),
        (lambda: AdamW(lr=1, beta2=-0.1), "AdamW.beta2 is -0.1; it must be at least 0 and below 1"),
        (lambda: AdamW(lr=1, weight_decay=-1), "AdamW.weight_decay is -1.0; it must not be negative"),
        (lambda: Cosine(warmup_tokens=-1), "Cosine.warmup_tokens is -1; it must not be negative"),
        (lambda: MultiStep(warmup_tokens=-1), "MultiStep.warmup_tokens is -1; it must not be negative"),
        (lambda: WSD(warmup_tokens=-1), "WSD.warmup_tokens is -1; it must not be negative"),
        (lambda: Cosine(final=1.1), "Cosine.final is 1.1; it must be between 0 and 1"),
        (lambda: WSD(decay=0), "WSD.decay is 0.0; it must be above 0 and at most 1"),
        (lambda: WSD(decay=1.5), "WSD.decay is 1.5; it must be above 0 and at most 1"),
        (lambda: Validation(tokens=0), "Validation.tokens is 0; it must be above 0"),
        (lambda: Validation(times=0), "Validation.times is 0; it must be above 0"),
        (lambda: dataclasses.replace(TRAIN, clip=0), "Train.clip is 0.0; it must be above 0"),
        (lambda: dataclasses.replace(TRAIN, batch_tokens=0), "Train.batch_tokens is 0; it must be above 0"),
        (
            lambda: dataclasses.replace(TRAIN, tokens=6430),
            "Train.tokens is 6430; it must be whole steps of batch_tokens, such as 6400",
        ),
        (lambda: dataclasses.replace(TRAIN, tokens=1, batch_tokens=64), "whole steps of batch_tokens, such as 64"),
        (
            lambda: dataclasses.replace(TRAIN, micro_batch_tokens=48),
            "Train.micro_batch_tokens is 48; it must divide 64",
        ),
        (lambda: dataclasses.replace(TRAIN, micro_batch_tokens=0), "Train.micro_batch_tokens is 0; it must divide 64"),
        (lambda: dataclasses.replace(TRAIN, tokens=320), "Train.schedule warms up for 640 tokens of only 320"),
        (lambda: dataclasses.replace(RUN, model=decoder(vocab_size=301)), "Run.model has vocab_size=301, data 300"),
        (
            lambda: dataclasses.replace(RUN, data=dataclasses.replace(DATA, seq_len=24)),
            "Run.train has batch_tokens=64, which is not whole sequences of 24",
        ),
        (
            lambda: dataclasses.replace(RUN, data=dataclasses.replace(DATA, seq_len=64)),
            "Run.train has micro_batch_tokens=32, which is not whole sequences of 64",
        ),
        (lambda: dataclasses.replace(MACHINE, cores=0), "Machine.cores is 0; it must be above 0"),
        (lambda: dataclasses.replace(MACHINE, bf16_all=0), "Machine.bf16_all is 0.0; it must be above 0"),
        (lambda: dataclasses.replace(MACHINE, device="tpu"), "Machine.device is 'tpu'"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, said):
    with pytest.raises(UserError, match=re.escape(said)):
        make()


def hybrid(**changes: object) -> Decoder:
    """The example with patterns, with other fields."""
    return dataclasses.replace(HYBRID, **changes)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dataclasses.replace(LOCAL, window=0), "Attention.window is 0; it must be at least 1, or None for"),
        (lambda: dataclasses.replace(LOCAL, bias="some"), "Attention.bias is 'some', which is not Literal"),
        (lambda: dataclasses.replace(LOCAL, softcap=0), "Attention.softcap is 0.0; it must be above 0"),
        (lambda: dataclasses.replace(LOCAL, scale=-1.0), "Attention.scale is -1.0; it must be above 0"),
        (lambda: dataclasses.replace(LOCAL, qk_norm_eps=0), "Attention.qk_norm_eps is 0.0; it must be above 0"),
        (
            lambda: dataclasses.replace(LOCAL, qk_norm=False),
            "Attention.qk_norm_over is 'all', which needs qk_norm=True",
        ),
        (
            lambda: dataclasses.replace(LOCAL, qk_norm=False, qk_norm_over="head"),
            "Attention.qk_norm_offset is True, which needs qk_norm=True",
        ),
        (lambda: dataclasses.replace(LATENT, rank=0), "MLA.rank is 0; it must be above 0"),
        (lambda: dataclasses.replace(LATENT, q_rank=0), "MLA.q_rank is 0; it must be above 0"),
        (lambda: dataclasses.replace(LATENT, d_value=-1), "MLA.d_value is -1; it must be above 0"),
        (lambda: dataclasses.replace(LATENT, rope_dim=3), "MLA.rope_dim is 3; RoPE turns pairs, so it must be even"),
        (lambda: dataclasses.replace(STATE, dt_rank=0), "Mamba.dt_rank is 0; it must be above 0"),
        (lambda: dataclasses.replace(HEADED_STATE, n_groups=3), "Mamba2.n_groups is 3; it must divide n_heads=4"),
        (lambda: dataclasses.replace(HEADED_STATE, chunk=0), "Mamba2.chunk is 0; it must be above 0"),
        (lambda: dataclasses.replace(LINEAR, d_key=0), "LinearAttention.d_key is 0; it must be above 0"),
        (lambda: dataclasses.replace(LINEAR, decay_rank=0), "LinearAttention.decay_rank is 0; it must be above 0"),
        (lambda: MLP(d_ff=0), "MLP.d_ff is 0; it must be above 0"),
        (lambda: MLP(d_ff=8, activation="tanh"), "MLP.activation is 'tanh', which is not Literal"),
        (lambda: GeGLU(d_ff=-8), "GeGLU.d_ff is -8; it must be above 0"),
        (lambda: dataclasses.replace(EXPERTS, active=7), "MoE.active is 7; there are only experts=6"),
        (lambda: dataclasses.replace(EXPERTS, experts=0), "MoE.experts is 0; it must be above 0"),
        (lambda: dataclasses.replace(EXPERTS, shared=-1), "MoE.shared is -1; it must not be negative"),
        (lambda: Learned(length=0), "Learned.length is 0; it must be above 0"),
        (lambda: MixtureOfDepths(capacity=0), "MixtureOfDepths.capacity is 0.0; it must be above 0 and at most 1"),
        (lambda: MixtureOfDepths(capacity=1.5), "MixtureOfDepths.capacity is 1.5; it must be above 0 and at most 1"),
        (lambda: MixtureOfDepths(every=0), "MixtureOfDepths.every is 0; it must be above 0"),
        (lambda: Pattern(parts=()), "Pattern.parts is empty; a pattern needs at least one part"),
        (
            lambda: hybrid(n_layers=4),
            "Pattern.parts has 2 after 1 at the beginning; they do not fill 4 layers evenly",
        ),
        (
            lambda: hybrid(n_layers=1),
            "Pattern.parts has 2 after 1 at the beginning; they do not fill 1 layers evenly",
        ),
        (
            lambda: hybrid(attention=Pattern(parts=(SwiGLU(d_ff=8),))),
            "Decoder.attention has a pattern with SwiGLU(d_ff=8, bias=False), which is not Mixer",
        ),
        (
            lambda: hybrid(ffn=Pattern(first=(RoPE(),), parts=(EXPERTS,))),
            "Decoder.ffn has a pattern with RoPE(theta=10000.0, dim=None, scaling=None), which is not FFN",
        ),
        (
            lambda: hybrid(attention=dataclasses.replace(LOCAL, d_head=7), position=RoPE()),
            "Decoder.attention has d_head=7; RoPE turns pairs, so it must be even",
        ),
        (lambda: dataclasses.replace(DEVICE, sustained=1.5), "Device.sustained is 1.5; it is a share of the peak"),
        (lambda: dataclasses.replace(DEVICE, memory_bytes=0), "Device.memory_bytes is 0.0; it must be above 0"),
        (lambda: dataclasses.replace(DEVICE, dollars_per_hour=-1), "Device.dollars_per_hour is -1.0; it must not be"),
        (lambda: dataclasses.replace(DEVICE, fp8_flops=None).peak("fp8"), "card has no units for fp8"),
        (lambda: Cluster(device=DEVICE, count=0), "Cluster.count is 0; it must be above 0"),
    ],
)
def test_parts_of_a_block_and_devices_that_make_no_sense_are_refused(make, said):
    with pytest.raises(UserError, match=re.escape(said)):
        make()


def test_a_machine_chooses_its_faster_precision():
    assert MACHINE.precision == "bf16"
    assert dataclasses.replace(MACHINE, bf16_one_thread=1e9).precision == "fp32"
    assert [MACHINE.peak("fp32", 1), MACHINE.peak("fp32", 2), MACHINE.peak("bf16", 1)] == [1e10, 2e10, 1e12]


def test_a_run_counts_what_it_costs():
    assert dataclasses.replace(RUN.train, growth=None).steps == 100
    assert RUN.train.token_at(RUN.train.steps) == 6400
    assert RUN.flops_per_token == MODEL.flops_per_token(16)
    assert RUN.flops == MODEL.flops_per_token(16) * 6400
    assert RUN.head_flops == 6 * 32 * 300 * 6400
