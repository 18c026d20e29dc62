"""G-Rank, the logs that it spreads, and its task."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.attack.sybil import ClickInflation
from shoal.conformance import CHECKS
from shoal.core import BadInput, Draws, Graph, Place
from shoal.experiment import run
from shoal.methods.retrieval.g_rank import GRank, Opinion
from shoal.network.logs import SeededKeys, VersionedLog, mutual
from shoal.tasks.retrieval.clicks import Clicks, load_library

SMALL = {"name": "clicks", "library": "generated", "items": 30, "own": 0.3}


# -- logs --------------------------------------------------------------------------------------------


def _spread(order: list[tuple[int, int]]) -> VersionedLog:
    log = VersionedLog.empty(3, 3)
    for origin in range(3):
        log = log.append(origin, origin, [origin * 10 + i for i in range(origin + 1)])
    for asker, teller in order:
        log = log.merge(asker, log.missing(teller, log.versions(asker)))
    return log


def test_pulls_commute() -> None:
    assert _spread([(0, 1), (0, 2)]).held[0] == _spread([(0, 2), (0, 1)]).held[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12))
def test_pulls_are_idempotent_and_copies_are_prefixes(order: list[tuple[int, int]]) -> None:
    log = _spread(order)
    assert _spread([p for pair in order for p in (pair, pair)]).held == log.held
    for copies in log.held:
        for origin, copy in enumerate(copies):
            assert copy == log.held[origin][origin][: len(copy)]


def test_overlap_is_skipped_and_nothing_is_changed_in_place() -> None:
    log = VersionedLog.empty(1, 2).merge(0, [(1, 0, ["a", "b"])])
    after = log.merge(0, [(1, 1, ["b", "c"])])
    assert (log.held, after.held) == ([[[], ["a", "b"]]], [[[], ["a", "b", "c"]]])
    assert after.merge(0, [(1, 0, ["a"])]) is after


@pytest.mark.parametrize(
    "news", [[(1, 3, ["x"])], [(5, 0, ["x"])], [(1, -1, ["x"])], "text", [(1, 0)], None, [(1, 0, "x")]]
)
def test_gaps_and_malformed_news_are_refused(news: object) -> None:
    with pytest.raises(BadInput, match="entries"):
        VersionedLog.empty(1, 2).merge(0, news)


@pytest.mark.parametrize("versions", [[1], [1, -1], "x", [1, 1.5]])
def test_foreign_version_vectors_are_refused(versions: object) -> None:
    with pytest.raises(BadInput, match="versions"):
        VersionedLog.empty(1, 2).missing(0, versions)


def test_signatures_bind_origin_position_and_value() -> None:
    pytest.importorskip("cryptography")
    keys = SeededKeys(4)
    log = VersionedLog.empty(2, 2).append(1, 1, ["one", "two"], keys)
    assert log.merge(0, log.missing(1, [0, 0]), keys).values(0, 1, signed=True) == ["one", "two"]
    first, second = log.held[1][1]
    for forged in ([["one", "AAAA"]], ["one"], [second], [["ONE", first[1]]], [["one", "not base64!"]]):
        with pytest.raises(BadInput, match="not signed"):
            VersionedLog.empty(2, 2).merge(0, [(1, 0, forged)], keys)
    with pytest.raises(BadInput, match="not signed"):
        VersionedLog.empty(2, 2).merge(0, [(0, 0, [first])], keys)


def test_only_two_way_neighbours_are_asked() -> None:
    src, dst = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0, 0, 1])
    graph = Graph.of(3, src, dst, torch.ones(4), torch.ones(3))
    neighbour, degree = mutual(graph)
    assert degree.tolist() == [1, 1, 0]
    assert neighbour[:2, 0].tolist() == [1, 0]


# -- ranking -----------------------------------------------------------------------------------------


def opinion(clicks: list[list[tuple[int, int]]], tags: torch.Tensor, me: int = 0) -> Opinion:
    """``clicks[j]`` are origin j's clicks (term, item)."""
    origin = torch.tensor([j for j, log in enumerate(clicks) for _ in log], dtype=torch.int64)
    code = torch.tensor([t * len(tags) + i for t, i in chain.from_iterable(clicks)], dtype=torch.int64)
    return Opinion(origin, code, me, len(clicks), tags)


TAGS = torch.ones(5, 3, dtype=torch.bool)


def test_similarity_by_hand() -> None:
    known = opinion([[(0, 1), (1, 2)], [(0, 1), (1, 2), (2, 3)], [(0, 1), (0, 4)], [(2, 2)]], TAGS)
    # km, kt, ku: (2, 2, 3), (1, 1, 3), (0, 0, 2)
    assert known.similarity("notebook").tolist() == pytest.approx([1, 1, (1 + 1) / (2 + 4), 0])
    assert known.similarity("printed").tolist() == pytest.approx([1, 1, (1 + 1) / (2 + 4), 0])
    more = opinion([[(0, 1), (0, 2)], [(0, 1), (0, 2)], [(0, 1), (1, 1)]], TAGS)
    # (2, 1, 2) and (1, 1, 2): the square is on kt or on km
    assert more.similarity("notebook").tolist() == pytest.approx([1, 1, 2 / 3])
    assert more.similarity("printed").tolist() == pytest.approx([1, 1, 2 / 5])
    assert more.similarity("none").tolist() == [1, 1, 1]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=8), min_size=2, max_size=5)
)
def test_a_large_floor_ranks_as_popularity(clicks: list[list[tuple[int, int]]]) -> None:
    known = opinion(clicks, TAGS)
    with_floor = known.scores(known.similarity("notebook") + 1e9)
    popular = known.scores(known.similarity("none"))
    for term in range(3):
        a, b = with_floor[term], popular[term]
        assert bool(((a[:, None] > a) | ~(b[:, None] > b)).all())


