"""Method: what do the peers do together?"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from .net import Net
from .part import Part, Registry
from .random import Draws
from .task import Differentiable, Work
from .tick import Graph, Tick
from .time import Clock

__all__ = ["Context", "Method", "methods"]

W_co = TypeVar("W_co", bound=Work, covariant=True)


@dataclass(frozen=True)
class Context(Generic[W_co]):
    """What a method may touch: its block of peers, their task, and the network to the others.

    Args:
        task: the live task of this block.
        net: the only way to another peer.
        seed: of the run.
        total: ticks planned.
        graph: the graph before the first tick, as everyone knows it from the configuration; what is up
            at a tick is ``tick.graph``.
        clocks: what happens when, likewise.
    """

    task: W_co
    net: Net
    seed: int
    total: int
    graph: Graph
    clocks: tuple[Clock, ...] = ()

    @property
    def n(self) -> int:
        """Peers in the whole run."""
        return self.task.n

    @property
    def peers(self) -> Tensor:
        """int64 [P]: the numbers of this block's peers."""
        return self.task.peers

    @property
    def dtype(self) -> torch.dtype:
        return self.task.place.dtype

    def mine(self, values: Tensor) -> Tensor:
        """This block's rows [P, ...] of something known for all peers [n, ...]."""
        return values if len(self.peers) == self.n else values[self.peers]

    def draws(self, purpose: str, tick: int = 0) -> Draws:
        """This block's random numbers: each peer's own."""
        return Draws(self.seed, purpose, self.peers, tick)

    def shared(self, purpose: str, tick: int = 0) -> Draws:
        """Random numbers that every peer agrees on without asking: leading axis 1."""
        return Draws(self.seed, f"shared/{purpose}", torch.zeros(1, dtype=torch.int64), tick)


class Method(Part):
    """An algorithm as ``(init, step)`` over explicit state; its fields are its hyper-parameters.

    State is a tree (see :mod:`shoal.core.tree`) whose first axis is the peers of this block. A
    method knows no runtime, has no loop over ticks, no scheduler, no byte count and no random
    generator of its own.
    """

    work: ClassVar[type[Work]] = Differentiable
    """What it needs the task to be able to do."""
    recipe: ClassVar[dict[str, Any]] = {}
    """What ``shoal run SLUG`` uses where the user says nothing: task, network, peers, rounds."""
    trial: ClassVar[dict[str, Any]] = {}
    """A small run (plan fields) for the conformance suite, where the default one does not fit."""
    connected: ClassVar[bool] = False
    """Whether a disconnected static graph is refused."""
    symmetric: ClassVar[bool] = False
    """Whether the mixing weights must be symmetric (doubly stochastic)."""
    columns: ClassVar[bool] = False
    """Whether the columns of the mixing weights sum to 1, not the rows (push-sum)."""

    @abstractmethod
    def init(self, ctx: Context[Any]) -> Any:
        """The state before the first tick."""

    @abstractmethod
    def step(self, s: Any, tick: Tick, ctx: Context[Any]) -> Any:
        """The state after one tick. Never changes ``s`` in place."""

    def output(self, s: Any) -> Any:
        """What the peers would use: for training methods the models [P, D]."""
        return s.x

    def measure(self, s: Any, tick: Tick, ctx: Context[Any]) -> dict[str, float | Tensor]:
        """Figures of the method's own for the report: scalars or [P]."""
        return {}

    def notes(self, ctx: Context[Any]) -> list[str]:
        """Lines that a reader of the report must see: assumptions that this run does not meet."""
        return []


methods: Registry[Method] = Registry("method", "shoal.methods", Method)
