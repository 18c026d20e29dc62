"""The actors of a run: placed by Ray, asked together, replaced when they die."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from shoal.core import RunFailed
from shoal.runtimes.base import Plan

from .block import Block, Said, Seat

__all__ = ["Group", "Loss"]

GRACE = 10.0
"""Seconds that blocks have to notice that another is gone, before they are ended too."""


class Loss(Exception):
    """Some blocks are gone.

    Args:
        dead: their numbers; none where only connections broke.
        why: in words.
    """

    def __init__(self, dead: Sequence[int], why: str) -> None:
        self.dead, self.why = list(dead), why
        super().__init__(why)


class Group:
    """The blocks of one run.

    Args:
        ray: the module, connected.
        plan: the run.
        blocks: how many.
        threads: of torch, in each.
        patience: seconds to wait until all of them have a place.
        gpus: of each block.
        apart: whether they may be on several machines.
    """

    def __init__(
        self,
        ray: ModuleType,
        plan: Plan,
        blocks: int,
        *,
        threads: int,
        patience: float,
        gpus: int,
        apart: bool,
    ) -> None:
        self.ray, self.plan, self.patience, self.apart = ray, plan, patience, apart
        self.threads = threads
        self.kind = ray.remote(num_cpus=1, num_gpus=gpus, scheduling_strategy="SPREAD")(_Actor)
        self.actors: list[Any] = [None] * blocks
        for name, module in list(sys.modules.items()):
            if name.startswith("shoal_user_"):  # the user's own files: not installed where actors run
                ray.cloudpickle.register_pickle_by_value(module)

    def place(self) -> list[int]:
        """Start the actors that are missing.

        Returns:
            The blocks for which there is no place (they are dropped from the group).
        """
        new = [i for i, actor in enumerate(self.actors) if actor is None]
        for i in new:
            self.actors[i] = self.kind.remote(self.plan, self.threads, str(Path.cwd()), self.apart)
        ready = {i: self.actors[i].ready.remote() for i in new}
        self.ray.wait(list(ready.values()), num_returns=len(ready), timeout=self.patience)
        absent = []
        for i, ref in ready.items():
            done, _ = self.ray.wait([ref], timeout=0)
            if not done or self._died(ref):
                self.ray.kill(self.actors[i])
                absent.append(i)
        self.actors = [actor for i, actor in enumerate(self.actors) if i not in absent]
        return absent

    def sit(
        self,
        sizes: Sequence[int],
        backend: str,
        timeout: float,
        gone: Sequence[tuple[int, torch.Tensor]],
        start: Mapping[str, Any] | None,
    ) -> list[Said]:
        """All take up the run, in a new process group.

        Raises:
            Loss: one died meanwhile.
        """
        try:
            meet = self.ray.get(self.actors[0].host.remote())
        except self.ray.exceptions.RayActorError as error:
            raise Loss([0], _reason(error)) from None
        given = self.ray.put(start)
        seats = [Seat(i, sizes, meet, backend, timeout, gone) for i in range(len(sizes))]
        return self.gather(
            [actor.sit.remote(seat, given) for actor, seat in zip(self.actors, seats, strict=True)]
        )

    def advance(self, until: int, keep: bool) -> list[Any]:
        """Ask all to run until ``until`` ticks are done; what to :meth:`gather`."""
        return [actor.advance.remote(until, keep) for actor in self.actors]

    def gather(self, asked: Sequence[Any]) -> list[Said]:
        """What all blocks answer.

        Raises:
            Loss: some are gone. All that are left have then left their group, or been ended.
            RunFailed: a block's method could not go on.
        """
        waiting, told, why = dict(enumerate(asked)), {}, ""
        dead: list[int] = []
        while waiting:
            limit = GRACE if why else None
            done, _ = self.ray.wait(list(waiting.values()), num_returns=1, timeout=limit)
            if not done:  # they hang in a call that nobody will answer
                for i in waiting:
                    self._end(i)
                dead += waiting
                break
            i = next(i for i, ref in waiting.items() if ref == done[0])
            ref = waiting.pop(i)
            try:
                told[i] = self.ray.get(ref)
                if told[i].failed:
                    raise RunFailed(told[i].failed)
                why = why or told[i].lost
            except self.ray.exceptions.RayActorError as error:
                why = _reason(error)
                dead.append(i)
                self._end(i)
        if why:
            raise Loss(sorted(dead), why)
        return [told[i] for i in range(len(asked))]

    def drop(self, blocks: Sequence[int]) -> None:
        """Go on without these blocks."""
        self.actors = [actor for i, actor in enumerate(self.actors) if i not in blocks]

    def close(self) -> None:
        """End all actors."""
        for i, actor in enumerate(self.actors):
            if actor is not None:
                self._end(i)

    def _end(self, block: int) -> None:
        self.ray.kill(self.actors[block])
        self.actors[block] = None

    def _died(self, ref: Any) -> bool:
        try:
            self.ray.get(ref)
        except self.ray.exceptions.RayActorError:
            return True
        return False


class _Actor(Block):
    """A block that can tell where it is."""

    def __init__(self, plan: Plan, threads: int, cwd: str, apart: bool) -> None:
        import ray

        super().__init__(plan, threads, cwd, ray.util.get_node_ip_address() if apart else "")

    def ready(self) -> int:
        """The number of its process."""
        return os.getpid()


def _reason(error: Exception) -> str:
    """Ray's report of a death in words: it is a page long."""
    return "its machine is gone" if "node died" in str(error).lower() else "its process died"
