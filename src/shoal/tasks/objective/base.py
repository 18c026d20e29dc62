"""What all objectives share: exact local oracles, counters of the calls, figures for the report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.core import BadInput, Differentiable, Draws, Place

__all__ = ["Objective"]

_COUNTED = ("value", "gradient", "hessian", "lipschitz")


class Objective(Differentiable):
    """Minimise F(x) = 1/n sum_i f_i(x); peer i alone can evaluate f_i and its derivatives, exactly.

    A point outside the domain of f_i has the loss +inf and the gradient NaN; neither is an error.
    ``calls`` counts the oracle calls of this block by kind ("value", "gradient", "hessian",
    "lipschitz"), one for each peer and call; ``spent`` counts the gradients. What :meth:`measure`
    evaluates is not counted.

    Args:
        place: the block.
        dim: D.
    """

    totals = frozenset({"calls_value", "calls_gradient", "calls_hessian"})  # lipschitz is asked once

    def __init__(self, place: Place, dim: int) -> None:
        super().__init__(place)
        self.dim = dim
        self.layers = [("x", slice(0, dim), (dim,))]
        self.sizes = torch.ones(len(place.peers), dtype=torch.int64)
        self.calls = dict.fromkeys(_COUNTED, 0)
        self._best: Tensor | None = None
        self._solved = False

    # -- the function: batched over pairs (point, peer), counted nowhere --------------------------

    @abstractmethod
    def value(self, x: Tensor, who: Tensor) -> Tensor:
        """f_i(x) for points [M, D] and peers ``who`` int64 [M]: [M], +inf outside the domain."""

    @abstractmethod
    def slope(self, x: Tensor, who: Tensor) -> Tensor:
        """The gradients of f_i: [M, D], NaN outside the domain."""

    @abstractmethod
    def curvature(self, x: Tensor, who: Tensor) -> Tensor:
        """The Hessians of f_i: [M, D, D]."""

    def bounds(self) -> tuple[float, float]:
        """(mu, L): strong convexity and smoothness of every f_i on its domain; 0 and inf where there
        are none."""
        return 0.0, float("inf")

    def solve(self) -> Tensor | None:
        """The minimiser of F [D], float64; None where it is not known. For :meth:`measure` alone."""
        return None

    def start(self) -> Tensor:
        """A point [D] inside the domain of every f_i."""
        return torch.zeros(self.dim, dtype=self.place.dtype)

    # -- what a peer can do ------------------------------------------------------------------------

    def init(self, same: bool = True) -> Tensor:
        x = self.start().to(self.place.dtype).repeat(len(self.peers), 1)
        if same:
            return x
        noise = Draws(self.place.seed, "init", self.peers).normal(self.dim, dtype=x.dtype)
        # Positive coordinates stay positive, so the points stay inside the domains.
        return x * torch.exp(0.1 * noise) + (x == 0) * noise

    def grad(self, x: Tensor, tick: int, *, step: int = 0, active: Tensor | None = None) -> Tensor:
        del tick, step  # the local gradient is exact: there is no batch
        if active is None:
            self._count("gradient", len(x))
            self.spent = self.spent + 1
            return self.slope(x, self.peers)
        rows = active.nonzero()[:, 0]
        self._count("gradient", len(rows))
        self.spent = self.spent + active
        out = torch.zeros_like(x)
        if len(rows):
            out[rows] = self.slope(x[rows], self.peers[rows])
        return out

    def loss(self, x: Tensor, tick: int, *, step: int = 0) -> Tensor:
        del tick, step
        self._count("value", len(x))
        return self.value(x, self.peers)

    def hessian(self, x: Tensor) -> Tensor:
        """The peers' Hessians [P, D, D] at ``x`` [P, D]."""
        self._count("hessian", len(x))
        return self.curvature(x, self.peers)

    @property
    def convexity(self) -> float:
        """mu, the strong convexity of every f_i (0: none is known)."""
        self._count("lipschitz", 1)
        return self.bounds()[0]

    @property
    def smoothness(self) -> float:
        """L, the Lipschitz constant of every gradient (inf: there is none)."""
        self._count("lipschitz", 1)
        return self.bounds()[1]

    def sgd(
        self,
        x: Tensor,
        tick: int,
        steps: int | Tensor,
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        active: Tensor | None = None,
    ) -> Tensor:
        buffer = torch.zeros_like(x)
        for step in range(int(steps.max()) if isinstance(steps, Tensor) else steps):
            going = active
            if isinstance(steps, Tensor):
                going = steps > step if active is None else active & (steps > step)
            g = self.grad(x, tick, step=step, active=going) + weight_decay * x
            buffer = momentum * buffer + g
            move = lr * buffer
            x = x - (move if going is None else move * going[:, None])
        return x

    # -- measuring ---------------------------------------------------------------------------------

    def whole(self, x: Tensor) -> float:
        """F at one point [D]."""
        return float(self.value(x.expand(self.n, -1), torch.arange(self.n)).mean())

    def optimum(self) -> Tensor | None:
        """The minimiser of F [D], or None; solved once."""
        if not self._solved:
            self._best, self._solved = self.solve(), True
        return self._best

    def measure(self, output: Any, tick: int) -> dict[str, float | Tensor]:
        if not isinstance(output, Tensor) or output.shape[1:] != (self.dim,):
            return {}
        figures: dict[str, float | Tensor] = {"loss": self.whole(output.mean(0))}
        best = self.optimum()
        if best is not None:
            best = best.to(output.dtype)
            far = (self.start().to(output.dtype) - best).norm()
            gap = (output - best).norm(dim=1) / far
            figures["suboptimality"] = figures["loss"] - self.whole(best)
            figures["error"] = gap
            figures["relative_error"] = float(gap.pow(2).mean().sqrt())
        return figures

    def final(self, output: Any) -> dict[str, Any]:
        return {"calls": dict(self.calls)}

    def state(self) -> dict[str, Any]:
        return super().state() | {f"calls_{k}": v for k, v in self.calls.items()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.calls = {k: int(state[f"calls_{k}"]) for k in _COUNTED}

    def _count(self, kind: str, times: int) -> None:
        self.calls = self.calls | {kind: self.calls[kind] + times}

    @staticmethod
    def deal(rows: int, n: int, seed: int) -> Sequence[Tensor]:
        """``rows`` examples dealt out to n peers at random, as evenly as possible.

        Raises:
            BadInput: some peer would hold none.
        """
        if rows < n:
            raise BadInput("peers", n, f"at most {rows}: some shard would be empty")
        order = Draws(seed, "shared/deal", torch.zeros(1, dtype=torch.int64)).permutation(rows)[0]
        return order.tensor_split(n)
