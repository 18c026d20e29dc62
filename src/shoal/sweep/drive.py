"""From a sweep's file to its report: what is missing is run, all that is there is shown.

Each run has its folder ``runs/DIGEST``, named after its whole configuration. A run whose report is
there is not run again; one that was interrupted goes on from its checkpoint. So the same command
finishes a sweep that was stopped or killed, and a longer file runs only what is new.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from shoal.comparison import row_of
from shoal.core import Report
from shoal.experiment import prepare_folder
from shoal.report.compare import compare_page
from shoal.report.metrics import title_of
from shoal.report.save import load
from shoal.report.summary import shared_metric
from shoal.report.units import bytes_text, figure

from .trials import Sweep, Trial, read_sweep, shown
from .workers import Job, carry_out, has_ray

__all__ = ["sweep"]


def sweep(
    file: Path,
    out: Path,
    *,
    given: Mapping[str, Any] | None = None,
    workers: int = 0,
    address: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what the file asks for and is not there yet; write the page and the tables.

    Args:
        file: see :mod:`shoal.sweep.trials`.
        out: folder: ``runs/``, ``compare.html``, ``sweep.parquet``, ``sweep.csv``, ``sweep.json``.
        given: fields that win over the file's.
        workers: runs at a time; 0: one for each core.
        address: of a Ray cluster; None: one started here where Ray is installed, else processes;
            ``"none"``: processes.
        quiet: print nothing.

    Returns:
        ``rows`` (one a run), ``failed`` (name -> why), ``skipped`` (how many were there already),
        ``missing`` (how many are not there even now), ``out``.

    Raises:
        BadInput: a configuration cannot be run; nothing has been.
    """
    plan = read_sweep(file, given)
    prepare_folder(out)
    todo = [trial for trial in plan.trials if not _finished(out, trial)]
    jobs = [Job(t.digest, t.given, str(_folder(out, t).resolve()), str(Path.cwd())) for t in todo]
    names = {trial.digest: trial.name for trial in plan.trials}
    skipped = len(plan.trials) - len(todo)
    where = ("" if has_ray() else None) if address is None else None if address == "none" else address
    console = Console(stderr=True)
    failed: dict[str, str] = {}
    if jobs:
        with _bar(console, f"{plan.title}", skipped, len(plan.trials), quiet) as step:
            try:
                for digest, why in carry_out(jobs, workers or os.cpu_count() or 1, where):
                    if why:
                        failed[names[digest]] = why
                    step(names[digest], why)
            except KeyboardInterrupt:
                console.print("Stopped; the same command goes on.")
    found = [(trial, load(_folder(out, trial))) for trial in plan.trials if _finished(out, trial)]
    rows = [_row(trial, report, plan.paths) for trial, report in found]
    if found:
        _write(out, plan, found, rows)
    if not quiet:
        _print(plan, found, failed, skipped, out)
    missing = len(plan.trials) - len(rows)
    return {"rows": rows, "failed": failed, "skipped": skipped, "missing": missing, "out": str(out)}


def _folder(out: Path, trial: Trial) -> Path:
    return out / "runs" / trial.digest


def _finished(out: Path, trial: Trial) -> bool:
    """Whether the run's report is there; reports are written whole, the head last."""
    path = _folder(out, trial) / "report.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["status"] == "done"


def _row(trial: Trial, report: Report, paths: Sequence[str]) -> dict[str, Any]:
    """A line of the tidy table: the choices, the figures, where the run is."""
    told = row_of(trial.name, report)
    choice = {
        path: value if isinstance(value, int | float | str) else shown(path, value)
        for path, value in ((p, trial.choice.get(p)) for p in paths)
        if value is not None
    }
    figures = {name: value for name, value in told["metrics"].items() if isinstance(value, int | float)}
    fixed = {k: told[k] for k in ("system", "seed", "peers", "rounds")}
    measured = {k: told[k] for k in ("bytes_sent", "time", "wall_s")}
    return fixed | choice | figures | measured | {"digest": trial.digest}


def _write(out: Path, plan: Sweep, found: list[tuple[Trial, Report]], rows: list[dict[str, Any]]) -> None:
    factors = [path.rpartition(".")[2] for path in plan.paths]
    two = (factors[0], ", ".join(factors[1:])) if len(factors) > 1 else ("Row", "Column")
    compare_page([(t.name, r) for t, r in found], out, title=f"Sweep {plan.title}", factors=two)
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: _column([row.get(name) for row in rows]) for name in columns})
    with _whole(out / "sweep.parquet") as part:
        pyarrow.parquet.write_table(table, part)
    with _whole(out / "sweep.csv") as part:
        pyarrow.csv.write_csv(table, part)
    with _whole(out / "sweep.json") as part:
        finite = [{k: _finite(v) for k, v in row.items()} for row in rows]
        part.write_text(json.dumps(finite, indent=1) + "\n", encoding="utf-8")


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(v) for v in values if v is not None}
    if len(kinds) > 1:
        turn: Any = float if kinds <= {int, float} else str
        values = [None if v is None else turn(v) for v in values]
    return pa.array(values)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Written whole or not at all."""
    part = path.with_name(path.name + ".part")
    yield part
    part.replace(path)


@contextlib.contextmanager
def _bar(console: Console, title: str, done: int, total: int, quiet: bool) -> Iterator[Any]:
    """A bar on a terminal, a line for each run elsewhere; yields what is called after each run."""
    if quiet or not console.is_terminal:
        at = [done]

        def line(name: str, why: str) -> None:
            at[0] += 1
            if not quiet:
                told = f" failed: {why}" if why else ""
                console.print(Text(f"{title}: {at[0]}/{total} {name}{told}"), soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(28), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[last]}"), console=console, transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, last="")

        def move(name: str, why: str) -> None:
            bar.update(task, advance=1, last=f"{name} failed" if why else name)

        yield move


def _print(
    plan: Sweep, found: list[tuple[Trial, Report]], failed: dict[str, str], skipped: int, out: Path
) -> None:
    """Configurations by their choices: mean and spread over the seeds."""
    console = Console()
    metric = shared_metric([(trial.name, report) for trial, report in found]) or ""
    groups: dict[tuple[str, ...], list[Report]] = {}
    paths = [path for path in plan.paths if path != "seed"]
    for trial, report in found:
        key = tuple("" if p not in trial.choice else shown("", trial.choice[p]) for p in paths)
        groups.setdefault(key, []).append(report)
    if found:
        made = Table(show_edge=False, pad_edge=False)
        for path in paths:
            made.add_column(path.rpartition(".")[2])
        for heading in ("Runs", title_of(metric).split(" (")[0], "Std over seeds", "Bytes sent"):
            made.add_column(heading, justify="right")
        for key, reports in groups.items():
            values = [r.metrics[metric] for r in reports if metric in r.metrics]
            mean = figure(statistics.fmean(values)) if values else "–"
            spread = figure(statistics.stdev(values)) if len(values) > 1 else ""
            sent = bytes_text(round(statistics.fmean(r.bytes_sent for r in reports)))
            made.add_row(*(Text(k) for k in key), str(len(reports)), mean, spread, sent)
        console.print(made)
    for name, why in failed.items():
        console.print(Text(f"{name} failed: {why}", style="red"))
    if skipped:
        console.print(f"{skipped} of {len(plan.trials)} runs were there already.")
    if found:
        console.print(f"{out / 'compare.html'}", soft_wrap=True)
