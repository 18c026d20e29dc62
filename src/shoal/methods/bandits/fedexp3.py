"""070 FedExp3: adversarial bandits that gossip estimates of the arms' cumulative losses.

Source: Yi, Vojnovic, "Doubly adversarial federated bandits" (ICML 2023, arXiv 2301.09223),
Algorithm 1 (FedExp3) and its full-information form (here FedHedge).

The arm that is best on the average over all agents may look bad, or like any other, to each of them.
Neither the arms that an agent pulls nor its losses are sent: only z, an estimate of the average
cumulative loss of each arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Method, Tick, methods
from shoal.tasks.bandit import Losses

__all__ = ["Exp3", "FedExp3", "FedHedge", "Weights"]


@dataclass(frozen=True)
class Weights:
    """Estimated cumulative losses z [P, K]."""

    z: Tensor


@dataclass(frozen=True)
class Exponential(Method):
    """Abstract: exponential weights on z, mixed with uniform exploration, one pull a round.

    Args:
        eta: learning rate.
        explore: g0; arms are explored uniformly with chance g_t = min(1, g0 t^(-1/3)), t = 1, 2, ...
            A g0 above T^(1/3) plays uniformly throughout.
    """

    eta: Annotated[float, Meta(gt=0)] = 0.1
    explore: Annotated[float, Meta(ge=0)] = 0.5

    work: ClassVar[type[Losses]] = Losses
    symmetric: ClassVar[bool] = True
    recipe: ClassVar[dict[str, Any]] = {
        "task": "adversarial-losses(source='digits')",
        "network": {"graph": "grid", "weights": "laplacian"},
        "peers": 36,
        "rounds": 3000,
        "every": 100,
    }
    trial: ClassVar[dict[str, Any]] = {
        "task": "adversarial-losses(arms=4, source='fixed')",
        "network": {"graph": "ring"},
        "peers": 6,
        "rounds": 6,
    }

    def init(self, ctx: Context[Losses]) -> Weights:
        return Weights(torch.zeros(len(ctx.peers), ctx.task.arms, dtype=ctx.dtype))

    def chances(self, z: Tensor, t: int) -> Tensor:
        """The chance of each arm in round t = 1, 2, ...: [P, K]."""
        g = min(1.0, self.explore * t ** (-1 / 3))
        return (1 - g) * torch.softmax(-self.eta * z, dim=1) + g / z.shape[1]

    def estimate(self, s: Weights, tick: Tick, ctx: Context[Losses]) -> Tensor:
        """Pull an arm; what is learnt about the losses of this round, [P, K], 0 where inactive."""
        active = ctx.mine(tick.active)
        p = self.chances(s.z, tick.index + 1)
        u = ctx.draws("arm", tick.index).uniform(1)
        # The last arm takes what rounding leaves of the unit interval.
        arm = (torch.cumsum(p.to(u.dtype), 1)[:, :-1] <= u).sum(1)
        loss = ctx.task.pull(arm, tick.index, active=active)
        return self.learnt(p, arm, loss, tick, ctx) * active[:, None]

    def learnt(self, p: Tensor, arm: Tensor, loss: Tensor, tick: Tick, ctx: Context[Losses]) -> Tensor:
        """The unbiased estimate l 1[k = a] / p_a of the loss of every arm k."""
        at = arm[:, None]
        return torch.zeros_like(p).scatter(1, at, loss[:, None] / p.gather(1, at))

    def output(self, s: Weights) -> Tensor:
        return s.z


@methods.register("fedexp3")
@dataclass(frozen=True)
class FedExp3(Exponential):
    """z <- W z + g^, with g^ the importance-weighted loss of the arm just pulled.

    W must be symmetric and doubly stochastic (the paper: I - L/(d_max + 1), ``weights="laplacian"``);
    the mean of z over the agents is then the sum of the means of g^. A message is exactly K floats.
    """

    def step(self, s: Weights, tick: Tick, ctx: Context[Losses]) -> Weights:
        seen = self.estimate(s, tick, ctx)
        return Weights(ctx.net.mix(s.z, tick) + seen)


@methods.register("fedhedge")
@dataclass(frozen=True)
class FedHedge(FedExp3):
    """Full information: after its pull an agent sees its own losses of all arms."""

    explore: Annotated[float, Meta(ge=0)] = 0.0

    def learnt(self, p: Tensor, arm: Tensor, loss: Tensor, tick: Tick, ctx: Context[Losses]) -> Tensor:
        return ctx.task.losses(tick.index)


@methods.register("exp3")
@dataclass(frozen=True)
class Exp3(Exponential):
    """Isolated EXP3: every agent for itself, no message is sent."""

    def step(self, s: Weights, tick: Tick, ctx: Context[Losses]) -> Weights:
        return Weights(s.z + self.estimate(s, tick, ctx))
