"""Bandwidth tokens, their audit and cap, and the trials that take them from simulation to all peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import BadInput, Draws, Place
from shoal.experiment import plan_of, run
from shoal.network.logs import VersionedLog
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.trial.books import Books
from shoal.runtimes.trial.fleet import identities
from shoal.runtimes.trial.monitor import Crawl, Verdict, behaviour, drift, findings, judge, replay
from shoal.runtimes.trial.trial import Trial, chosen
from shoal.runtimes.trial.words import IdKeys, Settle
from shoal.tasks.sharing import FileSharing
from shoal.trust.bandwidth_tokens import Account, Half, account, read_half
from shoal.trust.mint_cap import MintCap, confirmed
from shoal.trust.token_audit import Entry, audit

KB = 1024
ABORT = {"rate": 0.0}


# -- the mechanism -----------------------------------------------------------------------------------


class Pair:
    """Peers 0 and 1 with their logs: 0 takes from 1."""

    def __init__(self, version: str) -> None:
        self.held: list[Account] = [account(version), account(version)]  # type: ignore[arg-type]
        self.logs: dict[int, list[Entry]] = {0: [], 1: []}

    def write(self, who: int, half: Half) -> None:
        self.held[who].write(half)
        self.logs[who].append((who, len(self.logs[who]), half))

    def propose(self, amount: int = KB) -> Half | None:
        self.held[0].owe(1, amount)
        half = self.held[0].propose(1)
        if half is not None:
            self.write(0, half)
        return half

    def answer(self, proposal: Half) -> Half:
        mine, new = self.held[1].answer(0, proposal)
        if new:
            self.write(1, mine)
        return mine


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_one_thing_at_a_time_is_right_in_both_versions(version: str) -> None:
    pair = Pair(version)
    for _ in range(5):
        half = pair.propose()
        assert half is not None
        pair.held[0].hear(1, pair.answer(half))
    assert [h.worth for h in pair.held] == [-5 * KB, 5 * KB]
    assert audit(pair.logs) == []


@pytest.mark.parametrize(("version", "counted"), [("v1", 2), ("v2", 1)])
def test_a_lost_answer_counts_twice_in_v1_only(version: str, counted: int) -> None:
    pair = Pair(version)
    half = pair.propose()
    assert half is not None
    pair.answer(half)  # the answer is lost
    (again,) = pair.held[0].unanswered(1)
    answer = pair.answer(again)
    pair.held[0].hear(1, answer)
    pair.held[0].hear(1, answer)  # and comes twice
    assert pair.held[1].worth == counted * KB
    assert pair.held[0].worth == -KB
    assert [v.invariant for v in audit(pair.logs, ["no_double_count"])] == ["no_double_count"] * (
        counted - 1
    )


def test_two_proposals_at_once_lose_one_in_v1() -> None:
    held, log = account("v1"), []
    for giver in (1, 2):
        held.owe(giver, KB)
        half = held.propose(giver)
        assert half is not None
        held.write(half)
        log.append((0, len(log), half))
    for _, _, half in log:
        held.hear(half.partner, Half("v1", "give", 0, KB, half.number, 7 * KB))
    assert held.worth == -KB  # two were taken
    (found,) = audit({0: log}, ["running_total"])
    assert [at for _, at, _ in found.trace] == [0, 1]


def test_v2_gathers_while_one_is_under_way() -> None:
    pair = Pair("v2")
    first = pair.propose()
    assert pair.propose() is None and pair.propose(2 * KB) is None
    assert first is not None
    pair.held[0].hear(1, pair.answer(first))
    second = pair.held[0].propose(1)
    assert second is not None
    assert (second.number, second.amount, second.total) == (1, 3 * KB, 4 * KB)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "ask", "deliver"]), st.integers(1, 9)), max_size=40))
def test_v2_counts_right_whatever_is_lost_repeated_or_late(steps: list[tuple[str, int]]) -> None:
    pair, answers, taken = Pair("v2"), [], 0
    for what, amount in steps:
        match what:
            case "take":
                taken += amount
                pair.propose(amount)
            case "ask":
                for half in pair.held[0].unanswered(1):
                    answers.append(pair.answer(half))
            case _:
                for answer in answers[-amount:]:
                    pair.held[0].hear(1, answer)
    for _ in range(3):  # in the end everything is heard
        half = pair.held[0].propose(1)
        if half is not None:
            pair.write(0, half)
        for half in pair.held[0].unanswered(1):
            pair.held[0].hear(1, pair.answer(half))
    assert [h.worth for h in pair.held] == [-taken, taken]
    assert audit(pair.logs) == []


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_account_is_its_data(version: str) -> None:
    pair = Pair(version)
    half = pair.propose()
    assert half is not None
    pair.answer(half)
    pair.propose()
    for held in pair.held:
        again = account(version, json.loads(json.dumps(held.state())))  # type: ignore[arg-type]
        assert again.digest() == held.digest()


@pytest.mark.parametrize(
    "half",
    [
        Half("v1", "take", 1, KB, 0, KB),
        Half("v2", "give", 1, KB, 0, KB),
        Half("v2", "take", 1, KB, 1, KB),
        Half("v2", "take", 1, KB, 0, 2 * KB),
    ],
)
def test_proposals_out_of_turn_are_refused(half: Half) -> None:
    with pytest.raises(BadInput, match="half"):
        account("v2").answer(0, half)


@pytest.mark.parametrize(
    "value",
    [None, [], ["v2", "take", 1, 0, 0, 0], ["v3", "take", 1, 1, 0, 1], ["v2", "take", -1, 1, 0, 1], "x"],
)
def test_what_is_no_half_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match="half"):
        read_half(value)


def test_an_answer_to_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="proposal of ours"):
        account("v2").hear(1, Half("v2", "give", 0, KB, 0, KB))


def test_traces_are_smallest() -> None:
    pair = Pair("v1")
    for _ in range(3):
        half = pair.propose()
        assert half is not None
        pair.answer(half)
        pair.answer(half)
    pair.logs[1].append((1, len(pair.logs[1]), Half("v1", "give", 0, 5, 1, pair.held[1].worth + 5)))
    found = audit(pair.logs)
    assert {v.invariant for v in found} == {"no_double_count", "running_total", "agreement"}
    for violation in found:
        kept = {o: [e for e in violation.trace if e[0] == o] for o in (0, 1)}
        assert violation.key in [v.key for v in audit(kept, [violation.invariant])]
        for left_out in violation.trace:
            fewer = {o: [e for e in entries if e is not left_out] for o, entries in kept.items()}
            assert violation.key not in [v.key for v in audit(fewer, [violation.invariant])]


def test_a_log_not_pulled_yet_breaks_nothing() -> None:
    pair = Pair("v2")
    for _ in range(3):
        half = pair.propose()
        assert half is not None
        pair.held[0].hear(1, pair.answer(half))
    for known in range(4):
        assert audit({0: pair.logs[0][:known], 1: pair.logs[1]}) == []
    assert [v.invariant for v in audit({0: pair.logs[0][1:], 1: pair.logs[1]})] == ["agreement"]


# -- the mint cap ------------------------------------------------------------------------------------


def _given(minted: float) -> torch.Tensor:
    given = torch.full((10, 10), 20.0, dtype=torch.float64)
    given[0] += 1.0
    given.fill_diagonal_(0.0)
    given[8, 9] += minted
    return given


def test_minted_tokens_are_worth_no_more_than_the_cap() -> None:
    draws = Draws(3, "merit", torch.tensor([0]))
    cap = MintCap()
    worth = [float(cap.worth(_given(m), 0, draws)[8]) for m in (0.0, 1e3, 1e9)]
    honest = cap.caps(_given(0.0), 0, draws)
    assert float(honest.sum()) == pytest.approx(20.0 * 9)
    # 9's merit can at most gain all of 8's, however much they sign for.
    for more in worth[1:]:
        assert more - worth[0] <= float(honest[8] + honest[9]) * 1.1


def test_who_took_nothing_credits_own_dealings_only() -> None:
    given = _given(1e6)
    given[:, 0] = 0.0
    worth = MintCap().worth(given, 0, Draws(3, "merit", torch.tensor([0])))
    assert torch.equal(worth[1:], torch.full((9,), -21.0, dtype=torch.float64))


def test_only_what_both_have_signed_is_confirmed() -> None:
    logs = {
        0: [(0, 0, Half("v2", "take", 1, 5, 0, 5)), (0, 1, Half("v2", "take", 1, 6, 1, 11))],
        1: [(1, 0, Half("v2", "give", 0, 5, 0, 5)), (1, 1, Half("v2", "give", 7, 5, 0, 5))],
    }
    assert confirmed(logs, 2).tolist() == [[0.0, 0.0], [5.0, 0.0]]


# -- the simulated stage -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_simulation_breaks_nothing_and_everything_is_written_down(version: str) -> None:
    report = run("deployment-trial", version=version, rounds=30, seed=101)
    logs = {p: [(p, at, read_half(v)) for at, v in enumerate(own)] for p, own in enumerate(report.output)}
    assert audit(logs) == []
    taken = sum(h.amount for own in logs.values() for _, _, h in own if h.side == "take")
    assert taken == 4096 * 12 * report.metrics["service"] > 0
    assert behaviour(logs)["answers"] == 1.0


def test_loss_on_the_simulated_links_counts_twice_in_v1_only() -> None:
    for version, wrong in (("v1", True), ("v2", False)):
        report = run(
            "deployment-trial", version=version, rounds=60, seed=101, network={"links": {"loss": 0.2}}
        )
        assert (report.metrics["violations"] > 0) is wrong


@pytest.mark.parametrize(
    ("field", "value"), [("chunk", 1), ("uplinks", 0.0), ("pairs", -1), ("mint_at", 1.0), ("minted", -1)]
)
def test_bad_tasks(field: str, value: Any) -> None:
    with pytest.raises(BadInput, match=field):
        FileSharing(**{field: value})


def test_too_many_pairs() -> None:
    with pytest.raises(BadInput, match="at most 2 pairs among 5 peers"):
        FileSharing(pairs=3).open(Place.whole(5))


# -- trials ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({}, "abort = None: a trial needs an abort rule"),
        ({"abort": {}}, "abort = {}"),
        ({"abort": {"rate": 2.0}}, "abort.rate = 2.0"),
        (
            {"abort": ABORT, "stages": [{"kind": "live", "share": 0.5}] * 2},
            "the shares of the live stages rise",
        ),
        ({"abort": ABORT, "stages": [{"kind": "live", "share": 0.01}]}, "each at least one of 12 peers"),
        ({"abort": ABORT, "stages": []}, "at least one"),
        ({"abort": ABORT, "stages": [{"kind": "moon"}]}, "kind = 'moon'"),
        (
            {"abort": ABORT, "invariants": ["no_double_count", "peace"]},
            "unknown invariant; known: no_double_count",
        ),
        ({"abort": ABORT, "new": "v1", "old": "v1"}, "another version than the old one"),
        ({"abort": ABORT, "speed": 3}, "speed = 3: fields"),
    ],
)
def test_bad_trials(table: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as caught:
        Trial.of(table)
    assert line in str(caught.value)


def test_a_trial_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "trial.toml"
    path.write_text(
        'new = "v2"\nold = "v1"\npeers = 4\n[abort]\nrate = 0.1\n[[stages]]\nkind = "testbed"\n'
    )
    trial = Trial.read(path)
    assert (trial.old, trial.peers, trial.stop.rate, [s.kind for s in trial.stages]) == (
        "v1",
        4,
        0.1,
        ["testbed"],
    )
    assert Trial.of(json.loads(json.dumps(trial.spec()))) == trial
    path.write_text("new = ")
    with pytest.raises(BadInput, match="not TOML"):
        Trial.read(path)


def test_canaries_are_chosen_by_identity() -> None:
    ids = [who.id for who in identities(Trial.of({"abort": ABORT}), 5)]
    few, more = chosen("t", ids, 0.25), chosen("t", ids, 0.5)
    assert len(few) == 3 and set(few) < set(more) and len(more) == 6
    turned = ids[::-1]
    assert {turned[i] for i in chosen("t", turned, 0.25)} == {ids[i] for i in few}
    assert chosen("t", ids, 1.0) == list(range(12))
    assert any(chosen(f"t{k}", ids, 0.25) != few for k in range(5))


# -- books and crawls --------------------------------------------------------------------------------


class Desk:
    """Two peers' real books in a folder, which can be closed and opened again."""

    def __init__(self, folder: Path) -> None:
        self.people = [Identity.create(), Identity.create()]
        self.ids = [who.id for who in self.people]
        self.folders = [folder / str(i) for i in range(2)]
        for home in self.folders:
            home.mkdir()
        self.books = [self.open(i) for i in range(2)]

    def open(self, index: int) -> Books:
        return Books(self.folders[index], index, IdKeys(self.ids, self.people[index]))

    def flag(self, version: Any) -> None:
        for books in self.books:
            books.flag(version)

    def transfer(self, times: int = 1) -> None:
        """0 takes from 1; each proposal is answered ``times`` times."""
        self.books[0].owe(1, KB)
        for told in self.books[0].propose(1):
            for _ in range(times):
                answer = self.books[1].answer(0, told)
            self.books[0].hear(1, answer)

    def close(self) -> None:
        for books in self.books:
            books.close()


