"""The books of one peer: its accounts and its signed log, kept in a journal that survives SIGKILL.

Every event is one line, written before anything that follows from it is sent. A peer that starts
again replays the lines and is where it was; a line cut short by the kill is dropped, as nobody has
seen what it would have said.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from shoal.core import BadInput
from shoal.network.logs import VersionedLog
from shoal.trust.bandwidth_tokens import Account, Half, account

from .trial import Deployed
from .words import IdKeys, Settle

__all__ = ["Books"]

VERSIONS = ("v1", "v2")


class _Event(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """``what``: owe, write, hear or flag; the other fields as it needs them."""

    what: str
    version: Deployed
    partner: int = -1
    amount: int = 0
    half: Half | None = None
    record: list[Any] | None = None


class Books:
    """Args:
    folder: of the journal.
    me: this peer's number.
    keys: of all origins, with this peer's own.
    """

    def __init__(self, folder: Path, me: int, keys: IdKeys) -> None:
        self.me, self.keys = me, keys
        self.accounts: dict[str, Account] = {v: account(v) for v in VERSIONS}  # type: ignore[arg-type]
        self.log = VersionedLog.empty(1, len(keys.ids))
        self.version: Deployed = "off"
        path = folder / "journal.jsonl"
        whole = self._replay(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.ftruncate(self._file, whole)

    def close(self) -> None:
        os.close(self._file)

    # -- events ----------------------------------------------------------------------------------------

    def flag(self, version: Deployed) -> None:
        """From now on this version runs; the other one's account rests as it is."""
        if version != self.version:
            self._note(_Event("flag", version))

    def owe(self, giver: int, amount: int) -> None:
        """Bytes came that are to be written down under the present version."""
        self._note(_Event("owe", self.version, giver, amount))

    def propose(self, giver: int) -> list[Settle]:
        """What is to be sent to ``giver``: a new proposal where one is due, and those without answer."""
        held = self._held()
        half = None if held is None else held.propose(giver)
        if half is not None:
            self._write(half)
        return [] if held is None else [self.sealed(h) for h in held.unanswered(giver)]

    def answer(self, taker: int, told: Settle) -> Settle:
        """The other half of a taker's proposal.

        Raises:
            BadInput: not signed by the taker, not for us, or not acceptable.
        """
        held = self._held()
        if held is None:
            raise BadInput("half", told.half.plain(), "nothing is written down at present")
        self._check(taker, told)
        mine, new = held.answer(taker, told.half)
        if new:
            self._write(mine)
        return self.sealed(mine)

    def hear(self, giver: int, told: Settle) -> None:
        """The giver's half of a proposal of ours; one of a version that rests is not heard.

        Raises:
            BadInput: not signed by the giver, not for us, or no answer to what we proposed.
        """
        held = self._held()
        self._check(giver, told)
        if held is None or told.half.version != self.version:
            return
        before = held.digest()
        held.hear(giver, told.half)
        if held.digest() != before:
            self._line(_Event("hear", told.half.version, giver, half=told.half))

    # -- what is there -----------------------------------------------------------------------------------

    def owing(self) -> list[int]:
        """The givers that something is to be sent to."""
        held = self._held()
        return [] if held is None else held.owing()

    def digests(self) -> dict[str, bytes]:
        return {version: held.digest() for version, held in self.accounts.items()}

    def sealed(self, half: Half) -> Settle:
        return Settle(half, self.keys.sign(self.me, half.message(self.me)))

    # -- inside ------------------------------------------------------------------------------------------

    def _held(self) -> Account | None:
        return self.accounts.get(self.version)

    def _check(self, signer: int, told: Settle) -> None:
        if told.half.partner != self.me or not self.keys.verify(
            signer, told.half.message(signer), told.seal
        ):
            raise BadInput("half", told.half.plain(), f"a half-block for us, signed by peer {signer}")

    def _write(self, half: Half) -> None:
        log = self.log.append(0, self.me, [half.plain()], self.keys)
        self._note(_Event("write", half.version, half=half, record=log.held[0][self.me][-1]))

    def _note(self, event: _Event) -> None:
        self._line(event)
        self._apply(event)

    def _line(self, event: _Event) -> None:
        os.write(self._file, msgspec.json.encode(event) + b"\n")

    def _apply(self, event: _Event) -> None:
        held = self.accounts.get(event.version)
        match event.what:
            case "flag":
                self.version = event.version
            case "owe" if held is not None:
                held.owe(event.partner, event.amount)
            case "write" if held is not None and event.half is not None:
                held.write(event.half)
                own = self.log.held[0][self.me]
                own.append(event.record)
            case "hear" if held is not None and event.half is not None:
                held.hear(event.partner, event.half)
            case _:
                raise BadInput("journal", event.what, "owe, write, hear or flag")

    def _replay(self, path: Path) -> int:
        """Do again what the journal holds; returns the length of its whole lines."""
        if not path.exists():
            return 0
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                self._apply(msgspec.json.decode(line, type=_Event))
            except msgspec.DecodeError as error:
                raise BadInput("journal", str(path), f"damaged at byte {whole}: {error}") from None
            whole += len(line)
        return whole
