"""A server as a process of its own, for tests."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

KEY = "a key"


@dataclass
class Server:
    """A server that answers at `port`."""

    process: subprocess.Popen[str]
    port: int
    name: str

    def send(self, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of one request; `body` is sent as JSON where it is no bytes, with POST where it is any."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, raw, sent)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        families = text_string_to_metric_families(self.send("/metrics")[1].decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def stop(self) -> int:
        """End it by SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=300)


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """A server of the checkpoint in `folder` at a free port, which asks for `KEY`."""
    command = [str(Path(sys.executable).with_name("nachim")), "serve", str(folder), "--port", "0", *options]
    environment = {**os.environ, "NACHIM_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving (.+) at http://127\.0\.0\.1:(\d+)/v1\n", line)
        assert found, line
        yield Server(process, int(found[2]), found[1])
    finally:
        process.kill()
        process.wait()


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)
