"""The saved parts of a run's blocks, and the whole that they make: a checkpoint fits every placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shoal.core import Work
from shoal.network.exchange import Exchange
from shoal.network.port import Blocks

__all__ = ["share_of", "whole"]


def whole(
    parts: Sequence[Mapping[str, Any]], sizes: Sequence[int], work: type[Work] = Work
) -> dict[str, Any]:
    """What one block of all peers would have saved, from what each block saved.

    Args:
        parts: by block, leaves by dotted path (``tree.leaves`` of ``Session.saved()``, or as read).
        sizes: peers of each block.
        work: says which leaves of its state are the same everywhere, or totals.
    """
    if len(parts) == 1:
        return dict(parts[0])
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    net = [{k[4:]: v for k, v in part.items() if k.startswith("net.")} for part in parts]
    out: dict[str, Any] = {f"net.{k}": v for k, v in Exchange.joined(net, starts).items()}
    for name, first in parts[0].items():
        kind, _, leaf = name.partition(".")
        if kind == "net":
            continue
        held = [part[name] for part in parts]
        if kind == "method":
            out[name] = _join(held)
        elif kind == "work" and leaf in work.totals:
            out[name] = sum(held)
        elif kind == "work" and leaf not in work.everyone and _by_peer(held, sizes):
            out[name] = _join(held)
        else:
            out[name] = first
    return out


def share_of(values: Mapping[str, Any], blocks: Blocks, work: type[Work]) -> dict[str, Any]:
    """One block's part of what all peers saved; the exchange takes its own part by itself."""
    if blocks.alone:
        return dict(values)
    out = {}
    here = slice(blocks.start, blocks.stop)
    for name, value in values.items():
        kind, _, leaf = name.partition(".")
        rows = len(value) if isinstance(value, Tensor | list) and _has_axis(value) else -1
        mine = kind == "method" or (kind == "work" and leaf not in work.everyone)
        if kind == "work" and leaf in work.totals:
            value = value if blocks.start == 0 else type(value)(0)
        elif mine and rows == blocks.n:
            value = value[here]
        elif kind == "method" and rows == 1 and not blocks.hosts_server:
            value = value[:0]
        out[name] = value
    return out


def _has_axis(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.ndim > 0


def _by_peer(held: Sequence[Any], sizes: Sequence[int]) -> bool:
    return all(
        isinstance(v, Tensor | list) and _has_axis(v) and len(v) == size
        for v, size in zip(held, sizes, strict=True)
    )


def _join(held: Sequence[Any]) -> Any:
    if isinstance(held[0], Tensor) and held[0].ndim:
        return torch.cat(list(held))
    if isinstance(held[0], list):
        return [v for part in held for v in part]
    return held[0]
