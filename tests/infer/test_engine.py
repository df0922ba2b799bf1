"""The engine says of every request what it would say of it alone, and what training's forward pass says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nachim.infer.engine import Engine
from nachim.infer.folder import Loaded
from nachim.infer.request import Sampling
from nachim.spec import Attention, Decoder, DynamicNTK, LongRoPE, Mamba2, Pattern, RoPE, SwiGLU, UserError, YaRN
from tests.infer.tiny import PLAIN, alone, engine, loaded, prompts, said
from tests.model.contract import drawn
from tests.model.test_every_part import DECODERS

GREEDY = {"max_tokens": 5, "temperature": 0.0, "logprobs": True}
DRAWN = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2, "presence_penalty": 0.5, "seed": 4}
HYBRID = replace(
    PLAIN,
    n_layers=3,
    attention=Pattern(
        parts=(
            Mamba2(n_heads=2, d_head=24, d_state=5, chunk=4),
            replace(PLAIN.attention, window=9),
            PLAIN.attention,
        )
    ),
    mtp=None,
)


@pytest.mark.parametrize("spec", DECODERS.values(), ids=DECODERS)
def test_every_architecture_answers_as_alone_and_as_in_training(spec: Decoder):
    asked = prompts(spec, 14, 15, 20)
    asked.append(asked[2][:16] + asked[0][:3])
    wanted = alone(spec, asked, **GREEDY)
    tight = engine(spec, cache_tokens=48, budget=20, draft="ngram")
    assert said(tight.generate(asked, **GREEDY)) == wanted
    assert tight.scheduler.preempted or None not in tight.store.pools
    model = loaded(spec).model
    with torch.inference_mode():
        for prompt, (tokens, logprobs, _) in zip(asked, wanted, strict=True):
            ids = torch.tensor([prompt + list(tokens)])
            found_TV = model(ids[:, :-1])[0, len(prompt) - 1 :].log_softmax(-1)
            assert found_TV.argmax(-1).tolist() == list(tokens)
            torch.testing.assert_close(
                found_TV.gather(1, ids[0, len(prompt) :, None])[:, 0], torch.tensor(logprobs), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("spec", [PLAIN, HYBRID], ids=["plain", "hybrid"])
@pytest.mark.parametrize("batch", [2, 3, 8, 32])
def test_an_answer_is_the_same_bits_in_every_batch(spec: Decoder, batch: int):
    asked = prompts(spec, *range(3, 3 + batch))
    wanted = alone(spec, asked[:3], **GREEDY | DRAWN)
    assert said(engine(spec).generate(asked, **GREEDY | DRAWN))[:3] == wanted[:batch]


@pytest.mark.parametrize("spec", [PLAIN, HYBRID], ids=["plain", "hybrid"])
def test_what_was_read_before_changes_no_bit(spec: Decoder):
    asked = prompts(spec, 50, 40)
    asked[1] = asked[0][:35] + asked[1][:5]
    wanted = alone(spec, asked, **GREEDY | DRAWN)
    one = engine(spec)
    assert said(one.generate(asked[:1], **GREEDY | DRAWN)) == wanted[:1]
    assert one.facts()["prefix_hits"] == 0
    assert said(one.generate(asked, **GREEDY | DRAWN)) == wanted
    assert one.facts()["prefix_hits"] == 5  # three blocks of the first and two of the second


@pytest.mark.parametrize("budget", [1, 17, 33, 1000])
def test_how_a_prompt_is_cut_changes_no_bit(budget: int):
    asked = prompts(HYBRID, 50, 33, 7)
    assert said(engine(HYBRID, budget=budget).generate(asked, **GREEDY)) == alone(HYBRID, asked, **GREEDY)


def test_samples_of_one_request_differ_and_are_each_their_own():
    asked = prompts(HYBRID, 21, 18)
    options = GREEDY | DRAWN | {"n": 4}
    wanted = alone(HYBRID, asked, **options)
    tight = engine(HYBRID, cache_tokens=80, prefixes=False)
    assert said(tight.generate(asked, **options)) == wanted
    assert tight.scheduler.preempted
    assert len({tokens for tokens, _, _ in wanted}) > 4


def test_only_the_seed_decides_what_is_drawn():
    asked = prompts(PLAIN, 9)
    one, other = (alone(PLAIN, asked, **GREEDY | DRAWN | {"seed": seed}) for seed in (1, 2))
    assert one == alone(PLAIN, asked, **GREEDY | DRAWN | {"seed": 1})
    assert one != other
    free = {name: value for name, value in (GREEDY | DRAWN).items() if name != "seed"} | {"max_tokens": 20}
    assert alone(PLAIN, asked, **free) != alone(PLAIN, asked, **free)


def test_the_best_of_several_are_given_back():
    asked = prompts(PLAIN, 9)
    options = GREEDY | DRAWN | {"temperature": 2.0}
    every = alone(PLAIN, asked, **options | {"n": 6})
    best = alone(PLAIN, asked, **options | {"n": 2, "best_of": 6})
    assert best == sorted(every, key=lambda one: -sum(one[1]) / len(one[1]))[:2]


def test_logprobs_of_the_prompt_and_of_the_likeliest():
    prompt = prompts(PLAIN, 37)[0]
    one = engine().generate([prompt], prompt_logprobs=True, top_logprobs=3, **GREEDY)[0]
    with torch.inference_mode():
        all_TV = loaded().model(torch.tensor([prompt + list(one.tokens)]))[0].log_softmax(-1)
    assert one.prompt_logprobs[0] is None
    wanted = all_TV[:36].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(one.prompt_logprobs[1:]), wanted, atol=1e-5, rtol=0)
    for place, top in enumerate(one.top):
        assert list(top) == all_TV[36 + place].topk(3).indices.tolist()
        assert max(top.values()) == one.logprobs[place]


def test_a_token_that_ends_text_ends_it_unless_told():
    prompt = prompts(PLAIN, 9)[0]
    free = engine().generate([prompt], max_tokens=8, temperature=0.0)[0].tokens
    ending = Loaded(loaded().model, None, frozenset({free[3]}), 64)
    first = free.index(free[3]) + 1
    one = Engine(ending).generate([prompt], max_tokens=8, temperature=0.0)[0]
    assert (one.tokens, one.finish_reason) == (free[:first], "stop")
    one = Engine(ending).generate([prompt], max_tokens=8, temperature=0.0, ignore_eos=True)[0]
    assert (one.tokens, one.finish_reason) == (free, "length")
    one = engine().generate([prompt], max_tokens=8, temperature=0.0, stop_tokens=[free[3]])[0]
    assert (one.tokens, one.finish_reason) == (free[:first], "stop")


def test_text_ends_where_the_context_does():
    one = engine().generate(prompts(PLAIN, 60), max_tokens=50, temperature=0.0)[0]
    assert (len(one.tokens), one.finish_reason) == (4, "length")


def test_an_aborted_request_leaves_the_others_as_they_were():
    asked = prompts(HYBRID, 20, 30, 25)
    one = engine(HYBRID, prefixes=False)
    kept, dropped, other = (one.add(prompt, Sampling(**GREEDY)) for prompt in asked)
    found = {kept: [], other: [], dropped: []}
    for passes in range(100):
        if one.idle:
            break
        if passes == 2:
            one.abort(dropped)
            one.abort(dropped)
        for chunk in one.step():
            found[chunk.request] += chunk.tokens
    wanted = alone(HYBRID, asked, **GREEDY)
    assert tuple(found[kept]) == wanted[0][0] and tuple(found[other]) == wanted[2][0]
    assert len(found[dropped]) < 5
    assert all(pool.free == len(pool.owners) for pool in one.store.pools.values())
    assert one.facts()["used_bytes"] == 0


def test_higher_priority_goes_first():
    one = engine(most=1)
    late, early = (one.add([1, 2, 3], Sampling(**GREEDY), priority=priority) for priority in (1, 0))
    order = []
    while not one.idle:
        order += [chunk.request for chunk in one.step() if chunk.finish_reason]
    assert order == [early, late]


def test_pages_waste_less_than_one_a_sample():
    one = engine()
    for prompt in prompts(PLAIN, 40, 17, 33):
        one.add(prompt, Sampling(**GREEDY))
    one.step()
    told = one.facts()
    assert told["waste"] == pytest.approx(1 - (40 + 17 + 33) / (40 + 24 + 40))
    a_token = 2 * 2 * 8 * 4
    assert told["used_bytes"] == (40 + 24 + 40) * a_token
    assert told["cache_bytes"] == 1024 * a_token == PLAIN.cache_bytes(1024, value_bytes=4)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ([], "the prompt is empty"),
        ([1, 61], "the prompt holds 61, which is no token id: they are 0 to 60"),
        ([1, -1], "the prompt holds -1"),
        ([1, 2.0], "the prompt holds 2.0"),
        ("text", "no tokenizer.json"),
        ([1] * 64, "the prompt has 64 tokens; with one generated at most 64 fit"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_and_others_are_not(prompt, told):
    one = engine()
    kept = one.add([1, 2, 3], Sampling(**GREEDY))
    with pytest.raises(UserError) as found:
        one.add(prompt)
    assert told in str(found.value)
    with pytest.raises(UserError):
        one.add([1], Sampling(logit_bias={61: 1.0}))
    with pytest.raises(UserError):
        one.add([1], Sampling(stop="x"))
    tokens = []
    while not one.idle:
        tokens += [token for chunk in one.step() for token in chunk.tokens if chunk.request == kept]
    assert [tuple(tokens)] == [one[0] for one in alone(PLAIN, [[1, 2, 3]], **GREEDY)]


def test_a_constraint_is_kept_and_a_dead_end_ends_one_request():
    class Only:
        """Allows some tokens, then none."""

        def __init__(self, tokens: list[int], left: int) -> None:
            self.tokens, self.left = tokens, left

        def allowed(self) -> torch.Tensor:
            mask = torch.zeros(61, dtype=torch.bool)
            mask[self.tokens if self.left else []] = True
            return mask

        def allows(self, token: int) -> bool:
            return bool(self.allowed()[token])

        def accept(self, token: int) -> None:
            self.left -= 1

        def fork(self) -> Only:
            return Only(self.tokens, self.left)

    one = engine(draft="ngram")
    held, free = one.add([1, 2], Sampling(**GREEDY), constraint=Only([7, 9], 3)), one.add([1, 2], Sampling(**GREEDY))
    found, ends = {held: [], free: []}, {}
    while not one.idle:
        for chunk in one.step():
            found[chunk.request] += chunk.tokens
            ends[chunk.request] = chunk.finish_reason
    assert len(found[held]) == 3 and set(found[held]) <= {7, 9}
    assert ends == {held: "error", free: "length"}


def test_without_invariance_the_answers_agree_to_rounding():
    asked = prompts(HYBRID, 20, 30, 25)
    fast = said(engine(HYBRID, invariant=False).generate(asked, **GREEDY))
    for one, other in zip(fast, alone(HYBRID, asked, **GREEDY), strict=True):
        assert one[0] == other[0]
        assert one[1] == pytest.approx(other[1], abs=1e-5)


def test_weights_that_changed_are_taken_in_and_prompts_read_anew():
    asked = prompts(PLAIN, 40)
    model = drawn(PLAIN)
    one = Engine(Loaded(model, None, frozenset(), 64), block=16, cache_tokens=256)
    before = said(one.generate(asked, **GREEDY))
    one.add(asked[0])
    with pytest.raises(UserError, match="1 requests are being served"):
        one.renew()
    one.abort(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    one.renew()
    after = said(one.generate(asked, **GREEDY))
    assert after != before
    assert after == said(Engine(Loaded(model, None, frozenset(), 64), block=16).generate(asked, **GREEDY))


def test_attention_with_few_rows_of_a_wide_head_is_one_shape():
    wide = replace(PLAIN, d_model=160, attention=Attention(n_heads=5, n_kv_heads=5, d_head=32), mtp=None)
    asked = prompts(wide, 5, 9, 30, 31)
    assert said(engine(wide).generate(asked, **GREEDY)) == alone(wide, asked, **GREEDY)


@pytest.mark.parametrize(
    "scaling",
    [
        DynamicNTK(factor=4.0, original=40),
        LongRoPE(factor=2.0, short=(1.0,) * 4, long=(2.0,) * 4, original=40),
    ],
)
def test_frequencies_that_follow_the_length_are_served_as_long_as_they_stay(scaling):
    """Within `original` tokens what is written is what one pass over all of them says; nothing goes beyond."""
    spec = replace(PLAIN, position=RoPE(scaling=scaling), mtp=None)
    asked = prompts(spec, 30, 11)
    for prompt, one in zip(asked, engine(spec).generate(asked, max_tokens=50, temperature=0.0), strict=True):
        tokens = [*prompt, *one.tokens]
        assert (len(tokens), one.finish_reason) == (40, "length")
        with torch.no_grad():
            best_T = loaded(spec).model(torch.tensor([tokens]))[0].argmax(-1)
        assert tuple(best_T[len(prompt) - 1 : -1].tolist()) == tuple(one.tokens)
    with pytest.raises(UserError, match="the prompt has 40 tokens; with one generated at most 40 fit"):
        engine(spec).generate([[1] * 40], max_tokens=1)
    with pytest.raises(UserError, match="context is 64; beyond 40 tokens this model's rotary frequencies follow"):
        engine(spec, context=64)
    yarn = replace(spec, position=RoPE(scaling=YaRN(factor=4.0, original=8)))
    assert engine(yarn).limit == 64


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("invariant", [True, False])
def test_in_bf16_log_probabilities_are_the_bits_of_a_whole_pass(kv_heads: int, invariant: bool):
    attention = Attention(n_heads=4, n_kv_heads=kv_heads, d_head=32)
    spec = replace(PLAIN, d_model=64, n_layers=3, attention=attention, ffn=SwiGLU(d_ff=96), mtp=None)
    model = drawn(spec).bfloat16()
    one = Engine(Loaded(model, None, frozenset(), 256), block=64, invariant=invariant)
    asked = prompts(spec, 37, 64, 91, 133)
    for prompt, told in zip(asked, one.generate(asked, max_tokens=9, seed=1, logprobs=True), strict=True):
        ids = torch.tensor([prompt + list(told.tokens)])
        with torch.inference_mode():
            found_TV = model(ids[:, :-1])[0, len(prompt) - 1 :].float().log_softmax(-1)
        assert tuple(found_TV.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()) == told.logprobs
