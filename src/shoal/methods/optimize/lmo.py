"""Linear minimisation over compact convex sets: the only access that Frank-Wolfe methods need.

An oracle answers with an *atom*, the shortest description of the vertex (an index, a sign, a pair of
vectors), which is what travels; ``vertex`` turns it back into a point. Batched over the leading axis,
which may be empty.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Part, Registry, need

__all__ = ["Birkhoff", "Box", "L1Ball", "Polytope", "Region", "Simplex", "Spectral", "regions"]

Atom = dict[str, Tensor]
_Size = Annotated[float, Meta(gt=0)]


class Region(Part):
    """A compact convex set in R^D."""

    @abstractmethod
    def atom(self, g: Tensor) -> Atom:
        """The vertex v that minimises <g, v>, described: g [A, D] -> leaves [A, ...]."""

    @abstractmethod
    def vertex(self, atom: Atom, dim: int, dtype: torch.dtype) -> Tensor:
        """The vertices [A, D] that atoms describe."""

    @abstractmethod
    def centre(self, dim: int) -> Tensor:
        """A point of the relative interior: float64 [D].

        Raises:
            BadInput: there is no such set in this dimension.
        """

    def __call__(self, g: Tensor) -> Tensor:
        """argmin_v <g, v>: [A, D] -> [A, D]."""
        return self.vertex(self.atom(g), g.shape[1], g.dtype)

    def _bounded(self, *names: str) -> None:
        for name in names:
            if not math.isfinite(getattr(self, name)):
                raise BadInput(name, getattr(self, name), "finite: the set must be bounded")

    def _side(self, dim: int) -> int:
        side = math.isqrt(dim)
        if side * side != dim:
            raise BadInput("region", self.slug, f"a square matrix; {dim} numbers are none")
        return side


regions: Registry[Region] = Registry("region", "shoal.methods.optimize", Region)


def _one_hot(index: Tensor, dim: int, height: Tensor) -> Tensor:
    out = torch.zeros(len(index), dim, dtype=height.dtype)
    return out.scatter_(1, index.long()[:, None], height[:, None])


@regions.register("simplex")
@dataclass(frozen=True)
class Simplex(Region):
    """x >= 0, sum x = ``size``."""

    size: _Size = 1.0

    def check(self) -> None:
        self._bounded("size")

    def atom(self, g: Tensor) -> Atom:
        return {"index": g.argmin(1).to(torch.int32)}

    def vertex(self, atom: Atom, dim: int, dtype: torch.dtype) -> Tensor:
        index = atom["index"]
        return _one_hot(index, dim, torch.full((len(index),), self.size, dtype=dtype))

    def centre(self, dim: int) -> Tensor:
        return torch.full((dim,), self.size / dim, dtype=torch.float64)


@regions.register("l1")
@dataclass(frozen=True)
class L1Ball(Region):
    """|x|_1 <= ``radius``."""

    radius: _Size = 1.0

    def check(self) -> None:
        self._bounded("radius")

    def atom(self, g: Tensor) -> Atom:
        index = g.abs().argmax(1)
        sign = -torch.sign(g.gather(1, index[:, None])[:, 0])
        sign = torch.where(sign == 0, torch.ones_like(sign), sign)
        return {"index": index.to(torch.int32), "sign": sign.to(torch.int8)}

    def vertex(self, atom: Atom, dim: int, dtype: torch.dtype) -> Tensor:
        return _one_hot(atom["index"], dim, self.radius * atom["sign"].to(dtype))

    def centre(self, dim: int) -> Tensor:
        return torch.zeros(dim, dtype=torch.float64)


@regions.register("box")
@dataclass(frozen=True)
class Box(Region):
    """``low`` <= x <= ``high``, coordinate by coordinate."""

    low: float = -1.0
    high: float = 1.0

    def check(self) -> None:
        self._bounded("low", "high")
        if not self.low < self.high:
            raise BadInput("high", self.high, f"above low ({self.low:g})")

    def atom(self, g: Tensor) -> Atom:
        return {"high": (g < 0).to(g.dtype)}

    def vertex(self, atom: Atom, dim: int, dtype: torch.dtype) -> Tensor:
        return (self.low + (self.high - self.low) * atom["high"]).to(dtype)

    def centre(self, dim: int) -> Tensor:
        return torch.full((dim,), (self.low + self.high) / 2, dtype=torch.float64)


@regions.register("polytope")
@dataclass(frozen=True)
class Polytope(Region):
    """``a`` x <= ``b``, by linear programming (SciPy's HiGHS).

    Args:
        a: rows of M coefficients, all of one length D.
        b: M right-hand sides.
    """

    a: tuple[tuple[float, ...], ...] = field(default=())
    b: tuple[float, ...] = field(default=())

    def check(self) -> None:
        widths = {len(row) for row in self.a}
        if len(widths) != 1 or 0 in widths or len(self.a) != len(self.b):
            raise BadInput("a", self.a, "rows of one length, as many as b has numbers")
        # Bounded means that every coordinate has a least and a greatest value.
        eye = torch.eye(len(self.a[0]), dtype=torch.float64)
        for row in torch.cat([eye, -eye]):
            self._solve(row)

    def _solve(self, g: Tensor) -> Tensor:
        linprog = need("scipy.optimize", "data").linprog
        found = linprog(g.tolist(), A_ub=self.a, b_ub=self.b, bounds=(None, None))
        if found.status:
            raise BadInput("b", self.b, f"a bounded set that is not empty ({found.message})")
        return torch.tensor(found.x, dtype=torch.float64)

    def atom(self, g: Tensor) -> Atom:
        if g.shape[1] != len(self.a[0]):
            raise BadInput("a", self.a, f"rows of {g.shape[1]} numbers")
        points = [self._solve(row) for row in g]
        return {"point": torch.stack(points).to(g.dtype) if points else g}

    def vertex(self, atom: Atom, dim: int, dtype: torch.dtype) -> Tensor:
        return atom["point"].to(dtype)

    def centre(self, dim: int) -> Tensor:
        """The mean of the vertices that are extreme in each coordinate."""
        eye = torch.eye(dim, dtype=torch.float64)
        return self.atom(torch.cat([eye, -eye]))["point"].mean(0)


@regions.register("spectral")
@dataclass(frozen=True)
class Spectral(Region):
    """Square matrices whose singular values sum to at most ``radius`` (nuclear-norm ball).

    An atom is a pair of unit vectors, the leading singular pair of -g.
    """

    radius: _Size = 1.0

    def check(self) -> None:
        self._bounded("radius")

    def atom(self, g: Tensor) -> Atom:
        side = self._side(g.shape[1])
        u, _, vh = torch.linalg.svd(g.reshape(-1, side, side), full_matrices=False)
        return {"left": -u[:, :, 0], "right": vh[:, 0]}

    def vertex(self, atom: Atom, dim: int, dtype: torch.dtype) -> Tensor:
        outer = atom["left"][:, :, None] * atom["right"][:, None]
        return (self.radius * outer).reshape(-1, dim).to(dtype)

    def centre(self, dim: int) -> Tensor:
        self._side(dim)
        return torch.zeros(dim, dtype=torch.float64)


@regions.register("birkhoff")
@dataclass(frozen=True)
class Birkhoff(Region):
    """Doubly stochastic matrices; the atoms are permutations (Hungarian algorithm)."""

    def atom(self, g: Tensor) -> Atom:
        assign = need("scipy.optimize", "data").linear_sum_assignment
        side = self._side(g.shape[1])
        columns = [assign(m)[1].tolist() for m in g.detach().reshape(-1, side, side).numpy()]
        return {"column": torch.tensor(columns, dtype=g.dtype).reshape(len(g), side)}

    def vertex(self, atom: Atom, dim: int, dtype: torch.dtype) -> Tensor:
        column = atom["column"].long()
        return torch.nn.functional.one_hot(column, column.shape[1]).reshape(-1, dim).to(dtype)

    def centre(self, dim: int) -> Tensor:
        return torch.full((dim,), 1 / self._side(dim), dtype=torch.float64)
