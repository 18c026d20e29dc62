"""Aggregation when some have returned: peers that come when they like, or after their compute time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Clock, Draws, Graph, Tick, clocks

__all__ = ["Arrivals", "ComputeTimes"]


def spread_rates(n: int, spread: float) -> Tensor:
    """Rates of mean 1 that fall geometrically from peer 0 to peer n - 1, ``spread`` to 1: float64 [n]."""
    rate = spread ** -(torch.arange(n, dtype=torch.float64) / max(n - 1, 1))
    return rate / rate.mean()


@clocks.register("arrivals")
@dataclass(frozen=True)
class Arrivals(Clock):
    """Anarchic participation: each tick is closed by the first ``m`` returns.

    Returns of a peer are a Poisson process; the first m different peers to return are active (all,
    where fewer are there). Each worked from the model of ``stale`` ticks ago, uniform in
    0..delay_max, but never from before its own last return or before tick 0.

    Args:
        m: returns a tick.
        delay_max: tau, the largest staleness; 0: everyone works from the present model.
        steps: (least, most) local steps K_i, uniform; none: the method's own number.
        spread: ratio of the highest rate of returning (peer 0) to the lowest (peer n - 1),
            geometric in the peer's number, so that data can correlate with it.

    Source: Yang, Zhang, Khanduri, Liu, "Anarchic federated learning" (ICML 2022).
    """

    events: ClassVar[bool] = True
    m: Annotated[int, Meta(ge=1)] = 5
    delay_max: Annotated[int, Meta(ge=0)] = 5
    steps: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]] | None = None
    spread: Annotated[float, Meta(ge=1)] = 1.0

    def check(self) -> None:
        if self.steps and self.steps[0] > self.steps[1]:
            raise BadInput("steps", self.steps, "(least, most) with least <= most")

    def start(self, n: int, seed: int, total: int, graph: Graph) -> dict[str, Tensor]:
        if self.m > n:
            raise BadInput("clock.m", self.m, f"at most the number of peers, {n}")
        return {
            "last": torch.full((n,), -1),
            "now": torch.zeros(1, dtype=torch.float64),
            "time": torch.zeros(n, dtype=torch.float64),
        }

    def next(self, state: dict[str, Tensor], tick: Tick, seed: int) -> tuple[Tick, dict[str, Tensor]]:
        n = len(tick.active)
        draws = Draws(seed, "clock/arrivals", torch.arange(n), tick.index)
        # Waiting has no memory, so every tick draws each peer's next return afresh.
        wait = draws.exponential(1)[:, 0] / spread_rates(n, self.spread)
        order = torch.where(tick.active, wait, torch.inf).argsort(stable=True)[: self.m]
        active = torch.zeros(n, dtype=torch.bool)
        active[order] = True
        active &= tick.active
        time = torch.where(active, state["now"] + wait, state["time"])
        now = torch.maximum(state["now"], time.max())
        since = tick.index - 1 - state["last"]
        delay = torch.minimum(draws.at("delay").integers(self.delay_max + 1, 1)[:, 0], since)
        steps = tick.steps
        if self.steps:
            low, high = self.steps
            steps = low + draws.at("steps").integers(high - low + 1, 1)[:, 0]
        tick = tick.replace(
            active=active,
            graph=self.among(tick.graph, active),
            steps=steps,
            stale=torch.where(active, delay, 0),
            time=time,
        )
        last = torch.where(active, tick.index, state["last"])
        return tick, {"last": last, "now": now, "time": time}


@clocks.register("compute-times")
@dataclass(frozen=True)
class ComputeTimes(Clock):
    """Peers of fixed compute times; a tick closes after ``m`` returns, or every ``window`` of time.

    Peer i needs tau_i = 1 - i F / (n - 1). Who has returned waits for the aggregation that closes
    the tick, is active in it, and starts again from its result; ``stale`` counts the aggregations
    since it pulled. m = n: synchronous rounds; m = 1: one return a tick (ties in time go to the lower
    number). Times are relative to the slowest peer.

    Args:
        spread: F, how much quicker the fastest peer is (0.8: it needs 0.2).
        m: returns that close a tick (buffer); 0: by ``window``.
        window: time between aggregations; 0: by ``m``. A window may close with nobody back.

    Source: the clock of FedFix (arXiv 2206.10189).
    """

    events: ClassVar[bool] = True
    spread: Annotated[float, Meta(ge=0, lt=1)] = 0.8
    m: Annotated[int, Meta(ge=0)] = 1
    window: Annotated[float, Meta(ge=0)] = 0.0

    def check(self) -> None:
        if (self.m > 0) == (self.window > 0):
            raise BadInput("window", self.window, f"either m or window is above 0; m = {self.m}")

    def durations(self, n: int) -> Tensor:
        """tau: float64 [n]."""
        return 1.0 - self.spread * torch.arange(n, dtype=torch.float64) / max(n - 1, 1)

    def start(self, n: int, seed: int, total: int, graph: Graph) -> dict[str, Tensor]:
        if self.m > n:
            raise BadInput("clock.m", self.m, f"at most the number of peers, {n}")
        return {
            "due": self.durations(n),
            "pulled": torch.zeros(n, dtype=torch.int64),
            "now": torch.zeros(1, dtype=torch.float64),
        }

    def next(self, state: dict[str, Tensor], tick: Tick, seed: int) -> tuple[Tick, dict[str, Tensor]]:
        due = torch.where(tick.active, state["due"], torch.inf)
        if self.window:
            # Products of the index, not sums, and a hair more: a peer due at the close is in time.
            now = torch.tensor([(tick.index + 1) * self.window], dtype=torch.float64)
            active = due <= now + 1e-9
        else:
            first = due.argsort(stable=True)[: self.m]
            active = torch.zeros_like(tick.active)
            active[first] = True
            active &= tick.active
            last = due[active].max() if bool(active.any()) else state["now"]
            now = torch.maximum(state["now"], last)
        tick = tick.replace(
            active=active,
            graph=self.among(tick.graph, active),
            stale=torch.where(active, tick.index - state["pulled"], 0),
            time=now.expand(len(active)).clone(),
        )
        return tick, {
            "due": torch.where(active, now + self.durations(len(active)), state["due"]),
            "pulled": torch.where(active, tick.index + 1, state["pulled"]),
            "now": now,
        }
