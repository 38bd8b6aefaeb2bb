"""How far a training is: by its steps alone, or by the clock too when it may only take so long."""

from __future__ import annotations

import math
import time


class Pace:
    """Progress of a training of `steps` steps that may take at most `minutes` of wall-clock time, from now on.

    Without `minutes` only the steps count, so that a run is repeatable; with them, progress is whichever of the two is
    further, and a schedule that follows it ends at zero when the time is over. The clock of a resumed run starts anew.
    ValueError unless `steps` is at least 1 and `minutes` positive and finite.
    """

    def __init__(self, steps: int, minutes: float | None = None) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1; got {steps!r}")
        if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
            raise ValueError(f"minutes must be positive and finite; got {minutes!r}")
        self.steps, self.minutes, self._start = steps, minutes, time.monotonic()

    def done(self, step: int) -> bool:
        """Whether a run that has made `step` steps is over."""
        return self.progress(step) >= 1.0

    def progress(self, step: int) -> float:
        """In [0, 1]: the share of the steps, or of the time if more of that is gone."""
        share = step / self.steps
        if self.minutes is not None:
            share = max(share, (time.monotonic() - self._start) / (60.0 * self.minutes))
        return min(max(share, 0.0), 1.0)


def paced_rate(pace: Pace, step: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up to `peak` over `warmup` steps, then half a cosine that reaches zero when `pace` is over."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * pace.progress(step)))