def test_answers_of_terms_nobody_clicked_for() -> None:
    tags = torch.tensor([[1, 0], [0, 1], [0, 1], [1, 0]], dtype=torch.bool)
    known = opinion([[(0, 3)], [(0, 3), (0, 2)]], tags)
    scores = known.scores(torch.ones(2, dtype=torch.float64))
    library = torch.tensor([False, True, True, False])
    empty = torch.zeros(4, dtype=torch.bool)
    assert known.answers(0, scores, library).tolist() == [3, 2]
    assert known.answers(1, scores, library).tolist() == [1, 2]
    assert known.answers(1, scores, empty).tolist() == [2]
    nothing = opinion([[(0, 3)], []], tags)
    assert nothing.answers(1, scores, empty).tolist() == [3, 0, 1, 2]


# -- runs --------------------------------------------------------------------------------------------


def test_gossip_makes_peers_agree() -> None:
    plan = {"task": SMALL, "peers": 12, "rounds": 300, "every": 300, "seed": 100}
    heard = run("g-rank", **plan).metrics
    alone = run("g-rank", gossip="none", **plan)
    assert heard["top1"] >= 0.8
    assert alone.metrics["top1"] <= heard["top1"] - 0.3
    assert alone.bytes_sent == 0


def test_push_spreads_clicks_too() -> None:
    plan = {"task": SMALL, "peers": 8, "rounds": 120, "every": 120, "seed": 100}
    pull, push, none = (run("g-rank", gossip=g, **plan).metrics["known"] for g in ("pull", "push", "none"))
    assert min(pull, push) > 2 * none


def test_a_peer_in_a_run_knows_prefixes_only_and_signs() -> None:
    pytest.importorskip("cryptography")
    plan = {"task": SMALL, "peers": 4, "rounds": 20, "every": 20, "seed": 100}
    plain, signed = run("g-rank", **plan), run("g-rank", signed=True, **plan)
    assert torch.equal(plain.output["top"], signed.output["top"])
    assert plain.output["clicks"] == signed.output["clicks"]
    assert signed.bytes_sent > 5 * plain.bytes_sent


def test_sybils_take_the_popular_ranking_only() -> None:
    task = {**SMALL, "inflation": {"sybils": 3, "clicks": 200, "at": 0.3}}
    plan = {"task": task, "peers": 15, "rounds": 300, "every": 300, "seed": 100}
    popular = run("g-rank", similarity="none", **plan).metrics["takeover"]
    assert popular >= 0.8
    assert run("g-rank", **plan).metrics["takeover"] <= popular - 0.5


@pytest.mark.parametrize("check", list(CHECKS))
def test_conforms(check: str) -> None:
    CHECKS[check](GRank())


def test_start() -> None:
    work = Clicks("generated", items=30, own=0.2, passed=0.5).open(Place.whole(5, 2))
    assert work.library.sum(1).tolist() == [
        len({*own[:6], *before[:3]})
        for own, before in zip(
            Draws(2, "library", torch.arange(5)).permutation(30).tolist(),
            Draws(2, "library", torch.tensor([4, 0, 1, 2, 3])).permutation(30).tolist(),
            strict=True,
        )
    ]
    for library, clicks in zip(work.library, work.first(), strict=True):
        terms = [c // 30 for c in clicks]
        assert len(set(terms)) == len(terms)
        assert all(bool(library[c % 30]) and bool(work.tags[c % 30, c // 30]) for c in clicks)


def test_measure_counts_honest_clicks_only() -> None:
    task = Clicks("generated", items=12, inflation=ClickInflation(1, 50, 0.0))
    work = task.open(Place.whole(3, 0))
    code = work.code
    own = [[code(0, 3), code(0, 3), code(1, 2)], [code(0, 1)], [code(0, 5)] * 50]
    top = torch.zeros(3, work.terms, dtype=torch.int64)
    top[0, 0], top[0, 1] = 3, 2
    figures = work.measure({"top": top, "clicks": own}, 0)
    assert figures["top1"][:2].tolist() == [1.0, 0.0]
    assert bool(torch.isnan(figures["top1"][2]))


@pytest.mark.parametrize("fields", [{"floor": -1.0}, {"swap": 2.0}, {"similarity": "cosine"}])
def test_bad_fields(fields: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=next(iter(fields))):
        GRank(**fields)


def test_unknown_items_are_refused() -> None:
    from shoal.core import Context

    work = Clicks("generated", items=12).open(Place.whole(2, 0))
    check = GRank._check(Context(work, None, 0, 1, None))  # type: ignore[arg-type]
    check(0, 12 * work.terms - 1)
    for wrong in (12 * work.terms, -1, True, "7", 1.0):
        with pytest.raises(BadInput, match="click"):
            check(0, wrong)


def test_bad_libraries(tmp_path) -> None:
    file = tmp_path / "songs.csv"
    file.write_text("one,rock|pop\ntwo,pop\n")
    assert load_library(str(file), 2).tags.tolist() == [[True, True], [True, False]]
    with pytest.raises(BadInput, match="items"):
        load_library(str(file), 3)
    with pytest.raises(BadInput, match="library"):
        load_library("nowhere", 3)
    file.write_text("one,rock|\n")
    with pytest.raises(BadInput, match="library"):
        load_library(str(file), 1)
    with pytest.raises(BadInput, match=r"inflation\.sybils"):
        Clicks("generated", inflation=ClickInflation(5)).open(Place.whole(5))
