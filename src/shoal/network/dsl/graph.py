"""A scheme, and the plan that it compiles to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from shoal.core import BadInput

from .blocks import Block
from .program import Program, program_of

__all__ = ["Graph", "hosts"]


class Graph:
    """A scheme: building blocks, one after the other."""

    def __init__(self, *blocks: Block) -> None:
        self.blocks = blocks

    def __str__(self) -> str:
        return "; ".join(map(str, self.blocks))

    def program(self) -> Program:
        """What it means; see :func:`program_of`."""
        return program_of(self.blocks)

    def compile(
        self,
        *,
        endpoints: str | Path | Mapping[str, str] | None = None,
        network: Mapping[str, Any] | None = None,
        **plan: Any,
    ) -> dict[str, Any]:
        """The scheme as a plan in plain data, for :func:`shoal.run` and TOML files.

        Args:
            endpoints: names of the workers and where they live, a mapping or a JSON file of one.
            network: overrides the graph (complete, or the tree), the clock, ...
            plan: the plan's other fields: task, peers, seed, every, ...

        Raises:
            BadInput: blocks that do not fit together, or more workers than endpoints.
        """
        program = self.program()
        peers = (
            plan.pop("peers", None)
            or program.workers
            or (None if endpoints is None else len(hosts(endpoints)))
        )
        if endpoints is not None and peers is not None and peers > len(hosts(endpoints)):
            raise BadInput("endpoints", len(hosts(endpoints)), f"one for each of the {peers} workers")
        graph: Any = "complete"
        if program.tree is not None:
            graph = program.tree.spec()
        made: dict[str, Any] = {"graph": graph}
        rounds = program.rounds
        if program.asynchronous:
            made["clock"] = {"name": "poisson-peer", "group": False}
            rounds *= peers or 1  # a tick wakes one worker
        table: dict[str, Any] = {
            "method": {"name": "ffl-dsl", "scheme": str(self)},
            "network": {**made, **(network or {})},
            "rounds": rounds,
            **plan,
        }
        return table if peers is None else {**table, "peers": peers}


def hosts(endpoints: str | Path | Mapping[str, str]) -> dict[str, str]:
    """Where each worker lives, by its name, in the order of their numbers.

    Raises:
        BadInput: no such file, or not a JSON object of texts.
    """
    if isinstance(endpoints, Mapping):
        return dict(endpoints)
    try:
        return msgspec.json.decode(Path(endpoints).read_bytes(), type=dict[str, str])
    except OSError as error:
        raise BadInput("endpoints", str(endpoints), error.strerror or "not readable") from None
    except msgspec.DecodeError as error:
        raise BadInput("endpoints", str(endpoints), f'JSON {{"name": "host:port"}} ({error})') from None
