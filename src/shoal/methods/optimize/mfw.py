"""025 M-FW: Frank-Wolfe with open-loop steps that are taken only if the objective does not rise.

Source: Carderera, Besancon, Pokutta, "Simple steps are all you need: Frank-Wolfe and generalized
self-concordant functions" (NeurIPS 2021, arXiv 2105.13913), Algorithm 1, and its released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import methods

from .frank_wolfe import FrankWolfe
from .lmo import Region, regions

__all__ = ["MonotonousFW"]


@methods.register("m-fw")
@dataclass(frozen=True)
class MonotonousFW(FrankWolfe):
    """Needs values and gradients only: no Hessian, no smoothness constant, no line search.

    The step gamma_t = 2/(t + 2) is refused where it leads outside the domain or to a larger F.

    Args:
        region: the feasible set.
        rule: ``reject``: keep x after a refused step; t advances all the same. ``halve`` (the
            released code): the step is 2^(1 - phi)/(t + 2) and phi is raised until the step is
            accepted, never lowered.
        tries: how many values of phi ``halve`` tries in one round. They are evaluated side by side,
            in one exchange; where all are refused, x is kept and the next round goes on from there.
    """

    region: Region = regions.field("l1(radius=5)")
    rule: Literal["reject", "halve"] = "reject"
    tries: Annotated[int, Meta(ge=1, le=64)] = 4

    recipe: ClassVar[dict[str, Any]] = {
        "task": "logistic",
        "peers": 8,
        "rounds": 3000,
        "every": 20,
        "dtype": "float64",
    }
    trial: ClassVar[dict[str, Any]] = {"task": "logistic", "rounds": 6}

    def trials(self, t: int, scale: Tensor, gap: Tensor, size: Tensor) -> list[Tensor]:
        count = self.tries if self.rule == "halve" else 1
        return [2 ** (1 - scale - b) / (t + 2) for b in range(count)]

    def choose(
        self, steps: Tensor, now: Tensor, then: Tensor, scale: Tensor, gap: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        good = then <= now[:, None]
        at, any_good = good.int().argmax(1), good.any(1)
        gamma = torch.where(any_good, steps.gather(1, at[:, None])[:, 0], 0.0)
        if self.rule == "reject":
            return gamma, scale
        return gamma, scale + torch.where(any_good, at, steps.shape[1])
