"""Agent: somebody who hears texts, says texts and gives an answer in the end. The contract."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Agent", "Given", "Memory"]

Given = dict[str, Any]
"""What an agent knows of itself at the start: ``name``, ``neighbours`` (names), ``degree`` (the largest
of the graph), ``value`` (what it proposes), ``problem`` (slug), ``text`` (all that in words)."""
Memory = dict[str, Any]
"""What an agent remembers: a JSON-like value, so that a run can be saved."""


class Agent(Protocol):
    """One way to be an agent; holds nothing itself. ``word`` is a random number in [0, 2^32)."""

    simulated: str
    """What a reader of the report must know; empty for models."""

    def start(self, given: Given) -> Memory: ...

    def hear(self, memory: Memory, heard: dict[str, str]) -> Memory:
        """The memory after a round's messages, by the sender's name. Never changes ``memory``."""

    def speak(self, given: Given, memory: Memory, word: int) -> str:
        """JSON text: an object {neighbour: text}."""

    def answer(self, given: Given, memory: Memory, options: list[str], word: int) -> str: ...
