"""112 Bandwidth tokens, simulated: the first stage of a trial, one thing at a time at every peer.

Source: the token trial of arXiv 2301.04508; the mechanism is :mod:`shoal.trust.bandwidth_tokens`, the
stages on real processes are the runtime ``trial``.

A peer without room asks one random neighbour that has some, and shows its newest half-block. The
asked peer serves one chunk, to the asker that a lottery over credits picks: with v1 an asker's credit
is the balance that it shows, with v2 what the asked peer's own copies of the logs say under the mint
cap; both above a grant that newcomers have too. Who got a chunk proposes a half-block, who gave it
answers; proposals that got no answer are sent again before anything new is asked for.

A tick is six :meth:`Net.share` calls: proposals again, answers, asks, chunks, proposals, answers; v2
then pulls logs from a random neighbour. No peer both gives and takes at one tick, which is what makes
the simulation sequential: concurrency is left to the stages behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Method, Tick, methods
from shoal.network.logs import Keys, SeededKeys, VersionedLog, mutual
from shoal.tasks.sharing import Sharing
from shoal.trust.bandwidth_tokens import Account, Half, Version, account, read_half
from shoal.trust.mint_cap import MintCap, confirmed
from shoal.trust.token_audit import Logs, audit

__all__ = ["Books", "DeploymentTrial", "entries"]

_Boxes = list[dict[int, Any]]


def _cap(value: Any) -> MintCap:
    return value if isinstance(value, MintCap) else MintCap(**value)


def entries(log: VersionedLog, row: int, signed: bool) -> Logs:
    """The half-blocks that a row holds, as an auditor reads them."""
    return {
        origin: [(origin, at, read_half(v)) for at, v in enumerate(log.values(row, origin, signed))]
        for origin in range(len(log.held[row]))
    }


@dataclass(frozen=True)
class Books:
    """What the peers hold.

    Args:
        log: half-blocks by origin.
        accounts: P accounts as plain data.
        credit: float64 [P, n], what everybody's tokens were worth to each peer when it last looked.
        mine: int64 [P], the peers' numbers.
    """

    log: VersionedLog
    accounts: list[Any]
    credit: Tensor
    mine: Tensor


@methods.register("deployment-trial")
@dataclass(frozen=True)
class DeploymentTrial(Method):
    """The simulation stage of a trial of bandwidth tokens.

    Args:
        version: of the mechanism.
        grant: credit that everybody has, in chunks.
        cap: what v2's tokens are worth.
        epoch_ticks: ticks between two looks at the logs (v2).
        signed: half-blocks and logs bear signatures; without, nobody's words can be checked.
    """

    version: Version = "v2"
    grant: Annotated[float, Meta(gt=0)] = 8.0
    cap: MintCap = field(default=MintCap(), metadata={"registry": _cap})
    epoch_ticks: Annotated[int, Meta(ge=1)] = 20
    signed: bool = True

    work: ClassVar[type[Sharing]] = Sharing
    recipe: ClassVar[dict[str, Any]] = {
        "task": {"name": "file-sharing", "chunk": 4096, "uplinks": 0.3},
        "network": {"graph": "complete"},
        "peers": 12,
        "rounds": 60,
    }
    trial: ClassVar[dict[str, Any]] = {
        "task": {"name": "file-sharing", "chunk": 64, "uplinks": 0.4, "pairs": 1, "minted": 5},
        "network": {"graph": "complete"},
        "peers": 6,
        "rounds": 6,
        "method": {"epoch_ticks": 2},
    }

    def init(self, ctx: Context[Sharing]) -> Books:
        rows = len(ctx.peers)
        fresh = [account(self.version).state() for _ in range(rows)]
        credit = torch.zeros(rows, ctx.n, dtype=torch.float64)
        return Books(VersionedLog.empty(rows, ctx.n), fresh, credit, ctx.peers)

    def step(self, s: Books, tick: Tick, ctx: Context[Sharing]) -> Books:
        desk = _Desk(s, tick, ctx, SeededKeys(ctx.seed) if self.signed else None, self.version)
        neighbour, degree = (ctx.mine(v) for v in mutual(tick.graph))
        near = [set(row) - {-1} for row in neighbour.tolist()]
        partner = self._ask(ctx.task.room(tick.index), neighbour, tick, ctx)
        # A proposal without an answer comes first, to whom it was made.
        waiting = [
            min((p for p in held.owing() if p in reach), default=-1)
            for held, reach in zip(desk.accounts, near, strict=True)
        ]
        desk.settle(waiting)
        partner = [p if w < 0 else -1 for p, w in zip(partner, waiting, strict=True)]
        for earner, signer, amount in ctx.task.minted(tick.index, tick.total):
            for row in (ctx.peers == signer).nonzero()[:, 0].tolist():
                if earner in near[row]:
                    desk.accounts[row].owe(earner, amount)
                    partner[row] = earner
        desk.fetch(partner, self._serve(desk.credit, ctx, tick))
        desk.settle(partner)
        log, credit = desk.log, s.credit
        if self.version == "v2":
            chosen = _pick(neighbour, ctx.draws("pull", tick.index).integers(degree, 1))
            log, _ = log.pull(ctx.net, tick, chosen, desk.keys, _check(ctx.n))
            if (tick.index + 1) % self.epoch_ticks == 0:
                credit = self._look(log, tick, ctx)
        return Books(log, [held.state() for held in desk.accounts], credit, s.mine)

    def output(self, s: Books) -> list[list[Any]]:
        """Each peer's own half-blocks, as it wrote them."""
        return [s.log.values(row, peer, self.signed) for row, peer in enumerate(s.mine.tolist())]

    def measure(self, s: Books, tick: Tick, ctx: Context[Sharing]) -> dict[str, float | Tensor]:
        """``violations``: of the invariants, in each peer's own half-blocks; ``halves``: how many."""
        found, size = [], []
        for row, peer in enumerate(ctx.peers.tolist()):
            own = {peer: entries(s.log, row, self.signed)[peer]}
            found.append(float(len(audit(own))))
            size.append(float(len(own[peer])))
        as_float = torch.float64
        return {"violations": torch.tensor(found, dtype=as_float),
                "halves": torch.tensor(size, dtype=as_float)}  # fmt: skip

    def _ask(self, room: Tensor, neighbour: Tensor, tick: Tick, ctx: Context[Sharing]) -> list[int]:
        """Whom each row asks: a random neighbour with room, if it has none itself; -1: nobody."""
        if not neighbour.shape[1]:
            return [-1] * len(ctx.peers)
        fits = (neighbour >= 0) & room[neighbour.clamp(min=0)] & ctx.mine(~room & tick.active)[:, None]
        draw = ctx.draws("ask", tick.index).uniform(ctx.n)[:, : neighbour.shape[1]]
        best = torch.where(fits, draw, -1.0).argmax(1, keepdim=True)
        return torch.where(fits.any(1), neighbour.gather(1, best)[:, 0], -1).tolist()

    def _serve(self, credit: Tensor, ctx: Context[Sharing], tick: Tick) -> Any:
        room = ctx.task.room(tick.index)
        ticket = ctx.draws("lottery", tick.index).uniform(ctx.n)

        def winner(row: int, asked: dict[int, Any]) -> int:
            """Who of those that ask is served: the largest u^(1/credit) (Efraimidis and Spirakis)."""
            if not asked or not bool(room[ctx.peers[row]]):
                return -1
            best = {}
            for peer, shown in asked.items():
                told = _balance(shown) if self.version == "v1" else float(credit[row, peer])
                weight = self.grant + max(0.0, told / ctx.task.config.chunk)
                best[peer] = float(ticket[row, peer].clamp(min=1e-12).log()) / weight
            return max(best, key=lambda p: (best[p], -p))

        return winner

    def _look(self, log: VersionedLog, tick: Tick, ctx: Context[Sharing]) -> Tensor:
        """What everybody's tokens are worth to each row now: float64 [P, n]."""
        draws = ctx.draws("merit", tick.index)
        rows = []
        for row, peer in enumerate(ctx.peers.tolist()):
            given = confirmed(entries(log, row, self.signed), ctx.n)
            own = type(draws)(draws.seed, draws.purpose, ctx.peers[row : row + 1], draws.tick)
            rows.append(self.cap.worth(given, peer, own))
        return torch.stack(rows)


