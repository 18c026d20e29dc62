"""The state of an exchange, of one block and of all: a checkpoint fits every placement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .port import Blocks

__all__ = ["joined", "parted"]

_ROWS = ("memory/replica/", "memory/residual/")


def joined(states: Sequence[dict[str, Tensor]], starts: Sequence[int]) -> dict[str, Tensor]:
    """The state of one block that holds all peers, from those of all blocks.

    Args:
        states: by block.
        starts: the first peer of each block.
    """
    out: dict[str, Tensor] = {}
    names = sorted({name for state in states for name in state})
    for name in names:
        held = [state[name] for state in states if name in state]
        if name.startswith(_ROWS) or name == "seen":
            out[name] = torch.cat(held)
        elif name == "now":
            stops = [*starts[1:], len(held[0]) - 1]
            parts = [now[a:b] for now, a, b in zip(held, starts, stops, strict=True)]
            out[name] = torch.cat([*parts, held[0][-1:]])  # the server lives in the first block
        elif name.startswith("memory/keys/"):
            known = torch.cat([s[f"memory/known/{name[12:]}"] for s in states if name in s])
            keys = torch.cat(held)
            order = torch.argsort(keys)
            out[name], out[f"memory/known/{name[12:]}"] = keys[order], known[order]
        elif name == "meter/keys":
            keys, where = torch.unique(torch.cat(held), return_inverse=True)
            sizes = torch.cat([s["meter/bytes"] for s in states])
            out[name] = keys
            out["meter/bytes"] = torch.zeros(len(keys), dtype=torch.int64).index_add_(0, where, sizes)
        elif not name.startswith(("memory/known/", "meter/bytes")):
            # Counts (versions, refusals, releases, totals): every block has its own.
            out[name] = torch.stack(held).sum(0)
    return out


def parted(state: dict[str, Tensor], blocks: Blocks) -> dict[str, Tensor]:
    """The part of one block: what the blocks' parts join to is the whole again."""
    if blocks.alone:
        return state
    out: dict[str, Tensor] = {}
    nodes = blocks.n + 1
    for name, value in state.items():
        if name.startswith(_ROWS) or name == "seen":
            out[name] = value[blocks.start : blocks.stop].clone()
        elif name == "now":
            out[name] = value.clone()
        elif name.startswith(("memory/keys/", "memory/known/")):
            channel = name.split("/", 2)[2]
            sender = state[f"memory/keys/{channel}"] % nodes
            out[name] = value[(sender >= blocks.start) & (sender < blocks.stop)].clone()
        elif name.startswith("memory/version/"):
            out[name] = torch.zeros_like(value)
            out[name][blocks.start : blocks.stop] = value[blocks.start : blocks.stop]
        elif name in {"meter/keys", "meter/bytes"}:
            out[name] = value.clone() if blocks.start == 0 else value[:0].clone()
        else:  # what was counted so far is kept by the first block
            out[name] = value.clone() if blocks.start == 0 else torch.zeros_like(value)
    return out
