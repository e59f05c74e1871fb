"""Names of mailboxes against RFC 3501's examples, and there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.wire.mailbox_name import canonical, checked, to_text, to_wire


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("INBOX", b"INBOX"),
        ("Tom & Jerry", b"Tom &- Jerry"),
        ("Entwürfe", b"Entw&APw-rfe"),
        ("Papierkorb/Gelöschte Objekte", b"Papierkorb/Gel&APY-schte Objekte"),
        # RFC 3501 §5.1.3's example of English, Japanese and Chinese in one name.
        ("~peter/mail/台北/日本語", b"~peter/mail/&U,BTFw-/&ZeVnLIqe-"),
        ("📥", b"&2D3c5Q-"),
        ("", b""),
    ],
)
def test_a_name_on_the_wire_and_back(name: str, wire: bytes) -> None:
    assert to_wire(name) == wire
    assert to_text(wire) == name


def test_after_utf8_accept_a_name_is_utf8() -> None:
    assert to_wire("Entwürfe & mehr", utf8=True) == "Entwürfe & mehr".encode()


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"Entw\xc3\xbcrfe", "Entwürfe"),
        (b"bad \xff", "bad \\xff"),
        (b"odd &A-", "odd &A-"),
        (b"half &2D0- pair", "half &2D0- pair"),
        (b"R&D", "R&D"),
    ],
)
def test_what_breaks_the_rules_is_shown_all_the_same(wire: bytes, text: str) -> None:
    assert to_text(wire) == text


@given(st.text())
def test_every_name_comes_back(name: str) -> None:
    wire = to_wire(name)
    assert wire.isascii()
    assert to_text(wire) == name


@pytest.mark.parametrize(("name", "one"), [(b"INBOX", b"INBOX"), (b"Inbox", b"INBOX"), (b"Inbox/x", b"Inbox/x")])
def test_only_the_inbox_has_no_case(name: bytes, one: bytes) -> None:
    assert canonical(name) == one


def test_no_command_hides_in_a_name() -> None:
    assert checked(b'a" b') == b'a" b'
    for wrong in (b"", b"a\r", b"a\nm2 NOOP", b"\0"):
        with pytest.raises(ValueError, match="name"):
            checked(wrong)
