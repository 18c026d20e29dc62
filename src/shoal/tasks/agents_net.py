"""AgentsNet's five problems: coordination on a graph where each agent sees its neighbours alone.

Source: Groetschla et al., "AgentsNet: Coordination and collaborative reasoning in multi-agent LLMs"
(arXiv 2507.08616) and its repository. Each problem has a start text, the options of an answer, and a
score in [0, 1]. Deviation: an empty vertex cover scores 0, where the authors' code divides by zero.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from shoal.agents.base import Agent, Given, Memory
from shoal.agents.llm import Speaking
from shoal.agents.scripted import Guessing, Silent, Simulated
from shoal.core import BadInput, Draws, Place, Task, Work, tasks

__all__ = [
    "Coloring", "Consensus", "Coordination", "LeaderElection", "Matching", "VertexCover",
]  # fmt: skip

Names = list[str]
View = dict[str, Names]
"""Each agent's neighbours, by name."""
AGENTS: dict[str, type[Agent]] = {
    "simulated": Simulated, "silent": Silent, "random": Guessing, "llm": Speaking
}  # fmt: skip


@dataclass(frozen=True)
class Problem(Task):
    """Abstract: one of the problems.

    Args:
        names: of the agents, in the order of the peers; empty: ``p`` and a number of three digits,
            drawn from the seed. Identifiers are compared as text.
        agents: ``simulated``: classical algorithms; ``silent``: the same without messages; ``random``:
            valid answers at random; ``llm``: a small language model.
    """

    names: tuple[str, ...] = ()
    agents: Literal["simulated", "silent", "random", "llm"] = "simulated"

    rules: ClassVar[str] = ""

    def check(self) -> None:
        for name in self.names:
            if not name or self.names.count(name) > 1:
                raise BadInput("names", name, "different names that are not empty")

    def open(self, place: Place) -> Coordination:
        if self.names and len(self.names) != place.n:
            raise BadInput("names", len(self.names), f"one for each of the {place.n} peers")
        return Coordination(self, place)

    @abstractmethod
    def options(self, given: Given) -> Names:
        """The valid answers of an agent."""

    @abstractmethod
    def score(self, graph: View, answers: dict[str, str]) -> float:
        """How well valid answers solve the problem on the graph: in [0, 1]."""


def edges(graph: View) -> list[tuple[str, str]]:
    """Each edge once, by name."""
    return sorted({(min(a, b), max(a, b)) for a, those in graph.items() for b in those})


@tasks.register("coloring")
@dataclass(frozen=True)
class Coloring(Problem):
    """(Delta + 1)-colouring: neighbours choose different groups. Score: the share of proper edges."""

    rules: ClassVar[str] = "Choose a group so that none of your neighbours is in the same group."

    def options(self, given: Given) -> Names:
        return [f"Group {i + 1}" for i in range(given["degree"] + 1)]

    def score(self, graph: View, answers: dict[str, str]) -> float:
        pairs = edges(graph)
        return sum(answers[a] != answers[b] for a, b in pairs) / len(pairs) if pairs else 1.0


@tasks.register("vertex-cover")
@dataclass(frozen=True)
class VertexCover(Problem):
    """Minimal vertex cover. Score: the share of edges covered, times the share of coordinators who are
    necessary; 0 where nobody is one."""

    rules: ClassVar[str] = (
        "Choose coordinators so that each agent is one or has only coordinators as neighbours, and no "
        "coordinator could be left out. Are you a coordinator?"
    )

    def options(self, given: Given) -> Names:
        return ["Yes", "No"]

    def score(self, graph: View, answers: dict[str, str]) -> float:
        pairs = edges(graph)
        cover = {a for a in graph if answers[a] == "Yes"}
        if not cover or not pairs:
            return 0.0 if pairs else float(not cover)
        covered = sum(a in cover or b in cover for a, b in pairs) / len(pairs)
        needed = sum(any(b not in cover for b in graph[a]) for a in cover) / len(cover)
        return covered * needed


@tasks.register("maximal-matching")
@dataclass(frozen=True)
class Matching(Problem):
    """Maximal matching. Score: 1 - the share of inconsistent agents: those whose choice is not mutual,
    and those alone beside another one alone."""

    rules: ClassVar[str] = (
        "Build a group of two with one of your neighbours, who must choose you too; answer None only "
        "if all your neighbours are in a group already."
    )

    def options(self, given: Given) -> Names:
        return [*given["neighbours"], "None"]

    def score(self, graph: View, answers: dict[str, str]) -> float:
        def wrong(a: str) -> bool:
            if answers[a] == "None":
                return any(answers[b] == "None" for b in graph[a])
            return answers[answers[a]] != a

        return 1 - sum(wrong(a) for a in graph) / len(graph)


@tasks.register("leader-election")
@dataclass(frozen=True)
class LeaderElection(Problem):
    """Exactly one agent says Yes: 1, else 0."""

    rules: ClassVar[str] = "Choose exactly one leader among all agents. Are you the leader?"

    def options(self, given: Given) -> Names:
        return ["Yes", "No"]

    def score(self, graph: View, answers: dict[str, str]) -> float:
        return float(sum(answers[a] == "Yes" for a in graph) == 1)


