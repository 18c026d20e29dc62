"""Who a peer is: an Ed25519 key pair (RFC 8032), kept in one file that only its owner may read.

A peer's name is its public key in hexadecimal, so whoever knows the name can check a signature
without asking anybody. Each signature names its purpose, ``b"shoal/<purpose>\\0" + message``, so that
what was signed for one use never counts for another.

:func:`verify` judges what strangers sent: it answers False to anything malformed and never raises.
Names that are no proper key are refused (:func:`is_peer_id`): encodings at or above the field's prime,
and the points of small order, under which one signature would hold for many messages.
"""

from __future__ import annotations

import os
import re
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Any

from shoal.core import BadInput, need

from .transport.base import PeerId

__all__ = ["Identity", "is_peer_id", "verify"]

FILE = "identity.key"
SECRET, SIGNATURE = 32, 64
_ED25519 = "cryptography.hazmat.primitives.asymmetric.ed25519"
_HEADER = "shoal-ed25519"
_HEX = re.compile(r"[0-9a-f]{64}")
_PURPOSE = re.compile(r"[a-z0-9][a-z0-9/_.-]{0,63}")
_PRIME = 2**255 - 19
# The y coordinates of the points whose order divides 8: such a key proves nothing about its owner.
_ORDER_8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
_SMALL_ORDER = frozenset({0, 1, _PRIME - 1, _ORDER_8, _PRIME - _ORDER_8})


class Identity:
    """A private key. ``repr`` shows only the public half.

    Args:
        secret: the 32 bytes of the Ed25519 private key.

    Attributes:
        id: the public key as 64 lower-case hexadecimal digits.
        secret: the 32 bytes (the transports prove the same key).
    """

    __slots__ = ("_key", "id", "secret")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET:
            raise BadInput("identity.secret", f"{len(secret)} bytes", f"exactly {SECRET} bytes")
        self.secret = bytes(secret)
        self._key: Any = need(_ED25519, "p2p").Ed25519PrivateKey.from_private_bytes(self.secret)
        self.id: PeerId = self._key.public_key().public_bytes_raw().hex()

    @classmethod
    def create(cls) -> Identity:
        """A new key from the operating system's randomness."""
        return cls(secrets.token_bytes(SECRET))

    @classmethod
    def load(cls, folder: str | Path) -> Identity:
        """The identity that :meth:`save` wrote in ``folder``.

        Raises:
            BadInput: there is none, it is damaged, or others than its owner may read it.
        """
        path = Path(folder) / FILE
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise BadInput(
                "identity.folder", str(folder), f"a folder with a readable {FILE} ({error.strerror})"
            ) from error
        with os.fdopen(handle, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if os.name == "posix" and mode & 0o077:
                raise BadInput(
                    "identity.folder",
                    str(path),
                    f"a key that only its owner may read: chmod 600 (is {mode:o})",
                )
            words = file.read(4096).decode("ascii", "replace").split()
        if len(words) != 2 or words[0] != _HEADER or not _HEX.fullmatch(words[1]):
            raise BadInput("identity.folder", str(path), f"a file of one line: {_HEADER} and 64 hex digits")
        return cls(bytes.fromhex(words[1]))

    def save(self, folder: str | Path) -> Path:
        """Write the key to ``folder/identity.key``, readable by its owner only; the file's path.

        The file appears whole or not at all. Saving the same key again changes nothing.

        Raises:
            BadInput: another key lives there already (a lost key is a lost name, so it is not replaced).
        """
        folder = Path(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / FILE
        draft = folder / f".{FILE}.{secrets.token_hex(8)}"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(f"{_HEADER} {self.secret.hex()}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)  # unlike rename, never replaces what another process wrote meanwhile
        except FileExistsError:
            if Identity.load(folder).secret != self.secret:
                raise BadInput(
                    "identity.folder", str(folder), f"a folder without another peer's {FILE}"
                ) from None
        finally:
            draft.unlink()
        return path

    def sign(self, purpose: str, message: bytes) -> bytes:
        """The 64-byte signature of ``message`` for ``purpose`` (lower-case words such as ``"record"``)."""
        return self._key.sign(_domain(purpose) + message)

    def __repr__(self) -> str:
        return f"Identity({self.id})"


def is_peer_id(text: object) -> bool:
    """Whether ``text`` can be a peer's name: a canonical public key that is not of small order."""
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        return False
    y = int.from_bytes(bytes.fromhex(text), "little") & (2**255 - 1)
    return y < _PRIME and y not in _SMALL_ORDER


def verify(peer: PeerId, purpose: str, message: bytes, signature: bytes) -> bool:
    """Whether ``peer`` signed ``message`` for ``purpose``. False for anything malformed."""
    if len(signature) != SIGNATURE:
        return False
    key = _public_key(peer)
    if key is None:
        return False
    try:
        key.verify(signature, _domain(purpose) + message)
    except need("cryptography.exceptions", "p2p").InvalidSignature:
        return False
    return True


@lru_cache(maxsize=4096)
def _public_key(peer: PeerId) -> Any:
    """The key object of a name, or None where the name is not one."""
    if not is_peer_id(peer):
        return None
    return need(_ED25519, "p2p").Ed25519PublicKey.from_public_bytes(bytes.fromhex(peer))


def _domain(purpose: str) -> bytes:
    if not _PURPOSE.fullmatch(purpose):
        raise ValueError(f"purpose {purpose!r} is not a lower-case word")
    return b"shoal/" + purpose.encode() + b"\0"