def _pull(crawl: Crawl, desk: Desk) -> Verdict:
    for index, books in enumerate(desk.books):
        news = books.log.missing(0, crawl.log.versions(0))
        if news:
            crawl.take(index, news)
    return crawl.judge()


@pytest.fixture
def desk(tmp_path: Path) -> Any:
    made = Desk(tmp_path)
    yield made
    made.close()


def test_a_journal_is_the_books_again(desk: Desk) -> None:
    desk.flag("v2")
    desk.transfer()
    desk.books[0].owe(1, KB)
    (waiting,) = desk.books[0].propose(1)
    before, log = desk.books[0].digests(), desk.books[0].log.held
    desk.books[0].close()
    with (desk.folders[0] / "journal.jsonl").open("a") as file:
        file.write('["owe","v2",1')  # killed in the middle of a line
    desk.books[0] = desk.open(0)
    assert desk.books[0].digests() == before and desk.books[0].log.held == log
    assert desk.books[0].version == "v2"
    assert desk.books[0].propose(1) == [waiting]
    desk.books[0].owe(1, 1)  # the cut line is gone: the journal goes on after it
    desk.books[0].close()
    desk.books[0] = desk.open(0)


def test_rollback_restores_v1_bit_for_bit(desk: Desk) -> None:
    desk.flag("v1")
    for _ in range(3):
        desk.transfer()
    desk.books[0].owe(1, KB)
    (late,) = desk.books[0].propose(1)
    answer = desk.books[1].answer(0, late)
    before = [books.digests()["v1"] for books in desk.books]
    desk.flag("v2")
    for _ in range(4):
        desk.transfer()
    desk.books[0].hear(1, answer)  # the rest of v1 comes when v2 runs
    with pytest.raises(BadInput, match="proposal of v2"):
        desk.books[1].answer(0, late)
    for index in range(2):  # and a restart in between
        desk.books[index].close()
        desk.books[index] = desk.open(index)
    desk.flag("v1")
    assert [books.digests()["v1"] for books in desk.books] == before
    assert desk.books[0].accounts["v2"].worth == -4 * KB
    desk.books[0].hear(1, answer)
    assert desk.books[0].accounts["v1"].worth == -4 * KB


