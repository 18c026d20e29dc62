"""The conformance suite: what every method must satisfy, wherever it was written.

Each check is a function of a method and raises :class:`Failure` with one line. The same list runs
over every registered method in the tests and behind ``shoal conform``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.core import BadInput, Method, tree
from shoal.experiment import method_of, plan_of
from shoal.runtimes.base import Plan
from shoal.runtimes.blocks import run_blocks
from shoal.runtimes.local import Local
from shoal.runtimes.session import Session

__all__ = ["CHECKS", "Failure", "conform"]

TRIAL: dict[str, Any] = {
    "task": {
        "name": "supervised",
        "data": "digits",
        "partition": "iid",
        "model": {"name": "mlp", "hidden": [8]},
        "batch": 8,
        "limit": 300,
    },
    "network": {"graph": "ring"},
    "peers": 6,
    "rounds": 4,
}
CLOSE = 1e-9


class Failure(AssertionError):
    """A method broke one of the rules."""


def _plan(method: Method, **changes: Any) -> Plan:
    settings = {**TRIAL, **method.trial, "seed": 7, "dtype": "float64", "every": 100}
    network = {**settings.pop("network"), **changes.pop("network", {})}
    return plan_of({"method": method, "network": network}, **{**settings, **changes})


def _run(plan: Plan) -> tuple[Any, Session]:
    session = Session.open(plan).finish()
    return session.state, session


def _same(one: Any, two: Any, what: str, tolerance: float = 0.0) -> None:
    a, b = tree.leaves(one), tree.leaves(two)
    if a.keys() != b.keys():
        raise Failure(f"{what}: the state has other leaves ({sorted(a.keys() ^ b.keys())[:3]})")
    for name, left in a.items():
        right = b[name]
        if not isinstance(left, Tensor):
            if left != right:
                raise Failure(f"{what}: {name} differs")
        elif left.shape != right.shape:
            raise Failure(f"{what}: {name} has shape {tuple(left.shape)}, not {tuple(right.shape)}")
        elif not torch.equal(left, right):
            gap = (left.double() - right.double()).abs().max() if left.numel() else 0.0
            if not float(gap) <= tolerance:
                raise Failure(f"{what}: {name} differs by {float(gap):.3g}")


def shapes(method: Method) -> None:
    """Every leaf of the state has the peers first, before and after a tick, and keeps its shape."""
    plan = _plan(method)
    session = Session.open(plan)
    before = tree.leaves(session.state)
    session.finish()
    after = tree.leaves(session.state)
    for name, leaf in after.items():
        if isinstance(leaf, Tensor | list) and len(leaf) not in (plan.peers, 1):
            raise Failure(f"state leaf {name} has {len(leaf)} rows for {plan.peers} peers")
        old = before.get(name)
        if isinstance(leaf, Tensor) and isinstance(old, Tensor) and old.dtype != leaf.dtype:
            raise Failure(f"state leaf {name} changes from {old.dtype} to {leaf.dtype}")


def pure(method: Method) -> None:
    """``step`` does not change the state that it was given."""
    plan = _plan(method)
    session = Session.open(plan)
    tick, _ = next(plan.network.ticks(plan.peers, plan.seed, plan.rounds, 0, None))
    kept = tree.map_leaves(
        lambda v: v.clone() if isinstance(v, Tensor) else list(v) if isinstance(v, list) else v,
        session.state,
    )
    plan.method.step(session.state, tick, session.context)
    _same(kept, session.state, "step changed the state that it was given")


def seeds(method: Method) -> None:
    """One seed gives the same run twice, bit for bit."""
    _same(_run(_plan(method))[0], _run(_plan(method))[0], "the same seed twice")


def resume(method: Method) -> None:
    """Saved half-way and resumed equals uninterrupted, bit for bit, bytes included."""
    plan = _plan(method)
    whole, session = _run(plan)
    half = plan.rounds // 2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        first = Session.open(plan)
        for _ in first.ticks():
            if first.done == half:
                break
        first.report.rows.append({"tick": half, "bytes": first.net.meter.total})
        tree.save(first.saved(), path)
        report = Local().run(plan, checkpoint=path, resume=True)
        second = Session.open(plan)
        second.restore(tree.read(path))
        _same(whole, second.state, "resumed half-way")
    if report.bytes_sent != session.net.meter.total:
        raise Failure(f"resumed: {report.bytes_sent} bytes, uninterrupted {session.net.meter.total}")


def one_peer(method: Method) -> None:
    """One peer alone runs and stays finite, or is refused in one line."""
    try:
        plan = _plan(method, peers=1, network={"graph": "complete"})
        state, _ = _run(plan)
    except BadInput:
        return
    _finite(state, "one peer", slice(None))


def disconnected(method: Method) -> None:
    """On a graph of two parts it runs and stays finite, or is refused where it says that it must be."""
    try:
        plan = _plan(method, network={"graph": "components(parts=2)"})
        state, _ = _run(plan)
    except BadInput:
        if not method.connected:
            raise Failure(
                "a disconnected graph is refused, but the method is not marked connected"
            ) from None
        return
    if method.connected:
        raise Failure("marked connected, but a disconnected graph is not refused")
    _finite(state, "disconnected graph", slice(None))


def nan_peer(method: Method) -> None:
    """A peer that sends NaN harms no honest peer."""
    plan = _plan(method, network={"attack": "nan", "hostile": (1,)})
    state, session = _run(plan)
    _finite(state, "a peer sends NaN", ~session.net.hostile)


def loop(method: Method) -> None:
    """One peer at a time equals the batch (float64, to 1e-9): state, bytes by link, refusals, time."""
    plan = _plan(method)
    batch = _kept(tree.leaves(_run(plan)[1].saved()))
    _same(batch, _kept(run_blocks(plan, plan.peers)), "one peer at a time", CLOSE)


def strangers(method: Method) -> None:
    """Peers that share nothing but messages (as between real machines) get there too: as ``loop``."""
    plan = _plan(method)
    attack = plan.network.attack
    if attack is not None and attack.informed:
        plan = plan.replace(network=plan.network.replace(attack=None, hostile=0.0))
    batch = _kept(tree.leaves(_run(plan)[1].saved()))
    alone = _kept(run_blocks(plan, plan.peers, trusted=False))
    _same(batch, alone, "one peer at a time, as strangers", CLOSE)


def order(method: Method) -> None:
    """The order in which blocks compute does not matter: bit for bit."""
    plan = _plan(method)
    half = max(2, plan.peers // 2)
    forward = _kept(run_blocks(plan, half))
    backward = _kept(run_blocks(plan, half, list(reversed(range(half)))))
    _same(forward, backward, "blocks in reverse order")


def _kept(saved: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on the placement: of the run's own record, only how far it came."""
    return {k.replace(".", "/"): v for k, v in saved.items() if not k.startswith("run.")}


