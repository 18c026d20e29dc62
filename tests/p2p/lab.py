"""A small internet of network namespaces: one public segment, LANs behind NATs, hosts in them.

Every name is unique to one :class:`Lab`, devices are made inside the namespaces, none of them has a
route out of the lab, and all of it (processes too) goes when the ``with`` block ends.

    with Lab() as lab:
        server = lab.public()                 # a host on the public segment
        home = lab.lan("cone")                # a router with NAT, a LAN behind it
        host = lab.host(home)
        peer = lab.python(host, "program.py", "argument")

``cone`` is Linux masquerading, which keeps the source port while it is free: one mapping for all
destinations, filtered by address and port (RFC 4787: endpoint-independent mapping, address- and
port-dependent filtering). ``symmetric`` is ``masquerade fully-random``: a new port for each
destination. Both drop what nobody inside asked for, without a word, like home routers do.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["cone", "symmetric"]

PUBLIC = "203.0.113"  # RFC 5737: no real network has it
RULES = """
table ip nat {{
  chain post {{ type nat hook postrouting priority srcnat; oifname "wan" masquerade {flag}; }}
}}
table inet filter {{
  chain to_router {{ type filter hook input priority filter; policy drop;
    ct state established,related accept; iifname {{ "lo", "lan" }} accept; }}
  chain through {{ type filter hook forward priority filter; policy drop;
    ct state established,related accept; iifname "lan" accept; }}
}}
"""


def missing() -> str | None:
    """Why no lab can be built here, in one line; None if it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"network namespaces need the command {tool}"
    name = f"shoal-try-{secrets.token_hex(4)}"
    steps = [
        ["ip", "netns", "add", name],
        ["ip", "-n", name, "link", "add", "one", "type", "veth", "peer", "name", "other"],
        ["ip", "-n", name, "link", "add", "segment", "type", "bridge"],
        ["ip", "netns", "exec", name, "nft", "-f", "-"],
    ]
    try:
        for step in steps:
            done = subprocess.run(
                step, input=RULES.format(flag=""), capture_output=True, text=True, check=False
            )
            if done.returncode:
                return f"network namespaces: `{' '.join(step)}` failed: {done.stderr.strip()[:100]}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


@dataclass
class Space:
    """A namespace: a host, or a router with the LAN behind it."""

    name: str
    address: str
    kind: Kind | None = None
    number: int = 0
    hosts: int = 0


@dataclass
class Lab:
    """One public segment with routers and hosts; a context manager."""

    tag: str = field(default_factory=lambda: f"shoal-{os.getpid():x}-{secrets.token_hex(3)}")
    spaces: list[str] = field(default_factory=list)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _public: int = 10
    _routers: int = 0

    def __enter__(self) -> Lab:
        try:
            self._space("net")
            self._ip("net", "link add segment type bridge", "link set segment up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()
        for space in reversed(self.spaces):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        self.processes.clear()
        self.spaces.clear()

    def public(self) -> Space:
        """A host on the public segment."""
        self._public += 1
        space = Space(self._space(f"pub{self._public}"), f"{PUBLIC}.{self._public}")
        self._plug(space, f"{space.address}/24")
        return space

    def lan(self, kind: Kind) -> Space:
        """A router on the public segment that translates addresses, with an empty LAN behind it."""
        self._public += 1
        self._routers += 1
        router = Space(self._space(f"nat{self._routers}"), f"{PUBLIC}.{self._public}", kind, self._routers)
        self._plug(router, f"{router.address}/24")
        self._ip(
            router.name,
            "link add lan type bridge",
            f"addr add 10.{router.number}.0.1/24 dev lan",
            "link set lan up",
        )
        self.execute(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        flag = "fully-random" if kind == "symmetric" else ""
        self.execute(router, "nft", "-f", "-", stdin=RULES.format(flag=flag))
        return router

    def host(self, router: Space) -> Space:
        """A host in the LAN of ``router``."""
        router.hosts += 1
        host = Space(
            self._space(f"lan{router.number}h{router.hosts}"), f"10.{router.number}.0.{9 + router.hosts}"
        )
        self._attach(host, router)
        return host

    def move(self, host: Space, router: Space) -> None:
        """Unplug the host from its LAN and plug it into another: a new address, a new NAT."""
        self._ip(host.name, "link del eth")
        router.hosts += 1
        host.address = f"10.{router.number}.0.{9 + router.hosts}"
        self._attach(host, router)

    def renumber(self, router: Space) -> None:
        """The provider gives the router another public address; all translations are lost."""
        old = router.address
        self._public += 1
        router.address = f"{PUBLIC}.{self._public}"
        self._ip(router.name, f"addr del {old}/24 dev wan", f"addr add {router.address}/24 dev wan")

    def execute(self, space: Space, *command: str, stdin: str | None = None) -> str:
        """Run a command in a namespace; what it printed."""
        return _run(["ip", "netns", "exec", space.name, *command], stdin)

    def python(self, space: Space, program: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a Python program in a namespace, with pipes for its input and output."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", space.name, sys.executable, program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.processes.append(process)
        return process

    def _space(self, role: str) -> str:
        name = f"{self.tag}-{role}"
        _run(["ip", "netns", "add", name])
        self.spaces.append(name)
        self._ip(name, "link set lo up")
        return name

    def _plug(self, space: Space, address: str) -> None:
        """Give ``space`` a device ``wan`` on the public segment."""
        port = f"p{self._public}"
        self._ip("net", f"link add {port} type veth peer name wan netns {space.name}")
        self._ip("net", f"link set {port} master segment up")
        self._ip(space.name, f"addr add {address} dev wan", "link set wan up")

    def _attach(self, host: Space, router: Space) -> None:
        port = f"h{router.hosts}"
        self._ip(router.name, f"link add {port} type veth peer name eth netns {host.name}")
        self._ip(router.name, f"link set {port} master lan up")
        self._ip(
            host.name,
            f"addr add {host.address}/24 dev eth",
            "link set eth up",
            f"route add default via 10.{router.number}.0.1",
        )

    def _ip(self, space: str, *lines: str) -> None:
        name = space if space.startswith(self.tag) else f"{self.tag}-{space}"
        _run(["ip", "-n", name, "-batch", "-"], "\n".join(lines) + "\n")


def _run(command: list[str], stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
