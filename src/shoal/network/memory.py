"""What the two ends of a link remember, so that differences can be sent instead of whole models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Copies", "Memory"]


@dataclass
class Copies:
    """Replicas of senders that live elsewhere, by their numbers.

    Args:
        ids: int64 [M], ascending.
        version: int64 [M], of each copy.
        rows: [M, D].
    """

    ids: Tensor
    version: Tensor
    rows: Tensor

    def add(self, ids: Tensor) -> None:
        """Make room for senders not heard before; their replica is 0, version 0, until they speak."""
        new = ids[~torch.isin(ids, self.ids)]
        if len(new):
            both = torch.cat([self.ids, new])
            order = torch.argsort(both)
            zero = torch.zeros(len(new), dtype=torch.int64)
            self.ids = both[order]
            self.version = torch.cat([self.version, zero])[order]
            self.rows = torch.cat([self.rows, self.rows.new_zeros(len(new), self.rows.shape[1])])[order]

    def at(self, ids: Tensor) -> Tensor:
        """The places of ``ids``, all of which are held."""
        return torch.searchsorted(self.ids, ids)


class Memory:
    """Public replicas (for gossip) and residuals (for pooling), by channel.

    A *replica* x^_j is what j's listeners know of j: j sends C(x_j - x^_j) and all add it. Nothing
    that compression drops is lost, it stays in the difference (CHOCO; Koloskova et al. 2019). A
    listener that missed a message (loss, a new edge, a partition) is out of step: the next message
    to it carries the whole replica, and is metered as such.

    A *residual* e_i is what was dropped from i's last update towards an aggregator, added to the
    next one (error feedback; Seide et al. 2014, Karimireddy et al. 2019).
    """

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.state: dict[str, Tensor] = {}
        self._shipped: dict[str, Tensor] = {}
        self._copies: dict[str, Copies] = {}

    def rows(self, kind: str, channel: str, n: int, dim: int, dtype: torch.dtype) -> Tensor:
        """The replicas or residuals [n, dim] of a channel (0 at first)."""
        name = f"{kind}/{channel}"
        held = self.state.get(name)
        if held is None or held.shape[1] != dim:
            held = self.state[name] = torch.zeros(n, dim, dtype=dtype)
        return held

    def in_step(self, channel: str, src: Tensor, dst: Tensor) -> Tensor:
        """Bool [E]: the receivers that hold the sender's present replica."""
        version = self.version(channel)[src]
        keys, known = self._known(channel)
        wanted = dst * self.nodes + src
        if not len(keys):
            return version == 0
        at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return version == torch.where(keys[at] == wanted, known[at], torch.zeros_like(version))

    def spoke(self, channel: str, senders: Tensor, src: Tensor, dst: Tensor) -> None:
        """``senders`` broadcast once; over the edges ``src -> dst`` the message arrived."""
        version = self.version(channel)
        version[senders] += 1
        keys, known = self._known(channel)
        wanted = dst * self.nodes + src
        if len(keys) == len(wanted) and torch.equal(keys, wanted):
            self.state[f"known/{channel}"] = version[src]
            return
        old = ~torch.isin(keys, wanted)
        keys, known = torch.cat([keys[old], wanted]), torch.cat([known[old], version[src]])
        order = torch.argsort(keys)
        self.state[f"keys/{channel}"] = keys[order]
        self.state[f"known/{channel}"] = known[order]

    def forget(self, block: int, nodes: Tensor) -> None:
        """This block, where ``nodes`` live, may have missed something: they are out of step."""
        for name, keys in list(self.state.items()):
            if name.startswith("keys/"):
                known = self.state[f"known/{name[5:]}"]
                known[torch.isin(keys // self.nodes, nodes)] = -1
        for versions in self._shipped.values():
            versions[block] = -1

    def shipped(self, channel: str, blocks: int, peers: int) -> Tensor:
        """The version of each own peer's replica that each other block holds: int64 [blocks, peers]."""
        if channel not in self._shipped:
            fresh = torch.zeros(blocks, peers, dtype=torch.int64)
            # After a resumption nobody's copies are known: the first message carries the whole.
            self._shipped[channel] = fresh - 1 if f"version/{channel}" in self.state else fresh
        return self._shipped[channel]

    def copies(self, channel: str, ids: Tensor, dim: int, dtype: torch.dtype) -> Copies:
        """What this block holds of the replicas of ``ids`` (int64 [S]), senders of other blocks."""
        held = self._copies.get(channel)
        if held is None or held.rows.shape[1] != dim:
            none = torch.zeros(0, dtype=torch.int64)
            held = self._copies[channel] = Copies(none, none, torch.zeros(0, dim, dtype=dtype))
        held.add(ids)
        return held

    def version(self, channel: str) -> Tensor:
        """How often each node has spoken: int64 [nodes]."""
        return self.state.setdefault(f"version/{channel}", torch.zeros(self.nodes, dtype=torch.int64))

    def _known(self, channel: str) -> tuple[Tensor, Tensor]:
        empty = torch.zeros(0, dtype=torch.int64)
        return self.state.get(f"keys/{channel}", empty), self.state.get(f"known/{channel}", empty)