def fields(method: Method) -> None:
    """Every hyper-parameter survives the way through plain data (TOML, checkpoint, report)."""
    plan = _plan(method)
    spec = plan.method.spec()
    again = method_of(type(method), {k: v for k, v in spec.items() if k != "name"})
    if again.spec() != spec:
        raise Failure("the fields do not survive the way through plain data")


def _finite(state: Any, what: str, rows: Any) -> None:
    for name, leaf in tree.leaves(state).items():
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim:
            part = leaf[rows] if not isinstance(rows, Tensor) or len(rows) == len(leaf) else leaf
            if not bool(torch.isfinite(part).all()):
                raise Failure(f"{what}: {name} is not finite")


CHECKS: dict[str, Callable[[Method], None]] = {
    check.__name__: check
    for check in (
        shapes,
        pure,
        seeds,
        resume,
        one_peer,
        disconnected,
        nan_peer,
        loop,
        strangers,
        order,
        fields,
    )
}


def conform(system: Any, quiet: bool = False) -> list[dict[str, Any]]:
    """Run every check on one method; returns {"check", "passed", "detail"} rows."""
    method = method_of(system)
    results = []
    for name, check in CHECKS.items():
        detail = ""
        try:
            check(method)
        except Failure as error:
            detail = str(error)
        except BadInput as error:
            detail = f"refused its own trial run: {error}"
        except Exception as error:  # whatever a method under test raises is its failure
            detail = f"{type(error).__name__}: {error}".splitlines()[0]
        results.append({"check": name, "passed": not detail, "detail": detail})
        if not quiet:
            from rich.console import Console

            mark = "[red]failed[/]" if detail else "[green]passed[/]"
            Console().print(f"{mark} {name:12s} {detail or (check.__doc__ or '').splitlines()[0]}")
    return results
