"""The command line: a thin layer on :mod:`shoal.experiment`. Exit status 0 done, 1 failed, 2 bad input."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

# Idle threads must not spin: on a machine with other work that makes everything several times slower.
# OpenMP reads this once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from shoal.core import BadInput, ShoalError
from shoal.experiment import merge, settings
from shoal.peering import peer_app, relay

app = typer.Typer(
    name="shoal",
    help="Machine learning without a centre.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(peer_app)
app.command()(relay)

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="a.b=value", help="A field of the method, task.*, network.* or runtime.*."
    ),
]
Peers = Annotated[int | None, typer.Option(help="Number of peers.")]
Rounds = Annotated[int | None, typer.Option(help="Number of ticks.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything that is random.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the report (default runs/SYSTEM-TIME).")]


def _default_out(system: str) -> Path:
    name = Path(system).stem if system.endswith((".toml", ".dsl")) else system.rsplit(":", maxsplit=1)[-1]
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")


def _not_a_runtime(system: str) -> None:
    """A system of the catalogue that is a place to run, and not something that can be run there.

    Raises:
        BadInput: saying how it is used.
    """
    from shoal.catalog.systems import systems
    from shoal.core import methods

    place = "shoal.runtimes."
    home = next((s.home for s in systems() if s.slug == system and s.home.startswith(place)), None)
    if home is not None and system not in methods.classes():
        runtime = home.removeprefix(place).partition(".")[0]
        raise BadInput(
            "system", system,
            f"is the {runtime} runtime: shoal run METHOD --runtime {runtime}; "
            f"its claim: shoal check {system}",
        )  # fmt: skip


@app.command()
def run(
    system: Annotated[str, typer.Argument(help="SLUG, FILE.toml, FILE.dsl or FILE.py:NAME.")],
    set_: Set = None,
    peers: Peers = None,
    rounds: Rounds = None,
    seed: Seed = None,
    runtime: Annotated[str, typer.Option(help="Where it runs: local, cluster, p2p or trial.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(help="Blocks of peers on a cluster.")] = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Run one system on its task and write a report."""
    from shoal.core.part import fields_of
    from shoal.experiment import run as run_system
    from shoal.report.terminal import Live, summary

    _not_a_runtime(system)
    given = settings(set_)
    named = {"address": address, "blocks": blocks}
    where = merge(fields_of(runtime), {k: v for k, v in named.items() if v is not None})
    where = merge(where, given.pop("runtime", {}))
    fields = given.pop("method", {})
    folder = out or _default_out(system)
    with Live(system, verbose=not as_json) as live:
        report = run_system(
            system, peers=peers, rounds=rounds, seed=seed, runtime=where, out=folder, resume=resume,
            progress=live, **given, **fields,
        )  # fmt: skip
    if as_json:
        _say(report.summary())
    else:
        summary(report)
    if report.status != "done":
        raise typer.Exit(1)


