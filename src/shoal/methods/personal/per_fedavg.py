"""Per-FedAvg: a shared start from which one step of each peer's own makes a good model.

Source: Fallah, Mokhtari, Ozdaglar, "Personalized federated learning with theoretical guarantees: a
model-agnostic meta-learning approach" (NeurIPS 2020, arXiv 2002.07948), Algorithm 1, first order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Differentiable, Method, Tick, methods

from .pfedme import Personal, PFedMe
from .proximal import descend

__all__ = ["PerFedAvg"]


@methods.register("per-fedavg")
@dataclass(frozen=True)
class PerFedAvg(Method):
    """Locally w <- w - lr grad f_i(w - inner_lr grad f_i(w)), each gradient on a fresh batch.

    Deviation: first order, the factor (I - inner_lr hess f_i) of the meta-gradient is left out.

    Args:
        lr: step size of the meta-gradient.
        inner_lr: step size of the one personal step.
        local_steps: meta-steps a round.
    """

    lr: Annotated[float, Meta(gt=0)] = 0.1
    inner_lr: Annotated[float, Meta(gt=0)] = 0.1
    local_steps: Annotated[int, Meta(ge=1)] = 10

    recipe: ClassVar[dict[str, Any]] = PFedMe.recipe
    trial: ClassVar[dict[str, Any]] = {"rounds": 3}

    def init(self, ctx: Context[Differentiable]) -> Personal:
        x = ctx.task.init()
        return Personal(x, x, x[:1] if ctx.net.hosts_server else x[:0])

    def step(self, s: Personal, tick: Tick, ctx: Context[Differentiable]) -> Personal:
        active = ctx.mine(tick.active)
        down = ctx.net.cast(s.server, tick, like=s.x)
        w = down
        for k in range(self.local_steps):
            inner = descend(ctx.task, w, w, tick.index, [2 * k], self.inner_lr, 0.0, active)
            g = ctx.task.grad(inner, tick.index, step=2 * k + 1, active=active)
            w = w - self.lr * g
        server = ctx.net.pool(w, tick, base=down, held=s.server)
        # Personal is what one step makes of the model that was last pulled.
        theta = descend(ctx.task, down, down, tick.index, [0], self.inner_lr, 0.0, active)
        return Personal(theta, w, server)

    def output(self, s: Personal) -> Tensor:
        """The personal models, one step away from the shared one."""
        return s.theta
