"""What the p2p runtime keeps of its transport's throughput: ratios, every arm in the same processes.

Two figures for each transport, medians over turns in which the arms take turns:

- *pair*: one blob between two peers (``send_blob`` to a ``Receiver``: authenticated, resumable, tagged)
  against the same bytes over one stream of the bare transport, stored in a buffer that is there already.
- *ring*: the exchange of a ring of eight (``Exchange.mix`` through desk and port, in every process) against
  the same vectors to the same neighbours over streams of the bare transport, at the same time.

    shoal bench transport
    python -m shoal.bench.transport --save
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.table import Table

from shoal.core import RunFailed
from shoal.runtimes.p2p.nursery import ENVIRONMENT

from .machine import machine
from .timing import Times

__all__ = ["LIMITS", "bench_pair", "bench_ring", "suite"]

LIMITS = {"pair": 0.7, "ring": 0.6}
"""The least accepted shares of the bare transport's throughput."""
TRANSPORTS = ("tcp", "iroh")
SIZE = 5_000_000
"""float32 numbers of a message: 20 MB."""


class Hands:
    """The processes of one experiment. A context manager.

    Args:
        count: how many; each is connected to the one before and the one after it.
        transport: ``tcp`` or ``iroh``.
        numbers: float32 of the vector that each sends.
    """

    def __init__(self, count: int, transport: str, numbers: int) -> None:
        self.numbers = numbers
        command = [sys.executable, "-m", "shoal.bench.transport_hand", transport]
        self._hands = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **ENVIRONMENT},
            )
            for _ in range(count)
        ]

    def meet(self) -> None:
        """Wait for everybody and let them connect."""
        count, table = len(self._hands), [self._hear(i) for i in range(len(self._hands))]
        for i in range(count):
            others = sorted({(i - 1) % count, (i + 1) % count})
            self._say(i, "meet", i, table, others, self.numbers)
        for i in range(count):
            self._hear(i)

    def go(self, arm: str, which: Sequence[int]) -> tuple[float, float]:
        """Let some of them do it at once: seconds from the first beginning to the last end, and those
        of processors that they took."""
        for i in which:
            self._say(i, "go", arm)
        begins, ends, used = zip(*(self._hear(i) for i in which), strict=True)
        return max(ends) - min(begins), sum(used)

    def turns(self, arms: Sequence[str], which: Sequence[int], repeats: int) -> Times:
        """Times of each arm, after two turns that are not counted."""
        times = Times({arm: [] for arm in arms}, {arm: [] for arm in arms})
        for turn in range(-2, repeats):
            for k in range(len(arms)):
                arm = arms[(turn + k) % len(arms)]
                wall, cpu = self.go(arm, which)
                if turn >= 0:
                    times.wall[arm].append(wall)
                    times.cpu[arm].append(cpu)
        return times

    def _say(self, i: int, *order: Any) -> None:
        pipe = self._hands[i].stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(order) + "\n")
            pipe.flush()
        except OSError:
            raise RunFailed(f"process {i} of the transport benchmark is gone") from None

    def _hear(self, i: int) -> Any:
        pipe = self._hands[i].stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            raise RunFailed(f"process {i} of the transport benchmark is gone")
        return json.loads(line)

    def __enter__(self) -> Hands:
        self.meet()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hand in self._hands:
            hand.kill()
            hand.wait()
            for pipe in (hand.stdin, hand.stdout):
                if pipe is not None:
                    pipe.close()


def bench_pair(transport: str, numbers: int = SIZE, repeats: int = 11) -> dict[str, Any]:
    """One blob against one stream, between two processes.

    Returns:
        ``mb_per_s`` of each arm (``raw``: stored; ``discarded``: only read) and ``ratio``, that of the
        blob to ``raw``: the median over the turns. ``cpu_ratio`` is that of the processor seconds of the
        processes that were told to go (of a pair, the sender): what to read where others share the machine.
    """
    with Hands(2, transport, numbers) as hands:
        times = hands.turns(("raw", "blob", "discarded"), [0], repeats)
    return _told(times, "blob", "raw", 4 * numbers) | {"bytes": 4 * numbers}


def bench_ring(transport: str, numbers: int = SIZE, repeats: int = 9, count: int = 8) -> dict[str, Any]:
    """The exchange of a ring against as many streams; ``mb_per_s`` is of all processes together."""
    with Hands(count, transport, numbers) as hands:
        times = hands.turns(("ring of raw streams", "ring"), range(count), repeats)
    moved = 2 * count * 4 * numbers
    return _told(times, "ring", "ring of raw streams", moved) | {"processes": count, "bytes": moved}


def _told(times: Times, arm: str, base: str, size: int) -> dict[str, Any]:
    ratios = sorted(b / a for a, b in zip(times.wall[arm], times.wall[base], strict=True))
    quarter = len(ratios) // 4
    return {
        "mb_per_s": {name: round(size / 1e6 / times.median(name), 1) for name in times.wall},
        "ratio": round(times.ratio(base, arm), 3),
        "quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
        "cpu_ratio": round(times.ratio(base, arm, cpu=True), 3),
        "turns": len(ratios),
    }


def suite(threads: int, console: Console | None) -> dict[str, Any]:
    """Pair and ring, over TCP with Noise and over QUIC."""
    found: dict[str, Any] = {"pair": {}, "ring": {}}
    holds = True
    for transport in TRANSPORTS:
        found["pair"][transport] = bench_pair(transport)
        found["ring"][transport] = bench_ring(transport)
        for kind, limit in LIMITS.items():
            told = found[kind][transport]
            told |= {"limit": limit, "holds": told["ratio"] >= limit}
            holds &= told["holds"]
    if console is not None:
        _print(found, console)
    packages = ("iroh", "cryptography", "numpy", "msgspec")
    return {**found, "machine": machine(packages), "holds": holds}


def _print(found: dict[str, Any], console: Console) -> None:
    table = Table("", "transport", "MB/s", "bare MB/s", "share", "quartiles", "at least", box=None)
    names = {"pair": ("blob", "raw"), "ring": ("ring", "ring of raw streams")}
    for kind, (arm, base) in names.items():
        for transport, told in found[kind].items():
            speed, style = told["mb_per_s"], "" if told["holds"] else "red"
            low, high = told["quartiles"]
            table.add_row(
                kind, transport, f"{speed[arm]:.0f}", f"{speed[base]:.0f}", f"{told['ratio']:.2f}",
                f"{low:.2f} to {high:.2f}", f"{told['limit']:.2f}", style=style,
            )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    from . import run_suite

    result = run_suite("transport", 1, Console())
    if "--save" in sys.argv[1:]:
        Path("results/transport.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(not result["holds"])
