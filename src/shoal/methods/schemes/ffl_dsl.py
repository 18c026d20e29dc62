"""034: carries out learning schemes that are written in the language of :mod:`shoal.network.dsl`.

Source: "Experimenting with emerging RISC-V systems for decentralised machine learning" (Computing
Frontiers 2023). Deviations: workers train by plain SGD, with the code of the hand-written FedAvg, not by
Adam; what is combined is the class that each leaf predicts for its own examples.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from shoal.core import BadInput, Context, Method, Rule, Tick, methods, rules
from shoal.methods.federated.fedavg import FedAvg
from shoal.network.dsl import Program, parse
from shoal.tasks.supervised import Training

__all__ = ["FFL", "Working"]

_PLAIN = ("fedavg", "mean")
_FRAMES = 16


@dataclass(frozen=True)
class Working:
    """The peers' models.

    Args:
        x: [P, D].
        tested: [P, D], as the last ``test`` saw them ([P, 0] where there is none).
        server: [A, D], the master's.
        results: [P, leaves, frames], the classes that a peer of the tree knows the leaves to have
            predicted; -1: none. Without a tree [P, 0, 0].
    """

    x: Tensor
    tested: Tensor
    server: Tensor
    results: Tensor


@methods.register("ffl-dsl")
@dataclass(frozen=True)
class FFL(Method):
    """One tick is one round of the scheme; its ``feedback`` says how many there are by default.

    Args:
        scheme: the text.
    """

    scheme: str = "feedback(10)[parallel[train(epochs=2, batch=64); test]; reduce(fedavg); broadcast]"

    work: ClassVar[type[Training]] = Training
    recipe: ClassVar[dict[str, Any]] = {
        "task": {
            "name": "supervised",
            "data": "mnist",
            "partition": "iid",
            "model": {"name": "mlp", "hidden": [64, 32]},
        },
        "network": {"graph": "complete"},
        "peers": 7,
        "rounds": 10,
        "every": 1,
    }

    def check(self) -> None:
        program = self.program
        for step in program.steps:
            try:
                if step.action == "train":
                    FedAvg.make(**step.fields)
                if step.action in ("pool", "mix"):
                    self.rule(step.fields["policy"])
                if step.action == "infer":
                    _frames(step.fields)
            except TypeError as error:
                raise BadInput("scheme", self.scheme, str(error).partition("() ")[2]) from None
            except BadInput as error:
                raise error.under("scheme") from None

    @cached_property
    def program(self) -> Program:
        return parse(self.scheme).program()

    @cached_property
    def trainers(self) -> list[FedAvg]:
        """The hand-written FedAvg behind each ``train``, in their order."""
        return [FedAvg.make(**s.fields) for s in self.program.steps if s.action == "train"]

    @staticmethod
    def rule(policy: str) -> Rule | None:
        """The rule of a policy; None: the network's own."""
        return None if policy in _PLAIN else rules(policy)

    def init(self, ctx: Context[Training]) -> Working:
        program, tree = self.program, self.program.tree
        if program.workers not in (0, ctx.n):
            raise BadInput("peers", ctx.n, f"{program.workers}: as many as the scheme has workers")
        x = ctx.task.init()
        tests = any(s.action == "test" for s in program.steps)
        frames = _frames(program.steps[0].fields) if tree is not None else 0
        leaves = 0 if tree is None else tree.levels[-1]
        return Working(
            x,
            x if tests else x[:, :0],
            x[:1] if ctx.net.hosts_server else x[:0],
            torch.full((len(x), leaves, frames), -1.0, dtype=x.dtype),
        )

    def step(self, s: Working, tick: Tick, ctx: Context[Training]) -> Working:
        base, trainers = s.x, iter(self.trainers)
        for hop, act in enumerate(self.program.steps):
            if act.action == "train":
                s = replace(s, x=next(trainers).local(s.x, tick, ctx))
            elif act.action == "test":
                s = replace(s, tested=s.x)
            elif act.action == "pool":
                weight = ctx.task.sizes if act.fields["policy"] == "fedavg" else None
                rule = self.rule(act.fields["policy"])
                pooled = ctx.net.pool(s.x, tick, weight=weight, base=base, held=s.server, rule=rule)
                s = replace(s, server=pooled)
            elif act.action == "cast":
                s = replace(s, x=ctx.net.cast(s.server, tick, like=s.x))
                base = s.x
            elif act.action == "mix":
                s = replace(s, x=self.mix(s.x, act.fields["policy"], hop, tick, ctx))
            elif act.action == "infer":
                s = replace(s, results=self.infer(s, tick, ctx))
            else:
                s = replace(s, results=self.up(s.results, act.fields["level"], tick, ctx))
        return s

    def mix(self, x: Tensor, policy: str, hop: int, tick: Tick, ctx: Context[Training]) -> Tensor:
        """Every worker broadcasts to its neighbours and reduces what it hears."""
        if policy == "mean":
            return ctx.net.mix(x, tick, hop=hop)
        if policy == "fedavg":  # sum_j w_ij n_j x_j / sum_j w_ij n_j; n_j travels along
            size = ctx.task.sizes.to(torch.float64)
            told = ctx.net.mix({"x": x * size[:, None].to(x.dtype), "size": size}, tick, hop=hop)
            return told["x"] / told["size"][:, None].to(x.dtype)
        inbox = ctx.net.gather(x, tick)
        return torch.where(ctx.mine(tick.active)[:, None], rules(policy)(inbox), x)

    def infer(self, s: Working, tick: Tick, ctx: Context[Training]) -> Tensor:
        """The leaves predict the classes of their next examples; the others know nothing yet."""
        tree, task = self.program.tree, ctx.task
        assert tree is not None
        frames = s.results.shape[2]
        index, _ = task.batch(tick.index, 1, frames)
        inputs, _ = task.fetch(index[:, 0], tick.index, 0)
        predicted = task.model.logits(s.x, inputs).argmax(-1).to(s.x.dtype)
        leaf = ctx.peers - tree.starts[-1]
        own = (leaf[:, None] == torch.arange(tree.levels[-1])) & ctx.mine(tick.active)[:, None]
        return torch.where(own[:, :, None], predicted[:, None], -1.0)

    def up(self, results: Tensor, level: int, tick: Tick, ctx: Context[Training]) -> Tensor:
        """The peers of one level send what they know of their leaves, those above write it down."""
        tree = self.program.tree
        assert tree is not None
        child, parent = tree.up(level)
        here = tick.active[child] & tick.active[parent]
        leaves = tree.below(level)
        first = ((ctx.peers - tree.starts[level]) * leaves).clamp(0, results.shape[1] - leaves)
        column = torch.arange(leaves)
        row = torch.arange(len(results))[:, None]
        message = results[row, first[:, None] + column].flatten(1)
        inbox = ctx.net.send(message, tick, child[here], parent[here], channel=f"up/{level}")
        at, slot = inbox.mask.nonzero(as_tuple=True)
        leaf = (inbox.sender[at, slot] - tree.starts[level])[:, None] * leaves + column
        after = results.clone()
        after[at[:, None], leaf] = inbox.rows[inbox.index[at, slot]].reshape(
            len(at), leaves, results.shape[2]
        )
        return after

    def output(self, s: Working) -> Tensor:
        return s.x

    def measure(self, s: Working, tick: Tick, ctx: Context[Training]) -> dict[str, float | Tensor]:
        """``local_accuracy`` [P]: of the models as ``test`` saw them. ``results`` [P]: leaves that a
        peer of the tree heard of, itself among them."""
        figures: dict[str, float | Tensor] = {}
        if s.tested.shape[1]:
            task = ctx.task
            figures[f"local_{task.metric}"] = task.score(s.tested, task.test_x, task.test_y)
        if s.results.shape[1]:
            figures["results"] = (s.results >= 0).all(2).sum(1).to(torch.float64)
        return figures

    def notes(self, ctx: Context[Training]) -> list[str]:
        return [f"Platform: {platform.platform()}, {platform.machine()}, torch {torch.__version__}."]


def _frames(fields: Any) -> int:
    """How many examples a leaf classifies in a round: ``infer(frames=16)``."""
    odd = [name for name in fields if name != "frames"]
    if odd:
        raise BadInput(f"infer.{odd[0]}", fields[odd[0]], "infer has: frames")
    frames = fields.get("frames", _FRAMES)
    if not isinstance(frames, int) or isinstance(frames, bool) or frames < 1:
        raise BadInput("infer.frames", frames, "a whole number, 1 or more")
    return frames
