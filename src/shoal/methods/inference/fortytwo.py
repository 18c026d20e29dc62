"""012 Fortytwo: peers answer, compare each other's answers in pairs, and rank them by reputation.

Source: "Fortytwo: Swarm inference with peer-ranked consensus" (arXiv 2510.24801), the project's client
and its documents on stakes.

A tick is a batch of questions: commit to the answers, reveal them, share the verdicts on pairs of
answers. Each peer then fits the Bradley-Terry model to the verdicts that it heard, weighted by its own
ledger of reputations; the strongest answer is its decision.

Our reading where the paper is silent: reputation <- 0.9 reputation + 0.1 (agreement of the node's
verdicts with the final order + rank share of its answer), then normalised; a verdict counts for that
where the judge gave it in both orders of the pair. Deviations: judges compare
all answers, with no filter beforehand, and give no reasons; nonces come from the run's seed, so that
runs repeat (a real node would keep its own).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Method, Tick, methods
from shoal.tasks.swarm import UNDECIDED, Responders
from shoal.trust.ranking import bradley_terry, required_stake

__all__ = ["Fortytwo", "Ledger", "commitment", "opened", "pairs", "tally"]

NONCE = 16


@dataclass(frozen=True)
class Ledger:
    """Each peer's own books.

    Args:
        reputation: float64 [P, n], mean 1 over the members.
        stake: float64 [P, n], what each has left.
        member: bool [P, n], who was let in.
        refused: int64 [P], reveals unlike their commit (or without one).
        answer: int64 [P, Q], the last decisions; -1: none.
    """

    reputation: Tensor
    stake: Tensor
    member: Tensor
    refused: Tensor
    answer: Tensor


def commitment(answers: bytes, nonce: bytes) -> bytes:
    """H(answer, nonce): binding, and hiding as long as the nonce is unknown."""
    return hashlib.blake2b(nonce + answers, digest_size=32).digest()


def opened(reveal: Any, commit: Any, questions: int) -> list[int] | None:
    """The answers of a reveal [nonce, answers], or None where it is not what was committed to."""
    if not (isinstance(reveal, list) and len(reveal) == 2 and all(isinstance(b, bytes) for b in reveal)):
        return None
    nonce, answers = reveal
    if len(answers) != questions or commitment(answers, nonce) != commit:
        return None
    return list(answers)


def pairs(items: Sequence[int]) -> list[tuple[int, int]]:
    """Whom to compare: (i, i+1) around the ring, (i, i + n/2) across; both orders, about 3n."""
    m = len(items)
    ring = [(i, (i + 1) % m) for i in range(m)] if m > 1 else []
    across = [(i, i + m // 2) for i in range(m // 2)]
    once = dict.fromkeys((min(a, b), max(a, b)) for a, b in ring + across)
    return [(items[a], items[b]) for a, b in once] + [(items[b], items[a]) for a, b in once]


def tally(verdicts: bytes, heard: Sequence[int], n: int, questions: int) -> Tensor | None:
    """One judge's verdicts as wins [Q, n, n], halves where undecided; None: no such message."""
    compared = torch.tensor(pairs(heard), dtype=torch.int64).reshape(-1, 2)
    if len(verdicts) != questions * len(compared) or (verdicts and max(verdicts) > UNDECIDED):
        return None
    told = torch.tensor(list(verdicts), dtype=torch.int64).reshape(questions, len(compared))
    credit = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)[told]
    wins = torch.zeros(questions, n, n, dtype=torch.float64)
    first, second = compared.unbind(1)
    wins[:, first, second] += credit
    # A pair is compared in both orders: the two indices of one call never meet twice.
    wins[:, second, first] += 1 - credit
    return wins


