"""Schemes as text."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from shoal.core import BadInput, literal
from shoal.core.part import split_list

from .blocks import WORK, Block, Broadcast, Feedback, Parallel, Reduce, Wrapper
from .graph import Graph

__all__ = ["parse", "read"]

_LABELS = (*WORK, "broadcast", "reduce", "parallel", "feedback")
_BLOCK = re.compile(r"([\w-]+)\s*(?:\((.*?)\))?\s*(?:\[(.*)\])?", re.S)


def parse(text: str) -> Graph:
    """A graph from its text.

    Raises:
        BadInput: an unknown label, or text that is no block.
    """
    bare = "\n".join(line.partition("#")[0] for line in text.splitlines())
    return Graph(*_blocks(bare))


def read(path: str | Path) -> Graph:
    """A graph from a file."""
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("file", str(path), f"not readable ({error})") from None


def _blocks(text: str) -> list[Block]:
    return [_block(part) for part in split_list(text, ";")]


def _block(text: str) -> Block:
    match = _BLOCK.fullmatch(text)
    if match is None:
        raise BadInput("scheme", text, "label, label(...), or label(...)[block; block]")
    label, inside, body = match.group(1), _arguments(match.group(2) or "", text), match.group(3)
    if label not in _LABELS:
        near = difflib.get_close_matches(label, _LABELS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInput("scheme", label, f"unknown label; {hint}known: {', '.join(_LABELS)}")
    blocks = _blocks(body) if body is not None else []
    if (body is None) == (label in ("parallel", "feedback")):
        raise BadInput("scheme", text, "[...] stands behind parallel and feedback, and behind no other")
    positional = {"parallel": "workers", "feedback": "rounds", "reduce": "policy"}.get(label)
    if "" in inside:
        if positional is None:
            raise BadInput("scheme", text, "arguments are written name=value")
        inside[positional] = inside.pop("")
    makers: dict[str, Any] = {
        "parallel": Parallel,
        "feedback": Feedback,
        "reduce": Reduce,
        "broadcast": Broadcast,
    }
    try:
        return Wrapper(label, **inside) if label in WORK else makers[label](*blocks, **inside)
    except TypeError as error:
        raise BadInput("scheme", text, str(error).partition("() ")[2] or str(error)) from None


def _arguments(text: str, block: str) -> dict[str, Any]:
    """``"10, asynchronous=true"`` as {"": 10, "asynchronous": True}."""
    found: dict[str, Any] = {}
    for part in split_list(text):
        name, eq, value = part.partition("=")
        named = bool(eq) and name.strip().isidentifier()  # trimmed-mean(f=1) is a value
        key = name.strip() if named else ""
        if key in found:
            raise BadInput("scheme", block, f"{key or 'a value without a name'} is given twice")
        found[key] = literal((value if named else part).strip())
    return found
