"""073 Just one byte: zeroth-order training in which a gradient is a single byte.

Source: "Just one byte (per gradient): a note on low-bandwidth decentralized language model
finetuning using shared randomness" (arXiv 2306.10015) and its repository. The byte is the codec
``log-byte``; without it the scalars travel as floats. Deviation: weights are never perturbed in
place, so there is no drift to repair by backups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import Context, Differentiable, Draws, Method, Tick, methods
from shoal.methods.gossip.descent import Models

__all__ = ["JustOneByte", "direction", "replay"]


def direction(seed: int, peers: Tensor, tick: int, dim: int, dtype: torch.dtype) -> Tensor:
    """The perturbations z [len(peers), dim] of some peers at a tick: anyone can regenerate them."""
    return Draws(seed, "one-byte/z", peers, tick).normal(dim, dtype=dtype)


def replay(x: Tensor, scalars: Tensor, tick: int, seed: int, lr: float) -> Tensor:
    """One update from the log: x [D], scalars [n] of that tick (NaN: not heard). Returns x' [D]."""
    z = direction(seed, torch.arange(len(scalars)), tick, x.shape[-1], x.dtype)
    return _update(x[None], scalars[None], z, lr)[0]


def _update(x: Tensor, scalars: Tensor, z: Tensor, lr: float) -> Tensor:
    heard = ~torch.isnan(scalars)
    told = torch.where(heard, scalars, 0.0).to(x.dtype)
    root = heard.sum(1, keepdim=True).clamp(min=1).to(x.dtype).sqrt()
    return x - lr * (told @ z) / root


@methods.register("just-one-byte")
@dataclass(frozen=True)
class JustOneByte(Method):
    """g = [L(x + eps z) - L(x - eps z)] / 2 eps, z from (seed, peer, tick); x <- x - lr sum g z / sqrt(N).

    Everyone must hear everyone (graph ``complete``); what some peers miss sets them apart.

    Args:
        lr: step size; the sum over N gradients is scaled by 1/sqrt(N), as in the authors' code.
        eps: size of the perturbation.
    """

    lr: Annotated[float, Meta(gt=0)] = 0.01
    eps: Annotated[float, Meta(gt=0)] = 1e-3

    connected: ClassVar[bool] = True
    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "digits",
            "partition": {"name": "dirichlet", "alpha": 0.5},
            "model": {"name": "mlp", "hidden": [32]},
        },
        "network": {"graph": "complete", "codec": "log-byte"},
        "peers": 8,
        "rounds": 400,
        "every": 20,
    }
    trial: ClassVar[dict[str, Any]] = {"network": {"graph": "complete", "codec": "log-byte"}}

    def init(self, ctx: Context[Differentiable]) -> Models:
        return Models(ctx.task.init())

    def step(self, s: Models, tick: Tick, ctx: Context[Differentiable]) -> Models:
        x, n = s.x, ctx.n
        z = direction(ctx.seed, torch.arange(n), tick.index, x.shape[1], x.dtype)
        mine = ctx.mine(z)
        up = ctx.task.loss(x + self.eps * mine, tick.index)
        down = ctx.task.loss(x - self.eps * mine, tick.index)
        g = ((up - down) / (2 * self.eps))[:, None]
        # A peer's own scalar goes through the codec too, or it alone would use an unrounded one.
        me = torch.arange(n)
        src, dst = torch.cat([tick.graph.src, me]), torch.cat([tick.graph.dst, me])
        acting = tick.active[src] & tick.active[dst]
        inbox = ctx.net.send(g, tick, src[acting], dst[acting])
        scalars = torch.full((len(x), n), torch.nan, dtype=x.dtype)
        row, slot = inbox.mask.nonzero(as_tuple=True)
        scalars[row, inbox.sender[row, slot]] = inbox.rows[inbox.index[row, slot], 0]
        return Models(_update(x, scalars, z, self.lr))
