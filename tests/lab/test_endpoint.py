"""The endpoint's writer against a server in a thread that is late, busy, broken, or talks nonsense."""

from __future__ import annotations

import socket

import pytest

from nachim.lab.endpoint import BROKEN, BUSY, JUNK, NO_CONNECTION, REFUSED, TIMEOUT, EndpointWriter
from nachim.lab.writer import Answer, Asked, Failed
from nachim.spec import UserError
from tests.lab.endpoint import serving


def asked(*prompts: str) -> list[Asked]:
    return [Asked(prompt, place, 20, 0.5, 0.9, ("END",)) for place, prompt in enumerate(prompts)]


def write(url: str, prompts: list[str], **options: object) -> tuple[list[Answer | Failed], list[float]]:
    """What the writer gives, and the seconds that it would have waited."""
    waited: list[float] = []
    writer = EndpointWriter(url, "tiny", **{"timeout": 60.0, "sleep": waited.append, **options})
    shares: list[float] = []
    found = writer.write(asked(*prompts), shares.append)
    assert shares[-1] == 1.0 and shares == sorted(shares)
    return found, waited


def test_answers_come_in_order_with_few_requests_at_once():
    with serving(lambda body, count: f"to {body['messages'][0]['content']}") as endpoint:
        found, waited = write(endpoint.url, [f"p{n}" for n in range(12)], together=3)
        assert [one.text for one in found] == [f"to p{n}" for n in range(12)] and not waited
        assert {(one.cut, one.prompt_tokens, one.tokens) for one in found} == {(False, 5, 3)}
        assert endpoint.most <= 3
        body = next(body for body in endpoint.bodies if body["messages"][0]["content"] == "p7")
        assert {name: body[name] for name in ("model", "seed", "max_tokens", "temperature", "top_p", "stop")} == {
            "model": "tiny", "seed": 7, "max_tokens": 20, "temperature": 0.5, "top_p": 0.9, "stop": ["END"],
        }  # fmt: skip
        assert EndpointWriter(endpoint.url).model == "tiny", "by default the first that is listed"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (429, BUSY),
        (503, BROKEN),
        (b"<html>gone</html>", JUNK),
        (b'{"choices": [{"mess', JUNK),
        (b"[1, 2]", JUNK),
        ({"choices": []}, JUNK),
        ({"choices": [{"message": {"content": None}}]}, JUNK),
        ({"error": "overloaded"}, JUNK),
    ],
)
def test_what_may_pass_is_asked_again_and_counted(said, reason):
    with serving(lambda body, count: said if count < 3 else "at last") as endpoint:
        (found,), waited = write(endpoint.url, ["p"])
        assert found == Answer("at last", False, 5, 3, (reason, reason))
        least = [7.0, 7.0] if said == 429 else [1.0, 2.0]
        assert all(low <= wait <= 1.25 * low for low, wait in zip(least, waited, strict=True))
        (found,), waited = write(endpoint.url, ["q"], retries=1)
        assert isinstance(found, Failed) and (found.reason, found.retries, len(waited)) == (reason, (reason,), 1)


def test_an_answer_that_does_not_come_is_given_up():
    with serving(lambda body, count: 2.0) as endpoint:
        (found,), waited = write(endpoint.url, ["p"], timeout=0.1, retries=1)
        assert (found.reason, found.retries, len(waited)) == (TIMEOUT, (TIMEOUT,), 1)


def test_a_request_that_is_wrong_is_not_sent_again():
    with serving(lambda body, count: 400) as endpoint:
        (found,), waited = write(endpoint.url, ["p"])
        assert found.reason == REFUSED and not waited and len(endpoint.bodies) == 1


@pytest.mark.parametrize(("status", "said"), [(401, "the key is wrong"), (404, "no such model")])
def test_what_no_request_could_pass_is_one_sentence(status, said):
    with serving(lambda body, count: status) as endpoint, pytest.raises(UserError, match=said):
        write(endpoint.url, ["p", "q"])


def test_nobody_there_is_said_and_counted():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    (found,), waited = write(url, ["p"], retries=2)
    assert (found.reason, found.retries, len(waited)) == (NO_CONNECTION, (NO_CONNECTION,) * 2, 2)
    with pytest.raises(UserError, match="does not list its models"):
        EndpointWriter(url)


def test_tokens_are_estimated_where_the_endpoint_says_nothing():
    with serving(lambda body, count: "nine byte") as endpoint:
        endpoint.usage = False
        (found,), _ = write(endpoint.url, ["p"])
        assert (found.prompt_tokens, found.tokens) == (0, 3)
