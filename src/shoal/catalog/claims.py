"""Claims: the papers' headline statements as measured inequalities.

A claim module lives in ``shoal.catalog.checks``, is named by the slug (``-`` written ``_``) and holds::

    @claim("fedavg")
    class FedAvgClaim(Claim):
        bounds = (Bound("rounds_ratio", ">=", 4.0, "10 to 100 times fewer rounds"),)

        def measure(self, seed, progress):
            ...
            return {"rounds_ratio": slow / fast, "rounds": fast}

It is judged on the mean over the seeds; each seed's value is kept.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from shoal import __version__
from shoal.core import BadInput, RunFailed, ShoalError

from .results import Measured, Relation, Result, results_dir
from .systems import system, systems

__all__ = ["Bound", "Claim", "Progress", "claim", "claimed", "find_claim", "judge", "run_claim"]

T = TypeVar("T", bound="type[Claim]")
_PACKAGE = "shoal.catalog.checks"
_EQUAL = {"rel_tol": 1e-9, "abs_tol": 1e-12}


class Progress(Protocol):
    """What :meth:`Claim.measure` tells its progress to."""

    def __call__(self, text: str, share: float = 0.0) -> None:
        """``text`` runs now; ``share`` of this seed, 0 to 1, is done."""


@dataclass(frozen=True)
class Bound:
    """One inequality.

    Args:
        name: the quantity, a key of what :meth:`Claim.measure` returns.
        relation: ``>=`` or ``<=`` on the mean over the seeds; ``==`` for every seed (to rounding).
        threshold: the right-hand side.
        published: what the paper reports, in words.
    """

    name: str
    relation: Relation
    threshold: float
    published: str = ""

    def holds(self, per_seed: Sequence[float]) -> bool:
        """Whether values, one a seed, meet it. NaN and infinity never do."""
        if not per_seed or not all(math.isfinite(v) for v in per_seed):
            return False
        if self.relation == "==":
            return all(math.isclose(v, self.threshold, **_EQUAL) for v in per_seed)
        mean = _mean(per_seed)
        return mean >= self.threshold if self.relation == ">=" else mean <= self.threshold


class Claim(ABC):
    """What one system must show. A subclass states its bounds and measures one seed at a time."""

    slug: ClassVar[str] = ""
    seeds: ClassVar[tuple[int, ...]] = (10, 11, 12)
    bounds: ClassVar[tuple[Bound, ...]] = ()
    config: ClassVar[dict[str, Any]] = {}
    """Sizes and hyper-parameters of every arm, for the record."""
    notes: ClassVar[tuple[str, ...]] = ()
    """What a reader must know: a smaller scale, simulated responders."""

    @abstractmethod
    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        """Every bound's quantity, and any other figure to print, for one seed."""


_CLAIMS: dict[str, type[Claim]] = {}


def claim(slug: str) -> Callable[[T], T]:
    """Class decorator: this class is the claim of the system ``slug``."""

    def mark(cls: T) -> T:
        known = _CLAIMS.get(slug)
        if known is not None and known.__module__ != cls.__module__:
            raise ShoalError(f"the claim of {slug} is defined twice: {known} and {cls}")
        cls.slug = slug
        _CLAIMS[slug] = cls
        return cls

    return mark


def find_claim(slug: str) -> Claim:
    """The claim of a system; imports its module when first asked.

    Raises:
        BadInput: unknown system, or one that has no check.
    """
    found = system(slug).slug
    if found not in _CLAIMS:
        name = f"{_PACKAGE}.{found.replace('-', '_')}"
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise BadInput("system", slug, "has no check") from None
        if found not in _CLAIMS:
            raise ShoalError(f"{name} defines no claim of {found}")
    return _CLAIMS[found]()


def claimed() -> list[str]:
    """The slugs of the systems that have a check, by number; imports none of them."""
    folder = importlib.import_module(_PACKAGE).__path__
    modules = {module.name for module in pkgutil.iter_modules(folder)}
    return [s.slug for s in systems() if s.slug in _CLAIMS or s.slug.replace("-", "_") in modules]


def run_claim(
    slug: str, seeds: Sequence[int] | None = None, progress: Callable[[str, float], None] | None = None
) -> dict[str, Any]:
    """Find the claim of a system and judge it; the result as plain data. See :func:`judge`."""
    return judge(find_claim(slug), seeds, progress).plain()


def judge(
    what: Claim, seeds: Sequence[int] | None = None, progress: Callable[[str, float], None] | None = None
) -> Result:
    """Measure a claim on every seed and say whether its bounds hold.

    Args:
        seeds: default: the claim's own.
        progress: called with the seed and what runs, and the share of the whole check that is done.

    A seed whose run fails (divergence) counts as NaN and is named in the notes.

    Raises:
        BadInput: no seeds, a seed twice, or a negative one.
    """
    used = list(what.seeds if seeds is None else seeds)
    if not used or len(set(used)) != len(used) or min(used) < 0:
        raise BadInput("seeds", used, "different whole numbers from 0 up")
    if not what.bounds:
        raise ShoalError(f"the claim of {what.slug} states no bound")
    entry = system(what.slug)
    notes = list(what.notes)
    started = time.perf_counter()
    figures: list[dict[str, float]] = []
    for at, seed in enumerate(used):

        def told(text: str, share: float = 0.0, at: int = at, seed: int = seed) -> None:
            if progress is not None:
                progress(f"seed {seed}: {text}", (at + min(1.0, max(0.0, share))) / len(used))

        told("starts", 0.0)
        try:
            figures.append(_floats(what, what.measure(seed, told)))
        except RunFailed as error:
            notes.append(f"seed {seed}: {error}")
            figures.append({})
        told("done", 1.0)

    bounds = {b.name: b for b in what.bounds}
    measured: dict[str, Measured] = {}
    for name in [*bounds, *dict.fromkeys(k for f in figures for k in f if k not in bounds)]:
        values = [f.get(name, math.nan) for f in figures]
        bound = bounds.get(name)
        measured[name] = Measured(per_seed=list(values), mean=_mean(values))
        if bound is not None:
            measured[name].threshold = bound.threshold
            measured[name].relation = bound.relation
            measured[name].holds = bound.holds(values)
            measured[name].published = bound.published or None
    return Result(
        system=entry.slug,
        number=entry.number,
        claim=entry.claim,
        seeds=used,
        measured=measured,
        holds=all(measured[b].holds for b in bounds),
        commit=_commit(),
        date=datetime.now(UTC).date().isoformat(),
        config=dict(what.config),
        wall_s=round(time.perf_counter() - started, 3),
        notes=notes,
    )


def _commit() -> str:
    """The version of the code: the source tree's commit (``-dirty`` where it has changes), else the
    package's version."""
    git, here = shutil.which("git"), Path(__file__).resolve().parent
    if git is not None and results_dir().parts[-2:] == ("results", "checks"):
        told = subprocess.run(
            [git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if told.returncode == 0:
            return told.stdout.strip()
    return __version__


def _floats(what: Claim, figures: dict[str, float]) -> dict[str, float]:
    missing = [b.name for b in what.bounds if b.name not in figures]
    if missing:
        raise ShoalError(f"the claim of {what.slug} did not measure {', '.join(missing)}")
    return {name: float(value) for name, value in figures.items()}


def _mean(values: Sequence[float]) -> float:
    # fsum refuses infinities of both signs; their mean is not a number.
    if any(math.isnan(v) for v in values) or {math.inf, -math.inf} <= set(values):
        return math.nan
    return math.fsum(values) / len(values)
