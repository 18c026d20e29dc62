"""The model of a real peer as a file that :func:`shoal.load_model` reads."""

from __future__ import annotations

from pathlib import Path

from shoal.core import BadInput, tree
from shoal.report.model_file import has_models, model_bytes
from shoal.runtimes.base import Plan
from shoal.runtimes.p2p.port import PeerPort
from shoal.runtimes.p2p.state_folder import StateFolder
from shoal.runtimes.session import Session

__all__ = ["export_model"]


def export_model(folder: StateFolder, plan: Plan, out: Path) -> int:
    """Write what the peer of this folder has learned; returns the ticks that it has done.

    Raises:
        BadInput: it has done none, or of another run, or the run learns no models.
    """
    if not folder.checkpoint.exists():
        raise BadInput("state", str(folder.path), "a peer that has done at least one tick")
    seat = int(folder.read("seat").get("seat", 0))
    session = Session.open(plan, PeerPort(None, seat, plan.peers))  # type: ignore[arg-type]
    session.restore(tree.read(folder.checkpoint), part=True)
    report = session.report
    report.output = plan.method.output(session.state)
    report.hostile = None
    report.final |= session.work.final(report.output)
    if not has_models(report):
        raise BadInput("config", plan.method.slug, "a method whose output is models")
    part = out.with_name(out.name + ".part")
    part.write_bytes(model_bytes(report))
    part.replace(out)
    return session.done
