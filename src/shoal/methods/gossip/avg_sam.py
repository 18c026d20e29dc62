"""026 D-SGD is average-direction SAM: the probe that shows it, and the SAM that it is compared with.

Source: Zhu, He, Chen, Song, Tao, "Decentralized SGD and average-direction SAM are asymptotically
equivalent" (ICML 2023, arXiv 2306.02913). The peers' mean gradient is that of E L(w + eps),
eps ~ N(0, Xi), at the mean model w, with Xi the covariance of the peers' models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor
from torch.func import grad, jvp, vmap

from shoal.core import BadInput, Context, Draws, Tick, methods
from shoal.tasks.supervised import Training

from .descent import Descent, Models
from .dsgd import DSGD

__all__ = ["AvgDirectionSAM", "DSGDProbe", "deviations", "probe", "smoothed_gradient"]


def deviations(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean model [1, D] and d_j = x_j - mean [m, D] (exactly 0 where all models are the same)."""
    mean = x[:1] + (x - x[:1]).mean(0, keepdim=True)
    return mean, x - mean


def smoothed_gradient(
    task: Training, x: Tensor, inputs: Tensor, targets: Tensor, draws: Draws, pairs: int
) -> Tensor:
    """Antithetic Monte Carlo of the gradient of E L(w + eps), eps ~ N(0, Xi) of models x [m, D]: [1, D]."""
    mean, d = deviations(x)
    z = draws.normal(pairs, len(x), dtype=x.dtype)[0]
    noise = z @ d / len(x) ** 0.5
    points = torch.cat([mean + noise, mean - noise])
    return task.model.grad(points, inputs, targets)[1].mean(0, keepdim=True)


def probe(
    task: Training, x: Tensor, inputs: Tensor, targets: Tensor, draws: Draws, pairs: int = 100
) -> dict[str, float]:
    """How far D-SGD's mean direction is from the plain gradient, and what explains it.

    With A the mean of the peers' gradients, B the gradient at the mean model, C the second-order
    term (1/2m) grad sum_j d_j' H d_j and G the smoothed gradient, all on one common batch:

    Returns:
        ``gap`` |A-B|/|B|, ``taylor`` |A-B-C|/|A-B|, ``smoothing`` |A-G|/|A-B|, ``trace`` tr Xi and
        ``uncertainty``, the peers' mean variance of the predicted probabilities.
    """
    mean, d = deviations(x)
    a = task.model.grad(x, inputs, targets)[1].mean(0)
    b = task.model.grad(mean, inputs, targets)[1][0]

    def slope(w: Tensor) -> Tensor:
        found: Tensor = grad(task.model.objective)(w, inputs, targets)
        return found

    def bend(v: Tensor) -> Tensor:
        """The gradient of v' H(w) v at the mean: the second derivative of the slope along v."""
        along = lambda w: jvp(slope, (w,), (v,))[1]  # noqa: E731
        found: Tensor = jvp(along, (mean[0],), (v,))[1]
        return found

    c = vmap(bend, chunk_size=4)(d).mean(0) / 2
    g = smoothed_gradient(task, x, inputs, targets, draws, pairs)[0]
    p = torch.softmax(task.model.logits(x, inputs), -1)
    # Where all models are the same, A = B = G: what is left is rounding.
    apart = bool(d.any())
    over = lambda v, by: float(v.norm()) / max(float(by.norm()), 1e-30) if apart else 0.0  # noqa: E731
    return {
        "gap": over(a - b, b),
        "taylor": over(a - b - c, a - b),
        "smoothing": over(a - g, a - b),
        "trace": float(d.pow(2).sum(1).mean()),
        "uncertainty": float(p.var(0, correction=0).sum(-1).mean()),
    }


def common_batch(task: Training, seed: int, size: int) -> tuple[Tensor, Tensor]:
    """The batch that every probe uses: ``size`` of all peers' training examples."""
    one = Draws(seed, "shared/probe", torch.zeros(1, dtype=torch.int64))
    rows = task.shards.rows[one.integers(len(task.shards.rows), size)[0]]
    return task.x[rows], task.y[rows]


