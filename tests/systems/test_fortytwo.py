"""Fortytwo and the simulated population that it is shown on."""

from __future__ import annotations

import pytest
import torch

from shoal.conformance import CHECKS
from shoal.core import BadInput, Place
from shoal.experiment import plan_of, run
from shoal.methods.inference.fortytwo import Fortytwo, commitment, opened, pairs, tally
from shoal.runtimes.session import Session
from shoal.tasks.swarm import UNDECIDED, Population
from shoal.trust.ranking import passing


@pytest.mark.parametrize("check", list(CHECKS))
def test_conforms(check: str) -> None:
    CHECKS[check](Fortytwo())


# -- the population ----------------------------------------------------------------------------------


def test_population_has_the_rates_it_says() -> None:
    task = Population(questions=20_000, low=0.6, high=0.6, lure=0.7, judge=0.72)
    work = task.open(Place.whole(3, 5))
    truth, lure, _ = work._question(0)
    told = work.answers(0)
    wrong = told != truth
    assert float((~wrong).double().mean()) == pytest.approx(0.6, abs=0.01)
    assert float((told == lure)[wrong].double().mean()) == pytest.approx(0.7, abs=0.01)
    first = truth.expand(3, -1)[:, :, None]
    verdict = work.judge(first, ((truth + 1) % 4).expand(3, -1)[:, :, None], 0)
    assert float((verdict == 0).double().mean()) == pytest.approx(0.72, abs=0.01)
    assert bool((work.judge(first, first, 0) == UNDECIDED).all())
    nothing = torch.full_like(first, -1)
    assert bool((work.judge(first, nothing, 0) == UNDECIDED).all())


def test_other_wrong_options_are_neither_truth_nor_lure() -> None:
    work = Population(questions=2000, choices=3, low=0.0, high=0.0, lure=0.0).open(Place.whole(2, 1))
    truth, lure, _ = work._question(4)
    told = work.answers(4)
    assert not bool(((told == truth) | (told == lure)).any())
    two = Population(questions=50, choices=2, low=0.0, high=0.0, lure=0.0).open(Place.whole(2, 1))
    assert bool((two.answers(0) == 1 - two._question(0)[0]).all())


def test_confidence_is_calibrated_and_noise_is_not() -> None:
    good = Population(questions=4, difficulty=1.0).open(Place.whole(3, 2))
    assert torch.equal(good.confidence(1), good._chance(good.peers, 1))
    bad = Population(questions=4, difficulty=1.0, calibration=0.0).open(Place.whole(3, 2))
    assert not torch.allclose(bad.confidence(1), good.confidence(1))


def test_an_exam_lets_a_sybil_in_with_the_binomial_tail() -> None:
    work = Population(low=0.25, high=0.25).open(Place.whole(4000, 3))
    share = float((work.exam(10) >= 5).double().mean())
    assert share == pytest.approx(passing(0.25, 10, 0.5), abs=0.015)


def test_colluders_prefer_the_wrong_answer() -> None:
    work = Population(questions=30, colluders=2).open(Place.whole(7, 0))
    truth = work._question(0)[0].expand(7, -1)[:, :, None]
    verdict = work.judge(truth, (truth + 1) % 4, 0)
    assert bool((verdict[work.colluder] == 1).all()) and int(work.colluder.sum()) == 2


# -- the protocol ------------------------------------------------------------------------------------


def test_reveal_must_match_its_commit() -> None:
    commit = commitment(b"\1\2", b"n" * 16)
    assert opened([b"n" * 16, b"\1\2"], commit, 2) == [1, 2]
    for bad in ([b"n" * 16, b"\1\3"], [b"m" * 16, b"\1\2"], [b"n" * 16], None, ["n", "a"], b"xx"):
        assert opened(bad, commit, 2) is None
    assert opened([b"n" * 16, b"\1\2"], None, 2) is None
    assert opened([b"n" * 16, b"\1\2"], commit, 3) is None


def test_pairs() -> None:
    assert pairs([4]) == []
    assert pairs([4, 9]) == [(4, 9), (9, 4)]
    for n in range(3, 20):
        compared = pairs(range(n))
        assert len(set(compared)) == len(compared) == 2 * (n + (n // 2 if n > 3 else 0))
        assert all((b, a) in compared for a, b in compared)


def test_tally() -> None:
    heard = [0, 2]
    wins = tally(bytes([0, 1, 2, 2]), heard, 3, 2)  # two questions; (0,2) then (2,0)
    assert wins is not None
    assert wins[0, 0, 2] == 2 and wins[0, 2, 0] == 0
    assert wins[1, 0, 2] == wins[1, 2, 0] == 1
    assert tally(bytes([0]), heard, 3, 2) is None
    assert tally(bytes([0, 1, 2, 3]), heard, 3, 2) is None


def test_damaged_reveals_are_refused_and_the_rest_goes_on() -> None:
    report = run("fortytwo", rounds=20, every=20, network={"graph": "complete",
                 "links": {"corruption": 0.2}}, seed=1)  # fmt: skip
    assert report.metrics["refused_reveals"] > 0
    assert report.metrics["simulated_accuracy"] > 0.7
    assert run("fortytwo", rounds=5, every=5, seed=1).metrics["refused_reveals"] == 0


def test_reputation_falls_for_colluders_and_the_report_says_simulated() -> None:
    task = {"name": "population", "colluders": 2, "questions": 20}
    whole = run("fortytwo", task=task, rounds=12, every=12, seed=4)
    assert whole.metrics["colluder_reputation"] < 1
    assert "SIMULATED" in whole.notes[0] and "SIMULATED" in whole.final["simulated"]


def test_on_a_sparse_graph_everyone_ranks_what_it_heard() -> None:
    report = run("fortytwo", task="population(questions=20)", network={"graph": "ring"}, peers=9,
                 rounds=5, every=5, seed=2)  # fmt: skip
    assert bool((report.output >= 0).all())


def test_only_those_who_pass_are_heard() -> None:
    shut = run("fortytwo", rounds=2, every=2, exam=5, mark=1.0, task="population(low=0, high=0)")
    assert bool((shut.output == -1).all())


def test_slashed_nodes_lose_their_place() -> None:
    task = {"name": "population", "colluders": 2, "questions": 10}
    plan = plan_of("fortytwo", task=task, rounds=30, every=30, seed=4, method={"deposit": 55.0})
    session = Session.open(plan)
    session.finish()
    bad = session.work.colluder
    assert int(bad.sum()) == 2
    for books in (session.state.stake, session.state.reputation):
        assert bool((books[~bad][:, bad].max(1).values < books[~bad][:, ~bad].min(1).values).all())
    # An honest judge errs now and then, and is slashed for a tick in which it mostly did.
    assert bool((session.state.stake[:, ~bad] > 0.9 * 55.0).all())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"peers": 1}, "peers"),
        ({"deposit": 1.0}, "deposit"),
        ({"memory": 1.0}, "memory"),
        ({"task": "population(low=0.9, high=0.2)"}, "low"),
        ({"task": "population(colluders=8)"}, "colluders"),
        ({"task": "population(judge=1.5)"}, "judge"),
    ],
)
def test_bad_input(changes: dict[str, object], field: str) -> None:
    with pytest.raises(BadInput, match=field):
        run("fortytwo", rounds=1, **changes)  # type: ignore[arg-type]
