"""What checks share: running one arm, and reading its curve."""

from __future__ import annotations

import math
from typing import Any

from shoal.core import Report
from shoal.experiment import run

__all__ = ["arm", "at_tick", "final", "rounds_to"]


def arm(system: Any, seed: int, **plan: Any) -> Report:
    """One run of a check. See :func:`shoal.run`."""
    return run(system, seed=seed, **plan)


def final(report: Report, metric: str = "accuracy", over: int = 1) -> float:
    """The mean of the last ``over`` measurements of a metric."""
    _, values = report.curve(metric)
    return sum(values[-over:]) / len(values[-over:])


def at_tick(report: Report, tick: int, metric: str = "accuracy") -> float:
    """A metric after ``tick`` ticks (NaN where it was not measured then)."""
    return dict(zip(*report.curve(metric), strict=True)).get(tick, math.nan)


def rounds_to(report: Report, target: float, metric: str = "accuracy") -> float:
    """The first tick at which a metric has reached the target; infinity: never."""
    return next((t for t, v in zip(*report.curve(metric), strict=True) if v >= target), math.inf)
