"""Keys and values in eight and four bits: what codes mean, how much they err, and that nothing else moves them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nachim.infer.codes import STEPS, by_channel, by_token, paired, step_codes, steps, unpaired
from nachim.infer.request import Sampling
from nachim.infer.shelf import NARROW, PLACES, NarrowChannels, NarrowTokens
from nachim.infer.store import Store
from nachim.spec import MLA, Attention, Decoder, NoPosition, UserError
from tests.infer.test_engine import DRAWN, GREEDY, HYBRID
from tests.infer.tiny import PLAIN, engine, prompts, said

CPU = torch.device("cpu")
WINDOWS = replace(HYBRID, attention=replace(PLAIN.attention, window=19), mtp=None)
LATENT = replace(PLAIN, attention=MLA(n_heads=2, d_head=6, rank=6, rope_dim=4, d_value=6), mtp=None)
KINDS = {"plain": PLAIN, "hybrid": HYBRID, "windows": WINDOWS, "latent": LATENT}


def alone(spec: Decoder, asked: list[list[int]], cache: str | None, **options):
    """What each prompt is answered by an engine that serves nothing else."""
    one = engine(spec, cache=cache, prefixes=False)
    return [told for prompt in asked for told in said(one.generate([prompt], **options))]


def test_a_byte_says_the_smallest_step_that_is_not_below():
    wanted = torch.rand(1000).mul(20).sub(14).exp2()
    found = steps(step_codes(wanted))
    assert (found >= wanted).all()
    assert (found <= wanted * 2**0.1 * (1 + 1e-6)).all()
    assert torch.equal(step_codes(STEPS.float()), torch.arange(256, dtype=torch.uint8))


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_of_tokens_err_by_half_a_step_at_most(bits: int):
    x = torch.randn(5, 3, 10) * torch.tensor([0.01, 1.0, 50.0])[:, None]
    codes, found = by_token(x, bits)
    assert int(codes.abs().max()) <= 2 ** (bits - 1) - 1
    step = steps(found)[..., None]
    assert ((codes * step - x).abs() <= step / 2 * (1 + 1e-5)).all()
    assert (step <= x.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1) * 2**0.1 * (1 + 1e-5)).all()


def test_codes_of_channels_know_the_place_and_the_spread_of_each():
    x = torch.randn(16, 2, 6) * torch.tensor([0.01, 0.1, 1.0, 1.0, 9.0, 1e-5]) + torch.tensor([0, 0, 3.0, -30, 40, 0])
    codes, found, offset = by_channel(x)
    step = steps(found)
    assert int(codes.max()) <= 15
    # the lowest and the highest may each be cut by the rounding of the offset
    assert (((codes + offset) * step - x).abs() <= step * (1 + 1e-4)).all()
    inner = x.clamp(x.amin(0) + step, x.amax(0) - step) == x
    assert (((codes + offset) * step - x).abs() <= step / 2 * (1 + 1e-4))[inner].all()
    spread = (x.amax(0) - x.amin(0)).clamp(min=x.abs().amax(0) * 15 / 127)
    assert (step <= (spread / 15 * 2**0.1 * (1 + 1e-5)).clamp(min=STEPS[0])).all()


def test_two_codes_a_byte_come_back():
    codes = torch.randint(0, 16, (7, 3, 10), dtype=torch.uint8)
    assert paired(codes).shape == (7, 3, 5)
    assert torch.equal(unpaired(paired(codes)), codes)


@pytest.mark.parametrize("kind", [NarrowChannels, NarrowTokens])
@pytest.mark.parametrize("bare", [False, True])
def test_pages_hold_what_the_codes_mean(kind: type, bare: bool):
    shape = ((), (10,)) if bare else ((3,), (10,))
    heads = 1 if bare else 3
    mates = torch.zeros(12, 2, dtype=torch.int32)
    shelf = kind(shape, 12, 8, torch.float32, CPU, mates)
    x_SKE = torch.randn(32, heads, 10)
    pages = torch.tensor([7, 2, 9, 4])
    slots = (pages[:, None] * PLACES + torch.arange(8)).flatten()
    shelf.write(slots, x_SKE[:, 0] if bare else x_SKE.transpose(0, 1))
    codes, found = by_token(x_SKE, 8)
    eight = codes * steps(found)[..., None]

    def read(slots: torch.Tensor) -> torch.Tensor:
        got = shelf.read(slots)
        return got[0][:, None] if bare else got[0].transpose(0, 1)

    assert torch.equal(read(slots), eight)
    mates[[7, 2]] = torch.tensor([7, 2], dtype=torch.int32)
    shelf.pack([7, 2, 9, 4], [7, 2])
    if kind is NarrowChannels:
        codes, found, offset = by_channel(eight)
        four = (codes + offset.float()) * steps(found)
    else:
        codes, found = by_token(eight, 4)
        four = codes * steps(found)[..., None]
    narrow = (torch.tensor([7, 2])[:, None] * PLACES + NARROW + torch.arange(16)).flatten()
    assert torch.equal(read(narrow), four)
    mixed = torch.cat((narrow[5:], slots[16:]))
    assert torch.equal(read(mixed), torch.cat((four[5:], eight[16:])))
    shelf.copy(9, 11)
    assert torch.equal(read(slots[16:24] + 2 * PLACES), eight[16:24])
    assert shelf.nbytes == 12 * shelf.page_bytes


@pytest.mark.parametrize(("kind", "cache"), [("latent", "int8"), *((kind, "int4") for kind in KINDS)])
def test_answers_are_the_same_bits_whatever_else_is_served(kind: str, cache: str):
    spec = KINDS[kind]
    asked = prompts(spec, 14, 15, 37)
    asked.append(asked[2][:34] + asked[0][:3])
    options = GREEDY | DRAWN | {"max_tokens": 12}
    wanted = alone(spec, asked, cache=cache, **options)
    roomy = engine(spec, cache=cache)
    assert said(roomy.generate(asked, **options)) == wanted
    assert said(roomy.generate(asked[2:], **options)) == wanted[2:]
    assert roomy.facts()["prefix_hits"]
    tight = engine(spec, cache=cache, cache_tokens=56, budget=20, draft="ngram")
    assert said(tight.generate(asked, **options)) == wanted
    assert tight.scheduler.preempted
    assert wanted != alone(spec, asked, None, **options)


def test_a_prompt_that_fills_the_cache_takes_the_pages_that_its_blocks_leave():
    asked = prompts(PLAIN, 61)
    full = engine(cache="int4", cache_tokens=64)
    assert len(full.store.pools[None].owners) * 8 < 61
    assert said(full.generate(asked, **GREEDY)) == alone(PLAIN, asked, "int4", **GREEDY)
    assert not full.scheduler.preempted


@pytest.mark.parametrize("spec", [PLAIN, HYBRID], ids=["plain", "hybrid"])
def test_samples_of_one_prompt_part_in_the_middle_of_a_block(spec: Decoder):
    asked = prompts(spec, 29, 21)
    options = GREEDY | DRAWN | {"n": 4, "max_tokens": 16}
    wanted = alone(spec, asked, cache="int4", **options)
    tight = engine(spec, cache="int4", cache_tokens=128, prefixes=False)
    assert said(tight.generate(asked, **options)) == wanted
    assert len({tokens for tokens, _, _ in wanted}) > 4
    assert all(pool.free == len(pool.owners) for pool in tight.store.pools.values())


def test_guesses_that_cross_the_end_of_a_block_change_no_bit():
    prompt = [1, 2, 3] * 10
    options = GREEDY | {"max_tokens": 30, "logit_bias": {1: 50.0, 2: 49.0, 3: 48.0}, "presence_penalty": 1.0}
    plain = engine(cache="int4").generate([prompt], **options)
    guessing = engine(cache="int4", draft="ngram", draft_tokens=7)
    assert said(guessing.generate([prompt], **options)) == said(plain)
    assert guessing.facts()["drafts_held"]


@pytest.mark.parametrize("cache", ["int8", "int4"])
def test_what_is_kept_is_near_what_was_computed(cache: str):
    asked = prompts(PLAIN, 40)
    options = GREEDY | {"max_tokens": 1}
    exact, near = (engine(cache=kind).generate(asked, **options)[0].logprobs[0] for kind in (None, cache))
    assert near == pytest.approx(exact, abs={"int8": 0.02, "int4": 0.3}[cache])
    assert near != exact


@pytest.mark.parametrize("cache", [None, "int8", "int4"])
@pytest.mark.parametrize("tokens", [640, 1030])
def test_the_cost_of_a_cache_is_what_is_taken(cache: str | None, tokens: int):
    spec = replace(PLAIN, attention=Attention(n_heads=4, n_kv_heads=2, d_head=32), d_model=128, mtp=None)
    told = spec.cache_bytes(tokens, 4, cache)
    one = engine(spec, cache=cache, block=64, context=2048, cache_tokens=8192)
    assert one.facts()["cache_bytes"] == pytest.approx(spec.cache_bytes(8192, 4, cache), rel=0.02)
    one.add(prompts(spec, tokens)[0], Sampling(max_tokens=4, temperature=0.0))
    while one.scheduler.waiting or one.scheduler.running[0].prefilling:
        one.step()
    assert one.facts()["used_bytes"] == pytest.approx(told, rel=0.02)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="cache is 'int5'; it must be 'int8' or 'int4'"):
        engine(cache="int5")
    with pytest.raises(UserError, match="block is 8; with cache='int4' it must be a multiple of 16"):
        engine(cache="int4", block=8)
    odd = replace(PLAIN, attention=replace(PLAIN.attention, d_head=7), position=NoPosition(), mtp=None)
    with pytest.raises(UserError, match="a head has 7, an odd number"):
        Store(odd, 64, 8, torch.float32, CPU, "int4")
