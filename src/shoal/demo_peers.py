"""``make demo-p2p``: eight real peers train together; one is killed and comes back, one joins late.

Where root can make network namespaces, every peer is a host of its own and four of them sit behind NATs,
so that some connections are punched and some relayed (by the first peer, which cannot read them).
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from shoal.bench.segment import Segment
from shoal.core import BadInput
from shoal.experiment import plan_of, prepare_folder
from shoal.exporting import export_model
from shoal.runtimes.base import Plan
from shoal.runtimes.p2p.crew import Crew, Hand
from shoal.runtimes.p2p.state_folder import StateFolder
from shoal.tasks.dealing import deal

__all__ = ["demo_peers"]

NAMES = ("ada", "bo", "cleo", "dev", "eli", "fay", "gus", "hana")
ROUNDS, PACE = 110, 0.3
KILLED, LATE = 5, 7  # by place in NAMES
NATS: dict[int, Literal["cone", "symmetric"]] = {3: "cone", 4: "cone", 6: "symmetric", 7: "symmetric"}
KILL_AT, BACK_AT, JOIN_AT = 30, 55, 40  # ticks


def demo_peers(out: Path, quiet: bool = False) -> dict[str, Any]:
    """Run the demonstration, about a minute.

    Args:
        out: folder for the peers' data, state and models; made anew.
        quiet: print nothing.

    Returns:
        ``peers``: what each ended with; ``out``; ``wall_s``.

    Raises:
        BadInput: the folder cannot be used, or holds something else.
        RunFailed: a peer did not get through.
    """
    if out.exists() and any(out.iterdir()) and not (out / "peers").is_dir():
        raise BadInput("out", str(out), "a new folder, or one of an earlier demonstration")
    prepare_folder(out)
    shutil.rmtree(out / "peers", ignore_errors=True)
    (out / "peers").mkdir(parents=True)
    plan = _plan()
    began = time.monotonic()
    with ExitStack() as stack:
        lacking = Segment.missing()
        segment = None if lacking else stack.enter_context(Segment(len(NAMES), NATS))
        hands = _hands(plan, out / "peers", segment)
        screen, crew = stack.enter_context(_Screen(hands, quiet)), stack.enter_context(Crew())
        screen.say(
            f"all on this host, so all connections are direct ({lacking})"
            if lacking
            else "eight hosts; " + ", ".join(f"{NAMES[i]} behind a {kind} NAT" for i, kind in NATS.items())
        )
        screen.say("starting seven peers; each has its own data, and there is no server")
        crew.start(hands[0])
        ticket = crew.ticket(hands[0])
        for hand in hands[1:]:
            hand.options = {**hand.options, "join": [ticket]}
        for hand in hands[1:LATE]:
            crew.start(hand)
        killed, late, first = hands[KILLED], hands[LATE], hands[0]
        plot = [
            (KILL_AT, f"kill -9 of {killed.state.name}", lambda: crew.kill(killed)),
            (JOIN_AT, f"{late.state.name} joins late", lambda: crew.start(late)),
            (BACK_AT, f"{killed.state.name} starts again from its folder", lambda: crew.start(killed)),
        ]
        while plot or any(crew.ended(hand) is None for hand in hands):
            if plot and int(first.status.get("tick", 0)) >= plot[0][0]:
                _, what, act = plot.pop(0)
                screen.say(what)
                act()
            screen.show()
            time.sleep(0.25)
        for hand in hands:
            crew.join(hand, 1)
    peers = [_result(hand) for hand in hands]
    found = {"peers": peers, "out": str(out), "wall_s": time.monotonic() - began}
    if not quiet:
        _summary(found)
    return found


def _plan() -> Plan:
    task = {
        "name": "supervised",
        "data": "digits",
        "partition": {"name": "dirichlet", "alpha": 0.5, "min_size": 32},
        "model": {"name": "mlp", "hidden": [32]},
    }
    return plan_of(
        "dsgd", task=task, network={"graph": "ring", "codec": "int8"}, peers=len(NAMES), rounds=ROUNDS,
        seed=0, every=5, method={"lr": 0.1, "local_steps": 5},
    )  # fmt: skip


def _hands(plan: Plan, folder: Path, segment: Segment | None) -> list[Hand]:
    data = deal(plan.task, len(NAMES), plan.seed, folder)  # type: ignore[arg-type]
    found = []
    for i, name in enumerate(NAMES):
        spec = plan.spec()
        source = {"name": "folder", "path": str(data[i]), "classes": 10}
        spec["task"] = {**spec["task"], "partition": "own", "data": source}
        host = segment.addresses[i] if segment else "127.0.0.1"
        options = {"host": host, "wait": LATE, "pace": PACE, "relay": i == 0}
        found.append(Hand(folder / name, spec, options, space=segment.spaces[i] if segment else ""))
    return found


def _result(hand: Hand) -> dict[str, Any]:
    status, rows, model = hand.status, hand.rows(), hand.state / "model.safetensors"
    export_model(StateFolder(hand.state), Plan(**hand.plan), model)
    return {
        "name": hand.state.name,
        "peer": status["peer"],
        "state": status["state"],
        "before": rows[0]["accuracy"],
        "after": rows[-1]["accuracy"],
        "ticks": status["tick"],
        "bytes_sent": status["bytes_sent"],
        "paths": dict(_paths(status)),
        "model": str(model),
    }


def _paths(status: dict[str, Any]) -> Counter[str]:
    """How a peer is connected, and to how many others so."""
    return Counter(m["path"] for m in status.get("members", []) if m["path"])


class _Screen:
    """A live table on a terminal, else a line now and then."""

    def __init__(self, hands: Sequence[Hand], quiet: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self.hands, self.quiet, self.news = hands, quiet, ""
        self.console = Console()
        live = not quiet and self.console.is_terminal
        self.live = Live(console=self.console, refresh_per_second=4) if live else None
        self._began = time.monotonic()
        self._told = 0.0

    def __enter__(self) -> _Screen:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, what: str) -> None:
        """Something happens."""
        self.news = what
        if self.live is None and not self.quiet:
            sys.stdout.write(f"{time.monotonic() - self._began:5.1f} s  {what}\n")
            sys.stdout.flush()

    def show(self) -> None:
        """How all of them are."""
        if self.quiet:
            return
        told = {hand.state.name: self._of(hand) for hand in self.hands}
        if self.live is not None:
            self.live.update(self._table(told))
        elif time.monotonic() - self._told > 5:
            self._told = time.monotonic()
            paths = sum((_paths(status) for status in told.values()), Counter())
            shown = "  ".join(f"{name} {s.get('tick', 0)}" for name, s in told.items())
            links = ", ".join(f"{n // 2} {path}" for path, n in paths.items())
            sys.stdout.write(f"{self._told - self._began:5.1f} s  ticks: {shown}  links: {links}\n")
            sys.stdout.flush()

    @staticmethod
    def _of(hand: Hand) -> dict[str, Any]:
        status = hand.status if hand.state.exists() else {}
        if StateFolder(hand.state).running() is None and status.get("state") not in {None, "done"}:
            return {**status, "state": "killed", "members": []}
        return status

    def _table(self, told: dict[str, dict[str, Any]]) -> Any:
        from rich.table import Table

        table = Table(title=f"Eight peers, no server: {self.news}", title_justify="left", box=None)
        for column in ("peer", "state", "tick", "accuracy", "sent"):
            table.add_column(column, justify="left" if column in {"peer", "state"} else "right")
        for name in told:
            table.add_column(name)
        for status, name in zip(told.values(), told, strict=True):
            by = {m["name"]: m for m in status.get("members", [])}
            accuracy = status.get("metrics", {}).get("accuracy")
            table.add_row(
                name,
                status.get("state", "not there yet"),
                str(status.get("tick", "")),
                "" if accuracy is None else f"{accuracy:.3f}",
                _size(status.get("bytes_sent", 0)),
                *("·" if other == name else by.get(other, {}).get("path") or "" for other in told),
            )
        return table


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _summary(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("peer", "before", "after", "sent", "connected", "model", box=None)
    for peer in found["peers"]:
        paths = ", ".join(f"{n} {path}" for path, n in peer["paths"].items())
        table.add_row(
            peer["name"], f"{peer['before']:.3f}", f"{peer['after']:.3f}", _size(peer["bytes_sent"]),
            paths, peer["model"],
        )  # fmt: skip
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"\n{found['wall_s']:.0f} s; data, state and models are in {found['out']}/peers")


if __name__ == "__main__":
    demo_peers(Path("runs/demo-p2p"))
