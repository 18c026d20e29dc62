"""Bandits whose losses an adversary chose beforehand, for each round and each agent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws, Place, Task, Work, need, tasks

__all__ = ["AdversarialLosses", "Losses"]


@tasks.register("adversarial-losses")
@dataclass(frozen=True)
class AdversarialLosses(Task):
    """Losses l_t(i, k) in [0, 1] of arm k for agent i in round t, a pure function of the seed.

    Args:
        arms: K.
        source: ``homogeneous``: all agents draw Bernoulli losses with the arms' means, which lie
            evenly in (0, 1) in an order of the seed's. ``fixed``: only some agents ever do (they are
            fixed), the others always see loss 0. ``digits``: arm k is the k-th of K classifiers, each
            fitted to some of the classes; an agent's loss is that classifier's error, 0 or 1, on the
            next image of its own stream, whose classes are Dirichlet. ``table``: see ``file``.
        active: share of the agents that see losses under ``fixed``.
        alpha: Dirichlet parameter of the digit streams.
        file: CSV of ``user,arm,rating`` lines (arm: a name, for instance a genre). Ratings in
            [0, ``scale``] become losses 1 - rating/scale; the n agents are the users with the most
            ratings, and an agent meets its own ratings of an arm in the order of the file, again and
            again (1 where it has none). ``arms`` are the K most rated.
        scale: the best rating.
    """

    arms: Annotated[int, Meta(ge=2)] = 10
    source: Literal["homogeneous", "fixed", "digits", "table"] = "homogeneous"
    active: Annotated[float, Meta(gt=0, le=1)] = 0.5
    alpha: Annotated[float, Meta(gt=0)] = 0.1
    file: str = ""
    scale: Annotated[float, Meta(gt=0)] = 5.0

    def check(self) -> None:
        if (self.source == "table") != bool(self.file):
            raise BadInput("file", self.file, "a CSV of user,arm,rating with source=table, else empty")

    def open(self, place: Place) -> Losses:
        return Losses(self, place)


class Losses(Work):
    """The open task. An agent sees its own losses only; what the others saw enters :meth:`measure`.

    ``spent`` counts pulls. The regret of agent i is the loss, averaged over all agents, of the arms
    that i pulled, less that of the arm which is best on that average in hindsight.

    Args:
        config: the task.
        place: this block.
    """

    def __init__(self, config: AdversarialLosses, place: Place) -> None:
        super().__init__(place)
        self.config, self.arms = config, config.arms
        seed, n, k = place.seed, place.n, config.arms
        one = Draws(seed, "shared/arms", torch.zeros(1, dtype=torch.int64))
        order = one.permutation(k)[0]
        self.mean = ((order + 0.5) / k).expand(n, k)
        if config.source == "fixed":
            seeing = one.at("active").permutation(n)[0] < max(1, round(config.active * n))
            self.mean = self.mean * seeing[:, None]
        self._errors = self._streams = self._table = self._length = None
        if config.source == "digits":
            self._errors, self._streams = _digits(order, n, config.alpha, seed)
        elif config.source == "table":
            self._table, self._length = _ratings(config, n)
        zero = torch.zeros(len(place.peers), dtype=torch.float64)
        self.suffered, self.offered = zero, torch.zeros(len(zero), k, dtype=torch.float64)

    # -- what an agent can do ------------------------------------------------------------------------

    def pull(self, arm: Tensor, tick: int, *, active: Tensor | None = None) -> Tensor:
        """The losses [P] of the arms int64 [P] that the agents pull in round ``tick``; 0 for those
        who are not ``active`` [P]."""
        table = self._all(tick)
        going = torch.ones(len(arm), dtype=torch.bool) if active is None else active
        average = table.mean(0)
        self.spent = self.spent + going
        self.suffered = self.suffered + average[arm] * going
        self.offered = self.offered + average * going[:, None]
        return (table[self.peers, arm] * going).to(self.place.dtype)

    def losses(self, tick: int) -> Tensor:
        """Full information: the agents' own losses of all arms in round ``tick``, [P, K]."""
        return self._all(tick)[self.peers].to(self.place.dtype)

    # -- measuring -----------------------------------------------------------------------------------

    def measure(self, output: Any, tick: int) -> dict[str, float | Tensor]:
        regret = self.suffered - self.offered.amin(1)
        return {"regret": regret, "worst_regret": float(regret.max()), "loss": self.suffered}

    def state(self) -> dict[str, Any]:
        return super().state() | {"suffered": self.suffered, "offered": self.offered}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.suffered, self.offered = state["suffered"], state["offered"]

    # -- the adversary -------------------------------------------------------------------------------

    def _all(self, tick: int) -> Tensor:
        """l_t of every agent and arm: float64 [n, K]."""
        draws = Draws(self.place.seed, "losses", torch.arange(self.n), tick)
        if self._errors is not None and self._streams is not None:
            image = torch.searchsorted(self._streams, draws.uniform(1), right=True)[:, 0]
            return self._errors[image.clamp(max=len(self._errors) - 1)]
        if self._table is not None and self._length is not None:
            at = tick % self._length.clamp(min=1)
            return self._table.gather(2, at[:, :, None])[:, :, 0]
        return (draws.uniform(self.arms) < self.mean).to(torch.float64)