class _Desk:
    """The accounts and logs of a block during one tick: copies, which :class:`Books` takes over."""

    def __init__(
        self, s: Books, tick: Tick, ctx: Context[Sharing], keys: Keys | None, version: Version
    ) -> None:
        self.log, self.credit, self.keys = s.log, s.credit, keys
        self.tick, self.ctx = tick, ctx
        self.peers: list[int] = ctx.peers.tolist()
        self.accounts: list[Account] = [account(version, state) for state in s.accounts]

    def fetch(self, partner: list[int], winner: Any) -> None:
        """Asks and chunks: who is served owes for it."""
        net, tick, task = self.ctx.net, self.tick, self.ctx.task
        asks: _Boxes = []
        for row, to in enumerate(partner):
            own = self.log.values(row, self.peers[row], self.keys is not None)
            ask = [int(task.got[row]), own[-1] if own else None]
            asks.append({} if to < 0 or self.accounts[row].owed else {to: ask})
        chunks: _Boxes = []
        for row, box in enumerate(net.share(asks, tick)):
            asked = {p: m for p, m in box.items() if _asks(m)}
            chosen = winner(row, {p: m[1] for p, m in asked.items()})
            index = asked[chosen][0] if chosen >= 0 else 0
            chunks.append({} if chosen < 0 else {chosen: [index, task.chunk(index)]})
        for row, box in enumerate(net.share(chunks, tick)):
            for giver, message in box.items():
                match message:
                    case [int(index), bytes(data)] if giver == partner[row] and task.take(row, index, data):
                        self.accounts[row].owe(giver, len(data))

    def settle(self, partner: list[int]) -> None:
        """Every row proposes to its partner what it owes, or proposes it again; the givers answer."""
        outbox: _Boxes = []
        for row, to in enumerate(partner):
            held = self.accounts[row]
            half = held.propose(to) if to >= 0 else None
            if half is not None:
                self._write(row, half)
            again = held.unanswered(to) if to >= 0 else []
            outbox.append({to: self._sealed(row, again[0])} if again else {})
        answers: _Boxes = [{} for _ in partner]
        for row, box in enumerate(self.ctx.net.share(outbox, self.tick)):
            for taker, message in box.items():
                try:
                    mine, new = self.accounts[row].answer(taker, self._opened(row, taker, message))
                except BadInput:  # damaged, forged or out of turn: no answer
                    continue
                if new:
                    self._write(row, mine)
                answers[row][taker] = self._sealed(row, mine)
        for row, box in enumerate(self.ctx.net.share(answers, self.tick)):
            for giver, message in box.items():
                try:
                    self.accounts[row].hear(giver, self._opened(row, giver, message))
                except BadInput:  # it will be asked for again
                    continue

    def _write(self, row: int, half: Half) -> None:
        self.accounts[row].write(half)
        self.log = self.log.append(row, self.peers[row], [half.plain()], self.keys)

    def _sealed(self, row: int, half: Half) -> list[Any]:
        peer = self.peers[row]
        return [half.plain(), b"" if self.keys is None else self.keys.sign(peer, half.message(peer))]

    def _opened(self, row: int, signer: int, message: Any) -> Half:
        match message:
            case [value, bytes(seal)]:
                half = read_half(value)
                if half.partner == self.peers[row] and (
                    self.keys is None or self.keys.verify(signer, half.message(signer), seal)
                ):
                    return half
        raise BadInput("half", message, f"a half-block signed by {signer}")


def _asks(message: Any) -> bool:
    return isinstance(message, list) and len(message) == 2 and type(message[0]) is int and message[0] >= 0


def _balance(shown: Any) -> float:
    """The running balance on the half-block that an asker shows; 0 where it shows none."""
    try:
        return float(msgspec.convert(shown, Half, strict=True).total)
    except msgspec.ValidationError:
        return 0.0


def _pick(neighbour: Tensor, chosen: Tensor) -> list[int]:
    """The chosen column of padded neighbour lists; -1 where there is none."""
    if not neighbour.shape[1]:
        return [-1] * len(neighbour)
    return neighbour.gather(1, chosen)[:, 0].tolist()


def _check(n: int) -> Any:
    def check(origin: int, entry: Any) -> None:
        half = read_half(entry)
        if half.partner >= n or half.partner == origin:
            raise BadInput("half", entry, f"with another peer below {n}")

    return check
