"""An OpenAI-compatible endpoint in a thread, that fails as it is told to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Said = str | bytes | int | float | dict[str, Any]
"""A text to answer with; bytes that are no JSON; a status of failure; seconds to be late; a whole answer."""


class Endpoint:
    """What was asked of it, how often each prompt, and how many requests were there at once."""

    def __init__(self, say: Callable[[dict[str, Any], int], Said]) -> None:
        self.say, self.lock = say, threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.times: Counter[str] = Counter()
        self.inside = self.most = 0
        self.usage = True
        self.url = ""

    def answer(self, body: dict[str, Any]) -> Said:
        """What it says to a request, by what it is and how often it came."""
        prompt = body["messages"][0]["content"]
        with self.lock:
            self.bodies.append(body)
            self.times[prompt] += 1
            count = self.times[prompt]
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            said = self.say(body, count)
            if isinstance(said, float):
                time.sleep(said)
                return "too late"
            time.sleep(0.01)
            return said
        finally:
            with self.lock:
                self.inside -= 1


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""

    def _reply(self, status: int, raw: bytes, **headers: str) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    def do_GET(self) -> None:
        """The list of models."""
        self._reply(200, json.dumps({"object": "list", "data": [{"id": "tiny", "object": "model"}]}).encode())

    def do_POST(self) -> None:
        """A chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = self.endpoint.answer(body)
        if isinstance(said, int):
            self._reply(said, b'{"error": {"message": "no"}}', **({"Retry_After": "7"} if said == 429 else {}))
        elif isinstance(said, bytes):
            self._reply(200, said)
        elif isinstance(said, dict):
            self._reply(200, json.dumps(said).encode())
        else:
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
            usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8} if self.endpoint.usage else None
            whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}
            self._reply(200, json.dumps({**whole, "usage": usage}).encode())


@contextlib.contextmanager
def serving(say: Callable[[dict[str, Any], int], Said]) -> Iterator[Endpoint]:
    """An endpoint at a free port, for the block."""
    endpoint = Endpoint(say)
    handler = type("Handler", (_Handler,), {"endpoint": endpoint})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
