"""State trees: dataclasses, dicts and tuples of tensors whose first axis is the peers.

A leaf is a tensor ``[P, ...]``, a list of P JSON-like values (text, logs), or a plain number or
string. Trees are data: they slice, join, save and load, and nothing in them is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file
from torch import Tensor

from .errors import BadInput

__all__ = [
    "concat", "dumps", "leaves", "load", "loads", "map_leaves", "read", "save", "take", "unleaf", "where",
]  # fmt: skip

Tree = TypeVar("Tree")
_DATA = (list, str, int, float, bool, type(None))


def _children(tree: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)}
    if isinstance(tree, dict):
        return tree
    if isinstance(tree, tuple):
        return {str(i): v for i, v in enumerate(tree)}
    return None


def _rebuild(tree: Any, values: dict[str, Any]) -> Any:
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return dataclasses.replace(tree, **values)
    if isinstance(tree, dict):
        return values
    return type(tree)(values.values()) if type(tree) is tuple else type(tree)(*values.values())


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves by dotted path."""
    children = _children(tree)
    if children is None:
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, child in children.items():
        found.update(leaves(child, f"{prefix}.{name}" if prefix else name))
    return found


def unleaf(like: Tree, values: dict[str, Any], prefix: str = "") -> Tree:
    """A tree of the shape of ``like`` with the leaves ``values`` (by dotted path)."""
    children = _children(like)
    if children is None:
        return cast(Tree, values[prefix])
    return cast(
        Tree,
        _rebuild(
            like,
            {k: unleaf(v, values, f"{prefix}.{k}" if prefix else k) for k, v in children.items()},
        ),
    )


def map_leaves(fn: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """``fn`` over the leaves of trees of one shape."""
    rest = [leaves(o) for o in others]
    return unleaf(tree, {k: fn(v, *(r[k] for r in rest)) for k, v in leaves(tree).items()})


def take(tree: Tree, index: Tensor | Sequence[int] | slice) -> Tree:
    """The rows ``index`` of every leaf that has a peer axis."""
    rows = index if isinstance(index, Tensor | slice) else torch.tensor(list(index))

    def pick(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf[rows]
        if isinstance(leaf, list):
            return leaf[rows] if isinstance(rows, slice) else [leaf[i] for i in rows.tolist()]
        return leaf

    return map_leaves(pick, tree)


def concat(trees: Sequence[Tree]) -> Tree:
    """Blocks of peers joined along the peer axis."""

    def join(*parts: Any) -> Any:
        if isinstance(parts[0], Tensor) and parts[0].ndim:
            return torch.cat(parts)
        if isinstance(parts[0], list):
            return [v for part in parts for v in part]
        return parts[0]

    return map_leaves(join, trees[0], *trees[1:])


def where(mask: Tensor, yes: Tree, no: Tree) -> Tree:
    """Per peer: the rows of ``yes`` where ``mask`` [P] holds, else those of ``no``."""

    def pick(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor) and a.ndim:
            return torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        if isinstance(a, list):
            return [x if m else y for m, x, y in zip(mask.tolist(), a, b, strict=True)]
        return a

    return yes if bool(mask.all()) else map_leaves(pick, yes, no)


def _plain(tree: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a tree, and its other leaves as one JSON text."""
    tensors: dict[str, Tensor] = {}
    data: dict[str, Any] = {}
    for name, leaf in leaves(tree).items():
        if isinstance(leaf, Tensor):
            tensors[name] = leaf.detach().cpu().contiguous()
        elif isinstance(leaf, _DATA):
            data[name] = leaf
        else:
            raise TypeError(f"state leaf {name} is a {type(leaf).__name__}: use tensors or lists")
    # Tensors that share memory (a tree that holds one array twice) are written once each.
    seen: dict[int, str] = {}
    for name, tensor in list(tensors.items()):
        if seen.setdefault(tensor.data_ptr(), name) != name:
            tensors[name] = tensor.clone()
    return tensors, {"data": json.dumps(data)}


def save(tree: Any, path: Path, **meta: str) -> None:
    """Write the tree as safetensors, whole or not at all: also when the process is killed meanwhile."""
    tensors, data = _plain(tree)
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata={**data, **meta})
    part.replace(path)


def dumps(tree: Any) -> bytes:
    """The tree as the bytes that :func:`save` would write."""
    tensors, data = _plain(tree)
    return save_bytes(tensors, metadata=data)


def loads(data: bytes) -> dict[str, Any]:
    """The leaves that :func:`dumps` wrote, by dotted path.

    Raises:
        ValueError: the bytes are no such tree.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        if size > len(data) - 8:
            raise ValueError("cut short")
        meta = json.loads(bytes(data[8 : 8 + size])).get("__metadata__", {})
        values: dict[str, Any] = {**load_bytes(bytes(data))}
        values.update(json.loads(meta.get("data", "{}")))
    except (SafetensorError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"no state tree: {error}") from None
    return values


def read(path: Path) -> dict[str, Any]:
    """The leaves that :func:`save` wrote, by dotted path.

    Raises:
        BadInput: the file is missing or damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            values: dict[str, Any] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            values.update(json.loads((file.metadata() or {}).get("data", "{}")))
    except (OSError, SafetensorError, ValueError) as error:
        raise BadInput("checkpoint", str(path), f"not readable ({error})") from None
    return values


def load(like: Tree, values: Mapping[str, Any], prefix: str = "") -> Tree:
    """A tree of the shape of ``like`` from saved leaves (those under ``prefix``).

    Raises:
        BadInput: the leaves are of another configuration.
    """
    under = f"{prefix}." if prefix else ""
    mine = {k[len(under) :]: v for k, v in values.items() if k.startswith(under)}
    wanted = leaves(like)
    odd = sorted(wanted.keys() ^ mine.keys()) or [
        k for k, v in wanted.items() if isinstance(v, Tensor) and v.shape[1:] != mine[k].shape[1:]
    ]
    if odd:
        raise BadInput("checkpoint", odd[0], "this leaf does not fit: saved by another configuration")
    return unleaf(like, mine)
