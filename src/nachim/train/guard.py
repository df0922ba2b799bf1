"""Judges every step before it changes the weights, and answers a bad one as the recipe says."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import pyarrow as pa

from nachim.spec import OnSpike, RollBack, SkipStep, Stop, UserError
from nachim.spec.safety import Outliers

MEMORY_STEPS = 50
SURGE_NATS = 1.0
LEAST_DEVIATION = 0.01


class Diverged(UserError):
    """A run stopped by its guard: the message names the step, the last good checkpoint and what to try."""


class Fault(Exception):
    """Step `step` (from 0) must not be taken, and the run is to be rolled back; `why` says what was seen."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(f"step {step}: {why}")
        self.step, self.why = step, why


class Guard:
    """Watches the loss and the gradient norm of every step.

    The smoothed loss may never stand `SURGE_NATS` above its own minimum. It forgets over `MEMORY_STEPS` steps, and is
    judged only after as many. A policy of outliers judges each step as well.
    """

    def __init__(
        self, lr: float, policy: OnSpike = Stop(), last_good: Callable[[], str] = lambda: "none was written yet"
    ) -> None:
        self.lr, self.policy, self.last_good = lr, policy, last_good
        self.smooth = math.nan
        self.lowest = math.inf
        self.seen = 0
        self.skipped = 0
        self.told = ""
        window = policy.window if isinstance(policy, Outliers) else 0
        self.losses: deque[float] = deque(maxlen=window)
        self.norms: deque[float] = deque(maxlen=window)

    def check(self, step: int, loss: float, grad_norm: float) -> bool:
        """Whether step `step` may change the weights; why not is left in `told`.

        Raises Diverged where the policy ends the run, and Fault where it rolls it back.
        """
        why = self._outlier(loss, grad_norm)
        if why:
            return self._answer(step, why)
        self.observe(loss, grad_norm)
        if self.seen > MEMORY_STEPS and self.smooth > self.lowest + SURGE_NATS:
            why = f"the smoothed loss rose from {self.lowest:.3f} to {self.smooth:.3f} nat/token"
            if isinstance(self.policy, RollBack):
                raise Fault(step, why)
            self.stop(step, why)
        return True

    def observe(self, loss: float, grad_norm: float) -> None:
        """Take in the loss and gradient norm of one good step."""
        self.seen += 1
        self.skipped = 0
        self.smooth = loss if self.seen == 1 else self.smooth + (loss - self.smooth) / MEMORY_STEPS
        if self.seen > MEMORY_STEPS:
            self.lowest = min(self.lowest, self.smooth)
        self.losses.append(loss)
        self.norms.append(grad_norm)

    def remember(self, metrics: pa.Table) -> None:
        """Take in the steps of an earlier sitting, so as to judge like a guard that saw them."""
        columns = (metrics[name].to_pylist() for name in ("loss", "grad_norm", "skipped"))
        for loss, norm, skipped in zip(*columns, strict=True):
            if skipped:
                self.skipped += 1
            else:
                self.observe(loss, norm if math.isfinite(norm) else 0.0)  # fp16 skips an overflow by itself

    def stop(self, step: int, why: str) -> None:
        """Raise Diverged at `step`."""
        raise Diverged(
            f"stopped at step {step}: {why}; last good checkpoint: {self.last_good()}; "
            f"try a lower learning rate than {self.lr:.3g}, a longer warm-up or a larger batch"
        )

    def _outlier(self, loss: float, grad_norm: float) -> str:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss:.4g} and gradient norm {grad_norm:.4g} are not both finite"
        if not isinstance(self.policy, Outliers) or len(self.losses) < self.policy.window:
            return ""
        for name, value, past in (("loss", loss, self.losses), ("gradient norm", grad_norm, self.norms)):
            mean = sum(past) / len(past)
            spread = math.sqrt(sum((each - mean) ** 2 for each in past) / len(past))
            if value > mean + self.policy.sigmas * max(spread, LEAST_DEVIATION * abs(mean)):
                return f"{name} {value:.4g} stands out from the mean {mean:.4g} of the last {len(past)} good steps"
        return ""

    def _answer(self, step: int, why: str) -> bool:
        if isinstance(self.policy, RollBack):
            raise Fault(step, why)
        if isinstance(self.policy, SkipStep):
            self.skipped += 1
            if self.skipped > self.policy.limit:
                self.stop(step, f"{why}, after {self.policy.limit} skipped steps in a row")
            self.told = why
            return False
        self.stop(step, why)
        return False
