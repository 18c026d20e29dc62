"""Frank-Wolfe with a backtracked estimate of the smoothness: the adaptive baseline.

Source: Pedregosa, Negiar, Askari, Jaggi, "Linearly convergent Frank-Wolfe with backtracking
line-search" (AISTATS 2020), Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import methods

from .frank_wolfe import FrankWolfe

__all__ = ["BacktrackingFW"]


@methods.register("backtracking-fw")
@dataclass(frozen=True)
class BacktrackingFW(FrankWolfe):
    """gamma = min(gap/(M |v - x|^2), 1), with M doubled until the quadratic bound of F holds.

    Args:
        relax: factor on M before each round's first trial.
        tries: values of M tried side by side in one round; where all fail, x is kept.
    """

    relax: Annotated[float, Meta(gt=0, le=1)] = 0.9
    tries: Annotated[int, Meta(ge=1, le=64)] = 8

    first: ClassVar[float] = 1.0
    recipe: ClassVar[dict[str, Any]] = {
        "task": "log-portfolio",
        "peers": 8,
        "rounds": 1000,
        "dtype": "float64",
    }
    trial: ClassVar[dict[str, Any]] = {"task": "log-portfolio(assets=12, periods=9)", "rounds": 6}

    def _curvatures(self, scale: Tensor) -> Tensor:
        """The values of M to try: [A, B]."""
        return scale[:, None] * self.relax * 2.0 ** torch.arange(self.tries, dtype=scale.dtype)

    def trials(self, t: int, scale: Tensor, gap: Tensor, size: Tensor) -> list[Tensor]:
        full = self._curvatures(scale) * size.clamp(min=1e-300)[:, None]
        return list((gap[:, None] / full).clamp(min=0, max=1).unbind(1))

    def choose(
        self, steps: Tensor, now: Tensor, then: Tensor, scale: Tensor, gap: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        curvature = self._curvatures(scale)
        bound = now[:, None] - steps * gap[:, None] + steps.pow(2) * curvature * size[:, None] / 2
        good = then <= bound
        at, any_good = good.int().argmax(1), good.any(1)
        gamma = torch.where(any_good, steps.gather(1, at[:, None])[:, 0], 0.0)
        used = curvature.gather(1, at[:, None])[:, 0]
        return gamma, torch.where(any_good, used, curvature[:, -1] * 2)
