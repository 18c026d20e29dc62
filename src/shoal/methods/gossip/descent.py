"""What the methods that descend locally share: their state, hyper-parameters and local steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Differentiable, Method, Tick

__all__ = ["Descent", "Models"]


@dataclass(frozen=True)
class Models:
    """The peers' models: x [P, D]."""

    x: Tensor


@dataclass(frozen=True)
class Descent(Method):
    """Abstract: a method whose local work is plain SGD.

    Args:
        lr: step size.
        local_steps: gradient steps between two exchanges.
        momentum: of the local steps, fresh each tick.
        weight_decay: L2 penalty.
        decay: factor on ``lr`` per tick.
        same_start: all peers begin from one model.
    """

    lr: Annotated[float, Meta(gt=0)] = 0.1
    local_steps: Annotated[int, Meta(ge=1)] = 5
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    same_start: bool = True

    recipe: ClassVar[dict[str, Any]] = {"task": "supervised", "peers": 16, "rounds": 50}

    def init(self, ctx: Context[Differentiable]) -> Models:
        return Models(ctx.task.init(self.same_start))

    def rate(self, tick: Tick) -> float:
        """The step size of this tick."""
        return self.lr * self.decay**tick.index

    def local(self, x: Tensor, tick: Tick, ctx: Context[Differentiable]) -> Tensor:
        """The local steps of a tick, for the peers that are active."""
        return ctx.task.sgd(
            x,
            tick.index,
            self.local_steps if tick.steps is None else ctx.mine(tick.steps),
            self.rate(tick),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            active=ctx.mine(tick.active),
        )
