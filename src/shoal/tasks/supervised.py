"""Supervised learning: each peer holds some examples and trains a model of its own on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Differentiable, Draws, Place, Task, tasks

from .batches import Shards
from .data.base import Source, datasets, split
from .models.base import Model, Stacked, models
from .models.rows import Batch, Batches, Rows
from .partition.base import Partition, describe, hold_out, partitions

__all__ = ["Supervised", "Training"]


@tasks.register("supervised")
@dataclass(frozen=True)
class Supervised(Task):
    """Classification or regression on any data set with any model.

    Args:
        data: where the examples come from.
        partition: which peer holds which.
        model: any registered model, or the user's own ``nn.Module``.
        batch: examples in a local batch; 0: all that the peer holds.
        test: share of the data kept for the global test where the set has no split of its own.
        own_test: share of each peer's examples held out for its personal test.
        limit: use at most so many training examples in all; 0: every one.
        relays: accept peers without data; they mix and forward, and never train.
        pretrained: models start as if trained before, elsewhere, on the training examples of the
            first so many classes; 0: as fresh.
    """

    data: Source = datasets.field("digits")
    partition: Partition = partitions.field("iid")
    model: Model = models.field("mlp")
    batch: Annotated[int, Meta(ge=0)] = 32
    test: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    own_test: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    limit: Annotated[int, Meta(ge=0)] = 0
    relays: bool = False
    pretrained: Annotated[int, Meta(ge=0)] = 0

    def open(self, place: Place) -> Training:
        return Training(self, place)


class Training(Differentiable):
    """The open task. The data is one tensor for all; a peer is a list of row numbers.

    Args:
        config: the task.
        place: this block.
    """

    def __init__(self, config: Supervised, place: Place) -> None:
        super().__init__(place)
        self.config = config
        train, test = split(config.data.load(), config.test, place.seed)
        if config.limit:
            train = train.head(config.limit, place.seed)
        lists = config.partition.assign(train.y, train.groups, place.n, place.seed)
        # Feature skew is a property of the peer: its rows are stored as it sees them.
        x = config.partition.skew(train.x, lists, place.seed)
        own: list[Tensor] = []
        if config.own_test:
            lists, own = hold_out(lists, config.own_test, place.seed)
        for peer, rows in enumerate(lists):
            if len(rows) == 0 and not config.relays:
                raise BadInput("partition", config.partition.slug, f"leaves peer {peer} without data")
        self.names, self.classes, self.source = train.names, train.classes, train.source
        self.counts = describe(train, lists)
        self.x, self.y = x.to(place.dtype), train.y
        self.test_x, self.test_y = test.x.to(place.dtype), test.y
        mine = place.peers.tolist()
        self.shards = Shards.of([lists[i] for i in mine])
        self.own = Shards.of([own[i] for i in mine]) if own else None
        self.sizes = self.shards.size
        self.relays = bool((self.sizes == 0).any())
        self.model: Stacked = config.model.build(train.feature_shape, train.classes)
        self.dim, self.layers = self.model.dim, self.model.layers
        self.attack = place.data_attack if getattr(place.data_attack, "poisons_data", False) else None
        self._tests: dict[int, Tensor] = {}

    # -- learning ------------------------------------------------------------------------------------

    def init(self, same: bool = True) -> Tensor:
        place = self.place
        peers = torch.zeros(1, dtype=torch.int64) if same else self.peers
        x = self.model.init(Draws(place.seed, "init", peers), place.dtype)
        if self.config.pretrained:
            self._pretrain_(x)
        return x.repeat(len(self.peers), 1) if same else x

    def _pretrain_(self, x: Tensor) -> None:
        """Fixed SGD on the first classes' examples, in place: part of the start, not of the run."""
        known = (self.y < self.config.pretrained).nonzero()[:, 0]
        if not self.classes or not len(known):
            raise BadInput("pretrained", self.config.pretrained, "classes whose examples the data holds")
        draws = Draws(self.place.seed, "shared/pretrained", torch.zeros(1, dtype=torch.int64))
        rows = known[draws.integers(len(known), 300, 32)].expand(len(x), -1, -1)
        self.model.train_(x, Batches(self.x, self.y, rows), 300, 0.1, batch=32)

    def batch(
        self, tick: int, steps: int = 1, size: int | None = None, first: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Rows of the data that the peers' batches hold.

        Returns:
            (int64 [P, steps, B], weights [P, B] of full batches of unequal peers, or None).
        """
        size = self.config.batch if size is None else size
        if size == 0:
            index, weight = self.shards.everything()
            return index[:, None].expand(-1, steps, -1), weight.to(self.place.dtype)
        draws = Draws(self.place.seed, f"batch/{first}", self.peers, tick)
        return self.shards.sample(draws.integers(self.shards.size, steps, size)), None

    def fetch(self, index: Tensor, tick: int, step: int, rows: Rows = slice(None)) -> tuple[Tensor, Tensor]:
        """Inputs [p, B, ...] and targets [p, B] of the data ``index`` [p, B] for the block's peers
        ``rows``, poisoned where hostile."""
        x, y, _ = Batches(self.x, self.y, index[:, None])(slice(None), 0)
        if self.attack is None or self.place.hostile is None:
            return x, y
        peers = self.peers[rows]
        draws = Draws(self.place.seed, f"poison/{step}", peers, tick)
        return self.attack.batch(x, y, self.place.hostile[peers], draws, self.classes)

    def grad(
        self,
        x: Tensor,
        tick: int,
        *,
        step: int = 0,
        active: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        index, weight = self.batch(tick, 1, size, step)
        inputs, targets = self.fetch(index[:, 0], tick, step)
        gradient = self.model.grad(x, inputs, targets, weight)[1]
        active = self._able(active)
        self._work(1, active)
        return gradient if active is None else torch.where(active[:, None], gradient, 0.0)

    def loss(self, x: Tensor, tick: int, *, step: int = 0, size: int | None = None) -> Tensor:
        index, weight = self.batch(tick, 1, size, step)
        inputs, targets = self.fetch(index[:, 0], tick, step)
        return self.model.loss(x, inputs, targets, weight)

    def sgd(
        self,
        x: Tensor,
        tick: int,
        steps: int | Tensor,
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        active: Tensor | None = None,
    ) -> Tensor:
        most = int(steps.max()) if isinstance(steps, Tensor) else steps
        index, weight = self.batch(tick, most)
        return self._descend(x, tick, index, weight, steps, lr, momentum, weight_decay, active)

    def epochs(
        self,
        x: Tensor,
        tick: int,
        epochs: int,
        batch: int,
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        active: Tensor | None = None,
    ) -> Tensor:
        """``epochs`` passes over each peer's own data in a fresh random order, ``batch`` rows at a
        time (0: all at once); a peer with more data takes more steps. Returns new models [P, D]."""
        if batch == 0:
            index, weight = self.batch(tick, epochs, 0)
            return self._descend(x, tick, index, weight, epochs, lr, momentum, weight_decay, active)
        draws = [Draws(self.place.seed, f"epoch/{e}", self.peers, tick) for e in range(epochs)]
        index, weights, steps = self.shards.passes(draws, batch)
        return self._descend(x, tick, index, weights.to(x.dtype), steps, lr, momentum, weight_decay, active)

    def _descend(
        self,
        x: Tensor,
        tick: int,
        index: Tensor,
        weight: Tensor | None,
        steps: int | Tensor,
        lr: float,
        momentum: float,
        weight_decay: float,
        active: Tensor | None,
    ) -> Tensor:
        x = x.clone()
        active = self._able(active)
        most = index.shape[1]
        count = steps if isinstance(steps, Tensor) else torch.full_like(self.sizes, steps)

        def batches(rows: Rows, step: int) -> Batch:
            inputs, targets = self.fetch(index[rows, step], tick, step, rows)
            each = None if weight is None else weight[rows, step] if weight.ndim == 3 else weight[rows]
            return inputs, targets, each

        self.model.train_(
            x,
            batches,
            most if isinstance(steps, int) else steps,
            lr,
            batch=index.shape[2],
            active=active,
            momentum=momentum,
            buffer=torch.zeros_like(x) if momentum else None,
            weight_decay=weight_decay,
        )
        self._work(count, active)
        return x

    def _able(self, active: Tensor | None) -> Tensor | None:
        """The active peers that have data to train on."""
        if not self.relays:
            return active
        able = self.sizes > 0
        return able if active is None else active & able

    def _work(self, steps: int | Tensor, active: Tensor | None) -> None:
        self.spent = self.spent + (steps if active is None else active * steps)

    # -- measuring -----------------------------------------------------------------------------------

    def predict(self, x: Tensor, inputs: Tensor) -> Tensor:
        """Outputs [P, N, C] of every model on shared inputs [N, ...]; one model shown to all peers
        (an expanded row) is asked once."""
        if len(x) > 1 and x.stride(0) == 0:
            return self.model.logits(x[:1], inputs).expand(len(x), -1, -1)
        return self.model.logits(x, inputs)

    def score(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Accuracy (classification) or R^2 (regression) of each model on shared data: [P]."""
        out = self.predict(x, inputs)
        if self.classes:
            return (out.argmax(-1) == targets).to(torch.float64).mean(1)
        error = (out[..., 0] - targets).pow(2).mean(1)
        return (1 - error / targets.to(x.dtype).var(correction=0)).to(torch.float64)

    @property
    def metric(self) -> str:
        """The primary metric's name."""
        return "accuracy" if self.classes else "r2"

    def measure(self, output: Any, tick: int) -> dict[str, float | Tensor]:
        if not isinstance(output, Tensor) or output.shape[1:] != (self.dim,):
            return {}
        figures: dict[str, float | Tensor] = {self.metric: self.score(output, self.test_x, self.test_y)}
        honest = ~self.place.hostile[self.peers] if self.place.hostile is not None else slice(None)
        merged = output[honest].mean(0, keepdim=True)
        figures[f"merged_{self.metric}"] = float(self.score(merged, self.test_x, self.test_y)[0])
        if self.own is not None:
            figures[f"own_{self.metric}"] = self.personal(output)
        if self.attack is not None:
            probe = self.attack.probe(self.test_x, self.test_y, self.classes)
            if probe is not None:
                inputs, _, target = probe
                hit = self.predict(output, inputs).argmax(-1) == target
                figures["attack_success"] = hit.to(torch.float64).mean(1)
        return figures

    def personal(self, x: Tensor) -> Tensor:
        """Accuracy of each peer's model on its own held-out examples: [P] (NaN: it holds none)."""
        if self.own is None:
            raise BadInput("task.own_test", 0.0, "a share above 0: personal accuracy needs held-out data")
        index, weight = self.own.everything()
        out = self.model.logits(x, self.x[index])
        right = (out.argmax(-1) == self.y[index]).to(torch.float64)
        return (right * weight).sum(1)

    def final(self, output: Any) -> dict[str, Any]:
        if not isinstance(output, Tensor) or output.shape[1:] != (self.dim,) or not self.classes:
            return {}
        hit = self.predict(output, self.test_x).argmax(-1) == self.test_y
        one = torch.nn.functional.one_hot(self.test_y, self.classes).to(torch.float64)
        per_class = (hit.to(torch.float64) @ one) / one.sum(0)
        return {
            "per_class": per_class.tolist(),
            "class_names": self.names,
            "class_counts": self.counts.tolist(),
            "source": self.source,
            "model": {
                "model": self.config.model.spec(),
                "feature_shape": list(self.test_x.shape[1:]),
                "classes": self.classes,
            },
        }
