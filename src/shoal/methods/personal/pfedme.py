"""145 pFedMe: personal models as proximal points of a shared one.

Source: Dinh, Tran, Nguyen, "Personalized federated learning with Moreau envelopes" (NeurIPS 2020,
arXiv 2006.08848), Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Differentiable, Method, Tick, methods

from .proximal import descend

__all__ = ["PFedMe", "Personal"]


@dataclass(frozen=True)
class Personal:
    """theta [P, D] the personal models, x [P, D] the peers' copies w_i, server [A, D] the shared w."""

    theta: Tensor
    x: Tensor
    server: Tensor


@methods.register("pfedme")
@dataclass(frozen=True)
class PFedMe(Method):
    """Minimise the mean of F_i(w) = min_theta f_i(theta) + (lambda/2) |theta - w|^2.

    Args:
        lam: lambda, how strongly personal models are drawn to the shared one.
        inner: K, steps towards the proximal point on one batch.
        local_rounds: R, batches per round.
        lr: eta, step size of w_i.
        personal_lr: eta_p, step size of theta.
        beta: server step, w <- (1 - beta) w + beta mean_i w_i.
    """

    lam: Annotated[float, Meta(ge=0)] = 15.0
    inner: Annotated[int, Meta(ge=1)] = 5
    local_rounds: Annotated[int, Meta(ge=1)] = 20
    lr: Annotated[float, Meta(gt=0)] = 0.005
    personal_lr: Annotated[float, Meta(gt=0)] = 0.1
    beta: Annotated[float, Meta(gt=0)] = 1.0

    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist",
            "partition": {"name": "classes", "k": 2},
            "model": "linear",
            "batch": 20,
            "own_test": 0.25,
        },
        "peers": 20,
        "rounds": 60,
    }
    trial: ClassVar[dict[str, Any]] = {"rounds": 3}

    def check(self) -> None:
        if self.lr * self.lam >= 2:
            raise BadInput("lr", self.lr, f"below 2 / lam = {2 / self.lam:g}, or w_i diverges")

    def init(self, ctx: Context[Differentiable]) -> Personal:
        x = ctx.task.init()
        return Personal(x, x, x[:1] if ctx.net.hosts_server else x[:0])

    def prox(self, theta: Tensor, w: Tensor, tick: Tick, r: int, ctx: Context[Differentiable]) -> Tensor:
        """K steps from ``theta`` [P, D] towards argmin f_i(theta; batch r) + (lam/2) |theta - w|^2."""
        batches = [r] * self.inner
        active = ctx.mine(tick.active)
        return descend(ctx.task, theta, w, tick.index, batches, self.personal_lr, self.lam, active)

    def step(self, s: Personal, tick: Tick, ctx: Context[Differentiable]) -> Personal:
        down = ctx.net.cast(s.server, tick, like=s.x)
        active = ctx.mine(tick.active)[:, None]
        w, theta = down, s.theta
        for r in range(self.local_rounds):
            theta = self.prox(theta, w, tick, r, ctx)
            w = torch.where(active, w - self.lr * self.lam * (w - theta), w)
        mean = ctx.net.pool(w, tick, base=down, held=s.server)
        return Personal(theta, w, (1 - self.beta) * s.server + self.beta * mean)

    def output(self, s: Personal) -> Tensor:
        """The personal models."""
        return s.theta

    def measure(self, s: Personal, tick: Tick, ctx: Context[Any]) -> dict[str, float | Tensor]:
        shared = s.server.expand(len(s.x), -1) if len(s.server) else s.x
        told = ctx.task.measure(shared, tick.index)
        return {f"shared_{k}": v for k, v in told.items() if isinstance(v, Tensor)}
