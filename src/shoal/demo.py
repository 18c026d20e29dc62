"""The demo: 64 peers, no server, skewed data, hostile neighbours, compressed messages, real digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .comparison import compare, folder_of, row_of
from .experiment import plan_of, prepare_folder
from .runtimes.base import Plan

__all__ = ["demo", "plans"]

TASK: dict[str, Any] = {
    "name": "supervised",
    "data": "mnist",
    "partition": {"name": "classes", "k": 4},
    "model": {"name": "mlp", "hidden": [64]},
    "batch": 16,
}
GRAPH = "random-regular(degree=10)"
HOSTILE = {"attack": "sign-flip", "hostile": 0.1}
CODEC = "int8"


def plans(rounds: int, seed: int = 0) -> dict[str, Plan]:
    """The five runs, by the name that the report shows."""
    network = {"graph": GRAPH, "codec": CODEC, **HOSTILE}
    shared: dict[str, Any] = {
        "task": TASK,
        "peers": 64,
        "rounds": rounds,
        "seed": seed,
        "every": max(1, rounds // 15),
    }
    local = {"local_steps": 5, "lr": 0.1}
    return {
        "local only": plan_of("local", network=network, method=local, **shared),
        "D-SGD": plan_of("dsgd", network=network, method=local, **shared),
        "D-SGD, robust rule": plan_of(
            "dsgd", network={**network, "rule": "trimmed-mean(f=0.2)"}, method=local, **shared
        ),
        "single final merge": plan_of(
            "single-merge",
            network={**network, "graph": "random-peer(p=0.2)", "rule": "mean"},
            method=local,
            **shared,
        ),
        "FedAvg (server)": plan_of("fedavg", network=network, method={"epochs": 1, "batch": 16}, **shared),
    }


def demo(out: Path, rounds: int, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Run the comparison, print its table and write its report and model under ``out``."""
    from rich.console import Console

    from .report.terminal import comparison

    runs = plans(rounds)
    prepare_folder(out)
    reports = compare(runs, out=out, quiet=quiet, title="64 peers, no server, 10 % hostile: MNIST digits")
    if not quiet:
        console = Console(soft_wrap=True)
        console.print(comparison(list(reports.items())))
        best = out / folder_of("D-SGD, robust rule") / "model.safetensors"
        console.print(f"\nReport: [bold]{out / 'compare.html'}[/]\n\nThe learned model, in three lines:")
        console.print("  import shoal, torch", markup=False)
        console.print(f'  model = shoal.load_model("{best}")', markup=False)
        console.print("  print(model(torch.rand(1, 28, 28)).argmax(-1))", markup=False)
    return [row_of(name, report) for name, report in reports.items()]
