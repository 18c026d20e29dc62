"""``shoal peer`` and ``shoal relay``: a real peer that a person runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.core import BadInput

__all__ = ["peer_app", "relay"]

peer_app = typer.Typer(
    name="peer",
    help="A real peer: its identity, its runs with others, its model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

State = Annotated[
    Path, typer.Option(help="The peer's folder.", envvar="SHOAL_STATE", show_default="~/.shoal")
]
HOME = Path("~/.shoal")
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@peer_app.command()
def init(
    state: State = HOME,
    name: Annotated[str, typer.Option(help="What others see; default: nothing.")] = "",
    as_json: Json = False,
) -> None:
    """Make a peer: an Ed25519 key in a folder that nobody else can read."""
    from shoal.runtimes.p2p.state_folder import StateFolder

    if len(name) > 64 or not name.isprintable():
        raise BadInput("name", name, "at most 64 printable characters")
    folder = StateFolder(state)
    identity = folder.create(name)
    _say({"peer": identity.id, "state": str(folder.path)} if as_json else f"{identity.id}  {folder.path}")


@peer_app.command()
def run(
    config: Annotated[Path, typer.Option(help="FILE.toml: the run, the same file at every peer.")],
    data: Annotated[Path | None, typer.Option(help="Folder with train.npz (x, y) and test.npz.")] = None,
    state: State = HOME,
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "0.0.0.0:0",
    join: Annotated[list[str] | None, typer.Option(help="Ticket, or PEERID@ADDRESS.")] = None,
    allow: Annotated[
        Path | None, typer.Option(help="File with the keys that may take part, one a line.")
    ] = None,
    transport: Annotated[str, typer.Option(help="iroh (QUIC) or tcp (with Noise).")] = "iroh",
    wait: Annotated[int, typer.Option(min=0, help="Peers to begin with; 0: all seats.")] = 0,
    seat: Annotated[int | None, typer.Option(min=0, help="The seat to ask for.")] = None,
    relay: Annotated[bool, typer.Option(help="Pass on connections between others.")] = False,
    linger: Annotated[
        float, typer.Option(min=0, help="Seconds to stay after the last tick, at most, for who is late.")
    ] = 30.0,
    most: Annotated[
        float, typer.Option(min=0.1, help="Seconds that others are waited for at most.")
    ] = 30.0,
    period: Annotated[float, typer.Option(min=0.05, help="Seconds between signs of life.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Take part in a run with the peers that can be reached; goes on where it was after a crash."""
    import torch

    from shoal.runtimes.p2p.desk import Patience
    from shoal.runtimes.p2p.peer import Peer, PeerOptions
    from shoal.runtimes.p2p.state_folder import StateFolder
    from shoal.runtimes.p2p.station import run_digest
    from shoal.runtimes.p2p.ticket import parse

    folder = StateFolder(state)
    pid = folder.running()
    if pid is not None:
        raise BadInput("state", str(folder.path), f"a peer that is not running; process {pid} runs it")
    plan = _plan(config, data)
    if seat is not None and seat >= plan.peers:
        raise BadInput("seat", seat, f"0 to {plan.peers - 1}")
    if wait > plan.peers:
        raise BadInput("wait", wait, f"at most the run's {plan.peers} seats")
    if transport not in {"iroh", "tcp"}:
        raise BadInput("transport", transport, "iroh or tcp")
    host, port = _listen(listen)
    options = PeerOptions(
        transport=transport,  # type: ignore[arg-type]
        host=host,
        port=port,
        join=[parse(text, run=run_digest(plan)) for text in join or []],
        allow=None if allow is None else frozenset(_keys(allow)),
        wait=wait,
        seat=seat,
        relay=relay,
        period=period,
        patience=Patience(most_s=most),
        linger=linger,
    )
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    with _Told(quiet=as_json) as told:
        peer = Peer(folder, plan, options, told)
        signal.signal(signal.SIGTERM, lambda *_: peer.stop())
        signal.signal(signal.SIGINT, lambda *_: peer.stop())
        last = peer.run()
    if as_json:
        _say(last)
    if last["state"] != "done":
        raise typer.Exit(1)


@peer_app.command()
def invite(state: State = HOME) -> None:
    """Print a ticket with which others join the run that this peer is in."""
    from shoal.runtimes.p2p.state_folder import StateFolder
    from shoal.runtimes.p2p.ticket import Ticket

    folder = StateFolder(state)
    status = folder.read("status")
    if folder.running() is None or not status.get("addresses"):
        raise BadInput("state", str(folder.path), "a peer that is running; start it with: shoal peer run")
    _say(str(Ticket(status["peer"], tuple(status["addresses"]), status["run"])))


@peer_app.command()
def status(state: State = HOME, as_json: Json = False) -> None:
    """What a peer is doing, and how it is connected to whom."""
    from rich.console import Console

    from shoal.runtimes.p2p.state_folder import StateFolder

    folder = StateFolder(state)
    identity = folder.identity()
    told = folder.read("status") or {"peer": identity.id, "state": "never run"}
    if folder.running() is None and told["state"] not in {"done", "stopped", "failed", "never run"}:
        told["state"] = "not running (it ended without a word)"
    if as_json:
        _say(told)
    else:
        Console().print(table(told))


