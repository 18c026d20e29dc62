"""What checks share: running one arm, and reading its curve."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from shoal.core import Draws, Place, Report
from shoal.experiment import plan_of, run

__all__ = ["arm", "at_tick", "final", "opened", "rounds_to", "sharpness"]


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


def opened(system: Any, seed: int, **plan: Any) -> Any:
    """The task of a run, live, with all peers in one block."""
    made = plan_of(system, seed=seed, **plan)
    return made.task.open(Place.whole(made.peers, made.seed, getattr(torch, made.dtype)))


def sharpness(task: Any, x: Tensor, seed: int, pairs: int = 50, radius: float = 0.1) -> float:
    """Mean rise of the test loss of a model x [1, D] over random directions of length ``radius`` |x|.

    Each direction is taken both ways: far from a minimum the slope along a few random directions would
    outweigh the curvature.
    """
    z = Draws(seed, "sharpness", torch.arange(pairs)).normal(x.shape[1], dtype=x.dtype)
    step = radius * x.norm() * z / z.norm(dim=1, keepdim=True)
    points = torch.cat([x, x + step, x - step])
    loss = task.model.score(points, task.test_x, task.test_y)["loss"]
    return float(loss[1:].mean() - loss[0])
