"""Noise on a pipe: proves both ends' identities, then encrypts everything.

The handshake is ``Noise_XX_25519_ChaChaPoly_SHA256`` or ``..._AESGCM_SHA256`` (noiseprotocol.org,
revision 34): the dialler takes the cipher that its processor does faster and says which in the first
byte, which the handshake covers. Each end makes
an X25519 key for this connection alone and signs it with its Ed25519 identity in the handshake's
payload, as libp2p's noise does; here the signature also covers the role and the other end's ephemeral
key, so that it is good for this one handshake. The dialler checks whom it has reached before it says
who it is. Messages have the three lengths that the pattern gives, and a bounded time.

After it each direction is a row of records, a length (u16, big-endian) and at most 65,535 bytes of
ciphertext, whose nonces count up. Every ``REKEY`` records the key is replaced by Noise's REKEY, so no
nonce is ever used twice and an old record cannot be read with a later key. The handshake is done by
the ``noiseprotocol`` package; records go straight to ``cryptography``, in place, because each copy of
a large transfer shows.
"""

from __future__ import annotations

import asyncio
import time
from functools import cache
from typing import Any, Literal

from shoal.core import need

from ..identity import Identity, verify
from .base import Address, Broken, Path, PeerId, TransportError, Unreachable
from .mux import MuxConnection
from .pipe import Pipe, read_exactly

__all__ = ["SecurePipe", "handshake", "secure_connection"]

PATTERN = "Noise_XX_25519_{}_SHA256"
CIPHERS: dict[bytes, tuple[str, str, Literal["little", "big"]]] = {
    b"C": ("ChaChaPoly", "ChaCha20Poly1305", "little"),
    b"A": ("AESGCM", "AESGCM", "big"),
}
"""First byte: the names in Noise and in ``cryptography``, the byte order of the nonce."""
PROLOGUE = b"shoal/1"
DIALS, LISTENS = "noise/dial", "noise/listen"  # what the two signatures are for
KEY, TAG, PROOF = 32, 16, 32 + 64  # PROOF: public identity and signature
LENGTHS = (KEY, KEY + (KEY + TAG) + (PROOF + TAG), (KEY + TAG) + (PROOF + TAG))
HANDSHAKE = 10.0  # seconds for all three messages
RECORD = 65535  # ciphertext bytes at most
PLAIN = RECORD - TAG
WIRE_LEAST, WIRE = 1 << 12, 1 << 18  # bytes read at a time, growing with the traffic
OUT = 4 * (2 + RECORD) + 4096  # bytes written at a time: four full records and some short ones
REKEY = 1 << 16  # records (4 GiB) under one key

_AEAD = "cryptography.hazmat.primitives.ciphers.aead"


class _Half:
    """The key of one direction and its nonce."""

    __slots__ = ("_cipher", "_count", "_order", "_type")

    def __init__(self, choice: bytes, key: bytes) -> None:
        _, name, self._order = CIPHERS[choice]
        self._type = getattr(need(_AEAD, "p2p"), name)
        self._cipher: Any = self._type(key)
        self._count = 0

    def seal(self, plain: memoryview, out: memoryview) -> None:
        nonce = self._nonce()
        self._cipher.encrypt_into(nonce, plain, b"", out)

    def unseal(self, sealed: memoryview, out: memoryview) -> None:
        nonce = self._nonce()
        self._cipher.decrypt_into(nonce, sealed, b"", out)

    def _nonce(self) -> bytes:
        if self._count and self._count % REKEY == 0:
            key = self._cipher.encrypt(bytes(4) + b"\xff" * 8, bytes(KEY), b"")[:KEY]
            self._cipher = self._type(key)
        self._count += 1
        return bytes(4) + (self._count - 1).to_bytes(8, self._order)


@cache
def fastest() -> bytes:
    """The cipher that this processor does faster: AES where it has instructions for it."""
    plain, out = memoryview(bytes(PLAIN)), memoryview(bytearray(RECORD))

    def seconds(half: _Half) -> float:
        begin = time.perf_counter()
        half.seal(plain, out)
        return time.perf_counter() - begin

    halves = {choice: _Half(choice, bytes(KEY)) for choice in CIPHERS}
    return min(halves, key=lambda choice: min(seconds(halves[choice]) for _ in range(5)))


