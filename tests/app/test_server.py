"""The server as OpenAI's own client meets it."""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench._chatty import checkpoint
from bench._malformed import malformed
from nachim.app.server.served import chat_template
from nachim.infer.engine import Engine
from tests.app.serving import KEY, Server, serving, until

ASK = [{"role": "user", "content": "Say something."}]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Seoul", "서울", 'a "b"']},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "d", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop"}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("chatty"))


@pytest.fixture(scope="module")
def server(folder) -> Iterator[Server]:
    with serving(folder, "--name", "tiny", "--samples", "8", "--body-bytes", "20000") as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def engine(folder) -> Engine:
    return Engine(folder)


def complete(client, prompt="once", **more):
    return client.completions.create(model="tiny", prompt=prompt, **more)


def chat(client, messages=None, **more):
    return client.chat.completions.create(model="tiny", messages=messages or ASK, **more)


def test_the_model_is_listed_by_its_name(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "nachim"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


def test_a_completion_is_the_engines_own(client, engine):
    prompts = ["once", "upon the time"]
    ours = engine.generate(prompts, max_tokens=12, temperature=0.0, logprobs=True, top_logprobs=2, prompt_logprobs=True)
    found = complete(client, prompts, max_tokens=12, temperature=0, logprobs=2, echo=True)
    assert [choice.index for choice in found.choices] == [0, 1]
    for prompt, choice, own in zip(prompts, found.choices, ours, strict=True):
        read = len(own.prompt)
        assert choice.text == prompt + own.text
        assert choice.logprobs.token_logprobs == [
            *own.prompt_logprobs,
            *own.logprobs[: len(choice.logprobs.tokens) - read],
        ]
        assert choice.logprobs.token_logprobs[0] is None
        assert all(len(top) == 2 for top in choice.logprobs.top_logprobs[read:])
        assert "".join(choice.logprobs.tokens[:read]) == prompt
        places = zip(choice.logprobs.text_offset, choice.logprobs.tokens[:read], strict=False)
        assert all(prompt[place:].startswith(token) for place, token in places)
        assert choice.finish_reason == own.finish_reason
    assert found.usage.prompt_tokens == sum(len(own.prompt) for own in ours)
    assert found.usage.completion_tokens == sum(len(own.tokens) for own in ours)


def test_a_prompt_may_be_tokens(client, engine):
    own = engine.generate([[5, 6, 7]], max_tokens=5, temperature=0.0)[0]
    assert complete(client, [5, 6, 7], max_tokens=5, temperature=0).choices[0].text == own.text


def test_a_chat_goes_on_from_the_rendered_template(client, folder, engine):
    messages = [{"role": "system", "content": "Be."}, *ASK]
    text = chat_template(folder).render(messages)
    marks = engine.loaded.tokenizer.encode(text, add_special_tokens=False).ids
    own = engine.generate([marks], max_tokens=10, temperature=0.0, logprobs=True)[0]
    found = chat(client, messages, max_completion_tokens=10, temperature=0, logprobs=True, top_logprobs=3)
    told = found.choices[0].logprobs.content
    assert found.choices[0].message.content == own.text
    assert [row.logprob for row in told] == list(own.logprobs[: len(told)])
    assert all(len(row.top_logprobs) == 3 and row.top_logprobs[0].logprob == row.logprob for row in told)
    assert bytes(byte for row in told for byte in row.bytes).decode("utf-8", "replace") == own.text
    assert found.usage.prompt_tokens == len(marks)


def test_a_stream_says_what_the_whole_says(client):
    asked = {"max_tokens": 40, "seed": 7, "n": 2, "logprobs": True}
    whole = chat(client, **asked)
    texts, rows, ends = ["", ""], [[], []], {}
    *events, last = chat(client, **asked, stream=True, stream_options={"include_usage": True})
    for event in events:
        choice = event.choices[0]
        texts[choice.index] += choice.delta.content or ""
        rows[choice.index] += choice.logprobs.content if choice.logprobs else []
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert rows == [choice.logprobs.content for choice in whole.choices]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert (last.choices, last.usage) == ([], whole.usage)


def test_a_stream_of_completions_says_what_the_whole_says(client):
    asked = {"max_tokens": 20, "seed": 3, "echo": True, "prompt": ["a", "é the"]}
    whole = complete(client, **asked)
    texts = ["", ""]
    for event in complete(client, **asked, stream=True):
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_samples_differ_and_a_seed_repeats_them(client):
    texts = [choice.message.content for choice in chat(client, n=4, max_tokens=16, seed=11).choices]
    assert len(set(texts)) == 4
    assert [choice.message.content for choice in chat(client, n=4, max_tokens=16, seed=11).choices] == texts
    assert chat(client, max_tokens=16).choices[0].message.content not in texts


def test_a_stop_string_ends_the_text_before_it(client):
    text = complete(client, max_tokens=30, seed=5).choices[0].text
    stop = text[10:13]
    found = complete(client, max_tokens=30, seed=5, stop=[stop]).choices[0]
    assert found.text == text[: text.index(stop)]
    assert found.finish_reason == "stop"


def test_a_schema_is_kept_to(client):
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    for seed in range(2):
        found = chat(client, max_tokens=400, seed=seed, response_format=form).choices[0]
        assert found.finish_reason == "stop"
        jsonschema.validate(json.loads(found.message.content), WEATHER)
    other = chat(client, max_tokens=10, seed=2, response_format={"type": "json_object"}).choices[0]
    assert other.message.content.startswith("{")


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ({"type": "regex", "pattern": "[0-9]{3}-[ab]+c"}, r"[0-9]{3}-[ab]+c"),
        ({"type": "choice", "choices": ['a "b"', "é\n"]}, 'a "b"|é\n'),
        ({"type": "grammar", "grammar": 'start: "x" /[yz]/ "!"'}, "x[yz]!"),
        ({"type": "grammar", "grammar": 'root ::= "x" ("y" | "z") "!"', "syntax": "gbnf"}, "x[yz]!"),
    ],
)
def test_other_formats_are_kept_to(client, form, fits):
    for seed in range(2):
        found = complete(client, max_tokens=200, seed=seed, extra_body={"response_format": form}).choices[0]
        assert re.fullmatch(fits, found.text) or (found.finish_reason == "length" and form["type"] == "regex")


