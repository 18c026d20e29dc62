"""AgentsNet: scorers, algorithms, rounds, and agents that are language models."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx
import pytest
import torch

from shoal.agents.llm import LLM, Speaking
from shoal.agents.scripted import Simulated, cover, greedy_colors, handshakes
from shoal.conformance import CHECKS
from shoal.core import BadInput, Place, topologies
from shoal.experiment import run
from shoal.methods.agents.agentsnet import AgentsNet
from shoal.tasks.agents_net import Coloring, Consensus, LeaderElection, Matching, VertexCover, edges

PROBLEMS = ["coloring", "vertex-cover", "maximal-matching", "leader-election", "consensus"]
GRAPHS = [networkx.path_graph(4), networkx.cycle_graph(5), networkx.wheel_graph(5)]


def view(graph: networkx.Graph) -> dict[str, list[str]]:
    return {f"p{a}": [f"p{b}" for b in graph[a]] for a in graph}


@pytest.mark.parametrize("check", list(CHECKS))
def test_conforms(check: str) -> None:
    CHECKS[check](AgentsNet())


# -- scorers against brute force ---------------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS)
def test_cover_is_perfect_exactly_for_minimal_covers(graph: networkx.Graph) -> None:
    g = view(graph)

    def covers(chosen: set[str]) -> bool:
        return all(a in chosen or b in chosen for a, b in edges(g))

    for said in itertools.product(["Yes", "No"], repeat=len(g)):
        answers = dict(zip(g, said, strict=True))
        chosen = {a for a in g if answers[a] == "Yes"}
        minimal = covers(chosen) and not any(covers(chosen - {a}) for a in chosen)
        assert (VertexCover().score(g, answers) == 1.0) == minimal
    assert VertexCover().score(g, dict.fromkeys(g, "No")) == 0.0


@pytest.mark.parametrize("graph", GRAPHS)
def test_matching_is_perfect_exactly_for_maximal_matchings(graph: networkx.Graph) -> None:
    g = view(graph)
    for said in itertools.product(*[[*g[a], "None"] for a in g]):
        answers = dict(zip(g, said, strict=True))
        mutual = all(b == "None" or answers[b] == a for a, b in answers.items())
        pairs = {(a, b) for a, b in answers.items() if b != "None"}
        free = [(a, b) for a, b in edges(g) if answers[a] == answers[b] == "None"]
        assert (Matching().score(g, answers) == 1.0) == (mutual and not free), (answers, pairs)


def test_matching_counts_the_inconsistent() -> None:
    g = view(networkx.path_graph(4))
    # p0 and p1 are a couple; p2 and p3 are alone side by side.
    assert Matching().score(g, {"p0": "p1", "p1": "p0", "p2": "None", "p3": "None"}) == 0.5


@pytest.mark.parametrize("graph", GRAPHS)
def test_coloring_is_the_share_of_proper_edges(graph: networkx.Graph) -> None:
    g = view(graph)
    for said in itertools.product(["Group 1", "Group 2", "Group 3"], repeat=len(g)):
        answers = dict(zip(g, said, strict=True))
        proper = [answers[f"p{a}"] != answers[f"p{b}"] for a, b in graph.edges]
        assert Coloring().score(g, answers) == pytest.approx(sum(proper) / len(proper))


def test_election_and_consensus() -> None:
    g = view(networkx.path_graph(3))
    for said in itertools.product(["Yes", "No"], repeat=3):
        assert LeaderElection().score(g, dict(zip(g, said, strict=True))) == (said.count("Yes") == 1)
    for said in itertools.product("01", repeat=3):
        assert Consensus().score(g, dict(zip(g, said, strict=True))) == (len(set(said)) == 1)


# -- the algorithms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_classical_solutions_are_perfect(seed: int) -> None:
    graph = networkx.connected_watts_strogatz_graph(20, 4, 0.3, seed=seed)
    g = view(graph)
    color = greedy_colors(g)
    assert all(color[a] != color[b] for a, b in edges(g))
    assert max(color.values()) <= max(len(b) for b in g.values())
    chosen = cover(g)
    assert VertexCover().score(g, {a: "Yes" if a in chosen else "No" for a in g}) == 1.0
    couple = handshakes(g)
    assert Matching().score(g, {a: couple.get(a, "None") for a in g}) == 1.0


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("graph", ["watts-strogatz", "barabasi-albert", "delaunay"])
def test_simulated_agents_solve_everything(problem: str, graph: str) -> None:
    report = run("agentsnet", task=problem, peers=8, rounds=5, every=5, seed=1, network={"graph": graph})
    assert report.metrics["simulated_score"] == 1.0
    assert any("SIMULATED" in note for note in report.notes)
    assert report.metrics["json_failures"] == 0


def test_a_round_less_than_the_diameter_breaks_the_election() -> None:
    # The two lowest identifiers sit at the ends of a path of diameter 5.
    task = {"name": "leader-election", "names": ["p0", "p2", "p3", "p4", "p5", "p1"]}
    scores = [
        run("agentsnet", task=task, peers=6, rounds=r, every=r, network={"graph": "path"}).metrics
        for r in (4, 5)
    ]
    assert [s["simulated_score"] for s in scores] == [0.0, 1.0]


def test_silent_agents_cannot_agree_on_split_proposals() -> None:
    for agents, score in (("silent", 0.0), ("simulated", 1.0)):
        task = {"name": "consensus", "agents": agents}
        report = run("agentsnet", task=task, peers=8, rounds=5, every=5, seed=2)
        assert report.metrics["simulated_score"] == score
    assert report.bytes_sent > 0


def test_guesses_are_valid() -> None:
    task = {"name": "maximal-matching", "agents": "random"}
    report = run("agentsnet", task=task, peers=8, rounds=2, every=2, seed=2)
    assert 0 <= report.metrics["simulated_score"] < 1 and report.bytes_sent == 0


def test_messages_never_skip_an_edge() -> None:
    report = run("agentsnet", peers=10, rounds=4, every=4, seed=3)
    src, dst, size = report.links
    graph = report.graph
    assert graph is not None
    real = set(zip(graph.src.tolist(), graph.dst.tolist(), strict=True))
    used = {(a, b) for a, b, s in zip(src.tolist(), dst.tolist(), size.tolist(), strict=True) if s}
    assert used <= real


def test_damaged_texts_do_not_stop_the_run() -> None:
    network = {"graph": "delaunay", "links": {"corruption": 0.5}}
    report = run("agentsnet", peers=12, rounds=6, every=6, seed=3, network=network)
    assert 0 < report.metrics["simulated_score"] <= 1


@pytest.mark.parametrize(
    "text", ["", "[", "7", "null", '{"a": 3}', '{"a": ["b", 1]}', '["p1", 2]', "[1, 0]"]
)
def test_nonsense_teaches_nothing(text: str) -> None:
    for problem in ("coloring", "consensus"):
        given = {"problem": problem, "name": "me", "neighbours": ["a"], "value": 1}
        before = Simulated().start(given)
        after = Simulated().hear(before, {"a": text})
        assert after.get("known") == before.get("known") and after.get("lowest") == before.get("lowest")


def test_delaunay_is_planar_and_connected() -> None:
    for n in (2, 3, 4, 50):
        src, dst = topologies("delaunay").edges(n, 5, 0)
        graph = networkx.Graph(list(zip(src.tolist(), dst.tolist(), strict=True)))
        assert len(graph) == n and networkx.is_connected(graph) and networkx.is_planar(graph)
    assert len(topologies("delaunay").edges(1, 0, 0)[0]) == 0


# -- language models ---------------------------------------------------------------------------------


class Parrot(LLM):
    """Prefers the longest option; repeats the seed."""

    def __init__(self, folder: Path) -> None:
        super().__init__("parrot", folder)
        self.asked = 0

    def scores(self, prompt: str, options: Sequence[str]) -> list[float]:
        self.asked += 1
        return [float(len(option)) for option in options]

    def generate(self, prompt: str, seed: int, limit: int) -> str:
        self.asked += 1
        return f' say "{seed}"\nand more'


def test_model_answers_are_valid_and_cached(tmp_path: Path) -> None:
    llm = Parrot(tmp_path)
    agent = Speaking(llm)
    given: dict[str, Any] = {"text": "You are a.", "neighbours": ["b", "c"], "name": "a"}
    memory = agent.hear(agent.start(given), {"b": "hello"})
    for _ in range(2):
        assert agent.speak(given, memory, 7) == '{"b": "say \\"7\\"", "c": "say \\"7\\""}'
        assert agent.answer(given, memory, ["Yes", "No"], 7) == "Yes"
    assert llm.asked == 3
    with pytest.raises(BadInput, match="options"):
        llm.choose("?", [])


# -- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"network": {"graph": "components(parts=2)"}}, "network"),
        ({"rounds": 0}, "rounds"),
        ({"task": {"name": "coloring", "names": ["a", "a"]}}, "names"),
        ({"task": {"name": "coloring", "names": ["a", "b"]}, "peers": 6}, "names"),
        ({"task": {"name": "coloring", "agents": "clever"}}, "agents"),
    ],
)
def test_bad_input(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput, match=field):
        run("agentsnet", **changes)


def test_an_answer_must_be_an_option() -> None:
    work = LeaderElection().open(Place.whole(3))
    given = work.given(0, [1], 2, 4)
    assert work.valid(given, "Yes") == "Yes"
    with pytest.raises(BadInput, match="answer"):
        work.valid(given, "Maybe")
    assert torch.equal(work.spent, torch.zeros(3))
