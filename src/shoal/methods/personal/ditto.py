"""Ditto: a personal model beside FedAvg's, drawn to it.

Source: Li, Hu, Beirami, Smith, "Ditto: fair and robust federated learning through personalization"
(ICML 2021, arXiv 2012.04221), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Tick, methods
from shoal.methods.federated.fedavg import FedAvg, Served
from shoal.tasks.supervised import Training

from .proximal import descend

__all__ = ["Beside", "Ditto"]


@dataclass(frozen=True)
class Beside(Served):
    """Besides FedAvg's x [P, D] and server [A, D]: theta [P, D], the personal models."""

    theta: Tensor


@methods.register("ditto")
@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg for x; beside it theta_i <- theta_i - lr (grad f_i(theta_i) + lam (theta_i - x)).

    Args:
        lam: lambda, how strongly personal models are drawn to the shared one.
        personal_lr: step size of theta.
        personal_steps: steps of theta a round, each on a fresh batch of the task.
    """

    lam: Annotated[float, Meta(ge=0)] = 0.5
    personal_lr: Annotated[float, Meta(gt=0)] = 0.1
    personal_steps: Annotated[int, Meta(ge=1)] = 20

    def init(self, ctx: Context[Training]) -> Beside:
        s = super().init(ctx)
        return Beside(s.x, s.server, s.x)

    def step(self, s: Served, tick: Tick, ctx: Context[Training]) -> Beside:
        assert isinstance(s, Beside)
        active = ctx.mine(tick.active)
        down = ctx.net.cast(s.server, tick, like=s.x)
        up = self.local(down, tick, ctx)
        server = ctx.net.pool(up, tick, weight=ctx.task.sizes, base=down, held=s.server)
        batches = range(self.personal_steps)
        theta = descend(ctx.task, s.theta, down, tick.index, batches, self.personal_lr, self.lam, active)
        return Beside(up, server, theta)

    def output(self, s: Served) -> Tensor:
        """The personal models."""
        assert isinstance(s, Beside)
        return s.theta