def test_a_required_tool_is_called(client):
    for seed in range(2):
        found = chat(client, tools=TOOLS, tool_choice="required", max_tokens=700, seed=seed, parallel_tool_calls=False)
        choice = found.choices[0]
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert call.function.name in ("weather", "stop")
        if call.function.name == "weather":
            jsonschema.validate(json.loads(call.function.arguments), WEATHER)


def test_the_chosen_tool_is_called_in_a_stream(client):
    chosen = {"type": "function", "function": {"name": "weather"}}
    events = list(chat(client, tools=TOOLS, tool_choice=chosen, max_tokens=700, seed=1, stream=True))
    calls = [call for event in events for call in event.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in calls] == ["weather"]
    jsonschema.validate(json.loads(calls[0].function.arguments), WEATHER)
    assert events[-1].choices[0].finish_reason == "tool_calls"
    again = [*ASK, {"role": "assistant", "tool_calls": [calls[0].model_dump(exclude={"index"})]}]
    again.append({"role": "tool", "tool_call_id": calls[0].id, "content": "21"})
    assert chat(client, again, tools=TOOLS, tool_choice="none", max_tokens=3).choices[0].message.tool_calls is None


def test_tokens_and_text_are_one_anothers(server, engine):
    text = "é漢 the <|im_end|>"
    _, found = server.send("/tokenize", {"prompt": text})
    tokens = json.loads(found)["tokens"]
    assert tokens == list(engine.encode(text))
    assert json.loads(server.send("/detokenize", {"tokens": tokens})[1]) == {"prompt": text}
    assert json.loads(server.send("/tokenize", {"messages": ASK})[1])["count"] > 10


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"logit_bias": {"5": 200}}, "logit_bias"),
        ({"logit_bias": {"99999": 2}}, "99999"),
        ({"prompt": ""}, "empty"),
        ({"prompt": "the" * 1100}, "at most 1024"),
        ({"prompt": [99999]}, "no token 99999"),
        ({"extra_body": {"nonsense": 1}}, "'nonsense'"),
        ({"extra_body": {"response_format": {"type": "regex", "pattern": "("}}}, "regular expression"),
        ({"n": 9}, "room for 8"),
    ],
)
def test_what_is_wrong_is_said(client, more, says):
    with pytest.raises(openai.BadRequestError, match=says):
        complete(client, **{"max_tokens": 1, **more})


ANSWERED = (
    ("/v1/models", None),
    ("/v1/models/tiny", None),
    ("/v1/models/other", None),
    ("/v1/completions", {"prompt": ["a", "é"], "max_tokens": 3, "logprobs": 2, "echo": True}),
    ("/v1/completions", {"prompt": [5, 6], "max_tokens": 3, "stream": True}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/completions", {"prompt": "x", "n": 9}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 5.5}),
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 3, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 9, "stream": True, "logprobs": True, "seed": 1}),
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 300, "tools": TOOLS[1:], "tool_choice": "required"}),
    (
        "/v1/chat/completions",
        {"messages": ASK, "max_tokens": 300, "tools": TOOLS[1:], "tool_choice": "required", "stream": True},
    ),
    ("/tokenize", {"messages": ASK}),
    ("/detokenize", {"tokens": [5, 6]}),
    ("/health", None),
    ("/openapi.json", None),
)


