"""Trees as messages: float leaves side by side in one row per peer, single numbers apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from shoal.core.tree import leaves, unleaf

__all__ = ["Packed", "pack", "unpack"]

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Packed:
    """A tree [P, ...] as one matrix.

    Args:
        flat: [P, D], the float leaves with more than the peer axis.
        scalars: float64 [P, S], the leaves [P]; they travel exactly. None where there are none.
        extra: bytes that the scalars of one message take.
    """

    flat: Tensor
    scalars: Tensor | None
    extra: int


def pack(tree: Any) -> Packed:
    """The message matrix of a tree; a lone [P, D] tensor is taken as it is."""
    if isinstance(tree, Tensor) and tree.ndim == 2:
        return Packed(tree, None, 0)
    found = list(leaves(tree).values())
    wide = [v.reshape(len(v), -1) for v in found if v.ndim > 1]
    single = [v for v in found if v.ndim == 1]
    peers = len(found[0])
    flat = torch.cat(wide, 1) if wide else torch.zeros(peers, 0, dtype=torch.float64)
    if not single:
        return Packed(flat, None, 0)
    size = sum(v.element_size() for v in single)
    return Packed(flat, torch.stack([v.to(torch.float64) for v in single], 1), size)


def unpack(like: Tree, packed: Packed, flat: Tensor, scalars: Tensor | None) -> Tree:
    """The tree of the shape of ``like`` (up to its first axis) from a message matrix."""
    if isinstance(like, Tensor) and like.ndim == 2:
        return flat  # type: ignore[return-value]
    out: dict[str, Any] = {}
    column = number = 0
    for name, leaf in leaves(like).items():
        if leaf.ndim > 1:
            width = leaf[0].numel() if len(leaf) else 0
            out[name] = flat[:, column : column + width].reshape(len(flat), *leaf.shape[1:])
            column += width
        else:
            assert scalars is not None
            out[name] = scalars[:, number].to(leaf.dtype)
            number += 1
    return unleaf(like, out)
