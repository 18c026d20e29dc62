"""007 MoDeST: each round a hash-chosen sample trains, a few aggregators average; nobody coordinates.

Source: de Vos, Dhasade, Kermarrec, Lavoie, Pouwelse, "MoDeST: bridging the gap between federated and
decentralized learning with decentralized sampling" (arXiv 2302.13837; later Plexus) and its repository.

A tick is round k. Its participants hold the round's model; they train, find the aggregators of round
k + 1 and send them view and model; an aggregator averages, finds the participants of round k + 1 and
sends them view and average. Both draw alone: the first in hash order, of those that their own view
lists, that answer. Views travel as ``share`` messages and say whose model follows.

Pings are not messages here: a peer answers where the tick has edges between the two, both ways, so the
graph is ``complete`` and clocks, partitions or a real peer's membership say who is silent. A tick is as
long as the paper's time limits: who did not come within it does not come.

Deviations. The order of arrival within a tick is drawn. A clock gives no notice, so peers leave by
falling silent (``PopulationView.leave`` is not used). A peer that was not drawn for ``silence`` rounds
joins anew before it drops out of the views. Where all who hold a round disappear at once the paper
stops; here an aggregator that hears nothing goes on from the last model that it had, and everybody
takes the model of the latest round among those that came and its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Context, Differentiable, Inbox, Rule, RunFailed, Tick, methods, rules
from shoal.network.population import HashSampler, PopulationView, first_of
from shoal.tasks.supervised import Training

from .descent import Descent, Models

__all__ = ["MoDeST", "Sampled"]


@dataclass(frozen=True)
class Sampled(Models):
    """Models x [P, D] as last received or trained, and of each peer

    Args:
        round: int64 [P], the round of its model.
        due: bool [P], it takes part in the coming round.
        there: bool [P], it was there in the last tick.
        view: what it knows of the others.
    """

    round: Tensor
    due: Tensor
    there: Tensor
    view: PopulationView


@methods.register("modest")
@dataclass(frozen=True)
class MoDeST(Descent):
    """Decentralised sampling.

    Args:
        s: participants of a round.
        a: aggregators of a round.
        sf: share of the s models at which an aggregator averages, the first to arrive.
        silence: Delta k, rounds without activity after which a peer is no longer drawn.
        rule: how an aggregator combines models.
    """

    s: Annotated[int, Meta(ge=1)] = 6
    a: Annotated[int, Meta(ge=1)] = 1
    sf: Annotated[float, Meta(gt=0, le=1)] = 0.8
    silence: Annotated[int, Meta(ge=1)] = 50
    rule: Rule = rules.field("mean")
    local_steps: Annotated[int, Meta(ge=1)] = 10

    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist14",
            "partition": {"name": "dirichlet", "alpha": 0.3},
            "model": {"name": "mlp", "hidden": [32]},
        },
        "network": {"graph": "complete"},
        "peers": 60,
        "rounds": 100,
    }
    trial: ClassVar[dict[str, Any]] = {
        "network": {"graph": "complete"},
        "method": {"s": 3, "a": 2, "sf": 0.7, "silence": 2},
    }

    def check(self) -> None:
        if self.a > self.s:
            raise BadInput("a", self.a, f"at most s = {self.s}")

    @property
    def enough(self) -> int:
        """floor(sf s), at least 1: the models that an aggregator averages."""
        return max(1, math.floor(self.sf * self.s + 1e-9))

    def init(self, ctx: Context[Differentiable]) -> Sampled:
        if self.s > ctx.n:
            raise BadInput("s", self.s, f"at most the number of peers, {ctx.n}")
        x = ctx.task.init(self.same_start)
        rows = len(x)
        nobody = torch.zeros(rows, dtype=torch.bool)
        view = PopulationView.start(rows, torch.zeros(ctx.n, dtype=torch.bool))
        return Sampled(x, torch.zeros(rows, dtype=torch.int64), nobody, nobody, view)

    def step(self, s: Sampled, tick: Tick, ctx: Context[Differentiable]) -> Sampled:
        if int(tick.active.sum()) < self.enough:
            raise RunFailed(
                f"stalled in round {tick.index}: {int(tick.active.sum())} peers are live, fewer than the "
                f"floor(sf s) = {self.enough} models that an aggregator waits for"
            )
        k, sampler = tick.index, HashSampler(ctx.seed, ctx.n)
        answers, me = self.answers(tick, ctx), one_hot(ctx)
        here, there = ctx.mine(tick.active), ctx.mine(_alive(tick))
        if k == 0:
            view = PopulationView.start(len(s.x), _alive(tick))
            drawn = sampler.sample(0, view.candidates(self.silence, me) & answers, self.s)
            s = replace(s, view=view, due=(drawn & me).any(1), there=there)
        trains = s.due & here
        news = here & (~s.there | ((s.view.last * me).sum(1) <= k - self.silence)) & ~trains
        view = s.view.active(me & trains[:, None], k).join(me & news[:, None], k)

        # Participants train and send to the next round's aggregators; who is new tells some of them.
        x = chosen(trains, self.local(s.x, tick.replace(active=_every(tick, trains, ctx)), ctx), s.x)
        known = view.candidates(self.silence, me) & answers
        heads = sampler.sample(k + 1, known, self.a)
        some = known & ~me & news[:, None]
        if bool(some.any()):
            some = first_of(some, ctx.draws("modest/greet", k).permutation(ctx.n), self.s)
        to = heads & trains[:, None]
        inbox, rounds, view = self.tell(x, s.round, view, to, some, "up", tick, ctx)
        pooled, latest = self.average(inbox, rounds, tick, ctx)
        heard = latest >= 0
        leads = heard | ((heads & me).any(1) & here)
        pooled, version = chosen(heard, pooled, x), torch.where(heard, latest + 1, s.round)
        view = view.active(me & leads[:, None], k)

        # Aggregators send to the next round's participants, who take the first model of the latest round.
        known = view.candidates(self.silence, me) & answers
        to = sampler.sample(k + 1, known, self.s) & leads[:, None]
        inbox, rounds, view = self.tell(pooled, version, view, to, to & False, "down", tick, ctx)
        first, latest = self.newest(inbox, rounds, 1, tick, ctx)
        newer = latest >= version
        x = chosen(newer, inbox.combine(first.to(x.dtype)), pooled)
        return Sampled(x, torch.where(newer, latest, version), latest >= 0, there, view)

    def answers(self, tick: Tick, ctx: Context[Any]) -> Tensor:
        """Bool [P, n]: who answers when this block's peers ping."""
        graph, rows = tick.graph, len(ctx.peers)
        row = torch.full((ctx.n,), -1)
        row[ctx.peers] = torch.arange(rows)
        there, back = torch.zeros(2, rows, ctx.n, dtype=torch.bool)
        out, into = row[graph.src] >= 0, row[graph.dst] >= 0
        there[row[graph.src[out]], graph.dst[out]] = True
        back[row[graph.dst[into]], graph.src[into]] = True
        return (there & back) | (one_hot(ctx) & tick.active)

    def tell(
        self,
        x: Tensor,
        rounds: Tensor,
        view: PopulationView,
        to: Tensor,
        also: Tensor,
        channel: str,
        tick: Tick,
        ctx: Context[Any],
    ) -> tuple[Inbox, Tensor, PopulationView]:
        """View and model to the peers ``to`` (bool [P, n]), the view alone to those of ``also``.

        Who was never drawn knows the time, but not the others: what it says of itself counts as of the
        receiver's latest round, or a receiver out of touch would think everybody else silent.

        Returns:
            (the models that came, the round of each int64 [P, K], the views merged).
        """
        mine = one_hot(ctx)
        outbox: list[dict[int, Any]] = [
            {j: [int(rounds[i]) if to[i, j] else -1, view.message(i)] for j in row.nonzero()[:, 0].tolist()}
            for i, row in enumerate((to | also) & ~mine)
        ]
        announced = torch.where(to & mine, rounds[:, None], -1)
        latest, rows, views = view.latest(mine).tolist(), [], []
        for i, box in enumerate(ctx.net.share(outbox, tick)):
            for sender, message in box.items():
                round, told = message if isinstance(message, list) and len(message) == 2 else (None, None)
                other = PopulationView.read(told, ctx.n, tick.index + 1)
                if other is not None and isinstance(round, int) and -1 <= round <= tick.index + 1:
                    announced[i, sender] = round
                    if round < 0:
                        other = other.capped(sender, latest[i])
                    rows.append(i)
                    views.append(other)
        out, into = to.nonzero(), (announced >= 0).nonzero()
        # What this block's peers say, and what they were told that they will hear.
        src = torch.cat([ctx.peers[out[:, 0]], into[:, 1]])
        dst = torch.cat([out[:, 1], ctx.peers[into[:, 0]]])
        pairs = torch.unique(src * ctx.n + dst)
        inbox = ctx.net.send(x, tick, pairs // ctx.n, pairs % ctx.n, channel=channel)
        came = announced.gather(1, inbox.sender.clamp(min=0))
        return inbox, torch.where(inbox.mask, came, -1), view.absorb(rows, views)

    def newest(
        self, inbox: Inbox, rounds: Tensor, count: int, tick: Tick, ctx: Context[Any]
    ) -> tuple[Tensor, Tensor]:
        """Of each receiver's messages of the latest round the first ``count`` to arrive, bool [P, K], and
        that round, int64 [P]; -1: none came."""
        if rounds.shape[1] == 0:
            return inbox.mask, torch.full((len(rounds),), -1)
        latest = rounds.max(1).values
        able = inbox.mask & (rounds == latest[:, None]) & (rounds >= 0)
        coin = ctx.shared("modest/arrival", tick.index).words(ctx.n)[0]
        order = coin[inbox.sender.clamp(min=0)].argsort(dim=1, stable=True)
        return first_of(able, order, count), latest

    def average(self, inbox: Inbox, rounds: Tensor, tick: Tick, ctx: Context[Any]) -> tuple[Tensor, Tensor]:
        """(the combined models [P, D], their round int64 [P]; -1: none came)."""
        kept, latest = self.newest(inbox, rounds, self.enough, tick, ctx)
        weight = kept / kept.sum(1, keepdim=True).clamp(min=1)
        voted = replace(inbox, mask=kept, weight=weight.to(inbox.rows.dtype), own=None, own_weight=None)
        return self.rule(voted), latest

    def measure(self, s: Sampled, tick: Tick, ctx: Context[Any]) -> dict[str, float | Tensor]:
        """``sampled_accuracy`` [P]: of the coming round's model, at its participants alone; ``known``
        [P]: how many peers each would draw from."""
        figures: dict[str, float | Tensor] = {
            "known": s.view.candidates(self.silence, one_hot(ctx)).sum(1).to(torch.float64)
        }
        if isinstance(ctx.task, Training):
            score = torch.full((len(s.x),), torch.nan, dtype=torch.float64)
            score[s.due] = ctx.task.score(s.x[s.due], ctx.task.test_x, ctx.task.test_y)
            figures[f"sampled_{ctx.task.metric}"] = score
        return figures


def one_hot(ctx: Context[Any]) -> Tensor:
    """Bool [P, n]: each peer itself."""
    return ctx.peers[:, None] == torch.arange(ctx.n)


def chosen(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """The rows of ``yes`` where ``mask`` [P] holds, else those of ``no``."""
    return torch.where(mask[:, None], yes, no)


def _alive(tick: Tick) -> Tensor:
    return torch.ones_like(tick.active) if tick.alive is None else tick.alive


def _every(tick: Tick, mine: Tensor, ctx: Context[Any]) -> Tensor:
    """This block's ``mine`` [P] as part of all peers' [n]."""
    every = torch.zeros_like(tick.active)
    every[ctx.peers] = mine
    return every
