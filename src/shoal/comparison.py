"""Several systems, or one system under several settings, on the same task: one table, one page."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shoal.core import BadInput, Report
from shoal.core.part import split_list

from .experiment import merge, plan_of, prepare_folder, run, settings
from .runtimes.base import Plan

__all__ = ["compare", "compare_systems", "row_of"]


def row_of(name: str, report: Report) -> dict[str, Any]:
    """One line of a comparison."""
    return {"name": name, **report.summary(), "time": report.rows[-1]["time"], "status": report.status}


def compare(
    plans: dict[str, Plan],
    *,
    out: Path | None = None,
    quiet: bool = False,
    title: str = "Comparison",
    factors: tuple[str, str] = ("Row", "Column"),
) -> dict[str, Report]:
    """Run plans one after the other; with ``out`` their pages and the common one are written there.

    Args:
        plans: by name.
        out: folder.
        quiet: show no progress.
        title: of the page.
        factors: for grids, what the two parts of a name ``"a | b"`` are.
    """
    from .report.compare import compare_page
    from .report.terminal import Live

    reports: dict[str, Report] = {}
    for name, plan in plans.items():
        folder = None if out is None else out / folder_of(name)
        with Live(name, verbose=not quiet) as live:
            reports[name] = run(plan, out=folder, progress=None if quiet else live)
        if reports[name].status == "stopped":
            break
    if out is not None:
        compare_page(list(reports.items()), out, title=title, factors=factors)
    return reports


def folder_of(name: str) -> str:
    """A run's folder name, from its name in the comparison."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def compare_systems(
    systems: list[str],
    given: dict[str, Any],
    vary: list[str],
    *,
    peers: int | None,
    rounds: int | None,
    seed: int | None,
    folder: Path,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """What ``shoal compare`` does; returns its rows.

    Raises:
        BadInput: before anything runs.
    """
    from .report.terminal import comparison

    factors: list[tuple[str, list[str]]] = [("system", systems)] if len(systems) > 1 or not vary else []
    for item in vary:
        path, eq, values = item.partition("=")
        if not eq or not split_list(values):
            raise BadInput("--vary", item, "write it as a.b=value1,value2")
        factors.append((path, split_list(values)))
    plans: dict[str, Plan] = {}
    for choice in itertools.product(*(values for _, values in factors)):
        system, table = systems[0], dict(given)
        for (path, _), value in zip(factors, choice, strict=True):
            if path == "system":
                system = value
            else:
                table = merge(table, settings([f"{path}={value}"]))
        plans[" | ".join(choice)] = plan_of(system, peers=peers, rounds=rounds, seed=seed, **table)
    prepare_folder(folder)
    names = [path.rpartition(".")[2] for path, _ in factors]
    two = (names[0], names[1]) if len(names) == 2 else ("Row", "Column")
    reports = compare(plans, out=folder, quiet=quiet, factors=two)
    if not quiet:
        console = Console()
        console.print(comparison(list(reports.items())))
        if len(factors) == 2:
            console.print(grid(list(reports.items()), factors[0][1], factors[1][1]))
        console.print(f"\n{folder / 'compare.html'}")
    return [row_of(name, report) for name, report in reports.items()]


def grid(reports: list[tuple[str, Report]], rows: list[str], columns: list[str]) -> Table:
    """Two factors as a table of the primary metric; runs are named ``"row | column"``."""
    from .report.summary import shared_metric

    metric = shared_metric(reports) or ""
    table = Table(metric, *columns, show_edge=False)
    by_name = dict(reports)
    for row in rows:
        told = [by_name.get(f"{row} | {column}") for column in columns]
        table.add_row(row, *("" if r is None else f"{r.metrics[metric]:.3f}" for r in told))
    return table
