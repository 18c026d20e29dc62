"""What a process needs to be a peer: an event loop, a transport, a node."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from shoal.core import BadInput, tree
from shoal.runtimes.base import Plan

from .identity import Identity
from .ladder import Ladder
from .limits import Limits
from .node import Node
from .relay import Grants, Relay
from .transport.base import PeerId, Transport

__all__ = ["TransportName", "listening", "parcel_limit", "run_digest", "start_climbing", "start_node"]

TransportName = Literal["iroh", "tcp"]


def run_digest(plan: Plan) -> str:
    """What names a run: 16 hexadecimal digits of the hash of all that its result depends on.

    Where a peer's own data lie is left out: each has its own.
    """
    spec = plan.spec()
    data = spec.get("task", {}).get("data") if isinstance(spec.get("task"), dict) else None
    if isinstance(data, dict) and data.get("name") == "folder":
        data.pop("path", None)
    text = json.dumps(spec, sort_keys=True).encode()
    return hashlib.blake2b(b"shoal/run\0" + text, digest_size=8).hexdigest()


def parcel_limit(state: Any) -> int:
    """The most bytes of one parcel: several times what a peer holds of the run, and room for text."""
    held = sum(v.nbytes for v in tree.leaves(state).values() if isinstance(v, Tensor))
    return 8 * held + (1 << 25)


async def listening(identity: Identity, name: TransportName, host: str, port: int = 0) -> Transport:
    """A transport that listens.

    Raises:
        BadInput: no such address here.
        MissingExtra: what it is built on is not installed.
    """
    if name == "iroh":
        from .transport.iroh import Iroh

        return await Iroh.listen(identity, host, port)
    if name == "tcp":
        from .transport.tcp import Tcp

        return await Tcp.listen(identity, host, port)
    raise BadInput("transport", name, "iroh or tcp")


async def start_node(
    identity: Identity,
    transport: TransportName,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    limits: Limits | None = None,
    allow: set[PeerId] | None = None,
) -> Node:
    """A node that listens and answers. Raises as :func:`listening`."""
    node = Node(identity, [await listening(identity, transport, host, port)], limits=limits, allow=allow)
    await node.start()
    return node


async def start_climbing(
    identity: Identity,
    transport: TransportName,
    host: str,
    port: int = 0,
    *,
    allow: set[PeerId] | None = None,
    grants: Grants | None = None,
    prepare: Callable[[Node], None] | None = None,
) -> tuple[Node, Ladder]:
    """A node that also gets through NATs: directly, from both sides at once, or through a relay.

    Args:
        grants: what it passes on for others; None: nothing.
        prepare: given the node before anybody can call it, to serve what they may call for.

    Raises:
        BadInput, MissingExtra: as :func:`listening`.
    """
    relay = Relay(identity, grants)
    node = Node(identity, [await listening(identity, transport, host, port), relay], allow=allow)
    ladder = Ladder(node, relay)
    if prepare is not None:
        prepare(node)
    await node.start()
    await ladder.start()
    return node, ladder