def test_halves_of_others_are_refused(desk: Desk) -> None:
    desk.flag("v2")
    desk.books[0].owe(1, KB)
    (told,) = desk.books[0].propose(1)
    forged = Settle(told.half, bytes(64))
    for wrong in (forged, msgspec.structs.replace(told, half=msgspec.structs.replace(told.half, amount=2))):
        with pytest.raises(BadInput, match="signed by peer 0"):
            desk.books[1].answer(0, wrong)
    with pytest.raises(BadInput, match="only a peer itself signs"):
        desk.books[0].keys.sign(1, b"")


def test_replay_of_the_crawl_reproduces_every_verdict(desk: Desk, tmp_path: Path) -> None:
    trial = Trial.of({"abort": ABORT, "new": "v1", "peers": 2, "stages": [{"kind": "testbed"}]})
    crawl = Crawl(trial, desk.ids, tmp_path / "crawl.jsonl")
    desk.flag("v1")
    verdicts = []
    for times in (1, 1, 2, 1):
        desk.transfer(times)
        verdicts.append(_pull(crawl, desk))
    assert [v.stop for v in verdicts] == [False, False, True, True]
    assert verdicts[-1].violations == {"no_double_count": 1, "running_total": 0, "agreement": 0}
    assert verdicts[-1].harmed == [0, 1]
    kept, again = replay(tmp_path / "crawl.jsonl")
    assert kept == again == verdicts

    told = findings(crawl, "live", {})
    trace = told["violations"]["no_double_count"]["trace"]
    assert [r["peer"] for r in trace] == [1, 1] and [r["position"] for r in trace] == [2, 3]
    keys = IdKeys(desk.ids)
    log = VersionedLog.empty(1, 2)
    log = log.merge(0, [(1, 0, crawl.log.held[0][1])], keys)  # the records bear their origin's signatures
    assert [log.held[0][1][r["position"]] for r in trace] == [r["record"] for r in trace]


