"""What faults cost: eight real peers train on digits while something goes wrong, and the bill at the end.

Every peer is a process of its own with its own data folder, on a host of its own (a network namespace)
where root can make them, connected over real sockets. Each row of the table is one run: undisturbed, or
with one fault; accuracy is the mean over the models of the peers that are left at the end, on the whole
test set. A run passes where every peer that was left went through to the end and the accuracy is within
two points of the undisturbed run over the same transport.

    python -m shoal.bench.faults --save
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shoal.core import BadInput
from shoal.experiment import plan_of
from shoal.runtimes.base import Plan
from shoal.runtimes.p2p.crew import Crew, Hand
from shoal.tasks.dealing import deal
from shoal.tasks.supervised import Supervised

from .machine import machine
from .segment import Segment

__all__ = ["FAULTS", "faults", "fault_plan"]

PEERS = 8
POINTS = 0.02
OUTAGE = 20.0
"""Seconds of the partition."""
SKEWS = (0, 120, -120, 600, -600, 3600, -3600, 86400)
"""Seconds by which the peers' wall clocks are off."""


class _Scene:
    """One run: its peers and where they live."""

    def __init__(self, crew: Crew, hands: list[Hand], segment: Segment | None, rounds: int) -> None:
        self.crew, self.hands, self.segment, self.rounds = crew, hands, segment, rounds
        self.gone: list[Hand] = []

    def reach(self, share: float) -> None:
        """Wait until the first peer has done this share of the ticks."""
        mark = share * self.rounds
        self.crew.wait(
            lambda: int(self.hands[0].status.get("tick", 0)) >= mark, 600, f"{share:.0%} of the ticks"
        )


def _undisturbed(scene: _Scene) -> None:
    scene.reach(0.1)


def _killed(scene: _Scene) -> None:
    scene.reach(0.4)
    for hand in scene.hands[-3:]:  # three of eight: 37 %
        scene.crew.kill(hand)
        scene.gone.append(hand)


def _restarted(scene: _Scene) -> None:
    scene.reach(0.3)
    for hand in scene.hands[-3:]:
        scene.crew.kill(hand)
    scene.reach(0.6)
    for hand in scene.hands[-3:]:
        scene.crew.start(hand)


def _parted(scene: _Scene) -> None:
    assert scene.segment is not None
    scene.reach(0.25)
    half = PEERS // 2
    scene.segment.part([range(half), range(half, PEERS)])
    time.sleep(OUTAGE)
    scene.segment.heal()


def _slow(scene: _Scene) -> None:
    """The process sleeps nine tenths of the time, beside the tenfold work that it was given."""
    hand, stop = scene.hands[-1], threading.Event()

    def pace() -> None:
        while not stop.is_set():
            scene.crew.signal(hand, signal.SIGSTOP)
            stop.wait(0.18)
            scene.crew.signal(hand, signal.SIGCONT)
            stop.wait(0.02)

    scene.reach(0.05)
    thread = threading.Thread(target=pace)
    thread.start()
    try:
        scene.reach(1.0)
    finally:
        stop.set()
        thread.join()
        scene.crew.signal(hand, signal.SIGCONT)


Fault = Callable[[_Scene], None]
FAULTS: dict[str, tuple[str, Fault]] = {
    "undisturbed": ("", _undisturbed),
    "killed": ("3 of 8 peers killed (SIGKILL) at 40 % of the ticks", _killed),
    "killed, restarted": ("3 of 8 killed at 30 % of the ticks, started again at 60 %", _restarted),
    "partition": ("two halves cannot reach each other for 20 s, from 25 % of the ticks", _parted),
    "loss": ("5 % of all packets lost", _undisturbed),
    "slow": ("one peer works at a tenth of the others' speed", _slow),
    "skew": ("wall clocks off by up to a day", _undisturbed),
}
NEED_SEGMENT = ("partition", "loss")


