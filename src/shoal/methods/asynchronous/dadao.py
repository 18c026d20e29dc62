"""045 DADAO: accelerated optimisation in which gradients and messages happen at times of their own.

Source: Nabli, Oyallon, "DADAO: decoupled accelerated decentralized asynchronous optimization" (ICML
2023, arXiv 2208.00779), Algorithm 1 with the constants of its Theorem, and its released code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Differentiable, Graph, Method, Tick, methods
from shoal.network.clocks.poisson import PoissonPair
from shoal.network.graphs.base import both
from shoal.network.spectrum import chis

__all__ = ["DADAO", "Momenta", "gossip"]


@dataclass(frozen=True)
class Momenta:
    """Primal x, dual y, edge-dual z and their momenta, [P, D] each, as of each peer's own last event.

    Args:
        time: float64 [P], when that was.
        mu, smooth, kick: the run's constants mu, L and 2 chi1/(rate q), float64 [P], equal for all.
    """

    x: Tensor
    xt: Tensor
    y: Tensor
    yt: Tensor
    z: Tensor
    zt: Tensor
    time: Tensor
    mu: Tensor
    smooth: Tensor
    kick: Tensor


_NAMES = ("x", "xt", "y", "yt", "z", "zt")


@lru_cache(maxsize=8)
def flow_of(mu: float, smooth: float) -> Tensor:
    """A of s' = As with s = (x, xt, y, yt, z, zt): float64 [6, 6]."""
    nu = mu / 2
    q = math.sqrt(nu / smooth)
    eta, a, at, theta = q / 8, q / 4, q / 8, 1 / (2 * q)
    return torch.tensor(
        [
            [-eta, eta, 0, 0, 0, 0],
            [eta, -eta, 0, 0, 0, 0],
            [0, 0, -a, a, 0, 0],
            [0, -theta * nu, -theta, 0, -theta, 0],
            [0, 0, 0, 0, -a, a],
            [0, 0, 0, 0, at, -at],
        ],
        dtype=torch.float64,
    )


def gossip(graph: Graph, clock: PoissonPair) -> tuple[float, float]:
    """(chi1 of the Laplacian sum_e p_e L_e with the edges' shares p_e of all rings, the total rate)."""
    low, high, share = clock.shares(graph)
    src, dst = both(graph.n, low, high)
    pair = torch.minimum(src, dst) * graph.n + torch.maximum(src, dst)
    chi1, _ = chis(graph.n, src, dst, share[torch.searchsorted(low * graph.n + high, pair)])
    return chi1, clock.total_rate(graph)


