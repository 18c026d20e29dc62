"""What the two ends of a link remember, so that differences can be sent instead of whole models."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Memory"]


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

    def rows(self, kind: str, channel: str, n: int, dim: int, dtype: torch.dtype) -> Tensor:
        """The replicas or residuals [n, dim] of a channel (0 at first)."""
        name = f"{kind}/{channel}"
        held = self.state.get(name)
        if held is None or held.shape[1] != dim:
            held = self.state[name] = torch.zeros(n, dim, dtype=dtype)
        return held

    def in_step(self, channel: str, src: Tensor, dst: Tensor) -> Tensor:
        """Bool [E]: the receivers that hold the sender's present replica."""
        version = self._version(channel)[src]
        keys, known = self._known(channel)
        wanted = dst * self.nodes + src
        if not len(keys):
            return version == 0
        at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return version == torch.where(keys[at] == wanted, known[at], torch.zeros_like(version))

    def spoke(self, channel: str, senders: Tensor, src: Tensor, dst: Tensor) -> None:
        """``senders`` broadcast once; over the edges ``src -> dst`` the message arrived."""
        version = self._version(channel)
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

    def _version(self, channel: str) -> Tensor:
        return self.state.setdefault(f"version/{channel}", torch.zeros(self.nodes, dtype=torch.int64))

    def _known(self, channel: str) -> tuple[Tensor, Tensor]:
        empty = torch.zeros(0, dtype=torch.int64)
        return self.state.get(f"keys/{channel}", empty), self.state.get(f"known/{channel}", empty)
