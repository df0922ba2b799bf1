"""A server under many clients for a long time: no crossed answer, no lost page, no growth, no 5xx.

    python bench/server_soak.py --minutes 60 --malformed 10000

`--clients` ask at once for completions and chats, whole and streamed, with constraints and without, each with a seed;
one in five leaves before the end. Whatever shares the engine, a request gets what it got alone: every answer that is
read to its end is held against that. One in ten asks what nobody asked before, a long prompt and a schema of its own,
so that whatever is kept of requests comes to its bounds. Beside them, one sends bodies that must be refused. The server
serves a tiny untrained model of its own, or DIR.

Memory is told by the minute. It counts as flat when the line through its second half (Theil and Sen's, which a few odd
readings do not turn) rises or falls by at most 1 %; before that the cache is touched for the first time, so a run of
less than ten minutes says little of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from scipy.stats import theilslopes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench._chatty import checkpoint
from bench._malformed import malformed

BODIES = 60
"""Requests that differ."""
FLAT_PERCENT = 1.0
"""What memory may rise or fall by over the second half."""
WRONG = (
    *("crossed", "server_errors", "accepted_malformed", "pages_lost"),
    *("samples_left", "files_lost", "exit_status"),
)
"""Counts that must be 0."""
FORMS = (
    None,
    None,
    {"type": "regex", "pattern": "[a-z]{3}(-[0-9]+)?"},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "items": {"type": "boolean"}}}},
)


def main() -> None:
    """Read the options, serve, soak, print one table or one JSON object; status 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", nargs="?", type=Path, help="the model; a tiny one is made where none is given")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--malformed", type=int, default=1000, help="bodies that must be refused")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = asked.dir or checkpoint(Path(made) / "tiny")
        began = time.monotonic()
        command = [str(Path(sys.executable).with_name("nachim")), "serve", str(folder), "--port", "0", "--name", "tiny"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            said = re.search(r":(\d+)/v1", process.stdout.readline() if process.stdout else "")
            if said is None:
                sys.exit("the server did not start")
            ready = time.monotonic() - began
            found = {"ready_seconds": round(ready, 2), **Soak(int(said[1]), process.pid, asked).run()}
            process.terminate()
            found["exit_status"] = process.wait(60)
        finally:
            process.kill()
    print(json.dumps(found) if asked.json else "\n".join(f"{name:>24}  {value}" for name, value in found.items()))
    sys.exit(1 if any(found[name] for name in WRONG) or not found["memory_flat"] else 0)


class Soak:
    """Clients against the server at `port`, whose process is `pid`."""

    def __init__(self, port: int, pid: int, asked: argparse.Namespace) -> None:
        self.port, self.pid, self.asked = port, pid, asked
        self.end = 0.0
        self.count: Counter[str] = Counter()
        self.memory: list[tuple[float, float]] = []
        self.unheard = itertools.count()
        self.bodies = [self.body(random.Random(f"{asked.seed} {i}")) for i in range(BODIES)]
        self.alone: list[str] = []

    def run(self) -> dict[str, Any]:
        """Soak; what was counted."""
        self.alone = [self.ask(body, None)[1] for body in self.bodies]
        self.metric("nachim_samples")
        files = self.files()
        self.end = time.monotonic() + 60 * self.asked.minutes
        threads = [threading.Thread(target=self.client, args=(number,)) for number in range(self.asked.clients)]
        threads += [threading.Thread(target=self.intruder), threading.Thread(target=self.watch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(1)
        return {
            "minutes": self.asked.minutes,
            "clients": self.asked.clients,
            "answers": self.count["whole"],
            "answers_asked_once": self.count["once"],
            "left_early": self.count["left"],
            "crossed": self.count["crossed"],
            "refused_as_busy": self.count["429"],
            "malformed": self.count["malformed"],
            "accepted_malformed": self.count["accepted"],
            "server_errors": self.count["5xx"],
            "pages_lost": self.metric('nachim_cache_pages{by="samples"}'),
            "samples_left": self.metric("nachim_samples"),
            "files_lost": self.files() - files,
            **self.growth(),
        }

    def growth(self) -> dict[str, Any]:
        """Resident memory, MB: the median of each minute, and what the line through the second half rises by."""
        begin, end = self.memory[0][0], self.memory[-1][0]
        minutes: dict[int, list[float]] = {}
        for at, size in self.memory:
            minutes.setdefault(int((at - begin) / 60), []).append(size)
        late = [(at, size) for at, size in self.memory if at >= (begin + end) / 2]
        slope, start, _, _ = theilslopes([size for _, size in late], [at - late[0][0] for at, _ in late])
        percent = 100 * slope * (end - late[0][0]) / start
        return {
            "memory_mb_by_minute": [round(statistics.median(sizes), 1) for sizes in minutes.values()],
            "memory_second_half_percent": round(percent, 3),
            "memory_flat": bool(abs(percent) <= FLAT_PERCENT),
        }

    @staticmethod
    def body(draw: random.Random) -> dict[str, Any]:
        """A request, always with the same answer."""
        text = "".join(draw.choices("abcdef ghij é漢", k=draw.randrange(1, 200)))
        body: dict[str, Any] = {"model": "tiny", "seed": draw.randrange(1 << 40), "max_tokens": draw.randrange(1, 60)}
        body |= {
            "temperature": draw.choice((0, 0.7, 1, 1.5)),
            "top_p": draw.choice((0.9, 1)),
            "stream": draw.random() < 0.5,
        }
        body |= {"n": draw.choice((1, 1, 1, 3)), "response_format": draw.choice(FORMS)}
        if draw.random() < 0.5:
            return {**body, "prompt": text}
        return {**body, "messages": [{"role": "user", "content": text}]}

    def client(self, number: int) -> None:
        """Ask until the end; sometimes leave."""
        draw = random.Random(f"client {self.asked.seed} {number}")
        while time.monotonic() < self.end:
            index = draw.randrange(len(self.bodies)) if draw.random() < 0.9 else None
            body = self.once(draw) if index is None else self.bodies[index]
            status, text = self.ask(body, draw.randrange(1, 40) if draw.random() < 0.2 else None)
            if text == "left":
                self.count["left"] += 1
            elif status == 429:
                self.count["429"] += 1
                time.sleep(0.05)
            elif status >= 500:
                self.count["5xx"] += 1
            elif index is None:
                self.count["once"] += 1
            else:
                self.count["whole"] += 1
                self.count["crossed"] += text != self.alone[index]

    def once(self, draw: random.Random) -> dict[str, Any]:
        """A request that no other is like."""
        schema = {"type": "object", "properties": {f"p{next(self.unheard)}": {"type": "integer"}}}
        form = {"type": "json_schema", "json_schema": {"name": "once", "schema": schema}}
        prompt = "".join(draw.choices("abcdefgh ", k=draw.randrange(200, 900)))
        return {"model": "tiny", "prompt": prompt, "max_tokens": 40, "response_format": draw.choice((None, form))}

    def ask(self, body: dict[str, Any], leave_after: int | None) -> tuple[int, str]:
        """Status, and the texts of all choices as JSON; `left` after so many milliseconds where they are given."""
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            if leave_after is not None:
                time.sleep(leave_after / 1000)
                return 0, "left"
            answer = connection.getresponse()
            raw = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            # What was refused alone is refused again: only its status and its words count.
            return answer.status, raw
        events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")] or [json.loads(raw)]
        return 200, texts_of(events)

    def intruder(self) -> None:
        """Send what must be refused."""
        draw = random.Random(f"malformed {self.asked.seed}")
        for _ in range(self.asked.malformed):
            path, body = malformed(draw, "tiny")
            connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            status = connection.getresponse().status
            connection.close()
            self.count["malformed"] += 1
            self.count["5xx"] += status >= 500
            self.count["accepted"] += status < 400

    def watch(self) -> None:
        """Note the server's memory every second."""
        while time.monotonic() < self.end:
            self.memory.append((time.monotonic(), self.resident()))
            time.sleep(1)

    def resident(self) -> float:
        """Resident memory of the server, MB."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def files(self) -> int:
        """Files and connections that the server has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def metric(self, name: str) -> float:
        """A metric's value."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def texts_of(events: list[dict[str, Any]]) -> str:
    """The text of every choice of an answer, whole or streamed, as JSON; an error where there was one."""
    texts: dict[str, str] = {}
    for event in events:
        if "error" in event:
            return json.dumps(event["error"]["message"])
        for choice in event["choices"]:
            new = choice.get("text") or (choice.get("delta") or choice.get("message") or {}).get("content") or ""
            texts[str(choice["index"])] = texts.get(str(choice["index"]), "") + new
    return json.dumps(texts, sort_keys=True)


if __name__ == "__main__":
    main()
