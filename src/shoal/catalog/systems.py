"""The catalogue: every system with its source, its home, its claim, and whether the claim holds."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from shoal.core import BadInput

from .results import Result, read_result, results_dir

__all__ = ["System", "result", "rows", "status", "system", "systems"]


class System(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One published system.

    Args:
        number: 1 to 146.
        slug: its short name, as in ``shoal run SLUG``.
        title: of the paper.
        family: the group that it belongs to ("gossip", "federated", ...).
        source: citation.
        home: the module that holds it.
        claim: what its check measures, in one sentence.
    """

    number: int
    slug: str
    title: str
    family: str
    source: str
    home: str
    claim: str


class _File(msgspec.Struct):
    system: list[System]


@cache
def _all() -> tuple[System, ...]:
    text = resources.files(__package__).joinpath("systems.toml").read_bytes()
    found = msgspec.toml.decode(text, type=_File).system
    return tuple(sorted(found, key=lambda s: s.number))


def systems() -> list[System]:
    """Every system, by number."""
    return list(_all())


def system(name: str | int) -> System:
    """The system with this slug or number (``"fedavg"``, ``62``, ``"062"``).

    Raises:
        BadInput: there is none; names the nearest.
    """
    by_slug = {s.slug: s for s in _all()}
    if isinstance(name, str) and name in by_slug:
        return by_slug[name]
    text = str(name)
    if text.isascii() and text.isdigit():
        for found in _all():
            if found.number == int(text):
                return found
        raise BadInput("system", name, f"numbers go from 1 to {len(by_slug)}")
    near = difflib.get_close_matches(text, by_slug, 1, 0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BadInput("system", name, f"unknown system; {hint}`shoal catalog` lists all {len(by_slug)}")


def result(which: System) -> Result | None:
    """The recorded result of the system's check, or None where it was never run."""
    path = results_dir() / f"{which.slug}.json"
    return read_result(path) if path.is_file() else None


def status(which: System) -> str:
    """``works``: its recorded check holds; ``partial``: it was run and does not; ``absent``: no
    check was recorded."""
    found = result(which)
    if found is None:
        return "absent"
    return "works" if found.holds else "partial"


def rows() -> list[dict[str, Any]]:
    """What ``shoal catalog --json`` prints."""
    return [
        {
            "number": s.number,
            "slug": s.slug,
            "title": s.title,
            "family": s.family,
            "module": s.home,
            "status": status(s),
            "claim": s.claim,
        }
        for s in _all()
    ]
