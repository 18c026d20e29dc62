"""Logistic regression on a real two-class table, each peer with a shard of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Place, Task, need, tasks

from .base import Objective

__all__ = ["Logistic", "LogisticRegression"]


@tasks.register("logistic")
@dataclass(frozen=True)
class LogisticRegression(Task):
    """f_i(w) = mean_j log(1 + exp(-b_j a_j'w)) + l2/2 |w|^2 over the rows j of peer i, b_j = +-1.

    The table is breast-cancer (569 rows, 30 features, standardised), dealt out at random.

    Args:
        l2: ridge penalty, the strong convexity of every f_i.
        intercept: whether a column of ones is added.
    """

    l2: Annotated[float, Meta(ge=0)] = 0.0
    intercept: bool = False

    def check(self) -> None:
        if self.l2 == float("inf"):
            raise BadInput("l2", self.l2, "a finite number")

    def open(self, place: Place) -> Logistic:
        return Logistic(self, place)


class Logistic(Objective):
    """The open task. Shards differ by at most one row; the shorter are padded with weight 0.

    Args:
        config: the task.
        place: this block.
    """

    def __init__(self, config: LogisticRegression, place: Place) -> None:
        data = need("sklearn.datasets", "data").load_breast_cancer()
        rows = torch.tensor(data.data, dtype=torch.float64)
        rows = (rows - rows.mean(0)) / rows.std(0, correction=0)
        if config.intercept:
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        super().__init__(place, rows.shape[1])
        self.config = config
        signed = rows * (2.0 * torch.tensor(data.target, dtype=torch.float64) - 1)[:, None]
        shards = self.deal(len(signed), place.n, place.seed)
        width = max(len(s) for s in shards)
        self.a = torch.zeros(place.n, width, self.dim, dtype=torch.float64)
        self.weight = torch.zeros(place.n, width, dtype=torch.float64)
        for peer, shard in enumerate(shards):
            self.a[peer, : len(shard)] = signed[shard]
            self.weight[peer, : len(shard)] = 1 / len(shard)
        self.sizes = torch.tensor([len(s) for s in shards])[place.peers]
        self.a, self.weight = self.a.to(place.dtype), self.weight.to(place.dtype)

    def value(self, x: Tensor, who: Tensor) -> Tensor:
        losses = torch.nn.functional.softplus(-self._margin(x, who))
        return (self.weight[who] * losses).sum(1) + 0.5 * self.config.l2 * x.pow(2).sum(1)

    def slope(self, x: Tensor, who: Tensor) -> Tensor:
        pull = -self.weight[who] * torch.sigmoid(-self._margin(x, who))
        return torch.bmm(pull[:, None], self.a[who])[:, 0] + self.config.l2 * x

    def curvature(self, x: Tensor, who: Tensor) -> Tensor:
        s = torch.sigmoid(self._margin(x, who))
        a, w = self.a[who], self.weight[who] * s * (1 - s)
        ridge = self.config.l2 * torch.eye(self.dim, dtype=x.dtype)
        return torch.bmm((a * w[:, :, None]).transpose(1, 2), a) + ridge

    def bounds(self) -> tuple[float, float]:
        """L = l2 + the largest eigenvalue of any peer's 1/4 mean_j a_j a_j'."""
        a = self.a.to(torch.float64)
        gram = torch.bmm((a * self.weight.to(torch.float64)[:, :, None]).transpose(1, 2), a)
        return self.config.l2, self.config.l2 + float(torch.linalg.eigvalsh(gram).max()) / 4

    def solve(self) -> Tensor | None:
        """Newton's method on F in float64; None without a ridge (there need be no minimiser)."""
        if self.config.l2 == 0:
            return None
        x, everyone = torch.zeros(self.n, self.dim, dtype=self.a.dtype), torch.arange(self.n)
        for _ in range(100):
            slope = self.slope(x, everyone).mean(0)
            step = torch.linalg.solve(self.curvature(x, everyone).mean(0), slope)
            # The damping keeps a self-concordant function falling from any start.
            damping = 1 / (1 + float((step @ slope).clamp(min=0).sqrt()))
            x = x - (1.0 if float(step.norm()) < 1e-2 else damping) * step
            if float(step.norm()) < 1e-13:
                break
        return x[0].to(torch.float64)

    def _margin(self, x: Tensor, who: Tensor) -> Tensor:
        return torch.bmm(self.a[who], x[:, :, None])[:, :, 0]
