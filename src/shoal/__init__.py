"""Shoal: machine learning without a centre.

A run is Task x Method x Network x Runtime -> Report::

    import shoal

    report = shoal.run("dsgd", peers=64, rounds=60, network={"graph": "torus", "rule": "median"})
    print(report.metrics["accuracy"])
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["Network", "Plan", "compare", "load_model", "plan_of", "run"]

_HOMES = {
    "Network": "shoal.network.network",
    "Plan": "shoal.runtimes.base",
    "compare": "shoal.comparison",
    "load_model": "shoal.report.model_file",
    "plan_of": "shoal.experiment",
    "run": "shoal.experiment",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: ``import shoal`` alone loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
