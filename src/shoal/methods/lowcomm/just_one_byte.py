"""073 Just one byte: zeroth-order training in which a gradient is a single byte.

Source: "Just one byte (per gradient): a note on low-bandwidth decentralized language model
finetuning using shared randomness" (arXiv 2306.10015) and its repository. The byte is the codec
``log-byte``; without it the scalars travel as floats. Deviation: weights are never perturbed in
place, so there is no drift to repair by backups.

Everyone hears every scalar and regenerates every perturbation, so all models stay the same, bit for
bit. A peer that was away, or whose model's hash is not the most common one, asks whoever knows most
and replays the log of scalars from the common start.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Differentiable, Draws, Method, Tick, methods
from shoal.wire.log_byte import LogByte

__all__ = ["JustOneByte", "Tuned", "direction", "read_log", "replay", "write_log"]


@dataclass(frozen=True)
class Tuned:
    """What the peers hold.

    Args:
        x: [P, D], their models.
        told: [P, T, n], the scalars of every tick and peer; 0 where not heard.
        heard: bool [P, T, n].
        version: int64 [P], ticks that the model has seen; -1: it is known to be wrong.
    """

    x: Tensor
    told: Tensor
    heard: Tensor
    version: Tensor


def direction(seed: int, peers: Tensor, tick: int, dim: int, dtype: torch.dtype) -> Tensor:
    """The perturbations z [len(peers), dim] of some peers at a tick: anyone can regenerate them."""
    return Draws(seed, "one-byte/z", peers, tick).normal(dim, dtype=dtype)


def _update(x: Tensor, told: Tensor, heard: Tensor, z: Tensor, lr: float) -> Tensor:
    root = heard.sum(1).clamp(min=1).to(x.dtype).sqrt()
    scale = torch.where(heard, told, 0.0).to(x.dtype) * (lr / root[:, None])
    # One sender after the other: the sum is the same, bit for bit, for any number of peers at once.
    out = x.clone()
    for sender in range(len(z)):
        out -= scale[:, sender, None] * z[sender]
    return out


def replay(x: Tensor, told: Tensor, heard: Tensor, seed: int, lr: float, first: int = 0) -> Tensor:
    """The updates of a log, told and heard [T, n], from tick ``first`` on: x [D] -> [D]."""
    everyone = torch.arange(told.shape[1])
    for at in range(len(told)):
        if bool(heard[at].any()):
            z = direction(seed, everyone, first + at, len(x), x.dtype)
            x = _update(x[None], told[at][None], heard[at][None], z, lr)[0]
    return x


def write_log(told: Tensor, heard: Tensor) -> dict[str, Any]:
    """A log [T, n] as a message: a byte a scalar where that says it exactly, else a float."""
    ticks, n = told.shape
    value = told.masked_fill(~heard, torch.nan).reshape(1, -1)
    draws = Draws(0, "log", torch.zeros(1, dtype=torch.int64))
    byte = LogByte().encode(value, draws, [])[1]
    exact = LogByte().decode(value[:, :0], byte, value.shape[1], draws, [])
    same = torch.equal(torch.nan_to_num(exact, nan=0.0), torch.nan_to_num(value, nan=0.0))
    data = byte[0] if same else value
    return {"ticks": ticks, "peers": n, "data": data.numpy().tobytes()}


def read_log(message: Any, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inverse of :func:`write_log`: (told, heard), [T, n] each.

    Raises:
        BadInput: no such message, peers that do not exist, missing ticks, a byte count unlike T n.
    """
    ticks, peers, data = ((message.get(k) for k in ("ticks", "peers", "data"))
                          if isinstance(message, dict) else (None, None, None))  # fmt: skip
    if type(ticks) is not int or ticks < 0 or not isinstance(data, bytes):
        raise BadInput("log", message, "ticks, peers and data")
    if peers != n:
        raise BadInput("log.peers", peers, f"the run's {n} peers: others are unknown")
    count = ticks * n
    if len(data) == count:
        byte = torch.from_numpy(np.frombuffer(data, np.uint8).copy())[None]
        draws = Draws(0, "log", torch.zeros(1, dtype=torch.int64))
        value = LogByte().decode(torch.empty(1, 0, dtype=dtype), [byte], count, draws, [])[0]
    elif len(data) == count * dtype.itemsize:
        value = torch.frombuffer(bytearray(data), dtype=dtype)
    else:
        raise BadInput("log.data", len(data), f"a byte (or a float) for each of {ticks} x {n}: no gaps")
    heard = torch.isfinite(value)
    return torch.where(heard, value, 0.0).reshape(ticks, n), heard.reshape(ticks, n)