def test_an_unsigned_record_is_refused(desk: Desk, tmp_path: Path) -> None:
    trial = Trial.of({"abort": ABORT, "peers": 2, "stages": [{"kind": "testbed"}]})
    crawl = Crawl(trial, desk.ids, tmp_path / "crawl.jsonl")
    desk.flag("v2")
    desk.transfer()
    news = desk.books[1].log.missing(0, [0, 0])
    for forged in (
        [(1, 0, [r[0] for r in news[0][2]])],
        [(0, 0, news[0][2])],
        [(1, 0, [[["v2", "give", 0, KB, 0, KB], "AAAA"]])],
    ):
        with pytest.raises(BadInput, match="entries"):
            crawl.take(1, forged)
    assert crawl.refused[1] == 3
    assert crawl.judge().answers == 0
    crawl.take(1, news)
    text = (tmp_path / "crawl.jsonl").read_text().replace('"give", 0, 1024', '"give", 0, 9999')
    (tmp_path / "crawl.jsonl").write_text(text)
    with pytest.raises(BadInput, match="not signed by it"):
        replay(tmp_path / "crawl.jsonl")


def test_the_abort_rule_counts() -> None:
    half = Half("v1", "give", 0, KB, 0, KB)
    twice = [(1, 0, half), (1, 1, msgspec.structs.replace(half, total=2 * KB))]
    takes = [(0, at, Half("v1", "take", 1, KB, at, -(at + 1) * KB)) for at in range(10)]
    for rate, least, stop in ((0.05, 1, True), (0.1, 1, False), (0.0, 2, False)):
        trial = Trial.of({"abort": {"rate": rate, "least": least}, "new": "v1"})
        verdict, _ = judge(0, {0: takes, 1: twice}, trial)
        assert verdict.stop is stop and verdict.total == 1
    other = Trial.of({"abort": ABORT, "new": "v2", "old": "v1"})
    assert judge(0, {0: takes, 1: twice}, other)[0].total == 0  # the old version is not on trial