def _digits(order: Tensor, n: int, alpha: float, seed: int) -> tuple[Tensor, Tensor]:
    """(errors [images, K] of K classifiers on held-out digits, cumulated chance [n, images] with which
    each agent meets each image)."""
    data = need("sklearn.datasets", "data").load_digits()
    linear = need("sklearn.linear_model", "data")
    one = Draws(seed, "shared/digits", torch.zeros(1, dtype=torch.int64))
    shuffled = one.permutation(len(data.target))[0].numpy()
    x, y = data.data[shuffled] / 16.0, data.target[shuffled]
    train = len(y) // 2
    arms = len(order)
    errors = torch.zeros(len(y) - train, arms, dtype=torch.float64)
    for arm, rank in enumerate(order.tolist()):
        # The classifier of rank r knows some classes only, from two for the first to all ten for the
        # last; which ones is drawn, so an agent's best arm is not the best one on average.
        known = one.at(f"classes/{arm}").choice(10, 2 + round(8 * rank / (arms - 1)))[0].numpy()
        rows = [i for i in range(train) if y[i] in known]
        model = linear.RidgeClassifier(alpha=1.0).fit(x[rows], y[rows])
        errors[:, arm] = torch.tensor(model.predict(x[train:]) != y[train:], dtype=torch.float64)
    classes = _dirichlet(Draws(seed, "streams", torch.arange(n)), alpha, 10)
    label = torch.tensor(y[train:], dtype=torch.int64)
    chance = classes[:, label] / torch.bincount(label, minlength=10)[label]
    return errors, torch.cumsum(chance / chance.sum(1, keepdim=True), 1).contiguous()


def _dirichlet(draws: Draws, alpha: float, classes: int) -> Tensor:
    """Dirichlet(alpha) shares, [P, classes], by quantiles of the gamma distribution."""
    special = need("scipy.special", "data")
    u = draws.uniform(classes) + 2.0**-33
    gamma = torch.tensor(special.gammaincinv(alpha, u.numpy())).clamp(min=1e-300)
    return gamma / gamma.sum(1, keepdim=True)


def _ratings(config: AdversarialLosses, n: int) -> tuple[Tensor, Tensor]:
    """(losses [n, K, longest], how many there are int64 [n, K])."""
    by: dict[tuple[str, str], list[float]] = {}
    users: dict[str, int] = {}
    arms: dict[str, int] = {}
    try:
        lines = Path(config.file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("file", config.file, f"not readable ({error})") from None
    for number, line in enumerate(lines, 1):
        parts = [p.strip() for p in line.split(",")]
        if number == 1 and parts == ["user", "arm", "rating"]:
            continue
        try:
            user, arm, rating = parts[0], parts[1], float(parts[2])
        except (IndexError, ValueError):
            raise BadInput("file", line, f"line {number}: user,arm,rating") from None
        if not 0 <= rating <= config.scale:
            raise BadInput("file", rating, f"line {number}: a rating in [0, {config.scale:g}]")
        by.setdefault((user, arm), []).append(1 - rating / config.scale)
        users[user] = users.get(user, 0) + 1
        arms[arm] = arms.get(arm, 0) + 1
    if len(users) < n or len(arms) < config.arms:
        short = f"{len(users)} users, {len(arms)} arms"
        raise BadInput("file", short, f"at least {n} users (peers) and {config.arms} arms")
    chosen = sorted(users, key=lambda u: (-users[u], u))[:n]
    kept = sorted(arms, key=lambda a: (-arms[a], a))[: config.arms]
    longest = max(len(by.get((u, a), ())) for u in chosen for a in kept)
    table = torch.ones(n, config.arms, max(longest, 1), dtype=torch.float64)
    length = torch.zeros(n, config.arms, dtype=torch.int64)
    for i, user in enumerate(chosen):
        for k, arm in enumerate(kept):
            mine = by.get((user, arm), [])
            table[i, k, : len(mine)] = torch.tensor(mine, dtype=torch.float64)
            length[i, k] = len(mine)
    return table, length