@methods.register("just-one-byte")
@dataclass(frozen=True)
class JustOneByte(Method):
    """g = [L(x + eps z) - L(x - eps z)] / 2 eps, z from (seed, peer, tick); x <- x - lr sum g z / sqrt(N).

    Everyone must hear everyone (graph ``complete``); what some peers miss sets them apart until the
    next agreement.

    Args:
        lr: step size; the sum over N gradients is scaled by 1/sqrt(N), as in the authors' code.
        eps: size of the perturbation.
        agree: ticks between two exchanges of hashes; 0: never.
        join: what a peer that was away fetches: the log of scalars, or the weights (no log is kept).
    """

    lr: Annotated[float, Meta(gt=0)] = 0.01
    eps: Annotated[float, Meta(gt=0)] = 1e-3
    agree: Annotated[int, Meta(ge=0)] = 64
    join: Literal["replay", "weights"] = "replay"

    connected: ClassVar[bool] = True
    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "digits",
            "partition": {"name": "dirichlet", "alpha": 0.5},
            "model": {"name": "mlp", "hidden": [32]},
            "batch": 16,
            "pretrained": 5,
        },
        "network": {"graph": "complete", "codec": "log-byte"},
        "peers": 8,
        "rounds": 400,
        "every": 20,
    }
    trial: ClassVar[dict[str, Any]] = {
        "network": {"graph": "complete", "codec": "log-byte"},
        "method": {"agree": 2},
    }

    def init(self, ctx: Context[Differentiable]) -> Tuned:
        rows, kept = len(ctx.peers), ctx.total if self.join == "replay" else 0
        return Tuned(
            x=ctx.task.init(),
            told=torch.zeros(rows, kept, ctx.n, dtype=ctx.dtype),
            heard=torch.zeros(rows, kept, ctx.n, dtype=torch.bool),
            version=torch.zeros(rows, dtype=torch.int64),
        )

    def step(self, s: Tuned, tick: Tick, ctx: Context[Differentiable]) -> Tuned:
        s, ready = self._catch_up(s, tick, ctx)
        n = ctx.n
        z = direction(ctx.seed, torch.arange(n), tick.index, s.x.shape[1], s.x.dtype)
        mine = ctx.mine(z)
        up = ctx.task.loss(s.x + self.eps * mine, tick.index)
        down = ctx.task.loss(s.x - self.eps * mine, tick.index)
        # Who is not up to date has nothing to say; the wire refuses what is not a number.
        g = torch.where(ready, (up - down) / (2 * self.eps), torch.nan)[:, None]
        # A peer's own scalar goes through the codec too, or it alone would use an unrounded one.
        me = torch.arange(n)
        src, dst = torch.cat([tick.graph.src, me]), torch.cat([tick.graph.dst, me])
        acting = tick.active[src] & tick.active[dst]
        inbox = ctx.net.send(g, tick, src[acting], dst[acting])
        told = torch.zeros(len(g), n, dtype=g.dtype)
        heard = torch.zeros(len(g), n, dtype=torch.bool)
        row, slot = inbox.mask.nonzero(as_tuple=True)
        told[row, inbox.sender[row, slot]] = inbox.rows[inbox.index[row, slot], 0]
        heard[row, inbox.sender[row, slot]] = True
        heard &= ready[:, None]
        log, marks = s.told.clone(), s.heard.clone()
        if self.join == "replay":
            log[:, tick.index], marks[:, tick.index] = torch.where(heard, told, 0.0), heard
        after = Tuned(
            x=_update(s.x, told, heard, z, self.lr),
            told=log,
            heard=marks,
            version=torch.where(ready, tick.index + 1, s.version),
        )
        if self.agree and (tick.index + 1) % self.agree == 0:
            after = self._compare(after, ready, tick, ctx)
        return after

    def _catch_up(self, s: Tuned, tick: Tick, ctx: Context[Differentiable]) -> tuple[Tuned, Tensor]:
        """Those who missed ticks ask all their neighbours, then the one that knows most; and bool [P],
        who is up to date, as far as it can tell."""
        active = ctx.mine(tick.active)
        late = (active & (s.version < tick.index)).tolist()
        neighbours = tick.graph.dst[torch.isin(tick.graph.src, ctx.peers)]
        sender = tick.graph.src[torch.isin(tick.graph.src, ctx.peers)]
        ask: list[dict[int, Any]] = [
            dict.fromkeys(neighbours[sender == peer].tolist(), "version?") if goes else {}
            for peer, goes in zip(ctx.peers.tolist(), late, strict=True)
        ]
        asked = ctx.net.share(ask, tick)
        versions = ctx.net.share(
            [dict.fromkeys(box, v) for box, v in zip(asked, s.version.tolist(), strict=True)], tick
        )
        wanted: list[dict[int, Any]] = []
        ready = active.clone()
        for row, goes in enumerate(late):
            known = {j: v for j, v in versions[row].items() if type(v) is int}
            best = max(known, key=lambda j: (known[j], -j), default=-1)
            newer = goes and best >= 0 and known[best] > int(s.version[row])
            # Nobody knows more: what happened meanwhile is lost to all, and it goes on from here.
            ready[row] &= not newer and bool(s.version[row] >= 0)
            wanted.append({best: "state?"} if newer else {})
        told = ctx.net.share(
            [{j: self._state(s, row) for j in box} for row, box in enumerate(ctx.net.share(wanted, tick))],
            tick,
        )
        fresh: Tensor | None = None
        x, log, marks, version = s.x.clone(), s.told.clone(), s.heard.clone(), s.version.clone()
        for row, box in enumerate(told):
            for message in box.values():
                fresh = ctx.task.init() if fresh is None else fresh
                try:
                    x[row] = self._restore(message, fresh[row], log[row], marks[row], ctx)
                except BadInput:
                    continue  # damaged on the way: it asks again at the next tick
                version[row], ready[row] = tick.index, True
        return Tuned(x, log, marks, version), ready

    def _state(self, s: Tuned, row: int) -> dict[str, Any]:
        if self.join == "weights":
            return {"weights": s.x[row].numpy().tobytes()}
        version = int(s.version[row])
        return write_log(s.told[row, :version], s.heard[row, :version])

    def _restore(
        self, message: Any, fresh: Tensor, log: Tensor, marks: Tensor, ctx: Context[Differentiable]
    ) -> Tensor:
        """The model [D] that a state message tells; a log is written into ``log`` and ``marks`` [T, n]."""
        if self.join == "weights":
            data = message.get("weights") if isinstance(message, dict) else None
            if not isinstance(data, bytes) or len(data) != fresh.numel() * fresh.element_size():
                raise BadInput("weights", message, f"{fresh.numel()} floats")
            x = torch.frombuffer(bytearray(data), dtype=fresh.dtype)
            if not bool(torch.isfinite(x).all()):
                raise BadInput("weights", message, "finite numbers")
            return x
        told, heard = read_log(message, ctx.n, fresh.dtype)
        if len(told) > len(log):
            raise BadInput("log.ticks", len(told), f"at most the run's {len(log)}")
        log[:], marks[:] = 0.0, False
        log[: len(told)], marks[: len(told)] = told, heard
        return replay(fresh, told, heard, ctx.seed, self.lr)

    def _compare(self, s: Tuned, ready: Tensor, tick: Tick, ctx: Context[Differentiable]) -> Tuned:
        """Hashes of all models: whoever has not the most common one (ties: the lowest peer's) marks its
        own as wrong."""
        mine = [hashlib.blake2b(v.numpy().tobytes(), digest_size=16).digest() for v in s.x]
        boxes: list[dict[int, Any]] = []
        for row, peer in enumerate(ctx.peers.tolist()):
            to = tick.graph.dst[tick.graph.src == peer].tolist() if bool(ready[row]) else []
            boxes.append(dict.fromkeys(to, mine[row]))
        version = s.version.clone()
        for row, box in enumerate(ctx.net.share(boxes, tick)):
            held = {j: h for j, h in box.items() if isinstance(h, bytes)} | {int(ctx.peers[row]): mine[row]}
            common = Counter(h for _, h in sorted(held.items())).most_common(1)[0][0]
            if bool(ready[row]) and common != mine[row]:
                version[row] = -1
        return Tuned(s.x, s.told, s.heard, version)