@tasks.register("consensus")
@dataclass(frozen=True)
class Consensus(Problem):
    """All agents choose the same of two values: 1, else 0. Each proposes a value at first."""

    rules: ClassVar[str] = "All agents must agree on the same value, 0 or 1. Which one?"

    def options(self, given: Given) -> Names:
        return ["0", "1"]

    def score(self, graph: View, answers: dict[str, str]) -> float:
        return float(len({answers[a] for a in graph}) == 1)


class Coordination(Work):
    """The open problem. ``spent`` counts the agents' turns.

    Args:
        problem: which.
        place: this block.
    """

    def __init__(self, problem: Problem, place: Place) -> None:
        super().__init__(place)
        self.problem = problem
        self.agent = AGENTS[problem.agents]()
        agreed = Draws(place.seed, "shared/names", torch.zeros(1, dtype=torch.int64))
        drawn = [f"p{number:03d}" for number in agreed.permutation(place.n)[0].tolist()]
        self.names = list(problem.names) or drawn
        everyone = torch.arange(place.n)
        self.values = Draws(place.seed, "values", everyone).integers(2, 1)[:, 0].tolist()
        # With all proposals alike there would be nothing to agree on.
        self.values[0] = 0
        self.values[-1] = 1 if place.n > 1 else 0

    def given(self, peer: int, neighbours: list[int], degree: int, rounds: int) -> Given:
        """What the peer knows at the start; ``degree``: the largest of the graph."""
        given: Given = {
            "problem": self.problem.slug,
            "name": self.names[peer],
            "neighbours": sorted(self.names[j] for j in neighbours),
            "degree": degree,
            "value": self.values[peer],
        }
        return given | {"text": self._text(given, rounds)}

    def _text(self, given: Given, rounds: int) -> str:
        options = ", ".join(self.problem.options(given))
        proposes = f" You propose {given['value']}." if self.problem.slug == "consensus" else ""
        return (
            f"You are {given['name']}, an agent in a network. Your neighbours are "
            f"{', '.join(given['neighbours'])}; you can talk to nobody else. You have {rounds} rounds "
            f"to exchange messages, then you answer. {self.problem.rules}{proposes} "
            f"Answers: {options}."
        )

    def speak(self, row: int, given: Given, memory: Memory, tick: int) -> tuple[dict[str, str], int]:
        """What the agent of a row says to each neighbour, and how often that could not be read: after
        one failure it is asked once more, after two it has said nothing."""
        words = Draws(self.place.seed, "speak", self.peers[row : row + 1], tick).words(2)[0].tolist()
        for failures, word in enumerate(words):
            self._turn(row)
            said = _spoken(self.agent.speak(given, memory, word), given["neighbours"])
            if said is not None:
                return said, failures
        return {}, len(words)

    def answer(self, row: int, given: Given, memory: Memory, tick: int) -> str:
        """The agent's answer.

        Raises:
            BadInput: it is none of the options.
        """
        self._turn(row)
        word = int(Draws(self.place.seed, "answer", self.peers[row : row + 1], tick).words(1)[0, 0])
        options = self.problem.options(given)
        return self.valid(given, self.agent.answer(given, memory, options, word))

    def valid(self, given: Given, answer: Any) -> str:
        """The answer itself.

        Raises:
            BadInput: it is none of the options.
        """
        options = self.problem.options(given)
        if answer not in options:
            raise BadInput("answer", answer, f"one of {', '.join(options)}")
        return str(answer)

    def _turn(self, row: int) -> None:
        self.spent = self.spent + torch.nn.functional.one_hot(torch.tensor(row), len(self.peers))

    def measure(self, output: Any, tick: int) -> dict[str, float | Tensor]:
        """``score`` of all agents' answers; output: P dicts ``given``, ``answer``. 0 where one of them
        is not valid. Nothing before the last round, or where the block does not hold everyone."""
        if len(output) != self.n:
            return {}
        told = [(o["given"], o["answer"]) for o in output if o["answer"] is not None]
        if len(told) < self.n:
            return {}
        lead = "simulated_" if self.agent.simulated else ""
        if any(answer not in self.problem.options(given) for given, answer in told):
            return {f"{lead}score": 0.0}
        graph = {given["name"]: given["neighbours"] for given, _ in told}
        return {f"{lead}score": self.problem.score(graph, {g["name"]: a for g, a in told})}

    def notes(self) -> list[str]:
        return [self.agent.simulated] if self.agent.simulated else []

    def final(self, output: Any) -> dict[str, Any]:
        told = {"answers": {o["given"]["name"]: o["answer"] for o in output}}
        return told | ({"simulated": self.agent.simulated} if self.agent.simulated else {})


def _spoken(text: str, neighbours: Names) -> dict[str, str] | None:
    """The messages {neighbour: text} that an agent's JSON holds; None: it is no such JSON."""
    try:
        said = json.loads(text)
    except ValueError:
        return None
    if not isinstance(said, dict) or not all(isinstance(v, str) for v in said.values()):
        return None
    return {name: said[name] for name in neighbours if name in said}
