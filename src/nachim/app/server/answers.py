"""From the engine's chunks to what clients are answered: completions and chats, whole or as events."""

from __future__ import annotations

import codecs
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

from nachim.app.server.asks import Ask
from nachim.app.server.errors import ApiError
from nachim.app.server.served import Served
from nachim.app.server.tools import CallReader
from nachim.infer.request import Chunk

NEVER = -9999.0
"""Stands for the logarithm of 0, which JSON has no number for."""


class Sample:
    """One sample of an answer as it comes in."""

    def __init__(self, ask: Ask, served: Served, index: int) -> None:
        self.index, self.served, self.tokens, self.finish = index, served, 0, ""
        self.logged = ask.sampling.logprobs
        self.text, self.logprobs = "", list[dict[str, Any]]()
        self.reader = CallReader(ask.calls) if ask.calls else None
        # Marks that are special tokens are not in the engine's text.
        marked = ask.calls is not None and ask.calls.begin in served.special
        self._decoder = DecodeStream(skip_special_tokens=False) if marked else None

    def take(self, chunk: Chunk) -> tuple[str, list[dict[str, Any]]]:
        """Take in a chunk; the text and the log-probabilities that are new."""
        self.tokens += len(chunk.tokens)
        text, logged = self._text(chunk), self._logged(chunk)
        if chunk.finish_reason == "error":
            raise ApiError(422, "the text came to a place where its constraint lets no token follow", "response_format")
        if chunk.finish_reason:
            self.finish = chunk.finish_reason
        if self.reader:
            text = self.reader.feed(text) + (self.reader.finish() if chunk.finish_reason else "")
            self.finish = "tool_calls" if self.finish == "stop" and self.reader.calls else self.finish
        self.text += text
        self.logprobs += logged
        return text, logged

    def _text(self, chunk: Chunk) -> str:
        if self._decoder is None:
            return chunk.text
        ids = [token for token in chunk.tokens if token not in self.served.ends]
        return "".join(self._decoder.step(self.served.tokenizer, token) or "" for token in ids)

    def _logged(self, chunk: Chunk) -> list[dict[str, Any]]:
        if not self.logged:
            return []
        ended = chunk.finish_reason == "stop" and chunk.tokens and chunk.tokens[-1] in self.served.ends
        count = len(chunk.tokens) - bool(ended)
        tops = chunk.top or ({},) * count
        rows = zip(chunk.tokens[:count], chunk.logprobs, tops, strict=False)
        return [{**self._token(token, value), "top": top} for token, value, top in rows]

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        written = self.served.bytes(token)
        logprob = logprob if math.isfinite(logprob) else NEVER
        return {"token": written.decode("utf-8", "replace"), "bytes": list(written), "logprob": logprob, "id": token}

    def chat_logprobs(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Rows of `take` as a chat has them; None where they were not asked for."""
        if not self.logged:
            return None
        told = []
        for row in rows:
            top = [_without_id(self._token(token, value)) for token, value in row["top"].items()]
            told.append({**_without_id(row), "top_logprobs": top})
            del told[-1]["top"]
        return {"content": told, "refusal": None}

    def text_logprobs(self, rows: Sequence[dict[str, Any]], offset: int = 0) -> dict[str, Any] | None:
        """Rows of `take` as a completion has them, the text beginning at the character `offset`."""
        if not self.logged:
            return None
        decoder, offsets = codecs.getincrementaldecoder("utf-8")("replace"), []
        for row in rows:
            offsets.append(offset)
            offset += len(decoder.decode(bytes(row["bytes"])))
        named = [{self.served.bytes.text(t): max(v, NEVER) for t, v in row["top"].items()} or None for row in rows]
        return {
            "tokens": [self.served.bytes.text(row["id"]) for row in rows],
            "token_logprobs": [row["logprob"] for row in rows],
            "top_logprobs": named if any(named) else None,
            "text_offset": offsets,
        }


class Answer:
    """The answer to a request of one or several prompts, each with `n` samples."""

    kind, prefix = "", ""

    def __init__(self, served: Served, asks: Sequence[Ask]) -> None:
        self.served, self.asks, self.read = served, asks, ()
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.samples = [
            [Sample(ask, served, prompt * ask.sampling.n + i) for i in range(ask.sampling.n)]
            for prompt, ask in enumerate(asks)
        ]

    def take(self, prompt: int, chunk: Chunk) -> None:
        """Take in a chunk of the ask `prompt`."""
        self.samples[prompt][chunk.sample].take(chunk)

    def events(self, prompt: int, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """Take in a chunk of the ask `prompt`; the events that it makes."""
        raise NotImplementedError

    def first(self) -> Iterator[dict[str, Any]]:
        """The events before any chunk."""
        yield from ()

    def usage(self) -> dict[str, int]:
        """Tokens that were read and written."""
        read = sum(len(ask.prompt) for ask in self.asks)
        written = sum(sample.tokens for samples in self.samples for sample in samples)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def event(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An answer or an event of it."""
        head = {"id": self.id, "object": self.kind, "created": self.created, "model": self.served.name}
        return {**head, "choices": choices, **more}

    def whole(self, read: Sequence[Sequence[float | None]]) -> dict[str, Any]:
        """The whole answer; `read` are the log-probabilities of each prompt's tokens, where they were asked for."""
        self.read = read
        samples = [sample for group in self.samples for sample in group]
        return self.event([self.choice(sample) for sample in samples], usage=self.usage())

    def choice(self, sample: Sample) -> dict[str, Any]:
        """One choice of the whole answer."""
        raise NotImplementedError


class CompletionAnswer(Answer):
    """An answer of /v1/completions; `echo` are the texts of the prompts, where they are to come before it."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(self, served: Served, asks: Sequence[Ask], echo: Sequence[str] | None) -> None:
        super().__init__(served, asks)
        self.echo = echo

    def first(self) -> Iterator[dict[str, Any]]:
        if self.echo is not None:
            for samples in self.samples:
                for sample in samples:
                    yield self.event([self._choice(sample, self._before(sample), None, None)])

    def events(self, prompt: int, chunk: Chunk) -> Iterator[dict[str, Any]]:
        sample = self.samples[prompt][chunk.sample]
        offset = len(self._before(sample) + sample.text)
        text, rows = sample.take(chunk)
        if text or rows or sample.finish:
            yield self.event([self._choice(sample, text, sample.text_logprobs(rows, offset), sample.finish or None)])

    def choice(self, sample: Sample) -> dict[str, Any]:
        before = self._before(sample)
        logprobs = sample.text_logprobs(sample.logprobs, len(before))
        if logprobs is not None and self.echo is not None:
            logprobs = self._with_prompt(sample, logprobs)
        return self._choice(sample, before + sample.text, logprobs, sample.finish)

    def _before(self, sample: Sample) -> str:
        return "" if self.echo is None else self.echo[sample.index // len(self.samples[0])]

    def _with_prompt(self, sample: Sample, logprobs: dict[str, Any]) -> dict[str, Any]:
        """Log-probabilities of prompt and answer; the first token has none."""
        prompt = sample.index // len(self.samples[0])
        rows = []
        for token, value in zip(self.asks[prompt].prompt, self.read[prompt], strict=True):
            rows.append({"id": token, "bytes": self.served.bytes(token), "logprob": value, "top": {}})
        read = sample.text_logprobs(rows)
        tops = None
        if logprobs["top_logprobs"]:
            tops = [None] * len(rows) + logprobs["top_logprobs"]
        joined = {name: read[name] + logprobs[name] for name in ("tokens", "token_logprobs", "text_offset")}
        return {**joined, "top_logprobs": tops}

    @staticmethod
    def _choice(sample: Sample, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": sample.index, "text": text, "logprobs": logprobs, "finish_reason": finish}


class ChatAnswer(Answer):
    """An answer of /v1/chat/completions."""

    kind, prefix = "chat.completion", "chatcmpl"

    def event(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        streamed = not choices or "delta" in choices[0]
        return super().event(choices, **more) | {"object": "chat.completion.chunk" if streamed else self.kind}

    def first(self) -> Iterator[dict[str, Any]]:
        for sample in self.samples[0]:
            yield self.event([self._delta(sample, {"role": "assistant", "content": ""})])

    def events(self, prompt: int, chunk: Chunk) -> Iterator[dict[str, Any]]:
        sample = self.samples[prompt][chunk.sample]
        called = len(sample.reader.calls) if sample.reader else 0
        text, rows = sample.take(chunk)
        if text or rows:
            yield self.event([self._delta(sample, {"content": text}, logprobs=sample.chat_logprobs(rows))])
        for index, call in enumerate(sample.reader.calls[called:] if sample.reader else (), called):
            yield self.event([self._delta(sample, {"tool_calls": [{"index": index, **call}]})])
        if sample.finish:
            yield self.event([self._delta(sample, {}, finish_reason=sample.finish)])

    def choice(self, sample: Sample) -> dict[str, Any]:
        calls = sample.reader.calls if sample.reader else []
        message = {"role": "assistant", "content": None if calls and not sample.text.strip() else sample.text}
        message |= {"refusal": None, **({"tool_calls": calls} if calls else {})}
        logprobs = sample.chat_logprobs(sample.logprobs)
        return {"index": sample.index, "message": message, "logprobs": logprobs, "finish_reason": sample.finish}

    @staticmethod
    def _delta(sample: Sample, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"index": sample.index, "delta": delta, "logprobs": None, "finish_reason": None, **more}


def _without_id(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "id"}