@peer_app.command()
def export(
    out: Annotated[Path, typer.Argument(help="File to write, .safetensors.")],
    config: Annotated[Path, typer.Option(help="FILE.toml of the run.")],
    data: Annotated[Path | None, typer.Option(help="The peer's data folder.")] = None,
    state: State = HOME,
) -> None:
    """Write the peer's model, to be loaded with shoal.load_model."""
    from shoal.exporting import export_model
    from shoal.runtimes.p2p.state_folder import StateFolder

    folder = StateFolder(state)
    folder.identity()
    plan = _plan(config, data)
    done = export_model(folder, plan, out)
    _say(f"{out}  (after {done} of {plan.rounds} ticks)")


def relay(
    listen: Annotated[str, typer.Option(help="HOST:PORT, UDP and TCP.")] = "0.0.0.0:0",
    state: State = HOME,
    config: Annotated[
        Path | None, typer.Option(help="FILE.toml: also be found by, and introduce, the peers of this run.")
    ] = None,
    join: Annotated[list[str] | None, typer.Option(help="Ticket, or PEERID@ADDRESS.")] = None,
    allow: Annotated[Path | None, typer.Option(help="File with the keys that are served.")] = None,
) -> None:
    """Help peers behind NATs to meet: tell them their addresses, signal, pass their bytes on (sealed)."""
    from shoal.runtimes.p2p.ladder import serve_relay
    from shoal.runtimes.p2p.membership import Membership
    from shoal.runtimes.p2p.state_folder import StateFolder
    from shoal.runtimes.p2p.station import run_digest
    from shoal.runtimes.p2p.ticket import Ticket, parse

    folder = StateFolder(state)
    identity = folder.identity()
    host, port = _listen(listen)
    run = "" if config is None else run_digest(_plan(config, None))
    keys = None if allow is None else set(_keys(allow)) | {identity.id}
    tickets = [parse(text, run=run or None) for text in join or []]

    async def ready(node: Any, _: Any) -> None:
        if run:
            membership = Membership(node, identity, run, offers=("relay",), allow=keys)
            await membership.start()
            await membership.join(tickets)
        _say(str(Ticket(identity.id, tuple(node.addresses()), run)))

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(serve_relay(identity, host, port, allow=keys, ready=ready))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return

    asyncio.run(serve())


def table(told: dict[str, Any]) -> Any:
    """A peer's status as a rich table."""
    from rich.table import Table

    metrics = {k: v for k, v in told.get("metrics", {}).items() if k in {"accuracy", "loss", "consensus"}}
    shown = "  ".join(f"{k} {v:.3f}" for k, v in metrics.items())
    name = told.get("name") or told["peer"][:8]
    out = Table(
        title=f"{name}: {told['state']}, tick {told.get('tick', 0)} of {told.get('rounds', '?')}  {shown}",
        title_justify="left", box=None,
    )  # fmt: skip
    for column in ("peer", "seat", "state", "path", "rtt", "tick", "late"):
        out.add_column(column, justify="right" if column in {"seat", "rtt", "tick", "late"} else "left")
    for m in told.get("members", []):
        own = m["peer"] == told["peer"]
        rtt = "" if m["rtt_ms"] is None else f"{m['rtt_ms']:.1f} ms"
        out.add_row(
            (m["name"] or m["peer"][:8]) + (" (this one)" if own else ""),
            "" if m["seat"] is None else str(m["seat"]),
            m["state"], m["path"] or "", rtt,
            str(told.get("tick", "")) if own else ("" if m["tick"] < 0 else str(m["tick"])),
            str(m["late"] or ""),
        )  # fmt: skip
    return out


class _Told:
    """Shows a running peer: a live table on a terminal, else a line where something was measured."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(stderr=True)
        live = not quiet and self.console.is_terminal
        self.live = Live(console=self.console, refresh_per_second=4) if live else None
        self.quiet, self.last = quiet, ""

    def __enter__(self) -> _Told:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self, told: dict[str, Any]) -> None:
        if self.live is not None:
            self.live.update(table(told))
            return
        accuracy = told["metrics"].get("accuracy")
        shown = "" if accuracy is None else f"  accuracy {accuracy:.3f}"
        line = f"{told['state']}  tick {told['metrics'].get('tick', 0)}{shown}"
        if line != self.last and not self.quiet:
            self.last = line
            sys.stderr.write(line + "\n")


def _plan(config: Path, data: Path | None) -> Any:
    from shoal.experiment import plan_of

    plan = plan_of(str(config))
    source = getattr(plan.task, "data", None)
    if data is not None:
        if getattr(source, "slug", "") != "folder" or source is None:
            raise BadInput("data", str(data), 'a task with data = {name = "folder", classes = C}')
        if not data.is_dir():
            raise BadInput("data", str(data), "a folder; there is none")
        plan = plan.replace(task=plan.task.replace(data=source.replace(path=str(data))))
    return plan


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise BadInput("listen", text, "HOST:PORT")
    return host.strip("[]"), int(port)


def _keys(path: Path) -> list[str]:
    from shoal.runtimes.p2p.identity import is_peer_id

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput("allow", str(path), error.strerror or "not readable") from None
    keys = [line.split("#")[0].strip() for line in lines]
    for key in keys:
        if key and not is_peer_id(key):
            raise BadInput("allow", key, "a peer's key: 64 hexadecimal digits")
    return [key for key in keys if key]


def _say(told: dict[str, Any] | str) -> None:
    sys.stdout.write((told if isinstance(told, str) else json.dumps(told)) + "\n")
    sys.stdout.flush()
