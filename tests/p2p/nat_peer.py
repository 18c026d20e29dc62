"""A peer for the namespace tests: reads commands as JSON lines, answers each with a JSON line.

nat_peer.py HOST PORT relay|peer
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import msgspec

from shoal.core import ShoalError
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.ladder import Ladder
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.relay import Grants, Relay
from shoal.runtimes.p2p.transport.iroh import Iroh


class Text(msgspec.Struct):
    text: str


async def echo(peer: str, message: Text) -> Text:
    return Text(message.text[::-1])


async def obey(node: Node, ladder: Ladder, command: dict[str, Any]) -> dict[str, Any]:
    peer = command.get("peer", "")
    match command["do"]:
        case "learn":
            node.learn(peer, command["addresses"])
        case "call":
            began = time.monotonic()
            try:
                reply = await node.call(peer, "echo", Text(command["text"]), Text, idempotent=True)
            except ShoalError as error:
                return {"error": f"{type(error).__name__}: {error}"}
            how = node.connections()[peer]
            seconds = time.monotonic() - began
            return {"text": reply.text, "path": how.path, "remote": how.remote, "seconds": seconds}
        case "wait":  # until the peer is connected by one of these paths
            async with asyncio.timeout(command["within"]):
                while (how := node.connections().get(peer)) is None or how.path not in command["paths"]:
                    await asyncio.sleep(0.05)
            return {"path": how.path}
        case "connections":
            return {"peers": {peer: [how.path, how.remote] for peer, how in node.connections().items()}}
    moved = {"->".join(end[:8] for end in ends): count for ends, count in ladder.relay.moved.items()}
    return {
        "id": node.id,
        "addresses": node.addresses(),
        "mapping": ladder.nat.mapping,
        "reached": dict(ladder.reached),
        "moved": moved,
    }


async def main() -> None:
    host, port, role = sys.argv[1:]
    identity = Identity.create()
    relay = Relay(identity, Grants() if role == "relay" else None)
    node = Node(identity, [await Iroh.listen(identity, host, int(port)), relay])
    node.serve("echo", Text, echo)
    ladder = Ladder(node, relay)
    await node.start()
    await ladder.start()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while line := await lines.readline():
        answer = await obey(node, ladder, json.loads(line))
        print(json.dumps(answer), flush=True)
    await ladder.stop()
    await node.stop()


if __name__ == "__main__":
    asyncio.run(main())
