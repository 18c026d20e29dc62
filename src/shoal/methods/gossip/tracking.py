"""Gradient tracking: every peer follows the average gradient by gossip.

Source: Di Lorenzo, Scutari, "NEXT: in-network nonconvex optimization" (2016), the adapt-then-combine
form; Nedic, Olshevsky, Shi (SIAM J. Optim. 2017) for linear convergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Differentiable, Method, Tick, methods

__all__ = ["GradientTracking", "Tracked"]


@dataclass(frozen=True)
class Tracked:
    """Models x, trackers y of the average gradient, and the gradients g last seen: [P, D] each."""

    x: Tensor
    y: Tensor
    g: Tensor


@methods.register("gradient-tracking")
@dataclass(frozen=True)
class GradientTracking(Method):
    """x <- W(x - lr y), y <- W(y + g+ - g), g+ the gradient at the new x, and y = g at the start.

    With doubly stochastic W the mean of y stays the mean of g, so x converges to the exact optimum
    with a constant step, however different the peers' functions are. Two messages an edge and round.

    Args:
        lr: step size.
    """

    lr: Annotated[float, Meta(gt=0)] = 0.1

    recipe: ClassVar[dict[str, Any]] = {"task": "supervised", "peers": 16, "rounds": 100}
    symmetric: ClassVar[bool] = True

    def init(self, ctx: Context[Differentiable]) -> Tracked:
        x = ctx.task.init()
        g = ctx.task.grad(x, 0)
        return Tracked(x, g, g)

    def step(self, s: Tracked, tick: Tick, ctx: Context[Differentiable]) -> Tracked:
        active = ctx.mine(tick.active)
        moving = active[:, None]
        x = ctx.net.mix(s.x - self.lr * s.y * moving, tick, channel="x")
        # The gradient at the start took the batch (0, 0).
        fresh = ctx.task.grad(x, tick.index, step=1, active=active)
        g = fresh.where(moving, s.g)
        y = ctx.net.mix(s.y + g - s.g, tick, hop=1, channel="y")
        return Tracked(x, y, g)
