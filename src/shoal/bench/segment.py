"""Hosts in network namespaces on one segment, whose packets can be lost and whose halves can be parted.

    with Segment(8) as segment:
        segment.lose(5)                       # per cent of the packets that arrive anywhere
        segment.part([[0, 1, 2, 3], [4, 5, 6, 7]])
        segment.heal()
    with Segment(3, nats={1: "cone", 2: "symmetric"}) as segment:
        ...                                   # hosts 1 and 2 have routers of their own before them

``cone`` is Linux masquerading, which keeps the source port while it is free; ``symmetric`` takes another
port for every destination (``fully-random``). Both drop what nobody inside asked for. Names are unique to
one segment, no device leads out of it, and all goes when the ``with`` block ends. Needs root, ``ip`` and
``nft``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal

from shoal.core import RunFailed

__all__ = ["Segment"]

PREFIX = "10.203.0"
ROUTER = """
table ip nat {{
  chain post {{ type nat hook postrouting priority srcnat; oifname "eth" masquerade {flag}; }}
}}
table inet filter {{
  chain in {{ type filter hook input priority filter; policy drop;
    ct state established,related accept; iifname {{ "lo", "lan" }} accept; }}
  chain through {{ type filter hook forward priority filter; policy drop;
    ct state established,related accept; iifname "lan" accept; }}
}}
"""


class Segment:
    """A context manager.

    Args:
        count: of hosts, at most 200.
        nats: hosts that sit behind a router of their own, and of which kind. :meth:`part` is not for them.

    Attributes:
        spaces: the hosts' namespaces.
        addresses: their IPv4 addresses.
    """

    def __init__(self, count: int, nats: Mapping[int, Literal["cone", "symmetric"]] | None = None) -> None:
        self._nats = dict(nats or {})
        tag = f"shoal-{secrets.token_hex(3)}"
        self._middle = f"{tag}-net"
        self.spaces = [f"{tag}-{i}" for i in range(count)]
        self._routers = {i: f"{tag}-router{i}" for i in self._nats}
        self.addresses = [
            f"10.204.{i}.2" if i in self._nats else f"{PREFIX}.{10 + i}" for i in range(count)
        ]

    @staticmethod
    def missing() -> str:
        """Why there can be no segment here, in one line; "" if there can."""
        if os.name != "posix" or os.geteuid() != 0:
            return "network namespaces need root"
        for tool in ("ip", "nft"):
            if shutil.which(tool) is None:
                return f"network namespaces need the command {tool}"
        try:
            with Segment(1) as segment:
                segment.lose(1)
        except RunFailed as error:
            return str(error)
        return ""

    def lose(self, percent: int) -> None:
        """From now on each host loses so many of the packets that reach it, by chance."""
        self._rules([f'iifname "eth" numgen random mod 100 < {percent} drop'] * len(self.spaces))

    def part(self, groups: Sequence[Sequence[int]]) -> None:
        """From now on packets from one group to another are lost without a word."""
        rules = []
        for host in range(len(self.spaces)):
            own = next(group for group in groups if host in group)
            away = [self.addresses[i] for group in groups for i in group if i not in own]
            rules.append(f"ip saddr {{ {', '.join(away)} }} drop")
        self._rules(rules)

    def heal(self) -> None:
        """From now on everything arrives."""
        self._rules([""] * len(self.spaces))

    def _rules(self, rules: Sequence[str]) -> None:
        for space, rule in zip(self.spaces, rules, strict=True):
            text = (
                "table inet shoal\ndelete table inet shoal\ntable inet shoal {\n chain arriving {\n"
                f"type filter hook input priority filter\n{rule}\n}}\n}}\n"
            )
            _run(["ip", "netns", "exec", space, "nft", "-f", "-"], text)

    def __enter__(self) -> Segment:
        try:
            _run(["ip", "netns", "add", self._middle])
            _run(["ip", "-n", self._middle, "link", "add", "segment", "type", "bridge"])
            _run(["ip", "-n", self._middle, "link", "set", "segment", "up"])
            for i, space in enumerate(self.spaces):
                _run(["ip", "netns", "add", space])
                if i in self._nats:
                    _run(["ip", "netns", "add", self._routers[i]])
                    self._plug(i, self._routers[i], f"{PREFIX}.{10 + i}")
                    self._shelter(i)
                else:
                    self._plug(i, space, self.addresses[i])
        except BaseException:
            self._close()
            raise
        return self

    def _plug(self, i: int, space: str, address: str) -> None:
        """Give a namespace a device on the segment."""
        _batch(
            self._middle,
            f"link add p{i} type veth peer name eth netns {space}",
            f"link set p{i} master segment up",
        )
        _batch(space, "link set lo up", f"addr add {address}/24 dev eth", "link set eth up")

    def _shelter(self, i: int) -> None:
        """Put a host behind its router."""
        router, space, lan = self._routers[i], self.spaces[i], f"10.204.{i}"
        _batch(
            router,
            f"link add lan type veth peer name eth netns {space}",
            f"addr add {lan}.1/24 dev lan",
            "link set lan up",
        )
        _batch(
            space, "link set lo up", f"addr add {lan}.2/24 dev eth", "link set eth up",
            f"route add default via {lan}.1",
        )  # fmt: skip
        _run(["ip", "netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1"])
        flag = "fully-random" if self._nats[i] == "symmetric" else ""
        _run(["ip", "netns", "exec", router, "nft", "-f", "-"], ROUTER.format(flag=flag))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        for space in [*self.spaces, *self._routers.values(), self._middle]:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def _batch(space: str, *lines: str) -> None:
    _run(["ip", "-n", space, "-batch", "-"], "\n".join(lines) + "\n")


def _run(command: Sequence[str], stdin: str = "") -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailed(f"`{' '.join(command)}`: {done.stderr.strip()[:200]}")
