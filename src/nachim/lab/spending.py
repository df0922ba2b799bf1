"""Requests within a budget: what was spent, what may still be, and what is not sent any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nachim.lab.writer import Answer, Asked, Failed, Writer
from nachim.spec import UserError

OVER = "over the budget"


@dataclass(frozen=True)
class Budget:
    """What may be spent on all rounds together; None is no bound. Retries are requests, and tokens those read and
    written: both may be overshot by what the requests in flight take."""

    requests: int | None = None
    tokens: int | None = None

    def left(self, *spent: Spent) -> int | None:
        """Requests that may still be sent; None where there is no bound."""
        if self.tokens is not None and sum(one.prompt_tokens + one.tokens for one in spent) >= self.tokens:
            return 0
        return None if self.requests is None else max(0, self.requests - sum(one.requests for one in spent))


@dataclass
class Spent:
    """What was spent: requests (retries are some), tokens read and written, and by reason retries and failures."""

    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def take(self, answer: Answer | Failed) -> None:
        """Count one answer, or why there was none."""
        self.requests += 1 + len(answer.retries)
        self.retries.update(answer.retries)
        if isinstance(answer, Failed):
            self.failures[answer.reason] += 1
        else:
            self.prompt_tokens += answer.prompt_tokens
            self.tokens += answer.tokens

    def add(self, told: dict[str, Any]) -> None:
        """Count what `to_json` told."""
        for name in ("requests", "prompt_tokens", "tokens"):
            setattr(self, name, getattr(self, name) + told[name])
        self.retries.update(told["retries"])
        self.failures.update(told["failures"])

    @property
    def answers(self) -> int:
        """Requests that were answered."""
        return self.requests - self.retries.total() - self.failures.total()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "retries": dict(self.retries), "failures": dict(self.failures)}


def send(
    writer: Writer, asked: Sequence[Asked], budget: Budget, before: Spent, now: Spent, tick: Callable[[float], None]
) -> list[Answer | Failed]:
    """An answer to each prompt, counted in `now`, or why there is none; what was spent `before` counts for the budget.

    Raises UserError where not one of `now` was answered: nothing should be made of failures alone.
    """
    found: list[Answer | Failed] = []
    while len(found) < len(asked):
        left = budget.left(before, now)
        if left == 0:
            return found + [Failed(OVER)] * (len(asked) - len(found))
        # a budget of tokens is looked at whenever the requests in flight have come back
        size = len(asked) if budget.tokens is None else writer.together
        some, begin = asked[len(found) :][: size if left is None else min(size, left)], len(found)
        heard = writer.write(some, lambda done, b=begin, n=len(some): tick((b + done * n) / len(asked)))
        for answer in heard:
            now.take(answer)
        found += heard
    if now.answers == 0 and now.failures:
        reasons = ", ".join(f"{count} {reason}" for reason, count in now.failures.most_common())
        raise UserError(
            f"none of {now.failures.total()} requests to {writer.name} was answered ({reasons}): see that it works, "
            "then run the same command again"
        )
    return found
