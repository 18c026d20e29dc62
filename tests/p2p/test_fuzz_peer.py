"""Hostile bytes against a peer of a run: its services, its parcels, and the exchange behind them."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.bench.fuzz import fuzz_node
from shoal.bench.live_peer import DIM, Given, LivePeer, exchange, parcel_of
from shoal.bench.mutate import mutate
from shoal.network.network import Network
from shoal.network.parcel import TENSORS, Parcel, opened, sealed
from shoal.network.remote import unpack_spoken
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.transport.base import Unreachable
from shoal.runtimes.p2p.transport.tcp import Tcp

NETWORKS = {
    "plain": Network(),
    "replicas": Network(codec="topk(fraction=0.2)"),
    "quantised": Network(codec="qsgd"),
    "bounded": Network(norm=10.0),
    "a rule": Network(graph="complete", rule="median"),
    "damaging links": Network(links={"corruption": 0.5}),
}
PARCELS = {name: parcel_of(network) for name, network in NETWORKS.items()}
SPOKEN = dict(opened(PARCELS["plain"]).tensors)
ALLOWED = torch.tensor([1])


def test_mutated_frames_against_a_live_peer() -> None:
    peers: list[LivePeer] = []

    def install(node):
        peers.append(LivePeer(node))
        return peers[0].samples(), peers[0].describe

    found = fuzz_node(4000, 11, install=install)
    assert found["frames"] >= 4000 and found["unchanged"] and not found["errors"] and found["growth"] < 0.1
    # They got as far as each of the services, and as the exchange.
    met = found["refusals"].keys()
    assert {"unsigned delta", "table entry not signed by who stores it", "malformed record"} <= met
    assert peers[0].parcels > 100 and len(peers[0].port.refusals) > 5
    # What is counted are fixed reasons, whatever was sent.
    assert len(met) < 80 and len(peers[0].port.refusals) < 30


def mixed(network: Network, parcel: bytes | None) -> tuple[torch.Tensor, Given, torch.Tensor]:
    """One tick of peer 0, whose neighbour says ``parcel`` (None: nothing)."""
    port = Given()
    if parcel is not None:
        port.parcels[1] = parcel
    net, tick = exchange(port, network)
    x = torch.ones(1, DIM)
    after = net.mix(x.clone(), tick)
    return after, port, net.carrier.refused


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**48))
def test_a_mutated_parcel_is_used_or_refused_and_never_more(name: str, seed: int) -> None:
    draw = random.Random(seed)
    parcel = mutate(PARCELS[name], draw, list(PARCELS.values()))
    after, port, _ = mixed(NETWORKS[name], parcel)
    assert after.shape == (1, DIM) and bool(torch.isfinite(after).all())
    if port.refusals:
        assert torch.equal(after, mixed(NETWORKS[name], None)[0])


@settings(max_examples=300)
@given(st.integers(0, 2**48))
def test_what_is_opened_is_a_parcel_within_its_bytes(seed: int) -> None:
    draw = random.Random(seed)
    data = mutate(PARCELS["replicas"], draw, list(PARCELS.values()))
    try:
        parcel = opened(data)
    except ValueError as error:
        assert len(str(error)) < 40 and str(error).isascii()
        return
    assert sum(t.nbytes for t in parcel.tensors.values()) <= len(data) and len(parcel.tensors) <= TENSORS


@given(st.binary(max_size=400))
def test_noise_is_no_parcel(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(too short|a head|no such|shorter|longer)"):
        opened(b"\x05" + data)


def bytes_of(tensors: dict[str, torch.Tensor], data: bytes = b"") -> bytes:
    return b"".join(bytes(piece) for piece in sealed(Parcel(tensors, data)))


def test_a_head_that_promises_too_much_is_refused_before_anything_is_made() -> None:
    import msgspec

    def with_head(tensors):
        head = msgspec.msgpack.encode((tensors, b""))
        data = len(head).to_bytes(4, "little") + head
        return data + bytes(-len(data) % 8)

    for tensors in (
        [("frames", "B", [1 << 40, 1 << 40])],
        [("frames", "d", [1 << 40])],
        [("frames", "d", [-1])],
        [("frames", "d", [1, 1, 1])],
        [("frames", "O", [1])],
        [("x", "B", [0]), ("x", "B", [0])],
        [(f"{i}", "B", [0]) for i in range(TENSORS + 1)],
    ):
        with pytest.raises(ValueError, match=r"^(no such tensor|shorter|a head of another form)"):
            opened(with_head(tensors))


WRONG = {
    "of nobody": {"ids": torch.tensor([0])},
    "of another": {"ids": torch.tensor([2])},
    "twice": {k: torch.cat([v, v]) for k, v in SPOKEN.items()},
    "of another dtype": {"frames": SPOKEN["frames"].to(torch.int64)},
    "ids of another dtype": {"ids": torch.tensor([1.0])},
    "of another shape": {"frames": SPOKEN["frames"][0]},
    "longer than its bytes": {"length": torch.tensor([4 * DIM + 1])},
    "of negative length": {"length": torch.tensor([-1])},
    "far too long": {
        "frames": torch.zeros(1, 1 << 20, dtype=torch.uint8),
        "length": torch.tensor([1 << 20]),
    },
    "without a length": {"length": torch.zeros(0, dtype=torch.int64)},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_parcel_of_the_wrong_kind_is_refused_and_counted(name: str) -> None:
    tensors = {**SPOKEN, **WRONG[name]}
    with pytest.raises(ValueError, match=r"\w"):
        unpack_spoken(Parcel(tensors), ALLOWED, 0, False, 4 * DIM)
    after, port, refused = mixed(NETWORKS["plain"], bytes_of(tensors))
    assert torch.equal(after, torch.ones(1, DIM)) and port.refusals.total() == 1 and int(refused[1]) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_message_that_is_not_finite_is_refused(value: float) -> None:
    row = torch.ones(1, DIM)
    row[0, 3] = value
    after, _, refused = mixed(NETWORKS["plain"], bytes_of({**SPOKEN, "frames": row.view(torch.uint8)}))
    assert torch.equal(after, torch.ones(1, DIM)) and int(refused[1]) == 1


def test_a_message_that_is_too_long_in_norm_is_refused() -> None:
    row = torch.full((1, DIM), 1e6)
    parcel = bytes_of({**SPOKEN, "frames": row.view(torch.uint8)})
    assert torch.equal(mixed(NETWORKS["bounded"], parcel)[0], torch.ones(1, DIM))
    assert not torch.equal(mixed(NETWORKS["plain"], parcel)[0], torch.ones(1, DIM))


def test_numbers_and_weights_that_go_along_are_checked() -> None:
    two = {**SPOKEN, "scalars": torch.tensor([[1.0, 2.0]], dtype=torch.float64)}
    unpack_spoken(Parcel(two), ALLOWED, 2, False, 4 * DIM)
    two["scalars"][0, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        unpack_spoken(Parcel(two), ALLOWED, 2, False, 4 * DIM)
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        weighed = {**SPOKEN, "weight": torch.tensor([weight], dtype=torch.float64)}
        with pytest.raises(ValueError, match="positive"):
            unpack_spoken(Parcel(weighed), ALLOWED, 0, True, 4 * DIM)


def test_replicas_of_the_wrong_kind_are_refused_and_change_nothing() -> None:
    network = NETWORKS["replicas"]
    good = dict(opened(PARCELS["replicas"]).tensors)
    alone, none = mixed(network, None)[0], torch.zeros(0, DIM)
    for wrong in (
        {"version": torch.tensor([7]), "behind": torch.zeros(1, dtype=torch.uint8), "whole": none},
        {"version": torch.tensor([0.0])},
        {"behind": torch.ones(1, dtype=torch.uint8), "whole": none},
        {"behind": torch.ones(1, dtype=torch.uint8), "whole": torch.full((1, DIM), float("nan"))},
        {"whole": torch.zeros(5, DIM)},
    ):
        after, _, refused = mixed(network, bytes_of({**good, **wrong}))
        assert torch.equal(after, alone) and int(refused[1]) == 1


@pytest.mark.parametrize("host", ["127.0.0.1\0", "a..b", "x" * 70, "ü" * 64])
def test_an_address_that_is_none_is_unreachable(host: str) -> None:
    async def main() -> None:
        me = Identity.create()
        tcp = await Tcp.listen(me)
        try:
            with pytest.raises(Unreachable):
                async with asyncio.timeout(10):
                    await tcp.dial(Identity.create().id, [f"tcp://{host}:9"])
        finally:
            await tcp.close()

    asyncio.run(main())
