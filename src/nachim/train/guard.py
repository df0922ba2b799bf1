"""Stops a run that has gone wrong, before the weights do."""

from __future__ import annotations

import math

from nachim.spec import UserError

MEMORY_STEPS = 50
SURGE_NATS = 1.0


class Diverged(UserError):
    """A run stopped by its guard: the message names the step, the last good checkpoint and what to try."""


class Guard:
    """Watches the loss of every step; the smoothed loss may never stand `SURGE_NATS` above its own minimum.

    The smoothed loss forgets over `MEMORY_STEPS` steps, and is judged only after as many.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.smooth = math.nan
        self.lowest = math.inf
        self.seen = 0
        self.last_good = "none was written yet"

    def check(self, step: int, loss: float, grad_norm: float) -> None:
        """Raise Diverged when `loss` or `grad_norm` is not finite, or the smoothed loss has surged."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.stop(step, f"loss {loss:.4g} and gradient norm {grad_norm:.4g} are not both finite")
        self.observe(loss)
        if self.seen > MEMORY_STEPS and self.smooth > self.lowest + SURGE_NATS:
            self.stop(step, f"the smoothed loss rose from {self.lowest:.3f} to {self.smooth:.3f} nat/token")

    def observe(self, loss: float) -> None:
        """Take in the loss of one good step (also used to restore the guard from a resumed run's metrics)."""
        self.seen += 1
        self.smooth = loss if self.seen == 1 else self.smooth + (loss - self.smooth) / MEMORY_STEPS
        if self.seen > MEMORY_STEPS:
            self.lowest = min(self.lowest, self.smooth)

    def stop(self, step: int, why: str) -> None:
        """Raise Diverged at `step`."""
        raise Diverged(
            f"stopped at step {step}: {why}; last good checkpoint: {self.last_good}; "
            f"try a lower learning rate than {self.lr:.3g}, a longer warm-up or a larger batch"
        )
