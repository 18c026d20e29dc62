"""Energy that the processor's packages used, where the kernel shows its counters (RAPL).

Source: the power capping framework of Linux, ``/sys/class/powercap``; counters are in microjoules and
start again from 0 at ``max_energy_range_uj``. They count everything that runs on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["POWERCAP", "counters", "joules"]

POWERCAP = Path("/sys/class/powercap")

Counters = Mapping[str, tuple[int, int]]
"""Package -> (microjoules, where the counter starts again)."""


def counters(folder: Path = POWERCAP) -> Counters:
    """The packages' counters now; empty where the kernel shows none, or not to this user."""
    found = {}
    for zone in sorted(folder.glob("*-rapl:*")):
        if zone.name.count(":") > 1:  # a part of a package is counted with it
            continue
        try:
            now = int((zone / "energy_uj").read_text())
            found[zone.name] = (now, int((zone / "max_energy_range_uj").read_text()))
        except (OSError, ValueError):
            continue
    return found


def joules(before: Counters, after: Counters) -> float | None:
    """Joules between two readings; None: not measured. A counter may have started again once."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[k][0] - before[k][0]) % (after[k][1] + 1) for k in before) / 1e6
