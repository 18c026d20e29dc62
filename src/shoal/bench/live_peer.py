"""A real peer's services, for the fuzzer: membership, the desk of a run, the transfer of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from shoal.network.parcel import Parcel, sealed
from shoal.runtimes.p2p.blob import Whole
from shoal.runtimes.p2p.desk import Desk
from shoal.runtimes.p2p.frames import Type, encode, pack
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.membership import Membership, Sync
from shoal.runtimes.p2p.node import Node
from shoal.runtimes.p2p.patience import Patience
from shoal.runtimes.p2p.records import PeerRecord, sign

__all__ = ["live_peer"]

RUN = bytes(8)


def live_peer(node: Node) -> tuple[list[bytes], Callable[[], Any]]:
    """Make of ``node`` a peer of a run in which strangers have no seat.

    Returns:
        First bytes of streams to mutate, and what describes the peer's state.
    """
    membership = Membership(node, node.identity, RUN.hex(), allow=[node.id])
    desk = Desk(
        node, RUN, 0, 1 << 20, Patience(),
        holder=lambda seat: None, seat=lambda peer: None, gone=lambda seat: True,
    )  # fmt: skip
    stranger = Identity.create()
    record = sign(stranger, PeerRecord(stranger.id, RUN.hex(), 5, ("tcp://127.0.0.1:9",))).signed
    other = sign(stranger, PeerRecord(stranger.id, "another run", 6)).signed
    tensors = {
        "ids": torch.arange(3),
        "length": torch.full((3,), 8),
        "frames": torch.zeros(3, 8, dtype=torch.uint8),
        "left": torch.zeros(3, dtype=torch.float64),
        "cost": torch.zeros(3, dtype=torch.int64),
    }
    parcel = b"".join(bytes(piece) for piece in sealed(Parcel(tensors)))
    bodies: dict[bytes, list[Any]] = {
        b"swim/sync": [Sync(record, {stranger.id: 5}), Sync(other, {}, (record,))],
        b"run/small": [Whole(RUN + bytes(10), parcel), Whole(RUN + bytes(74), parcel[: len(parcel) // 2])],
    }
    samples = [
        pack(Type.CALL, encode(body), kind=kind, time=200) for kind, some in bodies.items() for body in some
    ]

    def describe() -> Any:
        members = {peer: str(member.state) for peer, member in membership.members().items()}
        return members, desk.tick, desk.wire, sorted(desk.missed())

    return samples, describe
