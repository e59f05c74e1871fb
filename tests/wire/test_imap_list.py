"""LIST responses as servers send them."""

from __future__ import annotations

import pytest

from mailgate.wire.imap_list import Listed, listed
from mailgate.wire.imap_response import ResponseReceiver


def read(line: bytes) -> Listed | None:
    receiver = ResponseReceiver()
    receiver.receive(line)
    response = receiver.next()
    assert response is not None
    return listed(response)


@pytest.mark.parametrize(
    ("line", "attributes", "name"),
    [
        (b'* LIST (\\HasNoChildren \\Trash) "/" Trash\r\n', {"\\HASNOCHILDREN", "\\TRASH"}, b"Trash"),
        (
            b'* LIST (\\HasNoChildren \\Trash) "/" "[Gmail]/Papierkorb"\r\n',
            {"\\HASNOCHILDREN", "\\TRASH"},
            b"[Gmail]/Papierkorb",
        ),
        (
            b'* XLIST (\\HasNoChildren \\Trash) "/" "[Gmail]/Trash"\r\n',
            {"\\HASNOCHILDREN", "\\TRASH"},
            b"[Gmail]/Trash",
        ),
        (b'* LIST () "." {5}\r\nTrash\r\n', set(), b"Trash"),
        (b"* LIST () NIL INBOX\r\n", set(), b"INBOX"),
        (b'* list (\\trash) "\\\\" "a \\"b\\" \\\\ c"\r\n', {"\\TRASH"}, b'a "b" \\ c'),
        (b'* LIST (\\Trash) "/" "Trash" ("CHILDINFO" ("SUBSCRIBED"))\r\n', {"\\TRASH"}, b"Trash"),
        (b'* LIST (\\Trash) "/" ""\r\n', {"\\TRASH"}, b""),
        (b'* LIST () "/" {8}\r\na(b"c\\d)\r\n', set(), b'a(b"c\\d)'),
    ],
)
def test_a_mailbox(line: bytes, attributes: set[str], name: bytes) -> None:
    assert read(line) == Listed(frozenset(attributes), name)


@pytest.mark.parametrize("line", [b"* LIST\r\n", b"* LIST Trash\r\n", b'* LIST () "/"\r\n', b"* LSUB () NIL x\r\n"])
def test_what_is_none(line: bytes) -> None:
    assert read(line) is None


@pytest.mark.parametrize(("attribute", "can"), [("\\NOSELECT", False), ("\\NONEXISTENT", False), ("\\TRASH", True)])
def test_what_can_hold_messages(attribute: str, can: bool) -> None:
    assert Listed(frozenset({attribute}), b"x").selectable is can
