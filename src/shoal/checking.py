"""``shoal check``: measure claims and say whether they hold."""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from shoal.catalog.claims import claimed, run_claim
from shoal.catalog.results import save_result
from shoal.core import BadInput

__all__ = ["check_systems"]


def check_systems(
    slugs: list[str],
    *,
    everything: bool = False,
    seeds: int = 3,
    first_seed: int = 10,
    save: bool = False,
    as_json: bool = False,
) -> bool:
    """Check systems one after the other and print what was measured.

    Returns:
        Whether every claim holds.
    """
    from rich.console import Console
    from rich.table import Table

    known = claimed()
    if not slugs and not everything:
        raise BadInput("systems", [], "name at least one system, or give --all")
    for slug in slugs:
        if slug not in known:
            raise BadInput("system", slug, f"has no check; those that do: {', '.join(known)}")
    console = Console(stderr=as_json)
    holds = True
    for slug in known if everything else slugs:

        def progress(text: str, share: float, slug: str = slug) -> None:
            console.print(f"[dim]{slug}: {text} ({share:.0%})[/]")

        result = run_claim(slug, range(first_seed, first_seed + seeds), progress)
        holds &= bool(result["holds"])
        if save:
            save_result(result)
        table = Table("quantity", "per seed", "mean", "claim", "published", "", box=None)
        for name, told in result["measured"].items():
            bound = f"{told['relation']} {told['threshold']:g}" if told.get("relation") else ""
            mark = "" if not bound else "[green]holds[/]" if told["holds"] else "[red]does not hold[/]"
            each = ", ".join(f"{v:.4g}" for v in told["per_seed"])
            table.add_row(name, each, f"{told['mean']:.4g}", bound, told.get("published") or "", mark)
        verdict = "[green]holds[/]" if result["holds"] else "[red]does not hold[/]"
        console.print(f"[bold]{slug}[/] {verdict}: {result['claim']}")
        console.print(table)
        if as_json:
            sys.stdout.write(json.dumps(_line(result)) + "\n")
            sys.stdout.flush()
    return holds


def _line(result: dict[str, Any]) -> dict[str, Any]:
    told = {k: result[k] for k in ("system", "claim", "measured", "holds")}
    return msgspec.json.decode(msgspec.json.encode(told))  # what is not finite becomes null
