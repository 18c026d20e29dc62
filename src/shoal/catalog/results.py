"""The record of one check: what was measured on which seeds, and whether the claim holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from shoal.core import BadInput

__all__ = ["Measured", "Relation", "Result", "read_result", "results_dir", "save_result"]

Relation = Literal[">=", "<=", "=="]


class Measured(msgspec.Struct, forbid_unknown_fields=True):
    """One quantity over the seeds.

    Args:
        per_seed: its value for each seed; NaN (null in the file) where that run failed.
        mean: over the seeds; NaN where a seed has no value.
        threshold, relation, holds: the bound that it is judged by; None for figures that are only
            printed.
        published: what the paper reports, in words.
    """

    per_seed: list[float | None]
    mean: float | None
    threshold: float | None = None
    relation: Relation | None = None
    holds: bool | None = None
    published: str | None = None


class Result(msgspec.Struct, forbid_unknown_fields=True):
    """One check of one system. ``holds`` only where every bound does.

    Args:
        system: its slug.
        number: in the catalogue.
        claim: the sentence that is checked.
        seeds: in the order of every ``per_seed``.
        measured: name -> figures.
        holds: all bounds hold.
        commit: the code that was run.
        date: ISO date, UTC.
        config: the sizes and hyper-parameters of all arms.
        wall_s: seconds.
        notes: what a reader must know (smaller scale, simulated responders, seeds that failed).
    """

    system: str
    number: int
    claim: str
    seeds: list[int]
    measured: dict[str, Measured]
    holds: bool
    commit: str
    date: str
    config: dict[str, Any]
    wall_s: float
    notes: list[str]

    def plain(self) -> dict[str, Any]:
        """The same as plain data, as the file holds it (but NaN for null)."""
        return cast(dict[str, Any], msgspec.to_builtins(self))


def results_dir() -> Path:
    """Where the results of the checks lie: ``results/checks`` of the source tree that this package
    runs from, else the copy inside the installed package. The folder need not exist."""
    here = Path(__file__).resolve().parent
    root = here.parents[2]
    if (root / "pyproject.toml").is_file() and here == root / "src" / "shoal" / "catalog":
        return root / "results" / "checks"
    return here / "results"


def save_result(result: Result | dict[str, Any], folder: Path | None = None) -> Path:
    """Write ``SLUG.json`` into the folder (default: :func:`results_dir`; made where missing), whole or
    not at all. Values that are not finite are written as null."""
    told = result if isinstance(result, Result) else msgspec.convert(result, Result)
    folder = results_dir() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{told.system}.json"
    part = path.with_name(path.name + ".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")
    part.replace(path)
    return path


def read_result(path: Path) -> Result:
    """Read what :func:`save_result` wrote.

    Raises:
        BadInput: missing, damaged, or of another system than its name says.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Result)
    except (OSError, msgspec.MsgspecError) as error:
        raise BadInput("result", str(path), f"not a readable check result ({error})") from None
    if found.system != path.stem:
        raise BadInput("result", str(path), f"is of system {found.system}")
    failing = [name for name, m in found.measured.items() if m.holds is False]
    if found.holds and failing:
        raise BadInput("result", str(path), f"says that the claim holds, but {failing[0]} does not")
    return found
