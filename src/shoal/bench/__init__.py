"""Measurements against an honest floor, taken in one run.

A suite is a module of this package with a function ``suite(threads, console)``: it measures, prints what
it finds on the console (None: nothing), and returns the figures as plain data; ``holds`` says whether
every figure keeps its bound. ``shoal bench NAME`` runs the one in the module of that name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from rich.console import Console

from shoal.core import BadInput

from .timing import threads as limited

__all__ = ["Suite", "run_suite", "suites"]

Suite = Callable[[int, Console | None], dict[str, Any]]


def suites() -> dict[str, Suite]:
    """The suites by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {m.__name__.rpartition(".")[2]: m.suite for m in modules if hasattr(m, "suite")}


def run_suite(name: str, threads: int, console: Console | None) -> dict[str, Any]:
    """Measure one suite; prints tables on the console, returns every figure.

    Args:
        name: of the suite.
        threads: of torch.

    Raises:
        BadInput: there is none of that name.
    """
    known = suites()
    if name not in known:
        raise BadInput("suite", name, f"known suites: {', '.join(known)}")
    with limited(threads):
        return {"suite": name, "threads": threads, **known[name](threads, console)}
