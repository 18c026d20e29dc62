"""What a scheme means: the actions of one round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shoal.core import BadInput
from shoal.network.graphs.tree import Tree

from .blocks import Block, Broadcast, Feedback, Kind, Parallel, Reduce, Wrapper

__all__ = ["Program", "Step", "program_of"]

Action = Literal["train", "test", "pool", "cast", "mix", "infer", "up"]


@dataclass(frozen=True)
class Step:
    """One action of a round: ``pool`` (workers to master), ``cast`` (back), ``mix`` (among workers),
    ``up`` (one level of the tree), or local work."""

    action: Action
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Program:
    """What a graph means.

    Args:
        steps: of one round.
        rounds: how often.
        workers: peers of the run; 0: any number.
        asynchronous: whether workers wait for each other.
        tree: who combines whose results, where there is a tree.
    """

    steps: tuple[Step, ...]
    rounds: int
    workers: int
    asynchronous: bool
    tree: Tree | None


def program_of(scheme: Sequence[Block]) -> Program:
    """The actions of a scheme.

    Raises:
        BadInput: blocks that do not fit together.
    """
    blocks = [b for b in scheme if not (isinstance(b, Wrapper) and b.kind == "init")]
    rounds, free = 1, False
    if len(blocks) == 1 and isinstance(blocks[0], Feedback):
        rounds, free = blocks[0].rounds, blocks[0].asynchronous
        blocks = list(blocks[0].body)
    inner = [b for b in blocks if isinstance(b, Feedback)]
    if inner:
        raise _wrong(inner[0], "alone, around all blocks but init")
    if not blocks:
        raise BadInput("scheme", "; ".join(map(str, scheme)), "at least one block")
    branching = _branching(blocks)
    if branching is not None:
        tree = Tree(branching)
        infer = Step("infer", _leaf(blocks).fields)
        ups = tuple(Step("up", {"level": level}) for level in range(len(branching), 0, -1))
        return Program((infer, *ups), rounds, sum(tree.levels), free, tree)
    return Program(tuple(_steps(blocks)), rounds, _workers(blocks), free, None)


def _wrong(block: Block, allowed: str) -> BadInput:
    return BadInput("scheme", str(block), allowed)


def _is(block: Block, kind: Kind) -> bool:
    return isinstance(block, Wrapper) and block.kind == kind


def _branching(blocks: Sequence[Block]) -> tuple[int, ...] | None:
    """Children per level of ``parallel(w)[...]; combine``, where the blocks are that."""
    if len(blocks) != 2 or not isinstance(blocks[0], Parallel) or not _is(blocks[1], "combine"):
        return None
    outer = blocks[0]
    if outer.workers < 1:
        raise _wrong(outer, "in a tree, with its number of workers: parallel(3)[...]")
    if len(outer.body) == 1 and _is(outer.body[0], "infer"):
        return (outer.workers,)
    deeper = _branching(outer.body)
    if deeper is None:
        raise _wrong(outer, "in a tree, parallel(w)[infer] or parallel(w)[parallel(...)[...]; combine]")
    return (outer.workers, *deeper)


def _leaf(blocks: Sequence[Block]) -> Wrapper:
    first = blocks[0]
    return first if isinstance(first, Wrapper) else _leaf(first.body)  # type: ignore[attr-defined]


def _workers(blocks: list[Block]) -> int:
    numbers = {b.workers for b in blocks if isinstance(b, Parallel) and b.workers}
    if len(numbers) > 1:
        raise BadInput("parallel", sorted(numbers), "one number of workers in all of a scheme")
    return max(numbers, default=0)


def _steps(blocks: list[Block]) -> list[Step]:
    """Master-worker and peer-to-peer rounds."""
    steps: list[Step] = []
    worked = reduced = False
    for block in blocks:
        if isinstance(block, Parallel):
            steps += _inside(block)
            worked, reduced = True, False
        elif isinstance(block, Reduce):
            if not worked or reduced:
                raise _wrong(block, "after a parallel, whose workers' models it reduces")
            steps.append(Step("pool", {"policy": block.policy}))
            reduced = True
        elif isinstance(block, Broadcast):
            if not reduced:
                raise _wrong(block, "after a reduce, whose result it hands down; or in a parallel")
            steps.append(Step("cast", {}))
            worked = reduced = False
        else:
            raise _wrong(block, "within a parallel; combine after parallel[infer]")
    if reduced:
        raise _wrong(blocks[-1], "followed by a broadcast, or the workers never see the result")
    return steps


def _inside(parallel: Parallel) -> list[Step]:
    steps: list[Step] = []
    told = False
    for block in parallel.body:
        if told != isinstance(block, Reduce):
            raise _wrong(block, "in a parallel, the pair broadcast; reduce(...)")
        if isinstance(block, Reduce):
            steps.append(Step("mix", {"policy": block.policy}))
        elif isinstance(block, Wrapper) and block.kind in ("train", "test"):
            steps.append(Step(block.kind, block.fields))
        elif not isinstance(block, Broadcast):
            raise _wrong(block, "train, test or broadcast; reduce (in a parallel without combine)")
        told = isinstance(block, Broadcast)
    if told or not steps:
        raise _wrong(parallel, "a parallel with work for its workers, every broadcast before a reduce")
    return steps
