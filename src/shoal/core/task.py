"""Task: what can one peer do alone?"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .part import Part, Registry

__all__ = ["Differentiable", "Place", "Task", "Work", "tasks"]


@dataclass(frozen=True)
class Place:
    """Where a block of peers stands in the whole run.

    Args:
        n: number of peers of the run.
        peers: int64 [P], the peers of this block, ascending.
        seed: of the run.
        dtype: of the state, float32 or float64.
        data_attack: what hostile peers do to their data (``batch(x, y, hostile, draws)``), or None.
        hostile: bool [n]; read only through ``data_attack``.
    """

    n: int
    peers: Tensor
    seed: int
    dtype: torch.dtype = torch.float32
    data_attack: Any = None
    hostile: Tensor | None = None

    @staticmethod
    def whole(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Place:
        """One block that holds all peers."""
        return Place(n, torch.arange(n), seed, dtype)


class Work:
    """A task opened for a block of peers: everything that they can do without the others.

    Args:
        place: the block.

    ``spent`` counts, per peer [P], the local work done so far in units of the task (gradient steps,
    pulls, model calls); clocks turn it into simulated time and reports show it.
    """

    everyone: ClassVar[frozenset[str]] = frozenset()
    """Leaves of :meth:`state` that describe all n peers and are the same in every block."""
    totals: ClassVar[frozenset[str]] = frozenset()
    """Numbers in :meth:`state` that a block counts for its own peers: those of all peers are their sum."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.n = place.n
        self.peers = place.peers
        self.spent = torch.zeros(len(place.peers), dtype=torch.float64)

    def measure(self, output: Any, tick: int) -> dict[str, float | Tensor]:
        """What the report shows of an output: scalars, or one value per peer [P]."""
        return {}

    def notes(self) -> list[str]:
        """Lines that a reader of the report must see: simulated responders, unmet assumptions."""
        return []

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the task, as named leaves."""
        return {"spent": self.spent}

    def restore(self, state: dict[str, Any]) -> None:
        self.spent = state["spent"]

    def final(self, output: Any) -> dict[str, Any]:
        """What the report shows once, at the end (confusion tables and the like): plain data."""
        return {}


class Differentiable(Work):
    """A task whose models are vectors and whose loss has a gradient.

    A model is a row of ``x`` [P, D]; ``active`` bool [P] says whose rows may change, ``steps`` int64
    [P] how many local steps each takes where they differ.
    """

    dim: int
    layers: list[tuple[str, slice, tuple[int, ...]]]
    """The named slices of a row: (name, columns, shape)."""
    sizes: Tensor
    """int64 [P]: examples that each peer holds."""

    @abstractmethod
    def init(self, same: bool = True) -> Tensor:
        """Fresh models [P, D]: the same for all peers, or each peer's own."""

    @abstractmethod
    def grad(self, x: Tensor, tick: int, *, step: int = 0, active: Tensor | None = None) -> Tensor:
        """A stochastic gradient per peer [P, D] at ``x``, on the batch of (tick, step).

        Rows of inactive peers are 0.
        """

    @abstractmethod
    def loss(self, x: Tensor, tick: int, *, step: int = 0) -> Tensor:
        """The loss per peer [P] on the batch of (tick, step)."""

    @abstractmethod
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
        """``steps`` local SGD steps from ``x``; returns new models, never changes ``x``."""


class Task(Part):
    """The configuration of a task. ``open`` loads its data and places a block of peers in it."""

    kind: ClassVar[str] = "work"

    @abstractmethod
    def open(self, place: Place) -> Work:
        """The live task of one block.

        Raises:
            BadInput: data that cannot be used (missing, truncated, NaN, an empty shard, ...).
        """


tasks: Registry[Task] = Registry("task", "shoal.tasks", Task)
