"""The building blocks: plain objects whose ``str`` is their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from shoal.core import BadInput

__all__ = [
    "COMBINE", "INFER", "INIT", "TEST", "WORK", "Block", "Broadcast", "Feedback", "Kind", "Parallel",
    "Reduce", "Wrapper", "train",
]  # fmt: skip

Kind = Literal["init", "train", "test", "infer", "combine"]
WORK: tuple[Kind, ...] = ("init", "train", "test", "infer", "combine")


class Block:
    """Abstract: a building block. Its ``str`` is its text."""


def _fields(fields: Mapping[str, Any]) -> str:
    return f"({', '.join(f'{k}={_value(v)}' for k, v in fields.items())})" if fields else ""


def _value(value: Any) -> str:
    return msgspec.json.encode(value).decode()


class Wrapper(Block):
    """A piece of local work: ``Wrapper("train", epochs=2)``."""

    def __init__(self, kind: Kind, **fields: Any) -> None:
        if kind not in WORK:
            raise BadInput("wrapper", kind, f"one of {', '.join(WORK)}")
        self.kind, self.fields = kind, fields

    def __str__(self) -> str:
        return self.kind + _fields(self.fields)


def train(**fields: Any) -> Wrapper:
    """Local training; the fields are those of the hand-written FedAvg (epochs, batch, lr, ...)."""
    return Wrapper("train", **fields)


class Broadcast(Block):
    """One to all: the master to its workers; within ``Parallel`` each worker to its neighbours."""

    def __str__(self) -> str:
        return "broadcast"


class Reduce(Block):
    """All to one, by a policy: ``fedavg`` (weighted by examples), ``mean`` or the name of a rule."""

    def __init__(self, policy: str = "fedavg") -> None:
        self.policy = policy

    def __str__(self) -> str:
        return f"reduce({self.policy})"


class Parallel(Block):
    """Replicated workers (``workers`` 0: as many as the run has peers)."""

    def __init__(self, *body: Block, workers: int = 0) -> None:
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
            raise BadInput("parallel", workers, "a number of workers, 1 or more")
        self.body, self.workers = body, workers

    def __str__(self) -> str:
        return f"parallel{f'({self.workers})' if self.workers else ''}[{'; '.join(map(str, self.body))}]"


class Feedback(Block):
    """The body, ``rounds`` times; ``asynchronous``: each worker at its own random times."""

    def __init__(self, *body: Block, rounds: int, asynchronous: bool = False) -> None:
        if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
            raise BadInput("feedback", rounds, "a number of rounds, 1 or more")
        self.body, self.rounds, self.asynchronous = body, rounds, asynchronous

    def __str__(self) -> str:
        free = ", asynchronous=true" if self.asynchronous else ""
        return f"feedback({self.rounds}{free})[{'; '.join(map(str, self.body))}]"


INIT, TEST, INFER, COMBINE = Wrapper("init"), Wrapper("test"), Wrapper("infer"), Wrapper("combine")
