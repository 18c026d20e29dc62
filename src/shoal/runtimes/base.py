"""A run as one configuration, and the contract of what carries it out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from shoal.core import Method, Part, Registry, Report, Task, methods, tasks
from shoal.network.network import Network

__all__ = ["Plan", "Progress", "Runtime", "runtimes"]

Progress = Callable[[int, int, dict[str, Any] | None, int], None]
"""Called after every tick: (ticks done, ticks planned, the new row if one was measured, bytes)."""


def _network(value: Any) -> Network:
    return value if isinstance(value, Network) else Network(**value)


@dataclass(frozen=True)
class Plan(Part):
    """Task x Method x Network, and how long: all that a run's result depends on.

    Args:
        method: what the peers do together.
        task: what each can do alone.
        network: who talks to whom.
        peers: number of peers, n.
        rounds: number of ticks.
        seed: of everything that is random.
        every: ticks between measurements (the last tick is always measured).
        dtype: of the state.
    """

    method: Method = methods.field()
    task: Task = tasks.field()
    network: Network = field(default_factory=Network, metadata={"registry": _network})
    peers: Annotated[int, Meta(ge=1)] = 16
    rounds: Annotated[int, Meta(ge=1)] = 50
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    every: Annotated[int, Meta(ge=1)] = 5
    dtype: Literal["float32", "float64"] = "float32"


class Runtime(Part):
    """Carries out a plan."""

    @abstractmethod
    def run(
        self,
        plan: Plan,
        *,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
    ) -> Report:
        """Run to the end (or to Ctrl-C) and report.

        Args:
            checkpoint: file that the state is saved to, and taken from with ``resume``.

        Raises:
            BadInput: before anything has run.
            RunFailed: what was done until then is in its ``report``.
        """


runtimes: Registry[Runtime] = Registry("runtime", "shoal.runtimes", Runtime)