def test_answers_are_what_the_document_says(server):
    document = json.loads(server.send("/openapi.json")[1])
    known = document["components"]["schemas"]
    assert set(known) >= {"CompletionBody", "ChatBody", "Error"}
    assert json.loads(server.send("/openapi.json", Authorization="")[1])["error"]["code"] == "invalid_api_key"

    def hold(answer, schema):
        schema = {"components": {"schemas": known}, **schema}
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(answer, schema, jsonschema.Draft202012Validator)

    for path, body in ANSWERED:
        told = document["paths"]["/v1/models/{name}" if path.startswith("/v1/models/") else path]
        told = told["get" if body is None else "post"]
        if body is not None and path.startswith("/v1"):
            body = {"model": "tiny", **body}
        status, answer = server.send(path, body)
        content = told["responses"][str(status)]["content"]
        if body is not None and status == 200:
            hold(body, told["requestBody"]["content"]["application/json"]["schema"])
        if not answer.startswith(b"data: "):
            hold(json.loads(answer), content["application/json"]["schema"])
            continue
        assert "text/event-stream" in content
        kind = "CompletionChunk" if path == "/v1/completions" else "ChatChunk"
        *events, done = answer.decode().split("\n\n")[:-1]
        assert done == "data: [DONE]"
        for event in events:
            hold(json.loads(event.removeprefix("data: ")), {"$ref": f"#/components/schemas/{kind}"})


def test_a_schema_that_nothing_satisfies_is_refused(client):
    for schema in ({"enum": []}, {"type": "integer", "minimum": 2, "maximum": 1}, {"type": "nonsense"}):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError, match="schema"):
            chat(client, max_tokens=5, response_format=form)


def test_what_cannot_be_served_has_its_status(server, client):
    with pytest.raises(openai.AuthenticationError, match="wrong"):
        client.with_options(api_key="another key").models.list()
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    good = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    assert server.send("/v1/models", Authorization="")[0] == 401
    assert server.send("/health", Authorization="")[0] == 200
    assert server.send("/v1/nothing")[0] == 404
    assert server.send("/v1/completions")[0] == 405
    assert server.send("/v1/completions", {**good, "user": "x" * 30_000})[0] == 413
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert server.send("/v1/completions", good, **{"Content-Type": kind})[0] == 415
    assert server.send("/v1/completions", good)[0] == 200


@settings(max_examples=300)
@given(seed=st.integers(0, 1 << 40))
def test_malformed_bodies_are_refused(server, seed):
    path, body = malformed(random.Random(seed), "tiny")
    status, answer = server.send(path, body)
    assert 400 <= status < 500, (body, answer)
    assert json.loads(answer)["error"]["message"]


def test_who_leaves_is_let_go_and_who_comes_too_many_is_told(server, client):
    left = server.metric("nachim_disconnects_total")
    stream = chat(client, n=8, max_tokens=450, stream=True, extra_body={"ignore_eos": True})
    next(stream)
    with pytest.raises(openai.RateLimitError):
        complete(client, max_tokens=1)
    stream.close()
    until(lambda: server.metric("nachim_samples") == 0)
    assert server.metric("nachim_disconnects_total") == left + 1
    assert complete(client, max_tokens=1).usage.completion_tokens == 1


def test_a_client_that_waits_for_a_whole_answer_may_leave_too(server):
    left = server.metric("nachim_disconnects_total")
    body = json.dumps({"model": "tiny", "prompt": "x", "n": 8, "max_tokens": 500, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        until(lambda: server.metric("nachim_samples") == 8)
    until(lambda: server.metric("nachim_samples") == 0)
    assert server.metric("nachim_disconnects_total") == left + 1


def test_nothing_of_the_cache_is_lost(server):
    until(lambda: server.metric("nachim_samples") == 0)
    pages = {
        line.split('"')[1]: float(line.split()[-1])
        for line in server.send("/metrics")[1].decode().splitlines()
        if line.startswith("nachim_cache_pages{")
    }
    assert pages["samples"] == 0
    assert pages["free"] > 0


def test_the_end_waits_for_answers(folder):
    with serving(folder) as running:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key=KEY, max_retries=0)
        asked = {"model": running.name, "prompt": "x", "max_tokens": 300, "extra_body": {"ignore_eos": True}}
        stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        next(stream)
        running.process.terminate()
        *_, last = stream
        assert last.usage.completion_tokens == 300
        assert running.process.wait(300) == 0
        with pytest.raises(ConnectionRefusedError):
            running.send("/health")