class SecurePipe(Pipe):
    """A pipe of records.

    Args:
        pipe: carries them.
        choice: the cipher, a key of ``CIPHERS``.
        seal: the key of what is written.
        unseal: the key of what is read.
    """

    def __init__(self, pipe: Pipe, choice: bytes, seal: bytes, unseal: bytes) -> None:
        self._pipe = pipe
        self._seal, self._unseal = _Half(choice, seal), _Half(choice, unseal)
        self._invalid = need("cryptography.exceptions", "p2p").InvalidTag
        self._wire = memoryview(bytearray(WIRE_LEAST))
        self._end = 0  # bytes of it that have come
        self._begin = 0  # ... and are opened
        self._out = memoryview(b"")
        self._rest = memoryview(b"")  # what was opened and did not fit

    async def readinto(self, view: memoryview) -> int:
        while not self._rest:
            if done := self._open(view):
                return done
            if self._rest:
                break
            rest = bytes(self._wire[self._begin : self._end])
            if self._end == len(self._wire) < WIRE:
                self._wire = memoryview(bytearray(4 * self._end))
            self._wire[: len(rest)] = rest
            self._begin, self._end = 0, len(rest)
            count = await self._pipe.readinto(self._wire[self._end :])
            if not count:
                return 0
            self._end += count
        count = min(len(self._rest), len(view))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _open(self, view: memoryview) -> int:
        """Open the whole records that are here into ``view``; one that is too large for it is kept."""
        done = 0
        while self._end - self._begin >= 2:
            at = self._begin + 2
            size = int.from_bytes(self._wire[self._begin : at], "big")
            if size <= TAG:
                raise Broken("an empty record")
            if self._end - at < size:
                break
            room = view[done : done + size - TAG]
            fits = len(room) == size - TAG
            if not fits:
                if done:
                    break
                room = memoryview(bytearray(size - TAG))
            try:
                self._unseal.unseal(self._wire[at : at + size], room)
            except self._invalid:
                raise Broken("bytes that the peer did not write") from None
            self._begin = at + size
            if not fits:
                self._rest = room
                break
            done += size - TAG
        return done

    async def write(self, *views: memoryview) -> None:
        end = 0
        total = sum(len(view) + (2 + TAG) * -(-len(view) // PLAIN) for view in views)
        if len(self._out) < min(total, OUT):
            self._out = memoryview(bytearray(min(2 * total, OUT)))
        for view in views:
            for at in range(0, len(view), PLAIN):
                plain = view[at : at + PLAIN]
                size = len(plain) + TAG
                if end + 2 + size > len(self._out):
                    await self._pipe.write(self._out[:end])
                    end = 0
                self._out[end : end + 2] = size.to_bytes(2, "big")
                end += 2
                self._seal.seal(plain, self._out[end : end + size])
                end += size
        if end:
            await self._pipe.write(self._out[:end])

    def close(self) -> None:
        self._pipe.close()


async def handshake(
    pipe: Pipe, identity: Identity, expect: PeerId | None, *, initiator: bool, choice: bytes | None = None
) -> tuple[PeerId, SecurePipe]:
    """Prove both ends on a fresh pipe; who the other end is, and the pipe to go on with.

    The initiator may insist on a cipher (``choice``).

    Raises:
        Unreachable: the other end is not ``expect``, is nobody, or does not speak this protocol.
        Broken: the pipe ended.
    """
    connection = need("noise.connection", "p2p")
    x25519 = need("cryptography.hazmat.primitives.asymmetric.x25519", "p2p")
    invalid = need("cryptography.exceptions", "p2p").InvalidTag
    private = x25519.X25519PrivateKey.generate()
    own = private.public_key().public_bytes_raw()
    if initiator:
        choice = choice or fastest()
        await pipe.write(memoryview(choice))
    else:
        choice = await read_exactly(pipe, 1)
        if choice not in CIPHERS:
            raise Unreachable(f"a handshake that begins with {choice!r}")
    noise = connection.NoiseConnection.from_name(PATTERN.format(CIPHERS[choice][0]).encode())
    noise.set_prologue(PROLOGUE + choice)
    noise.set_keypair_from_private_bytes(connection.Keypair.STATIC, private.private_bytes_raw())
    if initiator:
        noise.set_as_initiator()
    else:
        noise.set_as_responder()
    noise.start_handshake()
    state = noise.noise_protocol.handshake_state  # the package forgets it with the last message

    async def say(step: int, payload: bytes) -> None:
        message = noise.write_message(payload)
        await pipe.write(memoryview(LENGTHS[step].to_bytes(2, "big") + message))

    async def hear(step: int) -> bytes:
        size = int.from_bytes(await read_exactly(pipe, 2), "big")
        if size != LENGTHS[step]:
            raise Unreachable(f"handshake message {step + 1} of {size} bytes, not {LENGTHS[step]}")
        message = await read_exactly(pipe, size)
        try:
            return bytes(noise.read_message(message))
        except (invalid, ValueError):
            raise Unreachable(f"handshake message {step + 1} is not genuine") from None

    def prove(purpose: str) -> bytes:
        return bytes.fromhex(identity.id) + identity.sign(purpose, own + state.re.public_bytes)

    def check(purpose: str, proof: bytes) -> PeerId:
        peer = proof[:KEY].hex()
        if not verify(peer, purpose, state.rs.public_bytes + state.e.public_bytes, proof[KEY:]):
            raise Unreachable("the other end does not prove its identity")
        if expect is not None and peer != expect:
            raise Unreachable(f"reached {peer[:8]} instead of {expect[:8]}")
        return peer

    if initiator:
        await say(0, b"")
        peer = check(LISTENS, await hear(1))
        await say(2, prove(DIALS))
    else:
        await hear(0)
        await say(1, prove(LISTENS))
        peer = check(DIALS, await hear(2))
    protocol = noise.noise_protocol
    seal, unseal = protocol.cipher_state_encrypt.k, protocol.cipher_state_decrypt.k
    return peer, SecurePipe(pipe, choice, seal, unseal)


async def secure_connection(
    pipe: Pipe,
    identity: Identity,
    expect: PeerId | None,
    initiator: bool,
    *,
    path: Path = "direct",
    remote: Address = "",
) -> MuxConnection:
    """A connection over any pipe, a relayed one as well as a socket.

    Args:
        pipe: fresh and owned by the connection from now on; closed if there is no connection.
        identity: this end.
        expect: who the other end must be, None for anyone.
        initiator: whether this end dialled; exactly one of them did.
        path: how the bytes travel.
        remote: the address at which the peer is seen.

    Raises:
        Unreachable: the other end left, did not prove to be ``expect``, or took longer than
            ``HANDSHAKE`` seconds.
    """
    try:
        async with asyncio.timeout(HANDSHAKE):
            peer, secure = await handshake(pipe, identity, expect, initiator=initiator)
    except TimeoutError:
        pipe.close()
        raise Unreachable(f"no handshake within {HANDSHAKE:g} s") from None
    except TransportError as error:
        pipe.close()
        raise Unreachable(str(error)) from None
    except BaseException:
        pipe.close()
        raise
    return MuxConnection(secure, peer, dialled=initiator, path=path, remote=remote)
