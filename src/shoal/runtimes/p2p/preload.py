"""Imported once, by the process that the peers' processes are forked from: every registered part."""

from __future__ import annotations

from shoal.core import attacks, clocks, codecs, methods, rules, tasks, topologies

for registry in (attacks, clocks, codecs, methods, rules, tasks, topologies):
    registry.classes()