@methods.register("dadao")
@dataclass(frozen=True)
class DADAO(Method):
    """Between its events a peer follows a linear flow, exactly; an event is one gradient or one pair.

    With nu = mu/2, q = sqrt(nu/L), eta = at = q/8, a = q/4, theta = 1/(2q) the flow is::

        x' = eta (xt - x)    y'  = a (yt - y)                z'  = a (zt - z)
        xt' = eta (x - xt)   yt' = -theta (nu xt + y + z)    zt' = at (z - zt)

    Gradient event (rate 1 per peer): h = grad f_i(x) - nu x - yt; x -= h/(4L),
    xt -= h/(4 sqrt(L nu)), yt += (1 + q/4) h. Edge event: p = (y + z)_i - (y + z)_j; z_i -= p/2,
    zt_i -= 2 chi1/(rate q) p, and j the opposite. The peers send y + z, D floats each way.

    The clock is ``poisson-pair``: ``tick.active`` are the gradient events of a tick, ``tick.graph``
    its pairs, no peer twice, ``tick.time`` their times. The sums of z and of zt over the peers stay 0
    at any common time.

    Args:
        mu: strong convexity of every f_i; 0: what the task says.
        smooth: L, smoothness of every f_i; 0: what the task says. Too small an L diverges.
    """

    mu: Annotated[float, Meta(ge=0)] = 0.0
    smooth: Annotated[float, Meta(ge=0)] = 0.0

    connected: ClassVar[bool] = True
    recipe: ClassVar[dict[str, Any]] = {
        "task": "logistic(l2=0.01)",
        "network": {"graph": "ring", "clock": "poisson-pair"},
        "peers": 10,
        "rounds": 5000,
        "every": 500,
        "dtype": "float64",
    }
    trial: ClassVar[dict[str, Any]] = {
        "task": "quadratic(dim=3)",
        "network": {"graph": "ring", "clock": "poisson-pair"},
        "peers": 6,
        "rounds": 12,
    }

    def check(self) -> None:
        if self.mu and self.smooth and self.smooth < self.mu:
            raise BadInput("smooth", self.smooth, f"at least mu ({self.mu:g})")

    def curvature(self, task: Differentiable) -> tuple[float, float]:
        """(mu, L).

        Raises:
            BadInput: neither the fields nor the task tell them, or they make no sense.
        """
        mu = self.mu or float(getattr(task, "convexity", 0.0))
        smooth = self.smooth or float(getattr(task, "smoothness", math.inf))
        if not 0 < mu < math.inf:
            raise BadInput("mu", mu, "above 0: DADAO needs strongly convex losses")
        if not mu <= smooth < math.inf:
            raise BadInput("smooth", smooth, f"finite and at least mu ({mu:g})")
        return mu, smooth

    # -- events --------------------------------------------------------------------------------------

    def init(self, ctx: Context[Differentiable]) -> Momenta:
        mu, smooth = self.curvature(ctx.task)
        clock = next((c for c in ctx.clocks if isinstance(c, PoissonPair)), None)
        if clock is None and ctx.n > 1:
            raise BadInput("network.clock", [c.slug for c in ctx.clocks], "one of them poisson-pair")
        chi1, rate = (0.0, 1.0) if clock is None or ctx.n == 1 else gossip(ctx.graph, clock)
        x = ctx.task.init()
        zero, one = torch.zeros_like(x), torch.ones(len(x), dtype=torch.float64)
        kick = 2 * chi1 / (rate * math.sqrt(mu / (2 * smooth)))
        return Momenta(x, x, zero, zero, zero, zero, 0 * one, mu * one, smooth * one, kick * one)

    def advance(self, s: Momenta, time: Tensor, flow: Tensor) -> Momenta:
        """Every peer follows the flow [6, 6] from its last event until ``time`` [P]."""
        spent = time - s.time
        rows = spent.nonzero()[:, 0]
        held = torch.stack([getattr(s, name)[rows] for name in _NAMES], 1)
        # Not by eigenvectors: they are all but dependent where q is small.
        move = torch.linalg.matrix_exp(spent[rows, None, None] * flow).to(held.dtype)
        after = torch.bmm(move, held)
        fresh = {name: getattr(s, name).index_copy(0, rows, after[:, k]) for k, name in enumerate(_NAMES)}
        return replace(s, **fresh, time=time)

    def step(self, s: Momenta, tick: Tick, ctx: Context[Differentiable]) -> Momenta:
        mu, smooth, kick = float(s.mu[0]), float(s.smooth[0]), float(s.kick[0])
        nu = mu / 2
        q = math.sqrt(nu / smooth)
        s = self.advance(s, ctx.mine(tick.time), flow_of(mu, smooth))
        if bool(tick.active.any()):
            active = ctx.mine(tick.active)
            h = ctx.task.grad(s.x, tick.index, active=active) - nu * s.x - s.yt
            h = h * active[:, None]
            s = replace(
                s,
                x=s.x - h / (4 * smooth),
                xt=s.xt - h / (4 * math.sqrt(smooth * nu)),
                yt=s.yt + (1 + q / 4) * h,
            )
        if tick.graph.edges:
            said = s.y + s.z
            heard = ctx.net.gather(said, tick)
            other = heard.rows[heard.index]
            p = ((said[:, None] - other) * heard.mask[:, :, None]).sum(1)
            s = replace(s, z=s.z - p / 2, zt=s.zt - kick * p)
        return s