@methods.register("dsgd-sam")
@dataclass(frozen=True)
class DSGDProbe(DSGD):
    """D-SGD in the paper's form, x_j <- sum_k P_jk x_k - lr g_j(x_j), with the probe measured.

    The report says so where the activation is not smooth: the second-order term then misses its kinks.

    Args:
        probe_size: examples in the probe's batch.
        pairs: antithetic pairs of its Monte Carlo part.
    """

    local_steps: Literal[1] = 1
    order: Literal["atc", "cta", "combine"] = "cta"
    probe_size: Annotated[int, Meta(ge=1)] = 512
    pairs: Annotated[int, Meta(ge=1)] = 100

    work: ClassVar[type[Training]] = Training
    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist14",
            "partition": "iid",
            "model": {"name": "mlp", "hidden": [24], "activation": "tanh"},
            "batch": 64,
        },
        "network": {"graph": "ring"},
        "peers": 16,
        "rounds": 150,
        "every": 50,
    }

    def init(self, ctx: Context[Any]) -> Models:
        need_several(ctx)
        return super().init(ctx)

    def notes(self, ctx: Context[Any]) -> list[str]:
        model = ctx.task.model
        if getattr(model, "activation", "relu") == "relu" and getattr(model, "depth", 2) > 1:
            return ["dsgd-sam: the activation is not known to be smooth (tanh, gelu)."]
        return []

    def measure(self, s: Models, tick: Tick, ctx: Context[Training]) -> dict[str, float | Tensor]:
        if len(s.x) != ctx.n:  # what one block sees is not the covariance of all
            return {}
        batch = common_batch(ctx.task, ctx.seed, self.probe_size)
        found = probe(ctx.task, s.x, *batch, ctx.shared("probe/z", tick.index), self.pairs)
        return {**found}


def need_several(ctx: Context[Any]) -> None:
    """Raises BadInput where there is nobody to differ from."""
    if ctx.n < 2:
        raise BadInput("peers", ctx.n, "at least 2: one model has no covariance")


@dataclass(frozen=True)
class Smoothed(Models):
    """The one model x, a copy at each peer, and the models y of the D-SGD that gives Xi: [P, D] each."""

    y: Tensor


@methods.register("avg-sam")
@dataclass(frozen=True)
class AvgDirectionSAM(Descent):
    """Average-direction SAM, centralised: x <- x - lr G(x), the gradient of E L(x + eps),
    eps ~ N(0, Xi), with the Xi that D-SGD has at that tick.

    The peers run D-SGD beside it (y) for its deviations d_j alone: eps = sum_j z_j d_j / sqrt(m), one
    normal z_j a peer, is a pooled sum, so that no peer ever needs all models.

    Args:
        samples: antithetic pairs of eps in a step.
    """

    samples: Annotated[int, Meta(ge=1)] = 1
    local_steps: Literal[1] = 1

    recipe: ClassVar[dict[str, Any]] = DSGDProbe.recipe

    def init(self, ctx: Context[Any]) -> Smoothed:
        need_several(ctx)
        x = ctx.task.init(self.same_start)
        return Smoothed(x, x)

    def step(self, s: Smoothed, tick: Tick, ctx: Context[Any]) -> Smoothed:
        active, draws = ctx.mine(tick.active), ctx.draws("avg-sam", tick.index)
        d = s.y - ctx.net.pool(s.y, tick, to="all", channel="mean")
        root = float(tick.active.sum()) ** 0.5
        g = torch.zeros_like(s.x)
        for k in range(self.samples):
            z = draws.at(str(k)).normal(1, dtype=s.x.dtype)
            noise = ctx.net.pool(root * z * d, tick, to="all", channel="noise")
            for point in (s.x + noise, s.x - noise):
                g = g + ctx.task.grad(point, tick.index, active=active) / (2 * self.samples)
        x = torch.where(active[:, None], s.x - self.rate(tick) * (g + self.weight_decay * s.x), s.x)
        y = ctx.net.mix(s.y, tick) + (self.local(s.y, tick, ctx) - s.y)
        return Smoothed(ctx.net.pool(x, tick, to="all", base=s.x), y)
