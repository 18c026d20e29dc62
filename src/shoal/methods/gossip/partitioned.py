"""Partitioned gossip learning: peers send one random part of their model, with its age.

Source: Hegedus, Danner, Jelasity, "Decentralized learning works: an empirical comparison of gossip
learning and federated learning" (J. Parallel Distrib. Comput. 2021). Deviation: parts are equal runs of
columns, so that every message has the same size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Differentiable, Draws, Tick, methods

from .descent import Descent, Models

__all__ = ["Aged", "GossipLearning"]


@dataclass(frozen=True)
class Aged(Models):
    """Models x [P, D] and how many local steps are in each part of them: age [P, parts]."""

    age: Tensor


@methods.register("gossip-learning")
@dataclass(frozen=True)
class GossipLearning(Descent):
    """A received part is averaged with one's own, weighted by age; the age becomes the larger one.
    Local steps follow, which add to every part's age.

    Whom a peer hears is the graph's affair (``random-peer``: one random peer a tick). Which part it
    sends follows from seed, peer and tick, so that only the age travels beside it.

    Args:
        parts: S, pieces of the model.
    """

    parts: Annotated[int, Meta(ge=1)] = 10

    recipe: ClassVar[dict[str, Any]] = {
        "task": "supervised", "network": {"graph": "random-peer"}, "peers": 16, "rounds": 50,
    }  # fmt: skip

    def init(self, ctx: Context[Differentiable]) -> Aged:
        x = ctx.task.init(self.same_start)
        if self.parts > x.shape[1]:
            raise BadInput("parts", self.parts, f"at most {x.shape[1]}, the model's parameters")
        return Aged(x, torch.zeros(len(x), self.parts, dtype=x.dtype))

    def step(self, s: Aged, tick: Tick, ctx: Context[Differentiable]) -> Aged:
        everyone = Draws(ctx.seed, "gossip-learning/part", torch.arange(ctx.n), tick.index)
        sends = everyone.integers(self.parts, 1)[:, 0]
        peer, mine = torch.arange(len(s.x)), ctx.mine(sends)
        short = -s.x.shape[1] % self.parts
        x = torch.nn.functional.pad(s.x, (0, short)).reshape(len(s.x), self.parts, -1)
        age = s.age.clone()
        message = torch.cat([x[peer, mine], age[peer, mine][:, None]], 1)
        inbox = ctx.net.gather(message, tick, channel="part")
        for slot in range(inbox.index.shape[1]):
            row, heard = inbox.rows[inbox.index[:, slot]], inbox.mask[:, slot]
            part = sends[inbox.sender[:, slot].clamp(min=0)]
            own, theirs = age[peer, part], row[:, -1].clamp(min=0)
            total = own + theirs
            share = torch.where(total > 0, theirs / total.clamp(min=1e-30), 0.5) * heard
            x[peer, part] = torch.lerp(x[peer, part], row[:, :-1], share[:, None])
            age[peer, part] = torch.where(heard, torch.maximum(own, theirs), own)
        merged = x.reshape(len(s.x), -1)[:, : s.x.shape[1]]
        steps = self.local_steps if tick.steps is None else ctx.mine(tick.steps)
        took = (ctx.mine(tick.active) * steps).to(age.dtype)
        return Aged(self.local(merged, tick, ctx), age + took[:, None])
