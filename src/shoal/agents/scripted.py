"""SIMULATED agents: no model is asked. They run classical distributed algorithms.

Leader and consensus: flood-min, the lowest identifier heard of (and its proposal) is passed on in every
round. The others: who is whose neighbour is flooded, and each agent runs the algorithm on what it knows.
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
RESENT = 4


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


def _color(given: Given, graph: Graph, options: list[str]) -> str:
    return options[min(greedy_colors(graph)[given["name"]], len(options) - 1)]


def _cover(given: Given, graph: Graph, options: list[str]) -> str:
    return "Yes" if given["name"] in cover(graph) else "No"


def _match(given: Given, graph: Graph, options: list[str]) -> str:
    partner = handshakes(graph).get(given["name"], "None")
    return partner if partner in options else "None"


SOLVE: dict[str, Callable[[Given, Graph, list[str]], str]] = {
    "coloring": _color,
    "vertex-cover": _cover,
    "maximal-matching": _match,
}


class Simulated:
    """Flood-min, greedy colouring by identifier, handshake matching.

    Memory: ``lowest``: [identifier, proposal]; or ``known``: name -> neighbours, the first list that was
    heard, and ``fresh``: name -> rounds that it is still passed on. What is learnt is said in four rounds,
    in case a message is damaged.
    """

    simulated = "SIMULATED agents: classical algorithms, no model was asked"

    def start(self, given: Given) -> Memory:
        me = given["name"]
        if given["problem"] not in SOLVE:
            return {"lowest": [me, given["value"]]}
        return {"known": {me: given["neighbours"]}, "fresh": {me: RESENT}}

    def hear(self, memory: Memory, heard: dict[str, str]) -> Memory:
        said = [_read(text) for text in heard.values()]
        if "lowest" in memory:
            return {"lowest": min([memory["lowest"], *filter(_proposal, said)])}
        known = dict(memory["known"])
        fresh = {name: left - 1 for name, left in memory["fresh"].items() if left > 1}
        for news in said:
            for name, those in news.items() if isinstance(news, dict) else ():
                if name not in known and _names(those):
                    known[name], fresh[name] = those, RESENT
        return {"known": known, "fresh": fresh}

    def speak(self, given: Given, memory: Memory, word: int) -> str:
        if "lowest" in memory:
            return json.dumps(dict.fromkeys(given["neighbours"], json.dumps(memory["lowest"])))
        news = json.dumps({name: memory["known"][name] for name in memory["fresh"]})
        return json.dumps(dict.fromkeys(given["neighbours"], news) if memory["fresh"] else {})

    def answer(self, given: Given, memory: Memory, options: list[str], word: int) -> str:
        if given["problem"] == "leader-election":
            return "Yes" if memory["lowest"][0] == given["name"] else "No"
        if given["problem"] == "consensus":
            return str(memory["lowest"][1])
        return SOLVE[given["problem"]](given, memory["known"], options)


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


def _read(text: str) -> Any:
    """What a message says; None where it is damaged beyond reading."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _proposal(said: Any) -> bool:
    """Whether it has the form [identifier, 0 or 1]."""
    if not (isinstance(said, list) and len(said) == 2):
        return False
    return isinstance(said[0], str) and type(said[1]) is int and said[1] in {0, 1}


def _names(said: Any) -> bool:
    return isinstance(said, list) and all(isinstance(name, str) for name in said)
