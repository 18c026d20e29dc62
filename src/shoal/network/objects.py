"""Messages that are not tensors: text, clicks, votes, blocks of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch

from shoal.core import Tick

from .carrier import Carrier
from .parcel import Parcel, opened, sealed

__all__ = ["Objects"]

MESSAGE_LIMIT = 1 << 24
_Said = list[tuple[int, int, bytes]]


class Objects:
    """Carries what peers ``share`` along the edges of a tick's graph.

    Args:
        carrier: whose links, meter and clock are used.
    """

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self._turn = (-1, 0)

    def share(self, outbox: Sequence[Mapping[int, Any]], tick: Tick) -> list[dict[int, Any]]:
        """See :meth:`shoal.core.Net.share`."""
        carrier = self.carrier
        links, blocks, nodes = carrier.network.links, carrier.blocks, carrier.n + 1
        # Questions and answers of one tick meet their own luck: everyone makes the same calls in order.
        turn = self._turn[1] + 1 if self._turn[0] == tick.index else 0
        self._turn = (tick.index, turn)
        graph = tick.graph
        carrier.elapse()
        said: _Said = [
            (p, d, msgspec.msgpack.encode(m))
            for p, box in zip(blocks.peers.tolist(), outbox, strict=True)
            for d, m in box.items()
        ]
        up = set(zip(graph.src.tolist(), graph.dst.tolist(), strict=True)) if said else set()
        for s, d, _ in said:
            if (s, d) not in up:
                raise ValueError(f"peer {s} has no edge to {d} at tick {tick.index}")
        ends = torch.tensor([(s, d, len(b)) for s, d, b in said], dtype=torch.int64).reshape(-1, 3).T
        left = carrier.sent(ends[0], ends[1], ends[2]) if said else carrier.clock.now
        when = {s: float(left[s]) for s, _, _ in said}
        if not blocks.alone:
            said = [m for m in said if blocks.start <= m[1] < blocks.stop] + self._trade(said, when, tick)
        heard: list[dict[int, Any]] = [{} for _ in range(blocks.size)]
        if not said:
            return heard
        said.sort(key=lambda m: (m[1], m[0]))
        src, dst, size = torch.tensor([(s, d, len(b)) for s, d, b in said], dtype=torch.int64).T
        if not carrier.network.events:
            away = src != dst
            arrival = torch.tensor([when[s] for s, _, _ in said], dtype=torch.float64)
            carrier.clock.arrive(dst[away], arrival[away], 0)
        lost = links.lost(src, dst, carrier.seed, tick.index, turn, nodes).tolist()
        bad = links.damaged(src, dst, carrier.seed, tick.index, turn, nodes).tolist()
        for e, (s, d, data) in enumerate(said):
            if lost[e]:
                continue
            if bad[e]:
                frame = torch.frombuffer(bytearray(data), dtype=torch.uint8)[None]
                key = torch.tensor([s * nodes + d])
                broken = links.damage(frame, size[e : e + 1], key, carrier.seed, tick.index)[0]
                data = bytes(broken.tolist())
            try:
                if len(data) > MESSAGE_LIMIT:
                    raise msgspec.DecodeError("too long")
                heard[d - blocks.start][s] = msgspec.msgpack.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                carrier.refused[s] += 1
        return heard

    def _trade(self, said: _Said, when: dict[int, float], tick: Tick) -> _Said:
        """Hand over what goes to other blocks; returns what comes from them for peers of this one."""
        blocks, graph, port = self.carrier.blocks, tick.graph, self.carrier.port
        home = blocks.home
        src_home, dst_home = home[graph.src], home[graph.dst]
        there = torch.unique(dst_home[(src_home == blocks.here) & (dst_home != blocks.here)]).tolist()
        want = torch.unique(src_home[(dst_home == blocks.here) & (src_home != blocks.here)]).tolist()
        lives = home.tolist()
        boxes: dict[int, list[tuple[int, int, float, bytes]]] = {b: [] for b in there}
        for s, d, data in said:
            if lives[d] != blocks.here:
                boxes[lives[d]].append((s, d, when[s], data))
        out = {b: sealed(Parcel({}, msgspec.msgpack.encode(box))) for b, box in boxes.items()}
        up: set[tuple[int, int]] | None = None
        found: _Said = []
        for block, parcel in sorted(port.swap(out, want).items()):
            try:
                box = msgspec.msgpack.decode(opened(parcel).data, type=list[tuple[int, int, float, bytes]])
                up = up or set(zip(graph.src.tolist(), graph.dst.tolist(), strict=True))
                mine = {(s, d) for s, d, _, _ in box}
                if len(mine) != len(box) or not mine <= up:
                    raise ValueError("messages along edges that are not there")
                if any(lives[s] != block or lives[d] != blocks.here for s, d in mine):
                    raise ValueError("speaks for peers that it does not hold")
            except (msgspec.DecodeError, ValueError) as error:
                port.refuse(block, str(error))
                self.carrier.refused[lives.index(block)] += 1
                continue
            when |= {s: t for s, _, t, _ in box}
            found += [(s, d, data) for s, d, _, data in box]
        return found
