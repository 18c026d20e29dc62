"""The exchange: mixing, gathering, pooling, sharing; faults, compression memory and the meter."""

from __future__ import annotations

import pytest
import torch

from shoal.core import BadInput, Place, Work
from shoal.network.exchange import Exchange
from shoal.network.network import Network


def setting(n=8, seed=0, hostile=None, **network):
    net = Network(**network)
    work = Work(Place.whole(n, seed, torch.float64))
    mask = net.hostiles(n, seed) if hostile is None else hostile
    exchange = Exchange(net, work, mask)
    ticks = [t for t, _ in net.ticks(n, seed, 5, 0, None)]
    return exchange, ticks


def values(n=8, d=6):
    return torch.arange(n * d, dtype=torch.float64).reshape(n, d).sin()


def test_mix_is_the_mixing_matrix():
    exchange, ticks = setting()
    x = values()
    assert torch.allclose(exchange.mix(x, ticks[0]), ticks[0].graph.matrix() @ x, atol=1e-15)
    assert exchange.meter.total == 16 * 6 * 8


def test_mix_of_a_tree_sends_numbers_exactly():
    exchange, ticks = setting(codec="int8")
    x, w = values(), torch.linspace(0, 1, 8, dtype=torch.float64)
    mixed = exchange.mix({"x": x, "w": w}, ticks[0])
    assert torch.allclose(mixed["w"], ticks[0].graph.matrix() @ w, atol=1e-15)
    assert not torch.allclose(mixed["x"], ticks[0].graph.matrix() @ x, atol=1e-12)
    assert torch.allclose(mixed["x"], ticks[0].graph.matrix() @ x, atol=0.02)


@pytest.mark.parametrize(
    "codec", ["int8", "qsgd", "topk(fraction=0.3)", "randk(fraction=0.3)", "sign", "bf16"]
)
def test_compressed_mixing_keeps_the_mean_and_contracts(codec):
    exchange, _ = setting(codec=codec, graph="complete", gamma=0.3)
    ticks = [t for t, _ in exchange.network.ticks(8, 0, 200, 0, None)]
    x = values()
    mean, spread = x.mean(0), (x - x.mean(0)).norm()
    for tick in ticks:
        x = exchange.mix(x, tick)
    assert torch.allclose(x.mean(0), mean, atol=1e-9)
    assert (x - x.mean(0)).norm() < 0.2 * spread


def test_lost_messages_return_to_the_diagonal():
    exchange, ticks = setting(links={"loss": 0.5}, graph="complete")
    x = values()
    mixed = exchange.mix(x, ticks[0])
    assert torch.allclose(mixed.mean(0), x.mean(0), atol=1e-12)  # lost both ways: doubly stochastic
    assert not torch.allclose(mixed, ticks[0].graph.matrix() @ x)


def test_a_missed_message_is_made_good_by_the_whole_replica():
    exchange, ticks = setting(links={"loss": 0.4}, graph="complete", codec="topk(fraction=0.2)")
    x = values()
    for tick in ticks:
        exchange.meter.start_tick()
        x = exchange.mix(x, tick)
    cheap = exchange.carrier.chain.width(6, 8, [])
    assert exchange.meter.tick_bytes > 56 * cheap
    known, replica = exchange.carrier.memory.state["known/x"], exchange.carrier.memory.state["version/x"]
    assert int(known.max()) == int(replica.max())


def test_nan_is_refused_and_counted():
    hostile = torch.zeros(8, dtype=torch.bool)
    hostile[2] = True
    exchange, ticks = setting(hostile=hostile, attack="nan")
    x = values()
    mixed = exchange.mix(x, ticks[0])
    assert torch.isfinite(mixed).all()
    assert int(exchange.carrier.refused[2]) == 2
    rows = [i for i in range(8) if i not in (1, 2, 3)]
    assert torch.allclose(mixed[rows], (ticks[0].graph.matrix() @ x)[rows])


def test_a_checksum_refuses_what_is_damaged():
    x = values(d=200)
    plain, ticks = setting(links={"corruption": 0.5})
    checked, _ = setting(links={"corruption": 0.5}, codec="checksum")
    wrong = plain.mix(x, ticks[0])
    right = checked.mix(x, ticks[0])
    assert checked.carrier.refused.sum() > 0
    assert torch.isfinite(wrong).all() and torch.isfinite(right).all()
    # What the checksum lets through is exact: every row is a convex mix of true values.
    assert right.abs().max() <= x.abs().max()


def test_pool_is_the_weighted_mean_and_counts_both_ways():
    exchange, ticks = setting()
    x = values()
    weight = torch.arange(8, dtype=torch.float64)
    out = exchange.pool(x, ticks[0], weight=weight)
    assert torch.allclose(out, (weight / weight.sum()) @ x[None].squeeze(0), atol=1e-12)
    assert exchange.meter.total == 7 * 6 * 8  # weight 0 sends nothing
    everyone = exchange.pool(x, ticks[0], to="all")
    assert torch.allclose(everyone, x.mean(0).expand(8, -1), atol=1e-12)
    assert exchange.meter.total == (7 + 2 * 7) * 6 * 8  # the aggregator is one of the peers


def test_share_follows_the_graph():
    exchange, ticks = setting()
    outbox = [{(i + 1) % 8: {"text": f"from {i}"}} for i in range(8)]
    heard = exchange.share(outbox, ticks[0])
    assert heard[0] == {7: {"text": "from 7"}}
    with pytest.raises(ValueError, match="no edge"):
        exchange.share([{4: "x"}] + [{}] * 7, ticks[0])


def test_time_is_the_slowest_chain():
    exchange, ticks = setting(links={"latency": 1.0, "bandwidth": 48.0, "step_time": 2.0})
    exchange.work.spent = torch.tensor([1.0] * 7 + [3.0], dtype=torch.float64)
    exchange.mix(values(), ticks[0])  # 48 bytes to each of 2 neighbours: 2 s, plus 1 s
    now = exchange.clock.now
    assert float(now[3]) == 5.0 and float(now[0]) == float(now[6]) == 9.0


def test_state_resumes_to_the_same_messages():
    one, ticks = setting(codec="topk(fraction=0.3)", links={"loss": 0.2})
    x = one.mix(values(), ticks[0])
    two, _ = setting(codec="topk(fraction=0.3)", links={"loss": 0.2})
    two.restore({k: v.clone() for k, v in one.state().items()})
    assert torch.equal(one.mix(x, ticks[1]), two.mix(x, ticks[1]))
    assert one.meter.total == two.meter.total


def test_bad_networks_are_one_line():
    for bad in (
        {"hostile": 0.1},
        {"hostile": 1.5, "attack": "nan"},
        {"gamma": 0.0},
        {"links": {"loss": 1.0}},
    ):
        with pytest.raises(BadInput):
            Network(**bad)
    with pytest.raises(BadInput, match="did you mean ring"):
        Network(graph="rng")


@pytest.mark.parametrize("codec", ["", "int8", "topk(fraction=0.5)"])
def test_messages_longer_than_the_norm_are_not_believed(codec):
    exchange, ticks = setting(norm=3.0, codec=codec, graph="complete", gamma=1.0)
    x = values()
    x[3] *= 100
    mixed = exchange.mix(x, ticks[0])
    assert int(exchange.carrier.refused[3]) == 7 and int(exchange.carrier.refused.sum()) == 7
    assert mixed[[0, 1, 2, 4, 5, 6, 7]].norm(dim=1).max() < 3
    with pytest.raises(BadInput, match="norm"):
        Network(norm=0.0)