def fault_plan(rounds: int, seed: int = 0) -> Plan:
    """The run: D-SGD of an MLP on the digits, labels skewed by Dirichlet(1), random 4-regular graph."""
    task = {
        "name": "supervised",
        "data": "digits",
        "partition": {"name": "dirichlet", "alpha": 1.0, "min_size": 32},
        "model": {"name": "mlp", "hidden": [32]},
    }
    return plan_of(
        "dsgd", task=task, network={"graph": "random-regular(degree=4)"}, peers=PEERS, rounds=rounds,
        seed=seed, every=max(1, rounds // 10), method={"lr": 0.1, "local_steps": 5},
    )  # fmt: skip


def faults(
    *,
    rounds: int = 150,
    pace: float = 0.3,
    seed: int = 0,
    transports: Iterable[str] = ("iroh", "tcp"),
    only: Iterable[str] | None = None,
    told: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure the table.

    Args:
        rounds: ticks of each run.
        pace: seconds that a tick's work takes at least, so that a run is long enough for its fault.
        seed: of the runs.
        transports: what connects the peers. All faults are measured over the first, over the others
            the undisturbed run and the loss of packets.
        only: these faults alone (the undisturbed run always).
        told: given each row as soon as it is measured.

    Returns:
        ``rows`` and how they were measured. Rows that need root have ``skipped`` where there is none.

    Raises:
        BadInput: no such fault.
    """
    wanted = list(FAULTS) if only is None else ["undisturbed", *only]
    for name in wanted:
        if name not in FAULTS:
            raise BadInput("fault", name, f"one of: {', '.join(FAULTS)}")
    began, lacking, plan = time.perf_counter(), Segment.missing(), fault_plan(rounds, seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="shoal-faults-") as folder:
        assert isinstance(plan.task, Supervised)
        data = deal(plan.task, PEERS, seed, Path(folder))
        for place, transport in enumerate(transports):
            base: float | None = None
            for name in wanted:
                if place and name not in {"undisturbed", "loss"}:
                    continue
                row: dict[str, Any] = {"fault": name, "transport": transport, "what": FAULTS[name][0]}
                if lacking and name in NEED_SEGMENT:
                    row["skipped"] = lacking
                else:
                    root = Path(folder, f"{transport}-{name.replace(', ', '-')}")
                    row |= _run(plan, data, root, name, transport, pace, isolated=not lacking)
                    base = row["accuracy"] if base is None else base
                    row["difference"] = row["accuracy"] - base
                    row["holds"] = row["completes"] and abs(row["difference"]) <= POINTS
                rows.append(row)
                if told is not None:
                    told(row)
    return {
        "rows": rows,
        "holds": all(row["holds"] for row in rows if "skipped" not in row),
        "config": plan.spec() | {"pace_s": pace, "hosts": "namespaces" if not lacking else "loopback"},
        "seed": seed,
        "machine": machine(["iroh"]),
        "wall_s": time.perf_counter() - began,
    }


def _run(
    plan: Plan, data: list[Path], root: Path, name: str, transport: str, pace: float, isolated: bool
) -> dict[str, Any]:
    with ExitStack() as stack:
        segment = stack.enter_context(Segment(PEERS)) if isolated else None
        crew = stack.enter_context(Crew())
        hands = []
        for i, folder in enumerate(data):
            spec = plan.spec()
            source = {"name": "folder", "path": str(folder), "classes": 10}
            spec["task"] = {**spec["task"], "partition": "own", "data": source}
            host = segment.addresses[i] if segment else "127.0.0.1"
            slow = 10 if name == "slow" and i == PEERS - 1 else 1
            options = {"transport": transport, "host": host, "seat": i, "pace": pace * slow}
            hands.append(Hand(
                root / f"peer{i}", spec, options, space=segment.spaces[i] if segment else "",
                skew=SKEWS[i] if name == "skew" else 0.0,
            ))  # fmt: skip
        if segment is not None and name == "loss":
            segment.lose(5)
        began = time.perf_counter()
        crew.start(hands[0])
        ticket = crew.ticket(hands[0])
        for hand in hands[1:]:
            hand.options = {**hand.options, "join": [ticket]}
            crew.start(hand)
        scene = _Scene(crew, hands, segment, plan.rounds)
        FAULTS[name][1](scene)
        left = [hand for hand in hands if hand not in scene.gone]
        ended = [crew.join(hand, 600) for hand in left]
        wall = time.perf_counter() - began
    told = [hand.status for hand in left]
    accuracy = [s["metrics"].get("accuracy", 0.0) for s in told]
    through = [s["state"] == "done" and s["tick"] == plan.rounds for s in told]
    refusals: Counter[str] = Counter()
    for status in told:
        for reason, count in status["refusals"].items():
            refusals[reason.partition(" ")[2]] += count
    return {
        "completes": all(through) and not any(ended),
        "accuracy": sum(accuracy) / len(accuracy),
        "accuracies": accuracy,
        "peers": len(left),
        "ticks": [s["took_part"] for s in told],
        "adopted": [s["adopted"] for s in told],
        "refusals": dict(refusals.most_common()),
        "transport_bytes": sum(s["transport_bytes"] for s in told),
        "wall_s": wall,
    }


def suite(threads: int, console: Any) -> dict[str, Any]:
    """The fault table; takes a quarter of an hour."""
    return faults(told=_line if console is not None else None)


def main(arguments: list[str]) -> int:
    """``python -m shoal.bench.faults [--save] [FAULT ...]``"""
    names = [a for a in arguments if not a.startswith("--")]
    found = faults(only=names or None, told=_line)
    if "--save" in arguments:
        path = Path("results/faults.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if found["holds"] else 1


def _line(row: dict[str, Any]) -> None:
    if "skipped" in row:
        line = f"skipped: {row['skipped']}"
    else:
        line = (
            f"accuracy {row['accuracy']:.4f} ({row['difference']:+.4f})  ticks {row['ticks']}  "
            f"adopted {row['adopted']}  {row['wall_s']:.0f} s  {row['refusals']}"
            f"  {'holds' if row['holds'] else 'DOES NOT HOLD'}"
        )
    sys.stdout.write(f"{row['fault']} ({row['transport']}): {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
