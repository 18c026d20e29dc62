"""Keys: signatures with a purpose, and a file that only its owner may read."""

from __future__ import annotations

import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import BadInput
from shoal.runtimes.p2p.identity import Identity, is_peer_id, verify

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_the_key_of_rfc_8032_test_1() -> None:
    assert Identity(SEED).id == PUBLIC


def test_a_signature_counts_for_its_purpose_message_and_signer_only() -> None:
    me, other = Identity(SEED), Identity.create()
    signature = me.sign("record", b"hello")
    assert verify(me.id, "record", b"hello", signature)
    assert not verify(me.id, "recor", b"hello", signature)
    assert not verify(me.id, "record", b"hellO", signature)
    assert not verify(other.id, "record", b"hello", signature)
    # The purpose cannot be moved into the message.
    assert not verify(me.id, "a", b"\0b", me.sign("a/b", b""))


@given(st.binary(max_size=80), st.text(max_size=70), st.binary(max_size=70))
@settings(max_examples=200, deadline=None)
def test_nothing_malformed_verifies_or_raises(message: bytes, peer: str, signature: bytes) -> None:
    assert not verify(peer, "record", message, signature)
    assert not verify(PUBLIC, "record", message, signature)


@pytest.mark.parametrize("y", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18, 2**255 - 1])
def test_points_of_small_order_and_uncanonical_keys_are_no_names(y: int) -> None:
    for sign in (0, 1 << 255):
        assert not is_peer_id((y | sign).to_bytes(32, "little").hex())


def test_points_of_order_8_are_no_names() -> None:
    for key in (
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ):
        assert not is_peer_id(key)


def test_one_signature_would_hold_for_everything_under_such_a_key() -> None:
    neutral, forged = bytes([1]) + bytes(31), bytes([1]) + bytes(63)  # A = R = the neutral element, S = 0
    for message in (b"shoal/record\0one", b"shoal/record\0two"):
        Ed25519PublicKey.from_public_bytes(neutral).verify(forged, message)  # RFC 8032 accepts
        assert not verify(neutral.hex(), "record", message.removeprefix(b"shoal/record\0"), forged)


@pytest.mark.parametrize("text", ["", "ab", PUBLIC.upper(), PUBLIC + "\n", PUBLIC[:-1] + "g", None, 7])
def test_names_are_64_lower_case_digits(text: object) -> None:
    assert is_peer_id(PUBLIC)
    assert not is_peer_id(text)


def test_saved_and_loaded(tmp_path) -> None:
    me = Identity.create()
    path = me.save(tmp_path / "state")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load(tmp_path / "state").secret == me.secret
    assert me.save(tmp_path / "state") == path
    assert [file.name for file in path.parent.iterdir()] == ["identity.key"]
    assert me.secret.hex() not in repr(me)


def test_another_key_is_not_replaced(tmp_path) -> None:
    me = Identity.create()
    me.save(tmp_path)
    with pytest.raises(BadInput, match="without another peer"):
        Identity.create().save(tmp_path)
    assert Identity.load(tmp_path).id == me.id
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_key_that_others_may_read_is_refused(tmp_path, mode: int) -> None:
    Identity.create().save(tmp_path).chmod(mode)
    with pytest.raises(BadInput, match="chmod 600"):
        Identity.load(tmp_path)


@pytest.mark.parametrize(
    "text", [b"", b"shoal-ed25519", b"shoal-ed25519 ab\n", b"\xff" * 90, b"x " + b"a" * 64]
)
def test_a_damaged_file_is_one_clear_line(tmp_path, text: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(BadInput, match="one line"):
        Identity.load(tmp_path)


def test_a_missing_file_is_one_clear_line(tmp_path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        Identity.load(tmp_path)


def test_a_link_is_not_followed(tmp_path) -> None:
    Identity.create().save(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "identity.key").symlink_to(tmp_path / "a" / "identity.key")
    with pytest.raises(BadInput):
        Identity.load(tmp_path / "b")


def test_secrets_have_32_bytes() -> None:
    with pytest.raises(BadInput, match="exactly 32"):
        Identity(b"short")
