"""Timing that survives a busy machine: arms take turns, and ratios are taken within a turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

__all__ = ["Times", "interleave", "threads"]


@dataclass(frozen=True)
class Times:
    """Seconds of each arm, one number a turn.

    Args:
        wall: by the clock.
        cpu: of this process, all its threads: what to read where others share the machine.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]

    def median(self, arm: str) -> float:
        """Wall seconds."""
        return statistics.median(self.wall[arm])

    def best(self, *arms: str) -> str:
        """The arm with the smallest median."""
        return min(arms, key=self.median)

    def ratio(self, arm: str, base: str, cpu: bool = False) -> float:
        """Median over the turns of ``arm`` / ``base``, both of the same turn."""
        times = self.cpu if cpu else self.wall
        return statistics.median(a / b for a, b in zip(times[arm], times[base], strict=True))


def interleave(arms: Mapping[str, Callable[[], object]], repeats: int, warm: int = 1) -> Times:
    """Run every arm once a turn, ``warm`` turns uncounted, in an order that rotates."""
    names = list(arms)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warm + repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start, used = time.perf_counter(), time.process_time()
            arms[name]()
            if turn >= warm:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - used)
    return Times(wall, cpu)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch on so many threads: its own default collapses where processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
