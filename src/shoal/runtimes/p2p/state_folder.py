"""What a peer keeps on disk: its key, its seat, its checkpoint, what it last said of itself.

Each file is written whole under another name and then moved into place, so that whatever moment the
process is killed at, the folder holds a complete older or a complete newer one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from shoal.core import BadInput

from .identity import Identity

__all__ = ["StateFolder"]


class StateFolder:
    """A peer's folder.

    Args:
        path: where it is or will be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    def create(self, name: str) -> Identity:
        """A new peer.

        Raises:
            BadInput: there is one already.
        """
        if (self.path / "identity.key").exists():
            raise BadInput("state", str(self.path), "a folder without a peer; there is one in it already")
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        identity = Identity.create()
        identity.save(self.path)
        self.write("peer", {"name": name})
        return identity

    def identity(self) -> Identity:
        """The peer's key.

        Raises:
            BadInput: none there, or others may read it.
        """
        if not (self.path / "identity.key").exists():
            raise BadInput("state", str(self.path), "a peer's folder; make one with: shoal peer init")
        return Identity.load(self.path)

    def read(self, name: str) -> dict[str, Any]:
        """The JSON file ``name``; {} where there is none.

        Raises:
            BadInput: damaged.
        """
        try:
            found = json.loads((self.path / f"{name}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise BadInput("state", str(self.path / f"{name}.json"), f"readable JSON ({error})") from None
        return found if isinstance(found, dict) else {}

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Keep a JSON file."""
        part = self.path / f"{name}.json.part"
        with part.open("w", encoding="utf-8") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / f"{name}.json")

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add a line to a log; a line cut off by a crash is no loss to the ones before it."""
        with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def running(self) -> int | None:
        """The process that runs this peer now, if one does."""
        pid = self.read("status").get("pid")
        if not isinstance(pid, int):
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return pid
        return pid if self.read("status").get("state") not in {"done", "stopped", "failed"} else None