@methods.register("fortytwo")
@dataclass(frozen=True)
class Fortytwo(Method):
    """Peer-ranked consensus.

    Args:
        memory: share of the old reputation that a tick keeps.
        exam: public calibration questions that a node must take to join; 0: everyone is in.
        mark: share of them that it must get right.
        deposit: what each node stakes at the start; 0: no stakes. It must reach
            5 * 1.1^rank * questions to answer; judging puts 6 % of that at risk each tick, which is
            lost where fewer than half of a node's verdicts agree with the outcome.
        rank: of the nodes, for the stake.
    """

    memory: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    exam: Annotated[int, Meta(ge=0)] = 0
    mark: Annotated[float, Meta(ge=0, le=1)] = 0.5
    deposit: Annotated[float, Meta(ge=0)] = 0.0
    rank: Annotated[int, Meta(ge=0, le=100)] = 0

    work: ClassVar[type[Responders]] = Responders
    recipe: ClassVar[dict[str, Any]] = {
        "task": "population",
        "network": {"graph": "complete"},
        "peers": 7,
        "rounds": 300,
        "every": 20,
    }
    trial: ClassVar[dict[str, Any]] = {
        "task": "population(questions=3)",
        "network": {"graph": "complete"},
        "peers": 5,
        "rounds": 4,
    }

    def init(self, ctx: Context[Responders]) -> Ledger:
        n, rows, questions = ctx.n, len(ctx.peers), ctx.task.config.questions
        if n < 2:
            raise BadInput("peers", n, "at least 2: someone must judge")
        least = required_stake(self.rank, questions)[0]
        if 0 < self.deposit < least:
            raise BadInput("deposit", self.deposit, f"the stake to answer, {least:g}, or more; 0: none")
        member = torch.ones(n, dtype=torch.bool)
        if self.exam:
            member = ctx.task.exam(self.exam) >= self.mark * self.exam - 1e-9
        return Ledger(
            reputation=torch.ones(rows, n, dtype=torch.float64),
            stake=torch.full((rows, n), self.deposit, dtype=torch.float64),
            member=member.expand(rows, n).clone(),
            refused=torch.zeros(rows, dtype=torch.int64),
            answer=torch.full((rows, questions), -1, dtype=torch.int64),
        )

    def step(self, s: Ledger, tick: Tick, ctx: Context[Responders]) -> Ledger:
        active = ctx.mine(tick.active)
        heard, refused = self._answers(s, tick, ctx, active)
        votes = self._verdicts(s, heard, tick, ctx, active)
        after = replace(s, refused=s.refused + refused, reputation=s.reputation.clone(),
                        stake=s.stake.clone(), answer=torch.full_like(s.answer, -1))  # fmt: skip
        plain, most = after.answer.clone(), after.answer.clone()
        # Peers that heard as many nodes are computed together.
        alike: dict[tuple[int, int], list[int]] = {}
        for row in active.nonzero()[:, 0].tolist():
            if votes[row]:
                alike.setdefault((len(heard[row]), len(votes[row])), []).append(row)
        for rows in alike.values():
            held = torch.tensor([list(heard[r]) for r in rows])
            judges = torch.tensor([list(votes[r]) for r in rows])
            wins = torch.stack([torch.stack(list(votes[r].values()), 1) for r in rows])
            options = torch.tensor([list(heard[r].values()) for r in rows])
            trust = s.reputation[rows].gather(1, judges)
            weights = torch.stack([trust, torch.ones_like(trust)])[:, :, None]
            strength = bradley_terry(wins.expand(2, *wins.shape), weights.expand(-1, -1, wins.shape[1], -1))
            chosen = [options.gather(1, v.argmax(2)[:, None])[:, 0] for v in strength]
            after.answer[rows], plain[rows] = chosen
            most[rows] = options.mode(1).values
            self._settle(after, rows, held, judges, wins, strength[0])
        decisions = {"": after.answer, "unweighted": plain, "majority": most}
        ctx.task.decide(tick.index, decisions, active)
        return after

    def output(self, s: Ledger) -> Tensor:
        return s.answer

    def measure(self, s: Ledger, tick: Tick, ctx: Context[Responders]) -> dict[str, float | Tensor]:
        """``refused_reveals`` [P], and ``colluder_reputation``, the mean that colluders have (1: as
        much as anyone), where there are some."""
        figures: dict[str, float | Tensor] = {"refused_reveals": s.refused.to(torch.float64)}
        if bool(ctx.task.colluder.any()):
            figures["colluder_reputation"] = s.reputation[:, ctx.task.colluder].mean(1)
        return figures

    # -- the three phases ------------------------------------------------------------------------------

    def _answers(
        self, s: Ledger, tick: Tick, ctx: Context[Responders], active: Tensor
    ) -> tuple[list[dict[int, list[int]]], Tensor]:
        """Commit, then reveal: the answers that each peer believes, by peer, and how many it refused."""
        mine = ctx.peers.tolist()
        speaks = (active & self._may(s, ctx)[torch.arange(len(mine)), ctx.peers]).tolist()
        told = ctx.task.answers(tick.index, active).tolist()
        nonce = ctx.draws("nonce", tick.index).integers(256, NONCE).tolist()
        reveal = [[bytes(k), bytes(a)] for k, a in zip(nonce, told, strict=True)]
        receivers = _receivers(tick, mine)
        commits = ctx.net.share(
            [{j: commitment(r[1], r[0]) for j in to} if go else {}
             for r, to, go in zip(reveal, receivers, speaks, strict=True)], tick)  # fmt: skip
        reveals = ctx.net.share(
            [dict.fromkeys(to, r) if go else {}
             for r, to, go in zip(reveal, receivers, speaks, strict=True)], tick)  # fmt: skip
        questions = ctx.task.config.questions
        believed: list[dict[int, list[int]]] = []
        refused = torch.zeros_like(s.refused)
        may = self._may(s, ctx)
        for row, peer in enumerate(mine):
            found = {peer: told[row]} if speaks[row] else {}
            for sender, message in reveals[row].items():
                answers = opened(message, commits[row].get(sender), questions)
                if answers is None:
                    refused[row] += 1
                elif bool(may[row, sender]):
                    found[sender] = answers
            believed.append(dict(sorted(found.items())))
        return believed, refused

    def _verdicts(
        self,
        s: Ledger,
        heard: list[dict[int, list[int]]],
        tick: Tick,
        ctx: Context[Responders],
        active: Tensor,
    ) -> list[dict[int, Tensor]]:
        """Judge and share: wins [Q, m, m] by judge, among the m answers that the peer itself holds."""
        n, questions, mine = ctx.n, ctx.task.config.questions, ctx.peers.tolist()
        compared = [pairs(list(found)) for found in heard]
        width = max(len(c) for c in compared)
        options = torch.full((2, len(mine), questions, width), -1, dtype=torch.int64)
        for row, (found, those) in enumerate(zip(heard, compared, strict=True)):
            for side in range(2):
                chosen = [found[pair[side]] for pair in those]
                options[side, row, :, : len(those)] = torch.tensor(chosen).reshape(-1, questions).T
        verdicts = ctx.task.judge(options[0], options[1], tick.index, active)
        may = self._may(s, ctx, judge=True)
        boxes, own = [], []
        for row, (peer, those, to) in enumerate(zip(mine, compared, _receivers(tick, mine), strict=True)):
            said = [list(heard[row]), bytes(verdicts[row, :, : len(those)].flatten().tolist())]
            judges = bool(active[row]) and bool(may[row, peer]) and bool(heard[row])
            own.append({peer: said} if judges else {})
            boxes.append(dict.fromkeys(to, said) if judges else {})
        votes: list[dict[int, Tensor]] = []
        known: dict[tuple[tuple[int, ...], bytes], Tensor | None] = {}
        for row, inbox in enumerate(ctx.net.share(boxes, tick)):
            kept: dict[int, Tensor] = {}
            held = list(heard[row])
            for judge, message in sorted((own[row] | inbox).items()):
                if not bool(may[row, judge]) or not _ballot(message, n):
                    continue
                key = (tuple(message[0]), message[1])
                if key not in known:
                    known[key] = tally(message[1], message[0], n, questions)
                wins = known[key]
                if wins is not None:
                    kept[judge] = wins[:, held][:, :, held]
            votes.append(kept if own[row] else {})
        return votes

    def _settle(
        self,
        books: Ledger,
        rows: list[int],
        held: Tensor,
        judges: Tensor,
        wins: Tensor,
        strength: Tensor,
    ) -> None:
        """Reputation and stake after a tick; writes into the fresh rows of ``books``.

        Args:
            held: int64 [G, m], whose answers each has.
            judges: int64 [G, k], whose verdicts.
            wins: [G, Q, k, m, m], those verdicts.
            strength: [G, Q, m].
        """
        above = (strength[..., :, None] > strength[..., None, :]).to(torch.float64)
        # A pair is judged in both orders; whoever contradicts itself has said nothing.
        sure = (wins > 1.75).to(torch.float64)
        agreed = torch.einsum("gqkij,gqij->gk", sure, above)
        against = torch.einsum("gqkij,gqji->gk", sure, above)
        agreement = agreed / (agreed + against).clamp(min=1e-300)
        # Slashing looks at every verdict: contradicting oneself must not be a way around it.
        good = torch.einsum("gqkij,gqij->gk", wins, above)
        bad = torch.einsum("gqkij,gqji->gk", wins, above)
        gain = torch.zeros(len(rows), books.reputation.shape[1], dtype=torch.float64)
        gain.scatter_add_(1, judges, agreement)
        gain.scatter_add_(1, held, above.sum(3).mean(1) / max(1, held.shape[1] - 1))
        mixed = self.memory * books.reputation[rows] + (1 - self.memory) * gain
        member = books.member[rows]
        scale = member.sum(1) / (mixed * member).sum(1)
        books.reputation[rows] = mixed * scale[:, None]
        if self.deposit:
            risk = required_stake(self.rank, books.answer.shape[1])[1]
            slashed = good < bad
            lost = torch.zeros_like(gain).scatter(1, judges, slashed * gain.new_tensor(risk))
            books.stake[rows] = (books.stake[rows] - lost).clamp(min=0)

    def _may(self, s: Ledger, ctx: Context[Responders], judge: bool = False) -> Tensor:
        """Whom each peer's books let answer (or judge): bool [P, n]."""
        if not self.deposit:
            return s.member
        return s.member & (s.stake >= required_stake(self.rank, ctx.task.config.questions)[int(judge)])


def _receivers(tick: Tick, peers: list[int]) -> list[list[int]]:
    """To whom each of the peers has an edge."""
    out: dict[int, list[int]] = {peer: [] for peer in peers}
    for a, b in zip(tick.graph.src.tolist(), tick.graph.dst.tolist(), strict=True):
        if a in out:
            out[a].append(b)
    return list(out.values())


def _ballot(message: Any, n: int) -> bool:
    """Whether a message has the form [peers, ascending; verdicts]."""
    if not (isinstance(message, list) and len(message) == 2):
        return False
    heard, verdicts = message
    if not (isinstance(heard, list) and isinstance(verdicts, bytes)):
        return False
    numbers = all(type(i) is int and 0 <= i < n for i in heard)
    return numbers and heard == sorted(set(heard))
