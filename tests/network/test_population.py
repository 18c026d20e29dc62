from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.network.population import HashSampler, PopulationView, first_of

N = 5
ROWS = st.lists(st.tuples(st.integers(-1, 40), st.integers(0, 6)), min_size=N, max_size=N)


def view(rows: list[tuple[int, int]]) -> PopulationView:
    last, counter = torch.tensor(rows).T
    return PopulationView(last[None], counter[None])


def same(a: PopulationView, b: PopulationView) -> bool:
    return torch.equal(a.last, b.last) and torch.equal(a.counter, b.counter)


def only(*peers: int) -> Tensor:
    who = torch.zeros(1, N, dtype=torch.bool)
    who[0, list(peers)] = True
    return who


@given(ROWS, ROWS, ROWS)
def test_merging_views_is_commutative_associative_and_idempotent(
    a: list[tuple[int, int]], b: list[tuple[int, int]], c: list[tuple[int, int]]
) -> None:
    x, y, z = view(a), view(b), view(c)
    assert same(x.merge(y), y.merge(x))
    assert same(x.merge(y).merge(z), x.merge(y.merge(z)))
    assert same(x.merge(x), x)


EVENTS = st.lists(st.tuples(st.sampled_from(["active", "join", "leave"]), st.integers(0, N - 1)))


@settings(max_examples=50)
@given(EVENTS, st.randoms())
def test_replicas_agree_in_whatever_order_they_hear(events: list[tuple[str, int]], random: object) -> None:
    """Each peer's events become states; any order and any repetition of merges ends the same."""
    now = PopulationView.start(1, only()[0])
    states = [now]
    for round, (kind, peer) in enumerate(events):
        who = only(peer)
        now = now.leave(who) if kind == "leave" else getattr(now, kind)(who, round)
        states.append(now)
    shuffled = [*states, *states]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    merged = shuffled[0]
    for state in shuffled[1:]:
        merged = merged.merge(state)
    assert same(merged, now)


def test_membership_counts_up() -> None:
    start = PopulationView.start(1, ~only(4)[0])
    assert start.counter.tolist() == [[1, 1, 1, 1, 0]]
    assert start.last.tolist() == [[0, 0, 0, 0, -1]]
    gone = start.leave(only(0, 4))
    assert gone.counter.tolist() == [[2, 1, 1, 1, 0]]
    back = gone.join(only(0, 1, 4), 7)
    assert back.counter.tolist() == [[3, 3, 1, 1, 1]]
    assert back.last.tolist() == [[7, 7, 0, 0, 7]]
    # An older join heard later does not undo the leave.
    assert not bool(gone.merge(start).joined[0, 0])


def test_the_silent_drop_out() -> None:
    known = view([(9, 1), (5, 1), (4, 1), (9, 2), (30, 1)])
    assert known.candidates(5, only(4)).tolist() == [[True, True, False, False, True]]
    assert known.candidates(5, only(0)).tolist() == [[False, False, False, False, True]]


@given(ROWS, st.integers(0, 1))
def test_a_view_survives_the_way_as_a_message(rows: list[tuple[int, int]], at: int) -> None:
    told = view(rows)
    both = PopulationView(torch.cat([told.last] * 2), torch.cat([told.counter] * 2))
    read = PopulationView.read(both.message(at), N, 40)
    assert read is not None and same(read, told)


def test_what_is_no_view_is_refused() -> None:
    good = view([(3, 1)] * N).message(0)
    assert PopulationView.read(good, N, 3) is not None
    for bad in (good[:-1], good + b"\0", b"", None, 7, [1], good[:-4] + b"\xff\xff\xff\xff"):
        assert PopulationView.read(bad, N, 3) is None
    assert PopulationView.read(good, N, 2) is None  # activity in a round that has not been


def test_absorb_merges_into_the_rows_that_heard() -> None:
    start = PopulationView.start(3, ~only(4)[0])
    one, two = view([(9, 1)] + [(-1, 0)] * 4), view([(2, 3)] + [(-1, 0)] * 4)
    after = start.absorb([2, 0, 2], [one, two, two])
    assert after.last[:, 0].tolist() == [2, 0, 9] and after.counter[:, 0].tolist() == [3, 1, 3]
    assert same(start.absorb([], []), start)


def test_samples_depend_on_seed_round_and_able_alone() -> None:
    sampler = HashSampler(3, 50)
    able = torch.ones(2, 50, dtype=torch.bool)
    drawn = sampler.sample(7, able, 6)
    assert torch.equal(drawn[0], drawn[1]) and int(drawn[0].sum()) == 6
    assert not torch.equal(drawn, sampler.sample(8, able, 6))
    assert not torch.equal(drawn, HashSampler(4, 50).sample(7, able, 6))
    # Who does not answer is replaced by the next in the order, and nobody else moves.
    first = sampler.order(7)[:7].tolist()
    able[1, first[2]] = False
    assert sampler.sample(7, able, 6)[1].nonzero()[:, 0].tolist() == sorted(set(first) - {first[2]})
    assert sorted(sampler.order(9).tolist()) == list(range(50))


def test_everybody_is_drawn_equally_often() -> None:
    sampler, able = HashSampler(0, 20), torch.ones(1, 20, dtype=torch.bool)
    count = sum(sampler.sample(k, able, 5)[0].to(torch.int64) for k in range(800))
    assert isinstance(count, Tensor)
    # 200 each; five standard deviations of a binomial.
    assert float((count - 200).abs().max()) < 5 * (800 * 0.25 * 0.75) ** 0.5


def test_first_of_takes_what_there_is() -> None:
    able = torch.tensor([[True, False, True], [False, False, False]])
    order = torch.tensor([2, 1, 0])
    assert first_of(able, order, 1).tolist() == [[False, False, True], [False] * 3]
    assert torch.equal(first_of(able, order, 9), able)
