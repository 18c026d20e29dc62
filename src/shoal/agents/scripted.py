"""SIMULATED agents: no model is asked. They flood what they know and run classical algorithms on it.

After r rounds an agent knows all that lies within r hops, so with as many rounds as the graph's diameter
everyone computes the same solution (Linial, "Locality in distributed graph algorithms", 1992).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .base import Given, Memory

__all__ = ["Guessing", "Silent", "Simulated", "cover", "greedy_colors", "handshakes"]

Graph = dict[str, list[str]]
RESENT = 2


def greedy_colors(graph: Graph) -> dict[str, int]:
    """Each agent in the order of identifiers takes the lowest colour that no neighbour has."""
    color: dict[str, int] = {}
    for name in sorted(graph):
        taken = {color[b] for b in graph[name] if b in color}
        color[name] = next(c for c in range(len(taken) + 1) if c not in taken)
    return color


def cover(graph: Graph) -> set[str]:
    """All but the maximal independent set that is greedy by identifier: a minimal vertex cover."""
    alone: set[str] = set()
    for name in sorted(graph):
        if not alone.intersection(graph[name]):
            alone.add(name)
    return set(graph) - alone


def handshakes(graph: Graph) -> dict[str, str]:
    """Each free agent offers its hand to the free neighbour of the lowest identifier; who offer to each
    other are a couple; and so on, until nobody can. A maximal matching."""
    couple: dict[str, str] = {}
    while True:
        offer = {
            a: min(free)
            for a, those in graph.items()
            if a not in couple and (free := [b for b in those if b in graph and b not in couple])
        }
        new = {a: b for a, b in offer.items() if offer.get(b) == a}
        if not new:
            return couple
        couple |= new


def _color(given: Given, known: Memory, graph: Graph, options: list[str]) -> str:
    return options[min(greedy_colors(graph)[given["name"]], len(options) - 1)]


def _cover(given: Given, known: Memory, graph: Graph, options: list[str]) -> str:
    return "Yes" if given["name"] in cover(graph) else "No"


def _match(given: Given, known: Memory, graph: Graph, options: list[str]) -> str:
    partner = handshakes(graph).get(given["name"], "None")
    return partner if partner in options else "None"


def _elect(given: Given, known: Memory, graph: Graph, options: list[str]) -> str:
    return "Yes" if given["name"] == min(known) else "No"


def _agree(given: Given, known: Memory, graph: Graph, options: list[str]) -> str:
    return str(known[min(known)][0])


SOLVE: dict[str, Callable[[Given, Memory, Graph, list[str]], str]] = {
    "coloring": _color,
    "vertex-cover": _cover,
    "maximal-matching": _match,
    "leader-election": _elect,
    "consensus": _agree,
}


class Simulated:
    """Flood-min, greedy colouring by identifier, handshake matching.

    Memory: ``known``: name -> [value, neighbours], the first that was heard; ``fresh``: name -> rounds
    that it is still passed on. What is learnt is said in two rounds, in case a message is damaged.
    """

    simulated = "SIMULATED agents: classical algorithms, no model was asked"

    def start(self, given: Given) -> Memory:
        me = given["name"]
        return {"known": {me: [given["value"], given["neighbours"]]}, "fresh": {me: RESENT}}

    def hear(self, memory: Memory, heard: dict[str, str]) -> Memory:
        known = dict(memory["known"])
        fresh = {name: left - 1 for name, left in memory["fresh"].items() if left > 1}
        for text in heard.values():
            for name, entry in _entries(text).items():
                if name not in known:
                    known[name], fresh[name] = entry, RESENT
        return {"known": known, "fresh": fresh}

    def speak(self, given: Given, memory: Memory, word: int) -> str:
        news = json.dumps({name: memory["known"][name] for name in memory["fresh"]})
        return json.dumps(dict.fromkeys(given["neighbours"], news) if memory["fresh"] else {})

    def answer(self, given: Given, memory: Memory, options: list[str], word: int) -> str:
        known = memory["known"]
        graph = {name: entry[1] for name, entry in known.items()}
        return SOLVE[given["problem"]](given, known, graph, options)


class Silent(Simulated):
    """The same without messages: each decides from what it knows at the start."""

    simulated = "SIMULATED agents that say nothing"

    def speak(self, given: Given, memory: Memory, word: int) -> str:
        return "{}"


class Guessing(Silent):
    """Random valid answers."""

    simulated = "SIMULATED agents that answer at random"

    def answer(self, given: Given, memory: Memory, options: list[str], word: int) -> str:
        return options[word * len(options) >> 32]


def _entries(text: str) -> dict[str, list[Any]]:
    """What a message says of others: the entries that have the right form (it may be damaged)."""
    try:
        said = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(said, dict):
        return {}
    return {name: entry for name, entry in said.items() if _sound(entry)}


def _sound(entry: Any) -> bool:
    if not (isinstance(entry, list) and len(entry) == 2 and entry[0] in {0, 1}):
        return False
    return isinstance(entry[1], list) and all(isinstance(b, str) for b in entry[1])
