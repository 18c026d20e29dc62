"""087 AgentsNet: agents on a graph exchange texts with their neighbours for some rounds, then answer.

Source: "AgentsNet: Coordination and collaborative reasoning in multi-agent LLMs" (arXiv 2507.08616) and
its repository. A tick is a round: each agent writes a JSON object {neighbour: text} (asked once more if
it cannot be read), and its texts travel along the edges. After the last round each gives one of the
valid options.

The graph is the first round's; deviation: an answer that is no valid option is refused as an error
here, because agents choose from a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from shoal.core import Context, Method, Tick, methods
from shoal.tasks.agents_net import Coordination

__all__ = ["AgentsNet", "Talk"]


@dataclass(frozen=True)
class Talk:
    """The agents' minds: lists of P JSON-like values.

    Args:
        given: what each knew at the start; {} before the first round.
        memory: what each remembers.
        answer: None before the last round.
        failures: int64 [P], outputs that could not be read as JSON.
    """

    given: list[Any]
    memory: list[Any]
    answer: list[Any]
    failures: Tensor


@methods.register("agentsnet")
@dataclass(frozen=True)
class AgentsNet(Method):
    """Synchronous text messages between neighbours. Who is inactive neither hears nor speaks."""

    work: ClassVar[type[Coordination]] = Coordination
    connected: ClassVar[bool] = True
    recipe: ClassVar[dict[str, Any]] = {
        "task": "coloring",
        "network": {"graph": "watts-strogatz"},
        "peers": 16,
        "rounds": 8,
        "every": 8,
    }
    trial: ClassVar[dict[str, Any]] = {"task": "maximal-matching", "peers": 6, "rounds": 4}

    def init(self, ctx: Context[Coordination]) -> Talk:
        rows = len(ctx.peers)
        empty: list[Any] = [{} for _ in range(rows)]
        return Talk(empty, list(empty), [None] * rows, torch.zeros(rows, dtype=torch.int64))

    def step(self, s: Talk, tick: Tick, ctx: Context[Coordination]) -> Talk:
        task, number = ctx.task, {name: j for j, name in enumerate(ctx.task.names)}
        given, memory, answer, failures = list(s.given), list(s.memory), list(s.answer), s.failures.clone()
        near: dict[int, list[int]] = {peer: [] for peer in ctx.peers.tolist()}
        for a, b in zip(tick.graph.src.tolist(), tick.graph.dst.tolist(), strict=True):
            if a in near:
                near[a].append(b)
        degree = int(tick.graph.out_degree().max()) if tick.graph.edges else 0
        active = ctx.mine(tick.active).tolist()
        boxes: list[dict[int, str]] = []
        for row, (peer, those) in enumerate(near.items()):
            box: dict[int, str] = {}
            if not given[row]:
                given[row] = task.given(peer, those, degree, tick.total)
                memory[row] = task.agent.start(given[row])
            if active[row]:
                said, failed = task.speak(row, given[row], memory[row], tick.index)
                failures[row] += failed
                box = {number[name]: text for name, text in said.items() if number[name] in those}
            boxes.append(box)
        for row, inbox in enumerate(ctx.net.share(boxes, tick)):
            if active[row]:
                heard = {task.names[j]: text for j, text in inbox.items() if isinstance(text, str)}
                memory[row] = task.agent.hear(memory[row], heard)
            if tick.last:
                answer[row] = task.answer(row, given[row], memory[row], tick.index)
        return Talk(given, memory, answer, failures)

    def output(self, s: Talk) -> list[dict[str, Any]]:
        return [{"given": g, "answer": a} for g, a in zip(s.given, s.answer, strict=True)]

    def measure(self, s: Talk, tick: Tick, ctx: Context[Coordination]) -> dict[str, float | Tensor]:
        """``json_failures`` [P]."""
        return {"json_failures": s.failures.to(torch.float64)}
