"""034: compiled schemes are the hand-written methods, at the same speed, wherever they run."""

from __future__ import annotations

import math
import platform
import statistics
import time
from typing import Any, ClassVar

import torch

from shoal.catalog.arms import arm, final, opened
from shoal.catalog.claims import Bound, Claim, Progress, claim
from shoal.core import Report
from shoal.experiment import plan_of
from shoal.network.dsl import COMBINE, TEST, Broadcast, Feedback, Graph, Parallel, Reduce, Wrapper, train
from shoal.runtimes.energy import counters, joules
from shoal.runtimes.session import Session

WORKERS, ROUNDS, FRAMES = 7, 10, 16
# The rate of FedAvg's own check, for every arm; no arm is compared by what it learns.
LOCAL: dict[str, Any] = {"epochs": 2, "batch": 64, "lr": 0.3}
TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "mnist",
    "partition": "iid(size=400)",
    "model": {"name": "mlp", "hidden": [64, 32]},
}
MASTER = Feedback(
    Parallel(train(**LOCAL), TEST, workers=WORKERS), Reduce("fedavg"), Broadcast(), rounds=ROUNDS
)
PEERS = Feedback(
    Parallel(train(**LOCAL), TEST, Broadcast(), Reduce("mean"), workers=WORKERS), rounds=ROUNDS
)
LEAVES = Parallel(Wrapper("infer", frames=FRAMES), workers=3)
TREE = Feedback(Parallel(LEAVES, COMBINE, workers=2), COMBINE, rounds=ROUNDS)
SCHEMES = {"master-worker": Graph(MASTER), "peer to peer": Graph(PEERS), "tree": Graph(TREE)}
READY = {**TASK, "pretrained": 10}
ENERGY = "measured (RAPL)" if counters() else "not measured: the kernel shows no RAPL counters"


@claim("ffl-dsl")
class FFLClaim(Claim):
    bounds = (
        Bound("master-worker: largest difference from hand-written FedAvg", "==", 0.0),
        Bound("peer to peer: largest difference from hand-written FedAvg", "<=", 1e-5),
        Bound("schemes that run in local and cluster alike", "==", 3),
        Bound("overhead (share of a step's time)", "<=", 0.1),
        Bound("bytes: peer to peer / master-worker, over (W - 1)/2", "==", 1.0),
    )
    config: ClassVar[dict[str, Any]] = {
        "task": TASK, "workers": WORKERS, "rounds": ROUNDS, "local": LOCAL,
        **{name: str(graph) for name, graph in SCHEMES.items()},
    }  # fmt: skip
    notes = (
        f"Platform: {platform.platform()}, {platform.machine()}, torch {torch.__version__}.",
        f"Energy: {ENERGY}.",
        "Workers train by SGD, not by Adam. Alike: models within 1e-5, results and bytes equal.",
        "Models are compared in float64. Sums in another order round differently, and in float32 ReLUs "
        "that flip can amplify that within ten rounds: those differences are printed too.",
    )

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        before = counters()
        runs: dict[str, Report] = {}
        for name, graph in SCHEMES.items():
            progress(name)
            runs[name] = scheme(graph, seed, "local")
        energy = joules(before, counters())
        progress("hand-written FedAvg", 0.3)
        common: dict[str, Any] = {"peers": WORKERS, "rounds": ROUNDS, "task": TASK, "every": ROUNDS}
        hand = arm("fedavg", seed, **common, **LOCAL, network={"clock": "rounds"}, dtype="float64")
        single = arm("fedavg", seed, **common, **LOCAL, network={"clock": "rounds"})
        gossip = arm("dsgd", seed, **common, lr=LOCAL["lr"], local_steps=14, network={"graph": "complete"})
        progress("overhead", 0.4)
        slower = overhead(seed)
        alike = 0
        for name, graph in SCHEMES.items():
            progress(f"{name}, cluster", 0.6)
            alike += same(runs[name], scheme(graph, seed, "cluster"))
        master, peers, tree = (runs[name] for name in SCHEMES)
        edges = len(tree.peers["results"]) - 1
        return {
            "master-worker: largest difference from hand-written FedAvg": gap(master, hand),
            "peer to peer: largest difference from hand-written FedAvg": gap(peers, hand),
            "schemes that run in local and cluster alike": alike,
            "overhead (share of a step's time)": slower,
            "bytes: peer to peer / master-worker, over (W - 1)/2": (
                peers.bytes_sent / master.bytes_sent / ((WORKERS - 1) / 2)
            ),
            "tree: messages per edge and round": tree.final["messages"] / edges / ROUNDS,
            "tree: share of the control room's predictions equal to central ones": as_central(seed),
            "float32, master-worker: largest difference": gap(
                scheme(SCHEMES["master-worker"], seed, "local", "float32"), single
            ),
            "float32, peer to peer: largest difference": gap(
                scheme(SCHEMES["peer to peer"], seed, "local", "float32"), single
            ),
            "accuracy, master-worker": final(master),
            "accuracy, hand-written FedAvg": final(hand),
            "accuracy, hand-written D-SGD": final(gossip),
            "accuracy before (models of the tree)": final(tree),
            "energy of the three schemes, J": math.nan if energy is None else energy,
        }


def scheme(graph: Graph, seed: int, runtime: str, dtype: str = "float64") -> Report:
    """One scheme, somewhere."""
    task = READY if graph is SCHEMES["tree"] else TASK
    return arm(graph.compile(task=task, every=ROUNDS), seed, runtime=runtime, dtype=dtype)


def gap(one: Report, two: Report) -> float:
    """Largest difference between two runs' models."""
    return float((one.output - two.output).abs().max())


def same(one: Report, two: Report) -> bool:
    """Whether two runs of a scheme ended alike and sent the same bytes over the same links."""
    links = all(torch.equal(a, b) for a, b in zip(one.links, two.links, strict=True))
    heard = one.metrics.get("results") == two.metrics.get("results")
    return gap(one, two) <= 1e-5 and links and heard


def overhead(seed: int, steps: int = 40) -> float:
    """How much longer a compiled step takes than a hand-written one: the median over pairs of steps, in
    processor time, which other work on the machine does not lengthen."""
    common: dict[str, Any] = {"seed": seed, "peers": WORKERS, "rounds": steps, "task": TASK}
    written = plan_of("fedavg", **common, network={"clock": "rounds"}, method=LOCAL)
    compiled = plan_of(SCHEMES["master-worker"].compile(), **common)
    sessions = [Session.open(written), Session.open(compiled)]
    ratios = []
    for tick, _ in written.network.ticks(WORKERS, seed, steps, 0, None):
        took = [0.0, 0.0]
        for at in (0, 1) if tick.index % 2 else (1, 0):
            session, started = sessions[at], time.process_time()
            session.state = session.plan.method.step(session.state, tick, session.context)
            took[at] = time.process_time() - started
        ratios.append(took[1] / took[0])
    return statistics.median(ratios) - 1


def as_central(seed: int) -> float:
    """Share of what the control room holds after the last round that equals the predictions of the same
    models for the same examples, made in one place."""
    plan = plan_of(SCHEMES["tree"].compile(task=READY), seed=seed)
    session = Session.open(plan)
    session.finish()
    work = opened(plan.method, seed, task=READY, peers=plan.peers)
    index, _ = work.batch(ROUNDS - 1, 1, FRAMES)
    inputs, _ = work.fetch(index[:, 0], ROUNDS - 1, 0)
    leaves = session.state.results.shape[1]
    central = work.model.logits(work.init(), inputs).argmax(-1)[-leaves:]
    return float((session.state.results[0] == central).double().mean())