@app.command()
def compare(
    systems: Annotated[list[str], typer.Argument(help="SLUGs, FILE.toml or FILE.py:NAME.")],
    set_: Set = None,
    peers: Peers = None,
    rounds: Rounds = None,
    seed: Seed = None,
    out: Out = None,
    as_json: Json = False,
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="a.b=v1,v2", help="Cross every system with these values; prints a grid."),
    ] = None,
) -> None:
    """Run several systems on the same task; one table, one plot."""
    from shoal.comparison import compare_systems

    for system in systems:
        _not_a_runtime(system)
    given = settings(set_)
    folder = out or _default_out("compare")
    rows = compare_systems(
        systems, given, vary or [],
        peers=peers, rounds=rounds, seed=seed, folder=folder, quiet=as_json,
    )  # fmt: skip
    if as_json:
        _say({"rows": rows, "out": str(folder)})


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="FILE.toml with a table [sweep] or a list of seeds.")],
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder (default runs/sweep-FILE).")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Runs at a time; 0: one for each core.")] = 0,
    address: Annotated[
        str | None,
        typer.Option(help="Of a Ray cluster; none: processes of this machine, without Ray."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run every combination of a file's choices, side by side; the same command again goes on."""
    from shoal.sweep import sweep as sweep_file

    given = settings(set_)
    if "runtime" in given:
        raise BadInput(
            "runtime", given["runtime"], "a sweep's runs are local; it has --address and --workers"
        )
    told = sweep_file(
        file, out or Path("runs") / f"sweep-{file.stem}",
        given=given, workers=workers, address=address, quiet=as_json,
    )  # fmt: skip
    if as_json:
        _say(told)
    if told["missing"]:
        raise typer.Exit(1)


@app.command()
def check(
    systems: Annotated[list[str] | None, typer.Argument(help="SLUGs.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every system that has a check.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 10,
    save: Annotated[bool, typer.Option(help="Write results/checks/SLUG.json.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the claims of systems; exit status 1 if any does not hold."""
    from shoal.checking import check_systems

    holds = check_systems(
        systems or [], everything=everything, seeds=seeds, first_seed=first_seed, save=save,
        as_json=as_json,
    )  # fmt: skip
    if not holds:
        raise typer.Exit(1)


@app.command()
def catalog(as_json: Json = False) -> None:
    """The 146 systems and what works of them."""
    from rich.console import Console
    from rich.table import Table

    from shoal.catalog.systems import rows

    if as_json:
        sys.stdout.write(json.dumps(rows()) + "\n")
        return
    table = Table("no.", "slug", "status", "family", "title", box=None)
    for row in rows():
        style = {"works": "green", "partial": "yellow"}.get(row["status"], "dim")
        table.add_row(
            f"{row['number']:03d}", row["slug"], row["status"], row["family"], row["title"], style=style
        )
    Console().print(table)


@app.command()
def conform(
    system: Annotated[str, typer.Argument(help="SLUG or FILE.py:NAME.")], as_json: Json = False
) -> None:
    """The conformance suite on one method."""
    from shoal.conformance import conform as conform_method

    results = conform_method(system, quiet=as_json)
    if as_json:
        _say({"system": system, "results": results})
    if not all(r["passed"] for r in results):
        raise typer.Exit(1)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Show a run again and rebuild its HTML page."""
    from shoal.report.save import load, save
    from shoal.report.terminal import summary

    told = load(folder)
    save(told, folder)
    summary(told)


@app.command()
def topology(
    graph: Annotated[str, typer.Argument(help="A graph, such as 'torus' or 'random-regular(degree=4)'.")],
    peers: Annotated[int, typer.Option(min=1)] = 16,
    weights: Annotated[str, typer.Option()] = "metropolis",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Spectral gap, diameter and degrees of a graph."""
    from rich.console import Console
    from rich.table import Table

    from shoal.network.network import Network
    from shoal.network.spectrum import facts

    network = Network(graph=graph, weights=weights)  # type: ignore[arg-type]
    found = facts(network.open(peers, seed))
    if as_json:
        _say(found)
        return
    table = Table("", "", box=None, show_header=False)
    for name, value in found.items():
        table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
    Console().print(table)


@app.command()
def bench(
    suite: Annotated[str, typer.Argument(help="step: speed. An unknown name lists all suites.")] = "step",
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    out: Annotated[Path | None, typer.Option(help="File (.json) that the figures are written to.")] = None,
    as_json: Json = False,
) -> None:
    """Measure speed, faults or hostile input, as ratios and differences within one run."""
    from rich.console import Console

    from shoal.bench import run_suite
    from shoal.experiment import prepare_folder

    if out is not None:
        prepare_folder(out.parent)
    result = run_suite(suite, threads, None if as_json else Console())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if as_json:
        _say(result)
    if not result["holds"]:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for the report (default runs/demo...).")] = None,
    rounds: Annotated[int | None, typer.Option(min=2, help="Ticks (default 60).")] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="16 peers on Ray; one of their processes is killed.")
    ] = False,
    p2p: Annotated[
        bool, typer.Option("--p2p", help="Eight real peers; one is killed, one joins late.")
    ] = False,
    as_json: Json = False,
) -> None:
    """64 peers learn digits without a server, six of them hostile; five methods side by side."""
    if cluster and p2p:
        raise BadInput("demo", "--cluster --p2p", "one of the two at a time")
    if p2p and rounds is not None:
        raise BadInput("rounds", rounds, "the peers' demo has its own length")
    if cluster:
        from shoal.demo_cluster import demo_cluster

        told = demo_cluster(out or Path("runs/demo-cluster"), rounds or 60, quiet=as_json)
    elif p2p:
        from shoal.demo_peers import demo_peers

        told = demo_peers(out or Path("runs/demo-p2p"), quiet=as_json)
    else:
        from shoal.demo import demo as show

        folder = out or Path("runs/demo")
        told = {"rows": show(folder, rounds or 60, quiet=as_json), "out": str(folder)}
    if as_json:
        _say(told)
    if told.get("holds") is False:
        raise typer.Exit(1)


_Usage: type[Exception] = typer.BadParameter.__mro__[2]
"""What typer raises where a command line cannot be read; it has no public name for it."""


def main() -> None:
    """Entry point: every error that is raised on purpose is one line on stderr."""
    try:
        status = app(standalone_mode=False)
    except ShoalError as error:
        _end(str(error), error.status)
    except _Usage as error:
        _end(error.format_message(), 2)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        _end("stopped", 130)
    raise SystemExit(status if isinstance(status, int) else 0)


def _end(said: str, status: int) -> NoReturn:
    if said:  # nothing where help was shown instead
        sys.stderr.write(f"shoal: {' '.join(said.split())}\n")
    raise SystemExit(status) from None


if __name__ == "__main__":
    main()
