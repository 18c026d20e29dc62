"""Frank-Wolfe over an aggregator: the driver that step rules and gradient averagers plug into.

Source: Frank, Wolfe (1956); Jaggi, "Revisiting Frank-Wolfe" (ICML 2013) for the open-loop steps.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from shoal.core import BadInput, Context, Differentiable, Method, Tick, methods, tree

from .lmo import Region, regions

__all__ = ["FrankWolfe", "Iterate", "OpenLoop"]


@dataclass(frozen=True)
class Iterate:
    """The peers' copies x [P, D] of the iterate; all else is the aggregator's, leading axis A.

    Args:
        z: its copy of the iterate, [A, D].
        d: the averaged gradient, [A, D].
        scale: what the step rule remembers: float64 [A].
        gap: <d, z - v> of the last round, an upper bound on F(z) - min F where d is the gradient; inf
            before the first.
        best: the smallest gap so far.
        refused: rounds in which no trial step was accepted.
    """

    x: Tensor
    z: Tensor
    d: Tensor
    scale: Tensor
    gap: Tensor
    best: Tensor
    refused: Tensor


@dataclass(frozen=True)
class FrankWolfe(Method):
    """Abstract: one linear minimisation a round.

    A round: ``pool`` gradients and values of the f_i (D floats and one number up); the aggregator
    finds v = argmin <d, v> and ``cast``s it as an atom (for the simplex an index, for the l1 ball an
    index and a sign) with the trial steps; the peers evaluate f_i at each trial point, ``pool`` one
    number for each, and hear which step to take. F is the mean of the f_i, which scales the paper's
    sum by 1/n. Peers that miss the atom stay where they are; the rest of the run then needs reliable
    links, as the iterate itself is never sent.

    Args:
        region: the feasible set.
        start: where to begin: its ``centre`` or a ``vertex`` of it.
    """

    region: Region = regions.field("simplex")
    start: Literal["centre", "vertex"] = "centre"

    def init(self, ctx: Context[Differentiable]) -> Iterate:
        dim = ctx.task.dim
        x = self.region.centre(dim)[None]
        if self.start == "vertex":
            x = self.region(torch.arange(dim, dtype=torch.float64)[None])
        x = x.to(ctx.dtype)
        mine = x.repeat(len(ctx.peers), 1)
        if not bool(torch.isfinite(ctx.task.loss(mine, 0)).all()):
            raise BadInput("start", self.start, "a point inside the domain of every peer's loss")
        z = x if ctx.net.hosts_server else x[:0]
        none = torch.full((len(z),), torch.inf, dtype=torch.float64)
        scale = torch.full_like(none, self.first)
        return Iterate(mine, z, torch.zeros_like(z), scale, none, none, torch.zeros_like(none))

    first: ClassVar[float] = 0.0
    """What ``scale`` begins with."""

    @abstractmethod
    def trials(self, t: int, scale: Tensor, gap: Tensor, size: Tensor) -> list[Tensor]:
        """The steps to try in round t = 0, 1, ..., the most wanted first: float64 [A] each.

        Args:
            gap: [A].
            size: |v - z|^2 [A].
        """

    def choose(
        self, steps: Tensor, now: Tensor, then: Tensor, scale: Tensor, gap: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Which step to take (0: none), [A], and what to remember, [A].

        Args:
            steps: [A, B].
            now: F(z) [A].
            then: F at the trial points, [A, B], inf outside the domain.
        """
        return steps[:, 0], scale

    tested: ClassVar[bool] = True
    """Whether the trial points are evaluated."""

    def averaging(self, t: int) -> float:
        """rho_t in d <- (1 - rho_t) d + rho_t g; 1: the gradient itself."""
        return 1.0

    def step(self, s: Iterate, tick: Tick, ctx: Context[Differentiable]) -> Iterate:
        t, everyone, dtype = tick.index, torch.ones(ctx.n, dtype=torch.bool), s.z.dtype
        active = ctx.mine(tick.active)
        up = {"g": ctx.task.grad(s.x, t, active=active), "f": ctx.task.loss(s.x, t)}
        held = {"g": s.d, "f": torch.full_like(s.gap, torch.inf)}
        heard = ctx.net.pool(up, tick, held=held, channel="gradient")
        now = heard["f"].to(torch.float64)
        rho = self.averaging(t)
        d = (1 - rho) * s.d + rho * heard["g"]
        atom = self.region.atom(d)
        v = self.region.vertex(atom, ctx.task.dim, dtype)
        # Outside the domain there is no gradient: the old one says nothing about this point.
        gap = (d * (s.z - v)).sum(1).to(torch.float64).where(torch.isfinite(now), torch.inf)
        size = (v - s.z).pow(2).sum(1).to(torch.float64)
        steps = self.trials(t, s.scale, gap, size)

        # The peers learn the vertex and the steps; who hears nothing has steps of 0.
        told: dict[str, Any] = {"atom": atom, "steps": tuple(steps)}
        rows = len(s.x)
        like = tree.map_leaves(lambda leaf: leaf.new_zeros(rows, *leaf.shape[1:]), told)
        down = ctx.net.cast(told, tick, to=everyone, like=like)
        move = self.region.vertex(down["atom"], ctx.task.dim, s.x.dtype) - s.x
        taken, gamma, scale = down["steps"][0], steps[0], s.scale
        if self.tested:
            # The tested steps are sent apart from the values, which may be infinite.
            values = [ctx.task.loss(s.x + g[:, None].to(s.x.dtype) * move, t) for g in down["steps"]]
            inside = [torch.isfinite(f) for f in values]
            trial = {
                "f": tuple(f.where(ok, torch.zeros_like(f)) for f, ok in zip(values, inside, strict=True)),
                "outside": tuple((~ok).to(torch.float64) for ok in inside),
            }
            lost = {
                "f": tuple(torch.zeros_like(g) for g in steps),
                "outside": tuple(torch.ones_like(g) for g in steps),
            }
            back = ctx.net.pool(trial, tick, held=lost, channel="trial")
            then = torch.stack([f.to(torch.float64) for f in back["f"]], 1)
            then = then.where(torch.stack(back["outside"], 1) == 0, torch.inf)
            gamma, scale = self.choose(torch.stack(steps, 1), now, then, s.scale, gap, size)
            taken = ctx.net.cast(gamma, tick, to=everyone, like=torch.zeros_like(taken))
            taken = taken * (down["steps"][0] > 0)
        x = s.x + taken[:, None].to(s.x.dtype) * move
        z = s.z + gamma[:, None].to(dtype) * (v - s.z)
        return Iterate(x, z, d, scale, gap, torch.minimum(gap, s.best), s.refused + (gamma == 0))

    def measure(self, s: Iterate, tick: Tick, ctx: Context[Any]) -> dict[str, float | Tensor]:
        if not len(s.z):
            return {}
        return {"gap": float(s.gap[0]), "best_gap": float(s.best[0]), "refused": float(s.refused[0])}


@methods.register("frank-wolfe")
@dataclass(frozen=True)
class OpenLoop(FrankWolfe):
    """Plain Frank-Wolfe, gamma_t = 2/(t + 2), whatever happens to F."""

    tested: ClassVar[bool] = False
    recipe: ClassVar[dict[str, Any]] = {
        "task": "log-portfolio",
        "peers": 8,
        "rounds": 1000,
        "dtype": "float64",
    }
    trial: ClassVar[dict[str, Any]] = {"task": "log-portfolio(assets=12, periods=9)", "rounds": 6}

    def trials(self, t: int, scale: Tensor, gap: Tensor, size: Tensor) -> list[Tensor]:
        return [torch.full_like(gap, 2 / (t + 2))]
