"""The terminal: a run's summary, comparisons, and progress while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from shoal.core import Report

from .metrics import BOOKKEEPING, last, low_title, metric_names, title_of
from .plots import sentence
from .summary import lines, shared_metric
from .units import bytes_text, figure, seconds_text

__all__ = ["Live", "comparison", "summary"]


def summary(report: Report, console: Console | None = None) -> None:
    """Print the run's last figures: metric, mean, worst decile, standard deviation; bytes and times."""
    console = console or Console()
    made = Table(show_edge=False, pad_edge=False)
    made.add_column("")
    for heading in ("Mean", "10th percentile", "Std"):
        made.add_column(heading, justify="right")
    for name in metric_names(report):
        spread = (last(report, f"{name}{end}") for end in ("_p10", "_std"))
        shown = ["" if v is None else figure(v) for v in spread]
        made.add_row(Text(title_of(name).split(" (")[0]), figure(last(report, name)), *shown)
    made.add_section()
    made.add_row("Bytes sent", bytes_text(report.bytes_sent), "", "")
    if (simulated := last(report, "time")) is not None:
        made.add_row("Simulated time", seconds_text(simulated), "", "")
    made.add_row("Wall time", seconds_text(report.wall_s), "", "")
    console.print(Text(sentence(report)))
    console.print(made)
    for note in report.notes:
        console.print(Text(f"Note: {note}", style="yellow"))
    if report.status != "done":
        console.print(Text(f"This run was {report.status}.", style="bold red"))
    if report.out:
        console.print(Text(f"Report: {report.out}/report.html"), soft_wrap=True)


def comparison(reports: Sequence[tuple[str, Report]]) -> Table:
    """One row a run: mean, worst decile, merged model, bytes, simulated time, wall time."""
    metric = shared_metric(reports)
    told = lines(reports, metric)
    made = Table(show_edge=False, pad_edge=False)
    made.add_column("Run")
    columns = [title_of(metric).split(" (")[0] if metric else "Metric", low_title(metric)]
    merged = any(line.merged is not None for line in told)
    columns += ["Merged model"] if merged else []
    for heading in (*columns, "Bytes sent", "Simulated time", "Wall time"):
        made.add_column(heading, justify="right")
    for line in told:
        made.add_row(
            Text(line.name if line.status == "done" else f"{line.name} ({line.status})"),
            figure(line.mean),
            figure(line.worst),
            *([figure(line.merged)] if merged else []),
            bytes_text(line.sent),
            "–" if line.time is None else seconds_text(line.time),
            seconds_text(line.wall),
        )
    return made


class Live:
    """Progress of runs, one after the other: a context manager whose ``update`` is the runtime's
    ``progress`` callback.

    On a terminal, a bar with the round, the primary metric, the bytes and the time left. Elsewhere
    silent, or with ``verbose`` one line for every tenth of the run.

    Args:
        title: of what runs; :meth:`start` sets the next one's.
        quiet: show nothing at all.
        verbose: also report where there is no terminal.
        console: default: standard error, so that standard output stays for results.
    """

    def __init__(
        self,
        title: str = "",
        *,
        quiet: bool = False,
        verbose: bool = False,
        console: Console | None = None,
    ) -> None:
        self.console = console if console is not None else Console(stderr=True)
        self.verbose = verbose and not quiet
        self._bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[at]}"),
                TextColumn("{task.fields[metric]}", style="bold"),
                TextColumn("{task.fields[sent]}"),
                _Left(),
                console=self.console,
                transient=True,
            )
            self._id = self._bar.add_task(title, total=None, at="", metric="", sent="")
        self.start(title)

    def start(self, title: str) -> None:
        """The next run begins."""
        self.title, self._metric, self._tenth = title, "", 0
        self._started = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._id, total=None, description=title, at="", metric="", sent="")

    def __enter__(self) -> Live:
        self._started = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, tick: int, total: int, row: dict[str, Any] | None = None, sent: int = 0) -> None:
        """``tick`` of ``total`` ticks are done; ``row`` where one was measured just now."""
        for key, value in (row or {}).items():
            if key not in BOOKKEEPING and isinstance(value, int | float):
                self._metric = f"{key} {figure(float(value))}"
                break
        at, data = f"{tick}/{total}", bytes_text(sent)
        if self._bar is not None:
            self._bar.update(self._id, completed=tick, total=total, at=at, metric=self._metric, sent=data)
        elif self.verbose and tick * 10 // max(1, total) > self._tenth:
            self._tenth = tick * 10 // max(1, total)
            left = (time.monotonic() - self._started) / tick * (total - tick)
            parts = [f"round {at}", self._metric, data, f"{seconds_text(left)} left"]
            start = f"{self.title}: " if self.title else ""
            self.console.print(Text(start + ", ".join(filter(None, parts))), soft_wrap=True)

    __call__ = update


class _Left(ProgressColumn):
    """The time left, from the mean speed so far."""

    def render(self, task: Task) -> Text:
        if not task.completed or task.total is None or task.elapsed is None:
            return Text("")
        left = task.elapsed / task.completed * (task.total - task.completed)
        return Text(f"{seconds_text(left)} left", style="dim")
