"""A SIMULATED population of responders: nobody thinks here, answers and judgements are drawn.

A responder has a skill (its chance to be right on a question of middling difficulty) and judges pairs
of answers with some accuracy. Wrong answers meet at the question's lure, which is what makes majorities
go wrong. All is a function of the seed, so that every peer's part is the same in every placement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from shoal.core import BadInput, Draws, Place, Task, Work, tasks

__all__ = ["UNDECIDED", "Population", "Responders"]

UNDECIDED = 2
Share = Annotated[float, Meta(ge=0, le=1)]


@tasks.register("population")
@dataclass(frozen=True)
class Population(Task):
    """Each peer answers multiple-choice questions and compares others' answers. SIMULATED.

    Args:
        questions: asked at each tick.
        choices: options of a question; one is right.
        low, high: skills are uniform in [low, high].
        difficulty: standard deviation of the questions' difficulty, in logits of skill.
        lure: chance that a wrong answer is the question's lure; else any other wrong option.
        judge: chance to prefer the right answer to a wrong one. Two wrong ones: a coin; the same
            option twice: undecided.
        calibration: 1: the confidence that a responder states is its true chance to be right; 0: noise.
        colluders: so many peers, drawn from the seed, know the answers and always prefer a wrong one
            to the right one; they answer like anybody else.
    """

    questions: Annotated[int, Meta(ge=1)] = 1
    choices: Annotated[int, Meta(ge=2, le=255)] = 4
    low: Share = 0.35
    high: Share = 0.75
    difficulty: Annotated[float, Meta(ge=0)] = 0.0
    lure: Share = 0.6
    judge: Share = 0.72
    calibration: Share = 1.0
    colluders: Annotated[int, Meta(ge=0)] = 0

    def check(self) -> None:
        if self.low > self.high:
            raise BadInput("low", self.low, f"at most high, {self.high}")

    def open(self, place: Place) -> Responders:
        if self.colluders > place.n:
            raise BadInput("colluders", self.colluders, f"at most one a peer, {place.n}")
        return Responders(self, place)


class Responders(Work):
    """The open task. ``spent`` counts answers and judgements.

    Args:
        config: the task.
        place: this block.
    """

    everyone: ClassVar[frozenset[str]] = frozenset({"single"})
    simulated: ClassVar[str] = "SIMULATED responders: answers and judgements are drawn, no model was asked"

    def __init__(self, config: Population, place: Place) -> None:
        super().__init__(place)
        self.config = config
        everyone = torch.arange(place.n)
        self.skill = (
            config.low
            + (config.high - config.low) * (Draws(place.seed, "skill", everyone).uniform(1)[:, 0])
        )
        order = Draws(place.seed, "shared/colluders", torch.zeros(1, dtype=torch.int64)).permutation(
            place.n
        )
        self.colluder = torch.zeros(place.n, dtype=torch.bool)
        self.colluder[order[0, : config.colluders]] = True
        nothing = torch.zeros(0)
        self._drawn = (-1, (nothing, nothing, nothing))
        self.right: dict[str, Tensor] = {}
        self.asked = torch.zeros(len(place.peers), dtype=torch.float64)
        self.single = torch.zeros(place.n, dtype=torch.float64)

    # -- what a responder can do -----------------------------------------------------------------------

    def answers(self, tick: int, active: Tensor | None = None) -> Tensor:
        """The options that the peers choose: int64 [P, Q]."""
        self._work(self.config.questions, active)
        return self._answers(self.peers, tick)

    def confidence(self, tick: int) -> Tensor:
        """What the peers say is their chance to be right: float64 [P, Q]."""
        c = self.config.calibration
        noise = Draws(self.place.seed, "confidence", self.peers, tick).uniform(self.config.questions)
        return c * self._chance(self.peers, tick) + (1 - c) * noise

    def judge(self, first: Tensor, second: Tensor, tick: int, active: Tensor | None = None) -> Tensor:
        """Who is right, as the peers see it.

        Args:
            first, second: int64 [P, Q, K], the options that are compared; -1: nothing to compare.

        Returns:
            int64 [P, Q, K]: 0 the first, 1 the second, 2 undecided.
        """
        truth = self._question(tick)[0][None, :, None]
        draws = Draws(self.place.seed, "judge", self.peers, tick)
        # Comparison by comparison: a peer's numbers do not depend on how many others of its block make.
        u = draws.uniform(first.shape[2], first.shape[1]).transpose(1, 2)
        one, two = first == truth, second == truth
        accuracy = torch.where(self.colluder[self.peers], 0.0, self.config.judge)[:, None, None]
        better = torch.where(one, 0, 1)
        told = torch.where(u < accuracy, better, 1 - better)
        told = torch.where(one == two, (u < 0.5).to(torch.int64), told)
        compared = (first >= 0) & (second >= 0)
        self._work(compared.sum((1, 2)), active)
        return torch.where((first == second) | ~compared, UNDECIDED, told)

    def exam(self, count: int) -> Tensor:
        """How many of ``count`` public calibration questions each peer of the run got right: [n]."""
        everyone = torch.arange(self.n)
        u = Draws(self.place.seed, "exam", everyone).uniform(count)
        return (u < self.skill[:, None]).sum(1)

    # -- measuring -------------------------------------------------------------------------------------

    def decide(self, tick: int, decisions: dict[str, Tensor], active: Tensor) -> None:
        """Hand in final answers (for :meth:`measure` alone; nothing is told back).

        Args:
            decisions: rule -> options int64 [P, Q]; -1: none. ``""`` is the method's own.
            active: bool [P], whose decisions count.
        """
        truth = self._question(tick)[0]
        count = self.config.questions
        for name, chosen in decisions.items():
            hits = ((chosen == truth) & active[:, None]).sum(1).to(torch.float64)
            self.right = self.right | {name: self.right.get(name, torch.zeros_like(self.asked)) + hits}
        self.asked = self.asked + active * count
        alone = self._answers(torch.arange(self.n), tick) == truth
        self.single = self.single + alone.sum(1)

    def measure(self, output: Any, tick: int) -> dict[str, float | Tensor]:
        """Shares of right decisions [P], by rule, and that of the best single responder in hindsight."""
        if not self.right:
            return {}
        figures: dict[str, float | Tensor] = {
            f"simulated_accuracy_{name}".rstrip("_"): hits / self.asked for name, hits in self.right.items()
        }
        asked = (tick + 1) * self.config.questions
        return figures | {"simulated_accuracy_best_node": float(self.single.max()) / asked}

    def notes(self) -> list[str]:
        return [self.simulated]

    def final(self, output: Any) -> dict[str, Any]:
        return {"simulated": self.simulated, "source": self.simulated}

    def state(self) -> dict[str, Any]:
        told = {f"right/{name}": hits for name, hits in self.right.items()}
        return super().state() | told | {"asked": self.asked, "single": self.single}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.asked, self.single = state["asked"], state["single"]
        self.right = {k[6:]: v for k, v in state.items() if k.startswith("right/")}

    # -- the model -------------------------------------------------------------------------------------

    def _work(self, units: int | Tensor, active: Tensor | None) -> None:
        self.spent = self.spent + (units if active is None else active * units)

    def _question(self, tick: int) -> tuple[Tensor, Tensor, Tensor]:
        """(truth, lure, difficulty) of this tick's questions, [Q] each."""
        if self._drawn[0] == tick:
            return self._drawn[1]
        draws = Draws(self.place.seed, "shared/question", torch.zeros(1, dtype=torch.int64), tick)
        count, choices = self.config.questions, self.config.choices
        truth = draws.integers(choices, count)[0]
        lure = (truth + 1 + draws.at("lure").integers(choices - 1, count)[0]) % choices
        hard = self.config.difficulty * draws.at("difficulty").normal(count)[0]
        self._drawn = tick, (truth, lure, hard)
        return truth, lure, hard

    def _chance(self, peers: Tensor, tick: int) -> Tensor:
        """Each peer's chance to be right: [len(peers), Q]."""
        hard = self._question(tick)[2]
        return torch.sigmoid(torch.logit(self.skill[peers], eps=1e-9)[:, None] - hard)

    def _answers(self, peers: Tensor, tick: int) -> Tensor:
        truth, lure, _ = self._question(tick)
        count, choices = self.config.questions, self.config.choices
        draws = Draws(self.place.seed, "answer", peers, tick)
        u, tempted = draws.uniform(count, 2).unbind(2)
        # Any wrong option but the lure, by its distance from the truth; with two options, the lure.
        gap = 1 + draws.at("other").integers(max(1, choices - 2), count)
        other = (truth + gap + (gap >= (lure - truth) % choices)) % choices
        wrong = torch.where((tempted < self.config.lure) | (choices == 2), lure, other)
        return torch.where(u < self._chance(peers, tick), truth, wrong)
