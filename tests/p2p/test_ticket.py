"""Invitations: they survive being passed on by people, and damage is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core import BadInput
from shoal.runtimes.p2p.identity import Identity
from shoal.runtimes.p2p.ticket import Ticket, parse

PEER = Identity(bytes(range(32))).id
TICKET = Ticket(PEER, ("iroh://10.0.0.7:4433", "tcp://[fe80::1]:4433"), "0f" * 16)


def test_text_and_back() -> None:
    text = str(TICKET)
    assert text.startswith("shoal1")
    assert text.isalnum() and text == text.lower()
    assert parse(text) == TICKET


def test_case_and_white_space_do_not_matter() -> None:
    text = str(TICKET)
    assert parse(f"  {text[:30]}\n {text[30:].upper()}\t") == TICKET


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_letter_is_noticed(data: st.DataObject) -> None:
    text = str(TICKET)
    at = data.draw(st.integers(0, len(text) - 2))  # the last letter has bits that mean nothing
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(lambda c: c != text[at]))
    with pytest.raises(BadInput):
        parse(text[:at] + letter + text[at + 1 :])


@given(st.integers(0, 200))
def test_a_cut_ticket_is_noticed(length: int) -> None:
    text = str(TICKET)
    if length < len(text):
        with pytest.raises(BadInput):
            parse(text[:length])


@given(st.text(max_size=200))
def test_arbitrary_text_is_one_clear_line(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text, field="peer.join")
    assert str(caught.value).startswith("peer.join = ")
    assert "\n" not in str(caught.value)


def test_a_key_with_addresses_will_do() -> None:
    assert parse(f"{PEER}@tcp://127.0.0.1:4000,iroh://127.0.0.1:4001") == Ticket(
        PEER, ("tcp://127.0.0.1:4000", "iroh://127.0.0.1:4001")
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tcp://127.0.0.1:4000", "begins with shoal1"),
        (f"{PEER}@", "1 to 16 addresses"),
        (f"{PEER}@127.0.0.1:4000", "addresses such as"),
        (f"{PEER[:-1]}@tcp://h:1", "64 lower-case"),
        ("0" * 64 + "@tcp://h:1", "64 lower-case"),
        ("x" * 9000, "at most"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse(text)


def test_a_ticket_for_another_run_is_refused() -> None:
    assert parse(str(TICKET), run="0f" * 16) == TICKET
    with pytest.raises(BadInput, match="configurations differ"):
        parse(str(TICKET), run="aa" * 16)
