"""The demo of the cluster: peers in blocks on Ray, a block killed on the way, and what ``local`` says."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .comparison import folder_of
from .core import Report
from .experiment import plan_of, prepare_folder, run
from .report.compare import compare_page
from .report.save import save
from .report.terminal import Live
from .report.units import bytes_text, figure
from .runtimes.base import Plan
from .runtimes.cluster.connect import connected
from .runtimes.cluster.group import Group
from .runtimes.cluster.runtime import Cluster, Run, shares

__all__ = ["demo_cluster", "demo_plan"]

PEERS, BLOCKS, VICTIM = 16, 4, 2
CLOSE = 1e-10
"""What parameters may differ by in float64: sums of batches of other sizes round differently."""


def demo_plan(rounds: int, seed: int = 0) -> Plan:
    """D-SGD of an MLP on MNIST, 4 of the 10 classes a peer, 8-bit messages on a 4-regular graph."""
    return plan_of(
        "dsgd",
        task={
            "name": "supervised",
            "data": "mnist",
            "partition": {"name": "classes", "k": 4},
            "model": {"name": "mlp", "hidden": [64]},
            "batch": 16,
        },
        network={"graph": "random-regular(degree=4)", "codec": "int8"},
        method={"local_steps": 5, "lr": 0.1},
        peers=PEERS, rounds=rounds, seed=seed, every=max(1, rounds // 12), dtype="float64",
    )  # fmt: skip


class _Scene:
    """Shows the run, and kills one of its processes half way: the progress of a run."""

    def __init__(self, where: Cluster, group: Group, live: Live, quiet: bool) -> None:
        self.where, self.group, self.live, self.quiet = where, group, live, quiet
        self.killed, self.shown = 0, False

    def __call__(self, done: int, rounds: int, row: dict[str, Any] | None, sent: int) -> None:
        if not self.shown:
            self._show()
        self.live(done, rounds, row, sent)
        # Not just after a checkpoint: the blocks shall have something to do again.
        if not self.killed and rounds // 2 < done < rounds and done % self.where.checkpoint_every:
            self.killed = self._processes()[VICTIM]
            os.kill(self.killed, signal.SIGKILL)
            self._say(f"Tick {done} of {rounds}: kill -9 {self.killed}, block {VICTIM}.")
            self.shown = False

    def _processes(self) -> list[int]:
        return list(self.group.ray.get([actor.ready.remote() for actor in self.group.actors]))

    def _show(self) -> None:
        self.shown, first = True, 0
        table = Table("block", "peers", "process", show_edge=False)
        for block, (size, process) in enumerate(zip(shares(PEERS, BLOCKS), self._processes(), strict=True)):
            new = " (new)" if self.killed and block == VICTIM else ""
            table.add_row(str(block), f"{first} to {first + size - 1}", f"{process}{new}")
            first += size
        self._say(table)

    def _say(self, told: Any) -> None:
        if not self.quiet:
            self.live.console.print(told)


def demo_cluster(out: Path, rounds: int = 60, *, quiet: bool = False) -> dict[str, Any]:
    """Run on Ray, kill a block's process half way, run ``local``, and compare.

    Args:
        out: folder for both reports and the page with both.
        rounds: ticks.
        quiet: print nothing.

    Returns:
        ``rows`` (a line for each run), ``max_difference`` of the parameters, ``bytes_equal`` (on every
        link), ``holds``, ``out``.
    """
    plan = demo_plan(rounds)
    prepare_folder(out)
    console = None if quiet else Console(soft_wrap=True)
    if console is not None:
        console.print(f"{PEERS} peers in {BLOCKS} blocks, each a process on Ray: MNIST digits, float64.")
    reports = {"cluster": _on_ray(plan, quiet), "local": _here(plan, quiet)}
    for name, report in reports.items():
        report.out = str(out / folder_of(name))
        save(report, out / folder_of(name))
    compare_page(list(reports.items()), out, title=f"{PEERS} peers: a Ray cluster and one process")
    one, two = reports.values()
    told: dict[str, Any] = {
        "rows": [{"name": name, **report.summary()} for name, report in reports.items()],
        "max_difference": float((one.output - two.output).abs().max()),
        "bytes_equal": all(bool((a == b).all()) for a, b in zip(one.links, two.links, strict=True)),
        "out": str(out),
    }
    told["holds"] = bool(told["max_difference"] <= CLOSE and told["bytes_equal"])
    if console is not None:
        _print(reports, told, console)
        console.print(f"\nReport: [bold]{out / 'compare.html'}[/]")
    return told


def _on_ray(plan: Plan, quiet: bool) -> Report:
    where = Cluster(blocks=BLOCKS)
    with connected(cpus=BLOCKS) as ray, Live("cluster", verbose=not quiet) as live:
        group = Group(ray, plan, BLOCKS, threads=1, patience=where.patience, gpus=0, apart=False)
        try:
            return Run(where, plan, _Scene(where, group, live, quiet), None).go(group)
        finally:
            group.close()


def _here(plan: Plan, quiet: bool) -> Report:
    with Live("local", verbose=not quiet) as live:
        return run(plan, progress=None if quiet else live)


def _print(reports: dict[str, Report], told: dict[str, Any], console: Console) -> None:
    table = Table("", *reports, "difference", show_edge=False)
    one, two = reports.values()
    for name, title in (("accuracy", "Accuracy"), ("merged_accuracy", "Merged model"), ("loss", "Loss")):
        if name in one.metrics:
            a, b = one.metrics[name], two.metrics[name]
            table.add_row(title, figure(a), figure(b), f"{abs(a - b):.2g}")
    shape = " x ".join(map(str, one.output.shape))
    table.add_row("Parameters", shape, shape, f"at most {told['max_difference']:.2g}")
    sent = [bytes_text(report.bytes_sent) for report in reports.values()]
    table.add_row("Bytes sent", *sent, "none, on every link" if told["bytes_equal"] else "[red]some[/]")
    table.add_row("Wall time", *(f"{report.wall_s:.1f} s" for report in reports.values()), "")
    console.print(table)
    for note in one.notes:
        console.print(f"[yellow]{note}[/]")
