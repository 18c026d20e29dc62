"""What a peer says of itself: everything that a person wants to know of it, as plain data."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .peer import Peer

__all__ = ["network_status", "status_of"]

REFUSALS = 100
"""Reasons told, the most frequent first."""


def status_of(peer: Peer) -> dict[str, Any]:
    """The part that needs no network."""
    row = {k: v for k, v in peer.row.items() if isinstance(v, int | float | str)}
    return {
        "peer": peer.identity.id, "name": peer.name, "run": peer.run_id, "state": peer.state,
        "pid": os.getpid(), "rounds": peer.plan.rounds, "seats": peer.plan.peers,
        "tick": peer.session.done, "took_part": peer.took_part, "adopted": peer.adopted,
        "metrics": row,
    }  # fmt: skip


def network_status(peer: Peer) -> dict[str, Any]:
    """The rest, of a peer that is connected; to be called in its event loop."""
    connected, lag = peer.node.connections(), peer.desk.tempo.lag()
    stages = peer.seats.stages()
    seats = {who: seat for seat, who in peer.seats.table().items()}
    members, witness = [], peer.desk.witness
    for who, member in peer.membership.members().items():
        link, seat = connected.get(who), seats.get(who)
        tick, missed, late = lag.get(seat, (-1, 0, 0)) if seat is not None else (-1, 0, 0)
        members.append({
            "peer": who, "name": member.record.said.name, "seat": seat, "state": str(member.state),
            "stage": None if seat not in stages else str(stages[seat]),
            "path": None if link is None else link.path,
            "rtt_ms": None if link is None or link.rtt_s is None else round(1e3 * link.rtt_s, 2),
            "address": None if link is None else link.remote,
            "tick": tick, "missed": missed, "late": late,
        })  # fmt: skip
    return {
        "seat": seats.get(peer.identity.id),
        "addresses": peer.node.addresses(),
        "members": members,
        "refusals": {f"{p[:8]} {why}": n for (p, why), n in peer.node.refusals.most_common(REFUSALS)},
        "equivocations": {} if witness is None else {p: one.tick for p, (one, _) in witness.proofs.items()},
        "bytes_sent": peer.session.net.meter.total,
        "transport_bytes": peer.desk.wire,
    }
