"""The files of old servers, and CSV: what they hold, and what is told of those that are something else."""

from __future__ import annotations

import pytest

from mailgate.translate.uidl import TemplateError
from mailgate.uidls.files import (
    FileError,
    Known,
    base_name,
    read_courier,
    read_csv,
    read_dovecot,
    read_uid_list,
    write_csv,
)

COURIER = b"""/3 12 1300000000
1100000001.M1P2.host:2,S 120 3:1299999999:0
1100000002.M1P2.host 77 4:0:1
1100000003.M'+1P2.host:2, 88 0:0:0
name with spaces 99 11:1300000000:0
"""
DOVECOT = b"""3 V1275660208 N25022 G3085f01b7f11094c501100008c4a11c1
25006 :1276528487.M364837P9451.host,S=1355,W=1394:2,
25017 W2481 Pold-17 :1276533073.M242911P3632.host:2,F
25021 Gabc Pold-21 O3 :cur.file
"""


def test_courier_counts_by_itself_and_has_three_formats() -> None:
    assert read_courier(COURIER) == [
        Known(b"UID3-1299999999", size=120, file=b"1100000001.M1P2.host"),
        Known(b"UID4", size=77, file=b"1100000002.M1P2.host"),
        Known(b"1100000003.M+27+2B1P2.host", size=88, file=b"1100000003.M'+1P2.host"),
        Known(b"UID11-1300000000", size=99, file=b"name with spaces"),
    ]
    assert read_courier(b"/2 1 5\na 10 1:5\n") == [Known(b"UID1-5", size=10, file=b"a")]


def test_dovecot_gives_messages_ids_of_their_own_or_by_its_format() -> None:
    one = Known(b"000061ae4c0907b0", 25006, 1275660208, 1394, b"1276528487.M364837P9451.host,S=1355,W=1394")
    two = Known(b"old-17", 25017, 1275660208, 2481, b"1276533073.M242911P3632.host")
    three = Known(b"old-21", 25021, 1275660208, 0, b"cur.file")
    assert read_dovecot(DOVECOT, "dovecot") == [one, two, three]
    named = read_dovecot(DOVECOT, "filename")
    assert [known.uidl for known in named] == [one.file, b"old-17", b"old-21"]
    with pytest.raises(TemplateError):
        read_dovecot(DOVECOT, "no such format")
    with pytest.raises(FileError, match="import from the POP3 server"):
        read_dovecot(DOVECOT, "{header_md5}")


def test_a_list_of_files_says_which_uid_each_has() -> None:
    found = read_uid_list(DOVECOT)
    assert found.uidvalidity == 1275660208
    assert found.uids[b"1276533073.M242911P3632.host"] == 25017
    assert read_uid_list(b"1 77 4\n1 a:2,S\n3 b c\n").uids == {b"a": 1, b"b c": 3}


@pytest.mark.parametrize(
    ("read", "content", "said"),
    [
        (read_courier, b"", "line 1: not a courierpop3dsizelist"),
        (read_courier, b"/4 1 2\n", "line 1: not a courierpop3dsizelist"),
        (read_courier, b"/3 1 2\nx\n", "line 2"),
        (read_courier, b"/3 1 2\na 1 1:2:0\nb 1 1:2:0\n", r"UID1-2 .*stands there twice"),
        (lambda content: read_dovecot(content, "filename"), b"3 V1 N2\n1 :a b\n", "a unique-id has 1 to 70"),
        (lambda content: read_dovecot(content, "dovecot"), b"3 N2\n", "line 1"),
        (lambda content: read_dovecot(content, "dovecot"), b"3 V1 N2\nx :a\n", "line 2"),
        (read_uid_list, b"2 1 2\n", "line 1"),
        (read_uid_list, b"1 1 2\nfile\n", "line 2"),
    ],
)
def test_files_that_are_something_else_are_told(read: object, content: bytes, said: str) -> None:
    assert callable(read)
    with pytest.raises(FileError, match=said):
        read(content)


def test_a_table_names_its_columns() -> None:
    text = "folder,uidvalidity,uid,file,size,uidl\nINBOX,7,1,cur/a:2,S,10,x\n,7,2,,,y\nSent,7,3,,,z\n".replace(
        "cur/a:2,S", '"cur/a:2,S"'
    )
    assert read_csv(text, "INBOX") == [Known(b"x", 1, 7, 10, b"a"), Known(b"y", 2, 7)]
    assert read_csv(text, "Sent") == [Known(b"z", 3, 7)]
    assert read_csv("size,uidl\n5,a\n", "INBOX") == [Known(b"a", size=5)]
    for wrong in ("uidl\na\n", "uid,uidls\n1,a\n", "uid,uidl,colour\n1,a,red\n", ""):
        with pytest.raises(FileError, match="line 1: the columns are"):
            read_csv(wrong, "INBOX")
    with pytest.raises(FileError, match="line 2: uid is no number"):
        read_csv("uid,uidl\n-1,a\n", "INBOX")


def test_what_is_written_is_read_again() -> None:
    rows = [("INBOX", 7, 1, b'a,"b'), ("INBOX", 7, 2, b"c")]
    text = "".join(write_csv(iter(rows)))
    assert text.splitlines()[0] == "folder,uidvalidity,uid,uidl"
    assert read_csv(text, "INBOX") == [Known(b'a,"b', 1, 7), Known(b"c", 2, 7)]


def test_a_file_has_one_name_whatever_its_flags_and_folder() -> None:
    assert {base_name(name) for name in (b"a.b", b"a.b:2,S", b"cur/a.b:2,", b"new/a.b")} == {b"a.b"}


def test_a_message_is_shown_by_what_is_known_of_it() -> None:
    assert str(Known(b"x", 5, 7, 10, b"f\xff")) == "x (UID 5, size 10, file f\\xff)"
    assert str(Known(b"x")) == "x"
