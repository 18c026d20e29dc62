"""Benchmarks: ratios to an honest floor, measured in one run."""

from __future__ import annotations

from typing import Any, Literal

from rich.console import Console

__all__ = ["SUITES", "run_suite"]

SUITES = ("step",)
KINDS: tuple[Literal["mlp", "cnn"], ...] = ("mlp", "cnn")


def run_suite(suite: str, threads: int, console: Console | None) -> dict[str, Any]:
    """Measure one suite; prints tables on the console, returns every figure.

    Args:
        suite: ``step``: local training of an MLP and of a CNN, and memory.
        threads: of torch.
    """
    from shoal.core import BadInput

    from .step import bench_step

    if suite not in SUITES:
        raise BadInput("suite", suite, f"known suites: {', '.join(SUITES)}")
    found: dict[str, Any] = {k: bench_step(k, thread_count=threads, console=console) for k in KINDS}
    holds = all(f["holds"] for f in found.values())
    return {"suite": suite, "threads": threads, **found, "holds": holds}
