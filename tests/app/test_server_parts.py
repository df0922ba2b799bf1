"""The server's parts by themselves: calls out of text, tokens as bytes, clients that stand still, a conversation."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models

from bench._chatty import checkpoint, tokenizer
from nachim.app.chat import Conversation, chat
from nachim.app.server import worker
from nachim.app.server.asks import Ask
from nachim.app.server.errors import ApiError
from nachim.app.server.gate import Gate, Limits
from nachim.app.server.metrics import Metrics
from nachim.app.server.run import Run, Slots
from nachim.app.server.schema import CompletionBody, Tool
from nachim.app.server.served import Served
from nachim.app.server.text import TokenBytes
from nachim.app.server.tools import FORMATS, CallReader, format_of, required
from nachim.infer.constrain import Vocabulary
from nachim.infer.engine import Engine
from nachim.infer.request import Chunk, Sampling
from nachim.spec import UserError

HERMES, MISTRAL, LLAMA = (FORMATS[i][1] for i in (0, 2, 3))
WRITTEN = {
    "hermes": (
        HERMES,
        'Hm. <tool_call>\n{"name": "go", "arguments": {"n": 1}}\n</tool_call> so',
        "Hm.  so",
        [("go", {"n": 1})],
    ),
    "hermes twice": (
        HERMES,
        '<tool_call>{"name": "a", "arguments": {}}</tool_call>\n'
        '<tool_call>{"name": "b", "arguments": {"x": "<"}}</tool_call>',
        "\n",
        [("a", {}), ("b", {"x": "<"})],
    ),
    "hermes, no end": (HERMES, '<tool_call>{"name": "a", "arguments": {}}', "", [("a", {})]),
    "hermes, no JSON": (HERMES, "a<tool_call>b</tool_call>c", "a<tool_call>b</tool_call>c", []),
    "hermes, almost": (HERMES, "1 <tool_cat> <", "1 <tool_cat> <", []),
    "mistral": (MISTRAL, 'x[TOOL_CALLS] [{"name": "go", "arguments": {"n": [1]}}]', "x", [("go", {"n": [1]})]),
    "llama": (LLAMA, '<|python_tag|>{"name": "go", "parameters": {}}', "", [("go", {})]),
    "llama, text": (LLAMA, 'I say {"name"}', 'I say {"name"}', []),
}


@pytest.mark.parametrize("case", WRITTEN)
@given(data=st.data())
def test_calls_are_read_however_the_text_is_cut(case, data):
    found, text, shown, calls = WRITTEN[case]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    reader = CallReader(found)
    seen = (
        "".join(reader.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)) + reader.finish()
    )
    assert seen == shown
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in reader.calls] == calls


def test_the_format_is_read_off_the_template():
    assert format_of('{{ tools }}<tool_call>{"name": x, "arguments": y}</tool_call>') == HERMES
    assert format_of("{{ tools }}[TOOL_CALLS]{{ call | tojson }}") == MISTRAL
    assert format_of('{{ tools }}ipython {"name": x, "parameters": y}') == LLAMA
    assert format_of("{{ tools }}") is None


@pytest.mark.parametrize("parameters", [None, {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}])
@pytest.mark.parametrize("found", [HERMES, MISTRAL, LLAMA])
def test_required_calls_can_be_written_and_nothing_else(found, parameters):
    made = tokenizer()
    marks = {mark: made.token_to_id(mark) for mark in ("<tool_call>", "</tool_call>")}
    vocabulary = Vocabulary(made.to_str(), made.get_vocab_size(), [made.token_to_id("<|endoftext|>")])
    tool = Tool.model_validate({"type": "function", "function": {"name": "go", "parameters": parameters}})

    def allows(text: str) -> bool:
        state = vocabulary.start(required(found, [tool], False, marks))
        for token in made.encode(text, add_special_tokens=False).ids:
            if not state.allowed()[token]:
                return False
            state.accept(token)
        return bool(state.allowed()[vocabulary.ends[0]])

    def call(arguments: dict[str, int], name: str = "go") -> str:
        one = json.dumps({"name": name, found.arguments: arguments})
        return found.begin + (f"[{one}]" if found.listed else one) + found.end

    good, bad = ({}, {"a": 1}) if parameters is None else ({"a": 1}, {"a": 1, "b": 2})
    assert allows(call(good))
    assert not allows(call(bad))
    assert not allows(call(good, "stay"))
    assert not allows("I had rather not.")


def test_each_token_has_its_bytes():
    made = tokenizer()
    told = TokenBytes(made)
    text = "é漢 the <|im_end|>\x00"
    ids = made.encode(text, add_special_tokens=False).ids
    assert b"".join(map(told, ids)).decode() == text
    assert told.text(ids[0]) == r"bytes:\xc3"
    assert told.text(made.token_to_id("the")) == "the"
    fallback = Tokenizer(models.BPE({"▁a": 0, "<0xE9>": 1, "b": 2}, [], byte_fallback=True))
    fallback.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    assert [TokenBytes(fallback)(token) for token in (0, 1, 2, 9)] == [b" a", b"\xe9", b"b", b""]


def test_no_more_samples_than_there_is_room_for():
    slots = Slots(3)
    slots.take(2)
    for count, status in ((2, 429), (4, 400)):
        with pytest.raises(ApiError) as refused:
            slots.take(count)
        assert refused.value.status == status
    slots.free(2)
    slots.take(3)


def test_a_client_that_stands_still_is_left():
    async def body_wanted(scope, receive, send):
        await receive()

    async def reads_never(message):
        await asyncio.sleep(60)

    async def sends_never():
        await asyncio.sleep(60)

    async def answered(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        raise AssertionError("nobody reads this")

    scope = {"type": "http", "path": "/v1/completions", "headers": []}
    limits, metrics = Limits(stall_seconds=0.01), Metrics()
    asyncio.run(Gate(answered, limits, metrics)(scope, sends_never, reads_never))
    with pytest.raises(ApiError) as late:
        asyncio.run(Gate(body_wanted, limits, metrics)(scope, sends_never, reads_never))
    assert late.value.status == 408


class Endless:
    """An engine whose one request never ends."""

    def __init__(self) -> None:
        self.served, self.aborted = {}, []

    @property
    def idle(self):
        return not self.served

    def add(self, prompt, sampling):
        self.served[7] = self
        return 7

    def step(self):
        return [Chunk(7, 0, (1,), "x")] * 50

    def abort(self, request):
        self.aborted.append(request)
        self.served.clear()


def test_what_nobody_reads_is_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(worker, "BACKLOG", 500)

    async def run():
        engine = Endless()
        steps = worker.Worker(engine)
        stream = await steps.add([1], Sampling())
        while not engine.aborted:
            await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="does not read"):
            async for _ in stream:
                pass
        steps.stop()
        return engine.aborted

    assert asyncio.run(run()) == [7]


def test_what_is_cut_is_told_so():
    class Silent(Endless):
        def step(self):
            time.sleep(0.001)
            return []

    async def run():
        engine = Silent()
        steps = worker.Worker(engine)
        stream = await steps.add([1], Sampling())
        steps.cut()
        with pytest.raises(ApiError, match="shutting down") as told:
            async for _ in stream:
                pass
        while not engine.aborted:
            await asyncio.sleep(0.01)
        steps.stop()
        return told.value.status, engine.aborted

    assert asyncio.run(run()) == (503, [7])


def test_an_engine_that_fails_is_told_to_all_who_wait(capsys):
    class Failing(Endless):
        def step(self):
            raise RuntimeError("a fault")

    async def run():
        steps = worker.Worker(Failing())
        stream = await steps.add([1], Sampling())
        with pytest.raises(ApiError, match="RuntimeError"):
            async for _ in stream:
                pass
        with pytest.raises(ApiError, match="stopped"):
            await steps.add([1], Sampling())

    asyncio.run(run())
    assert "a fault" in capsys.readouterr().err


def test_who_asks_an_engine_that_then_fails_is_told_too(capsys):
    class Failing(Endless):
        begun, go = threading.Event(), threading.Event()

        def step(self):
            self.begun.set()
            self.go.wait()
            raise RuntimeError("a fault")

    async def run():
        engine = Failing()
        steps = worker.Worker(engine)
        await steps.add([1], Sampling())
        await asyncio.to_thread(engine.begun.wait)
        waiting = [asyncio.ensure_future(one) for one in (steps.add([1], Sampling()), steps.ask(lambda engine: 1))]
        await asyncio.sleep(0)
        engine.go.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert [error.status for error in asyncio.run(run())] == [500, 500]
    assert "a fault" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("chat"))


def test_a_conversation_is_kept_and_an_answer_can_be_stopped(folder):
    talk = Conversation(Served(folder, Engine(folder)), Sampling(max_tokens=12, seed=1), system="Be.")
    answer = "".join(talk.answer("Hi."))
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant"]
    assert talk.messages[-1]["content"] == answer
    for piece in talk.answer("More."):
        talk.stopped = bool(piece)
    assert talk.served.engine.idle
    assert len(talk.messages) == 5
    kept = list(talk.messages)
    with pytest.raises(UserError, match="at most 1024"):
        list(talk.answer("the" * 1100))
    assert talk.messages == kept
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "Be."}]
    assert "".join(talk.answer("Hi.")) == answer


def test_lines_may_be_piped_in(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi.\n\n/system Be brief.\n/what\nHi.\n"))
    assert chat(folder, max_tokens=5, seed=3) == 0
    said = capsys.readouterr().out
    assert "system prompt: Be brief." in said
    assert "/reset" in said


def test_a_model_without_a_template_is_not_talked_to(folder, tmp_path):
    bare = checkpoint(tmp_path / "bare")
    (bare / "huggingface" / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="no chat template"):
        chat(bare)
    with pytest.raises(UserError, match="no folder"):
        chat(tmp_path / "none")
    (tmp_path / "plain.jinja").write_text("{{ messages[0].content }}")
    assert Served(bare, Engine(bare), template=tmp_path / "plain.jinja").template is not None


class Counted(Endless):
    """An engine whose steps take a while, and that remembers before which of them a request came."""

    def __init__(self, refused: int = -1) -> None:
        super().__init__()
        self.came, self.steps, self.refused = [], 0, refused

    def add(self, prompt, sampling, priority, constraint):
        if prompt == [self.refused]:
            raise UserError("not this one")
        self.came.append(self.steps)
        self.served[prompt[0]] = self
        return prompt[0]

    def step(self):
        time.sleep(0.02)
        self.steps += 1
        return []

    def abort(self, request):
        self.aborted.append(request)
        del self.served[request]


def queued(engine: Counted, count: int) -> Run:
    """A run of `count` prompts, left in the end."""

    async def run():
        steps = worker.Worker(engine)
        made = Run(steps, Slots(100), Metrics(), count)
        try:
            await made.queue(None, [Ask([number], Sampling()) for number in range(count)])
        finally:
            made.leave()
            while engine.served:
                await asyncio.sleep(0.01)
            steps.stop()
        return made

    return asyncio.run(run())


def test_prompts_of_one_request_come_together():
    engine = Counted()
    assert [stream.request for stream in queued(engine, 30).streams] == list(range(30))
    assert max(engine.came) - min(engine.came) <= 1
    assert sorted(engine.aborted) == list(range(30))


def test_prompts_beside_one_that_is_refused_are_let_go():
    engine = Counted(refused=3)
    with pytest.raises(UserError, match="not this one"):
        queued(engine, 6)
    assert sorted(engine.aborted) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize(
    ("body", "says"),
    [({"stop_token_ids": [1] * 2000}, "at most"), ({"logit_bias": {str(i): 1 for i in range(2000)}}, "at most")],
)
def test_lists_that_every_step_would_go_through_have_an_end(body, says):
    with pytest.raises(ValidationError, match=says):
        CompletionBody.model_validate({"model": "x", "prompt": "x", **body})
