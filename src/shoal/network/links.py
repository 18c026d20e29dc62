"""Links: latency, bandwidth, loss, corruption, partitions, and the simulated time they imply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws, Part

__all__ = ["LinkClock", "Links"]

_Chance = Annotated[float, Meta(ge=0, lt=1)]


@dataclass(frozen=True)
class Links(Part):
    """What happens to a message between two peers.

    Args:
        latency: seconds one way.
        bandwidth: bytes per second of each peer's uplink; messages to several neighbours queue.
        server_bandwidth: bytes per second of the server's up and down link.
        spread: log-normal sigma of the peers' bandwidths (0: all equal).
        loss: chance that a message is lost.
        both_ways: a lost link loses both directions (mixing then stays doubly stochastic).
        corruption: chance that a message arrives damaged. A ``checksum`` in the wire finds it out;
            without one, what still decodes to finite numbers is believed.
        step_time: seconds of one unit of local work (a gradient step) on a peer of speed 1.
        partition: (first tick, end tick, parts): the peers fall apart into that many groups of
            consecutive numbers in between; () for none.
    """

    latency: Annotated[float, Meta(ge=0)] = 0.02
    bandwidth: Annotated[float, Meta(gt=0)] = 1.25e6
    server_bandwidth: Annotated[float, Meta(gt=0)] = 1.25e7
    spread: Annotated[float, Meta(ge=0)] = 0.0
    loss: _Chance = 0.0
    both_ways: bool = True
    corruption: _Chance = 0.0
    step_time: Annotated[float, Meta(ge=0)] = 0.01
    partition: tuple[int, ...] = ()

    def check(self) -> None:
        if self.partition and (
            len(self.partition) != 3
            or not 0 <= self.partition[0] < self.partition[1]
            or self.partition[2] < 2
        ):
            raise BadInput("partition", self.partition, "(first tick, end tick, parts >= 2)")

    def up(self, src: Tensor, dst: Tensor, n: int, tick: int) -> Tensor:
        """Bool [E]: the edges that no partition cuts at this tick."""
        if not self.partition or not self.partition[0] <= tick < self.partition[1]:
            return torch.ones(len(src), dtype=torch.bool)
        parts = self.partition[2]
        return (src * parts // n) == (dst * parts // n)

    def _chance(self, seed: int, purpose: str, key: Tensor, tick: int) -> Tensor:
        return Draws(seed, purpose, key, tick).uniform(1)[:, 0]

    def lost(self, src: Tensor, dst: Tensor, seed: int, tick: int, hop: int, nodes: int) -> Tensor:
        """Bool [E]: the messages that are lost."""
        if self.loss == 0:
            return torch.zeros(len(src), dtype=torch.bool)
        one, two = (torch.minimum(src, dst), torch.maximum(src, dst)) if self.both_ways else (src, dst)
        return self._chance(seed, f"loss/{hop}", one * nodes + two, tick) < self.loss

    def damaged(self, src: Tensor, dst: Tensor, seed: int, tick: int, hop: int, nodes: int) -> Tensor:
        """Bool [E]: the messages that arrive with some bytes changed."""
        if self.corruption == 0:
            return torch.zeros(len(src), dtype=torch.bool)
        return self._chance(seed, f"corruption/{hop}", src * nodes + dst, tick) < self.corruption

    def damage(self, frames: Tensor, length: Tensor, key: Tensor, seed: int, tick: int) -> Tensor:
        """Frames (uint8 [M, B]) with one in every hundred bytes (at least one) replaced.

        Args:
            length: int64 [M], the bytes of each frame that are used.
            key: int64 [M], names each message (for the random numbers).
        """
        if not frames.shape[1]:
            return frames  # of a message that is nothing but single numbers, which travel exactly
        hits = max(1, frames.shape[1] // 100)
        draws = Draws(seed, "damage", key, tick)
        where = draws.integers(length, hits)
        byte = draws.at("byte").integers(255, hits) + 1
        out = frames.clone()
        # XOR with a non-zero byte always changes it; a byte hit twice is written once.
        out.scatter_(1, where, (frames.gather(1, where).to(torch.int64) ^ byte).to(torch.uint8))
        return out

    def bandwidths(self, n: int, seed: int) -> Tensor:
        """Uplink of each node, bytes/s: float64 [n + 1], the server last."""
        peers = Draws(seed, "bandwidth", torch.arange(n)).normal(1)[:, 0]
        each = self.bandwidth * torch.exp(self.spread * peers - self.spread**2 / 2)
        return torch.cat([each, torch.tensor([self.server_bandwidth], dtype=torch.float64)])


class LinkClock:
    """Simulated time by max-plus: a peer goes on when its work is done and its messages are in.

    Args:
        links: the link model.
        speed: float64 [n], relative computing speed.
        seed: of the run.
        peers: the peers whose time is kept here (a slice of 0 .. n-1), and the server's.
    """

    def __init__(self, links: Links, speed: Tensor, seed: int, peers: slice) -> None:
        n = len(speed)
        self.links, self.peers = links, peers
        self.speed = speed[peers]
        self.rate = links.bandwidths(n, seed)
        self.now = torch.zeros(n + 1, dtype=torch.float64)
        self.seen = torch.zeros(len(self.speed), dtype=torch.float64)

    def work(self, spent: Tensor) -> None:
        """Local work up to ``spent`` [P] has been done: time passes on each peer."""
        self.now[self.peers] += (spent - self.seen) * self.links.step_time / self.speed
        self.seen = spent.clone()

    def leave(self, src: Tensor, size: Tensor) -> Tensor:
        """When messages of ``size`` bytes [E] have left, their senders starting now: float64 [n + 1]."""
        sent = torch.zeros_like(self.now).index_add_(0, src, size.to(torch.float64))
        return self.now + sent / self.rate

    def arrive(self, dst: Tensor, left: Tensor, inward: int) -> None:
        """Messages that ``left`` [E] are awaited by ``dst``; ``inward`` bytes of them by the server.

        The server's downlink is shared: what it receives queues there.
        """
        if not len(dst):
            return
        self.now = self.now.scatter_reduce(0, dst, left + self.links.latency, "amax")
        self.now[-1] += inward / self.rate[-1]

    @property
    def latest(self) -> float:
        """When the last peer kept here is done."""
        return float(self.now[self.peers].max())
