"""Metrics, units, and what the terminal shows."""

from __future__ import annotations

import io
import math

import pytest
from report_fakes import bandit_report, fake_report
from rich.console import Console

from shoal.core import Report
from shoal.report.metrics import last, metric_names, primary
from shoal.report.terminal import Live, comparison, summary
from shoal.report.units import bytes_text, figure, seconds_text


def test_companion_columns_are_no_metrics_of_their_own() -> None:
    names = metric_names(fake_report())
    assert names == ["accuracy", "merged_accuracy", "consensus", "attack_success"]
    assert primary(bandit_report()) == "regret"
    assert primary(Report("x", {})) is None
    assert last(Report("x", {}, rows=[{"a": 1.0}, {"a": None}, {"a": math.nan}]), "a") == 1.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (1500, "1.5 kB"), (999_999, "1 MB"), (2.5e12, "2.5 TB")],
)
def test_bytes_read_well(value: float, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (0.0042, "4.2 ms"), (0.9999, "1 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations_read_well(value: float, text: str) -> None:
    assert seconds_text(value) == text


def test_figures_read_well() -> None:
    shown = [figure(v) for v in (None, math.nan, math.inf, 0.0, 0.92345, 1234567.0, 1e-6)]
    assert shown == ["–", "–", "∞", "0", "0.9234", "1.235e+06", "1.000e-06"]


def test_the_terminal_shows_a_run_and_a_comparison() -> None:
    written = io.StringIO()
    console = Console(file=written, width=120)
    report = fake_report()
    report.system = "dsgd[bold]"
    summary(report, console)
    console.print(comparison([("one [red]", report), ("two", bandit_report())]))
    text = written.getvalue()
    assert "dsgd[bold]" in text and "one [red]" in text
    assert "0.9232" in text and "2.76 MB" in text and "SIMULATED" in text


def test_progress_speaks_every_tenth_where_there_is_no_terminal() -> None:
    for verbose, lines in ((True, 10), (False, 0)):
        written = io.StringIO()
        with Live("dsgd", verbose=verbose, console=Console(file=written, width=120)) as live:
            for tick in range(1, 201):
                live.update(tick, 200, {"tick": tick, "bytes": 5, "accuracy": 0.5}, tick * 1000)
        assert written.getvalue().count("\n") == lines
        assert ("dsgd: round 20/200, accuracy 0.5, 20 kB" in written.getvalue()) is verbose


def test_progress_draws_a_bar_on_a_terminal_unless_quiet() -> None:
    for quiet in (False, True):
        written = io.StringIO()
        console = Console(file=written, force_terminal=True, width=120, legacy_windows=False)
        with Live("", quiet=quiet, console=console) as live:
            live.start("first [run]")
            live.update(3, 10, {"accuracy": 0.75}, 2000)
        assert (written.getvalue() == "") is quiet
        if not quiet:
            assert "first [run]" in written.getvalue() and "accuracy 0.75" in written.getvalue()