def test_behaviour_and_drift() -> None:
    takes = {0: [(0, 0, Half("v2", "take", 1, 4, 0, 4)), (0, 1, Half("v2", "take", 1, 8, 1, 12))], 1: []}
    told = behaviour(takes)
    assert told == {"answers": 0.0, "chunks": 1.5, "gini": 0.5}
    assert drift(told, {"answers": 1.0, "chunks": 1.0, "gini": 0.05}) == pytest.approx(
        {"answers": -1.0, "chunks": 0.5, "gini": 4.5}
    )


# -- real processes ----------------------------------------------------------------------------------


def test_real_processes_from_launch_to_rollback(tmp_path: Path) -> None:
    from shoal.runtimes.trial.runtime import run_trial

    trial = Trial.of({
        "new": "v1", "old": "v2", "warm_s": 0.5, "peers": 4, "abort": ABORT,
        "chunk": 2048, "chunks": 16, "crawl_s": 0.2, "deadline_s": 0.15,
        "faults": {"loss": 0.3, "restart_s": 0.4, "down_s": 0.1}, "concurrency": 3,
        "stages": [{"kind": "live", "share": 1.0, "seconds": 5.0}],
    })  # fmt: skip
    plan = plan_of("deployment-trial", peers=4, seed=103, method={"version": "v1"})
    (outcome,) = run_trial(trial, plan, tmp_path)
    assert outcome.stopped and outcome.restored
    assert outcome.verdict.total > 0 and outcome.findings["violations"]
    # What was restored is more than an empty account: v2 had been in use.
    lines = [json.loads(line) for line in (tmp_path / "crawl-0-live.jsonl").read_text().splitlines()]
    written = [record[0][0] for line in lines for _, _, log in line.get("news", []) for record in log]
    assert {"v1", "v2"} == set(written)
    kept, again = replay(tmp_path / "crawl-0-live.jsonl")
    assert kept == again and kept[-1] == outcome.verdict
    assert json.loads((tmp_path / "findings.json").read_text())[0]["stopped"] is True


def test_a_trial_refuses_other_methods(tmp_path: Path) -> None:
    from shoal.runtimes.trial.runtime import run_trial

    with pytest.raises(BadInput, match="a mechanism with versions"):
        run_trial(Trial.of({"abort": ABORT}), plan_of("dsgd"), tmp_path)
