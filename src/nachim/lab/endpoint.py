"""The writer that is an OpenAI-compatible endpoint: bounded requests in flight, retries, and every failure counted."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from nachim.lab.writer import Answer, Asked, Failed
from nachim.spec import UserError

if TYPE_CHECKING:
    from openai import OpenAI

KEY = "OPENAI_API_KEY"
TIMEOUT, BUSY, BROKEN, NO_CONNECTION = "timed out", "too many requests", "the server failed", "no connection"
JUNK, REFUSED = "junk answer", "the request was refused"
AGAIN = frozenset({TIMEOUT, BUSY, BROKEN, NO_CONNECTION, JUNK})
"""What may go better the next time."""
HOPELESS = {401: "the key is wrong or missing", 403: "the key does not allow it", 404: "no such model or address"}
"""Statuses that every request would get."""
BACKOFF = 1.0
"""Seconds before the second attempt."""
BYTES_PER_TOKEN = 4
"""Where an endpoint does not say what it took."""


class EndpointWriter:
    """The model `model` at `url` (such as http://127.0.0.1:8000/v1); by default the first that the endpoint lists.

    At most `together` requests are in flight. One that fails in a way that may pass is asked again `retries` times,
    after `BACKOFF` seconds, twice that, and so on up to a minute, with jitter, or as the server's Retry-After says.
    The key is taken from the environment (OPENAI_API_KEY). Raises UserError where no request could succeed.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        together: int = 8,
        timeout: float = 60.0,
        retries: int = 4,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.together, self.retries, self.url = together, retries, url
        self.left = threading.Event()
        """Set once nobody waits for answers any more: threads then send nothing."""
        self.sleep = sleep or self.left.wait
        self.client = _client(url, timeout)
        self.model = model or self._first()
        self.name = f"{self.model} at {url}"

    def _first(self) -> str:
        import openai

        try:
            listed = [one.id for one in self.client.models.list().data]
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            reason = reason_of(error)[0]
            raise UserError(f"{self.url} does not list its models ({reason}): check it, or name one") from error
        if not listed:
            raise UserError(f"{self.url} lists no model: name one")
        return str(listed[0])

    def write(self, asked: Sequence[Asked], tick: Callable[[float], None]) -> list[Answer | Failed]:
        """Every prompt as a message of a user."""
        with ThreadPoolExecutor(self.together) as pool:
            places = {pool.submit(self._patiently, one): place for place, one in enumerate(asked)}
            found: dict[int, Answer | Failed] = {}
            try:
                for future in as_completed(places):
                    found[places[future]] = future.result()
                    tick(len(found) / len(asked))
            except BaseException:
                self.left.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [found[place] for place in range(len(asked))]

    def _patiently(self, one: Asked) -> Answer | Failed:
        """One answer, asked for again where that may help."""
        import openai

        before: list[str] = []
        jitter = random.Random(one.seed)
        while True:
            try:
                text, cut, read, written = _read(self._send(one))
                return Answer(text, cut, read, written, tuple(before))
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
                reason, about, wait = reason_of(error)
                if isinstance(error, openai.APIStatusError) and error.status_code in HOPELESS:
                    raise UserError(f"{self.url} refuses {self.model}: {HOPELESS[error.status_code]}") from error
                if reason not in AGAIN or len(before) >= self.retries or self.left.is_set():
                    return Failed(reason, about, tuple(before))
                before.append(reason)
                wait = min(60.0, BACKOFF * 2 ** (len(before) - 1)) if wait is None else min(60.0, wait)
                self.sleep(wait * (1 + jitter.random() / 4))

    def _send(self, one: Asked) -> Any:
        return self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": one.prompt}],
            max_tokens=one.max_tokens,
            temperature=one.temperature,
            top_p=one.top_p,
            seed=one.seed,
            **({"stop": list(one.stop)} if one.stop else {}),
        )


def _client(url: str, timeout: float) -> OpenAI:
    try:
        import openai
    except ImportError as error:
        raise UserError("endpoints need the package openai: pip install 'nachim[endpoint]'") from error
    # an endpoint without a key takes any; retries are ours, so that they are counted
    return openai.OpenAI(base_url=url, api_key=os.environ.get(KEY, "none"), timeout=timeout, max_retries=0)


def _read(answer: Any) -> tuple[str, bool, int, int]:
    """Text, whether it was cut, and tokens read and written. Raises TypeError and the like where it is no answer."""
    choice = answer.choices[0]
    text = choice.message.content
    if not isinstance(text, str):
        raise TypeError(f"the message has no text: {text!r}")
    usage = answer.usage
    told = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (None, None)
    read, written = (one if isinstance(one, int) and one >= 0 else None for one in told)
    size = -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
    return text, choice.finish_reason == "length", read or 0, size if written is None else written


def reason_of(error: Exception) -> tuple[str, str, float | None]:
    """Under what a failure is counted, what is said of it, and the seconds to wait where the server says so."""
    import openai

    said = " ".join(str(error).split())[:200]
    if isinstance(error, openai.APITimeoutError):
        return TIMEOUT, said, None
    if isinstance(error, openai.APIResponseValidationError):
        return JUNK, said, None
    if isinstance(error, openai.APIConnectionError):
        return NO_CONNECTION, said, None
    if isinstance(error, openai.APIStatusError):
        wait = _seconds(error.response.headers.get("retry-after"))
        if error.status_code == 429:
            return BUSY, said, wait
        return (BROKEN if error.status_code >= 500 or error.status_code == 408 else REFUSED), said, wait
    return JUNK, said, None


def _seconds(said: str | None) -> float | None:
    try:
        return max(0.0, float(said)) if said is not None else None
    except ValueError:
        return None
