"""A mailbox on an IMAP server: every word on the wire, and what each answer comes to."""

from __future__ import annotations

from array import array

import pytest

from mailgate.translate.imap_client import (
    ImapClient,
    Malformed,
    Overview,
    Refused,
    Selected,
)
from tests.translate.imap import playing, selecting

# -------------------------------------------------------------------- SELECT


async def test_select_tells_everything(size: int) -> None:
    selected = await playing(selecting(3), lambda client: client.select(b"INBOX"), size=size)
    assert selected == Selected(
        77, 3, 100, 12, True, frozenset({"\\ANSWERED", "\\DELETED", "\\SEEN", "\\*"}), read_only=False
    )


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (b"Sent Items", '"Sent Items"'),
        (b'a" NOOP', '"a\\" NOOP"'),
        ("Entwürfe & mehr", '"Entw&APw-rfe &- mehr"'),
        ("INBOX", '"INBOX"'),
    ],
)
async def test_a_mailbox_name_is_one_string(folder: bytes | str, said: str) -> None:
    script = selecting(0).replace('"INBOX"', said.replace("\\", "\\x5c"))
    await playing(script, lambda client: client.select(folder))


async def test_a_name_that_cannot_be_quoted_waits_for_the_server() -> None:
    script = "G: m1 SELECT {3}\nU: + go on\nG: j\\xc3\\xb6\nU: * 0 EXISTS\nU: m1 OK done"
    selected = await playing(script.replace("j\\xc3\\xb6", "jö"), lambda client: client.select("jö".encode()))
    assert selected.uidvalidity == 0
    assert not selected.uids_sticky


async def test_a_name_that_is_refused_before_its_literal_is_sent() -> None:
    async def use(client: ImapClient) -> bool:
        with pytest.raises(Refused):
            await client.select("jö".encode())
        return client.alive

    assert await playing("G: m1 SELECT {3}\nU: m1 NO no literals", use)


@pytest.mark.parametrize("folder", [b"", b"a\r\nm2 NOOP", b"a\0", "a\nb", "\0", ""])
async def test_a_name_that_is_none_is_never_sent(folder: bytes | str) -> None:
    with pytest.raises(ValueError, match="name"):
        await playing("", lambda client: client.select(folder))


async def test_examine_only_where_nothing_is_to_change() -> None:
    script = 'G: m1 EXAMINE "INBOX"\nU: * 1 EXISTS\nU: * OK [UIDVALIDITY 5] x\nU: m1 OK [READ-ONLY] done'
    assert (await playing(script, lambda client: client.select(b"INBOX", read_only=True))).read_only
    script = script.replace("EXAMINE", "SELECT").replace("READ-ONLY", "READ-WRITE")
    quirks = frozenset({"no-examine"})
    assert (await playing(script, lambda client: client.select(b"INBOX", read_only=True), quirks=quirks)).read_only


async def test_select_of_a_server_that_says_little() -> None:
    script = 'G: m1 SELECT "INBOX"\nU: * FLAGS (\\x5cSeen)\nU: * 1 EXISTS\nU: * OK [UIDVALIDITY 5] x\n'
    script += "U: * OK [UIDNOTSTICKY] x\nU: m1 OK [READ-ONLY] done"
    selected = await playing(script, lambda client: client.select(b"INBOX"))
    assert selected == Selected(5, 1, None, None, False, frozenset({"\\SEEN", "\\*"}), read_only=True)


async def test_a_refusal_has_its_code_and_text() -> None:
    with pytest.raises(Refused) as refused:
        await playing('G: m1 SELECT "x"\nU: m1 NO [nonexistent] no x', lambda client: client.select(b"x"))
    assert (refused.value.status, refused.value.code, refused.value.text) == ("NO", "NONEXISTENT", "no x")
    assert str(refused.value) == "NO [NONEXISTENT]"


async def test_select_without_exists_is_malformed() -> None:
    with pytest.raises(Malformed):
        await playing('G: m1 SELECT "x"\nU: m1 OK done', lambda client: client.select(b"x"))


# -------------------------------------------------------------------- the overview


async def overview(client: ImapClient, *args: object, **options: object) -> Overview:
    await client.select(b"INBOX")
    return await client.overview(*args, **options)  # type: ignore[arg-type]


FETCH = "G: m2 UID FETCH 1:* (UID FLAGS RFC822.SIZE)\n"


async def test_an_overview_takes_one_command(size: int) -> None:
    script = selecting(3) + FETCH
    script += "U: * 1 FETCH (UID 4 FLAGS (\\x5cSeen) RFC822.SIZE 100)\n"
    script += "U: * 2 FETCH (UID 7 FLAGS (\\x5cDeleted $Gone) RFC822.SIZE 5000000000)\n"
    script += "U: * 3 FETCH (UID 9 FLAGS () RFC822.SIZE 0)\nU: m2 OK done"
    found = await playing(script, lambda client: overview(client, keyword=b"$GONE"), size=size)
    assert found == Overview(array("I", [4, 7, 9]), array("Q", [100, 5_000_000_000, 0]), b"\0\1\0", b"\0\1\0")


async def test_an_empty_mailbox_is_not_asked() -> None:
    assert len(await playing(selecting(0), overview)) == 0


async def test_every_oddity_of_an_overview(size: int) -> None:
    script = selecting(7) + FETCH
    for line in (
        # Split, unordered, a number over EXISTS, number 0, without a UID, in lower case, with fractions.
        "* 900 FETCH (RFC822.SIZE 30 UID 30)",
        "* 2 FETCH (FLAGS (\\Seen) UID 20)",
        "* 8 EXISTS",
        "* 0 FETCH (UID 10 RFC822.SIZE 10.0 FLAGS ())",
        "* 1 EXPUNGE",
        "* 5 FETCH (FLAGS (\\Deleted))",
        "* VANISHED 3:4",
        "* OK still here {5}",
        "[ALERT] no star {7}",
        "* [NOTICE] no OK",
        "* 2 FETCH (UID 20 RFC822.SIZE 20)",
        '* 3 fetch (uid 30 flags (\\deleted) x-unknown (a (b "c)" {3}',
        "d)\\r) nil))",
        "* 4 FETCH (UID 40 FLAGS (a[b) RFC822.SIZE 40.25 MODSEQ (7))",
    ):
        script += f"U: {line}\n"
    found = await playing(script + "U: m2 OK done", overview, size=size)
    assert found.uids.tolist() == [10, 20, 30, 40]
    assert found.sizes.tolist() == [10, 20, 30, 40]
    assert found.deleted == b"\0\0\1\0"


async def test_messages_that_did_not_come_are_asked_for_once_more() -> None:
    script = selecting(4) + FETCH + "U: * 1 FETCH (UID 1 FLAGS () RFC822.SIZE 1)\nU: * 2 FETCH (UID 2 FLAGS ())\n"
    script += "U: m2 OK done\nG: m3 NOOP\nU: m3 OK done\nG: m4 UID SEARCH ALL\nU: * SEARCH 1 2 3 4\nU: m4 OK done\n"
    script += "G: m5 UID FETCH 2:4 (UID FLAGS RFC822.SIZE)\nU: * 4 FETCH (UID 4 FLAGS () RFC822.SIZE 4)\nU: m5 OK done"
    found = await playing(script, overview)
    assert found.uids.tolist() == [1, 4]


async def test_what_was_expunged_meanwhile_is_not_missed() -> None:
    script = selecting(2) + FETCH + "U: * 1 FETCH (UID 1 FLAGS () RFC822.SIZE 1)\nU: * 2 EXPUNGE\nU: m2 OK done"
    assert (await playing(script, overview)).uids.tolist() == [1]


async def test_the_new_part_alone() -> None:
    script = selecting(2) + FETCH.replace("1:*", "50:*")
    # A set that ends in a star always names the last message.
    script += "U: * 2 FETCH (UID 49 FLAGS () RFC822.SIZE 1)\nU: m2 OK done"
    assert len(await playing(script, lambda client: overview(client, 50))) == 0


async def test_a_huge_mailbox_is_asked_for_in_one_round_trip() -> None:
    script = selecting(25_000)
    for tag, numbers in ((2, "1:10000"), (3, "10001:20000"), (4, "20001:*")):
        script += f"G: m{tag} FETCH {numbers} (UID FLAGS RFC822.SIZE)\n"
    lines = [f"* {n} FETCH (UID {n} FLAGS () RFC822.SIZE 1)\\r\\n" for n in range(1, 25_001)]
    for tag, first in ((2, 0), (3, 10_000), (4, 20_000)):
        script += "U: " + "".join(lines[first : first + 10_000]) + f"m{tag} OK done\n"
    assert (await playing(script, overview)).uids.tolist() == list(range(1, 25_001))


async def test_a_batch_that_is_refused_is_asked_for_by_uid() -> None:
    script = selecting(10_001) + "G: m2 FETCH 1:10000 <*>\nG: m3 FETCH 10001:* <*>\n"
    script += "U: m2 OK done\nU: m3 BAD no such message\nG: m4 UID FETCH 1:* (UID FLAGS RFC822.SIZE)\n"
    script += "U: " + "".join(f"* 1 FETCH (UID {n} FLAGS () RFC822.SIZE 1)\\r\\n" for n in range(1, 10_002)) + "m4 OK\n"
    assert len(await playing(script, overview)) == 10_001


async def test_identities_and_headers() -> None:
    want = frozenset({"emailid", "headers"})
    script = selecting(2) + "G: m2 UID FETCH 1:* (UID FLAGS RFC822.SIZE EMAILID BODY.PEEK[HEADER])\n"
    script += "U: * 1 FETCH (UID 1 FLAGS () RFC822.SIZE 1 EMAILID (M1) BODY[HEADER] {9}\nU: a)\\r\\n{5}\\r\\n)\n"
    script += "U: * 2 FETCH (BODY[HEADER] NIL FLAGS () RFC822.SIZE 1 UID 2)\nU: m2 OK done"
    found = await playing(script, lambda client: overview(client, 1, want, digest=bytes.upper))
    assert found.ids == [b"M1", b""]
    assert found.headers == [b"A)\r\n{5}\r\n", b""]


async def test_what_cannot_be_wanted() -> None:
    with pytest.raises(ValueError, match="wanted"):
        await playing(selecting(1), lambda client: overview(client, 1, frozenset({"emailid", "gm_msgid"})))


# -------------------------------------------------------------------- SEARCH


async def test_search(size: int) -> None:
    script = "G: m1 UID SEARCH UNDELETED\nU: * SEARCH 9 5 5\nU: * SEARCH\nU: * SEARCH 1\nU: m1 OK done"
    assert (await playing(script, lambda client: client.search(b"UNDELETED"), size=size)).tolist() == [1, 5, 9]


@pytest.mark.parametrize("criteria", [b"ALL\r\nm2 NOOP", b"x" * 1000])
async def test_a_search_that_is_none(criteria: bytes) -> None:
    with pytest.raises(ValueError, match="line"):
        await playing("", lambda client: client.search(criteria))


# -------------------------------------------------------------------- changes


async def test_changes_go_out_in_short_lines_before_they_are_answered() -> None:
    script = "G: m1 UID STORE 1,3,<*> +FLAGS.SILENT (\\x5cDeleted $a)\nG: m2 UID STORE <*>\nU: m1 OK\nU: m2 OK\n"
    await playing(script, lambda client: client.store(range(1, 500, 2), b"\\Deleted $a"))


async def test_after_a_refusal_nothing_more_is_sent() -> None:
    script = "".join(f"G: m{tag} UID STORE <*>\n" for tag in range(1, 17))
    script += "U: m1 NO [OVERQUOTA] x\n" + "".join(f"U: m{tag} OK\n" for tag in range(2, 17))
    with pytest.raises(Refused):
        await playing(script, lambda client: client.store(range(1, 50_000, 2), b"\\Deleted"))


async def test_removing_and_moving() -> None:
    async def use(client: ImapClient) -> None:
        await client.store([5], b"\\Seen", add=False, silent=False)
        await client.expunge_uids([1, 2, 3, 9])
        await client.expunge()
        await client.move([4], "Trash")
        await client.copy([4, 5], "jö".encode())

    script = "G: m1 UID STORE 5 -FLAGS (\\x5cSeen)\nU: m1 OK\nG: m2 UID EXPUNGE 1:3,9\nU: * 1 EXPUNGE\nU: m2 OK\n"
    script += 'G: m3 EXPUNGE\nU: m3 OK\nG: m4 UID MOVE 4 "Trash"\nU: m4 OK\n'
    script += "G: m5 UID COPY 4:5 {3}\nU: + ok\nG: jö\nU: m5 OK"
    await playing(script, use)


@pytest.mark.parametrize("flags", [b"", b"a) b", b"a\r\nx", b'"x"', b"\\*", b"a  b"])
async def test_flags_that_are_none(flags: bytes) -> None:
    with pytest.raises(ValueError, match="flags"):
        await playing("", lambda client: client.store([1], flags))


async def test_a_mailbox_with_too_long_a_name() -> None:
    with pytest.raises(ValueError, match="long"):
        await playing("", lambda client: client.move([1], b"x" * 900))


# -------------------------------------------------------------------- other mailboxes


@pytest.mark.parametrize(
    ("capabilities", "command"),
    [
        ("", 'LIST "" "*"'),
        ("SPECIAL-USE", 'LIST "" "*"'),
        ("SPECIAL-USE LIST-EXTENDED XLIST", 'LIST (SPECIAL-USE) "" "*"'),
        ("IMAP4REV2", 'LIST (SPECIAL-USE) "" "*"'),
        ("XLIST", 'XLIST "" "*"'),
    ],
)
async def test_the_trash_is_found_by_its_use(capabilities: str, command: str) -> None:
    async def use(client: ImapClient) -> bytes | None:
        client.capabilities = frozenset(capabilities.split())
        return await client.special_use("\\Trash")

    verb = command.split()[0]
    script = f"""G: m1 {command}
U: * {verb} (\\Noselect \\Trash) "/" "[Gmail]"
U: * {verb} (\\HasNoChildren) "/" INBOX
U: * {verb} (\\HasNoChildren \\TRASH) "/" "[Gmail]/Trash"
U: * {verb} (\\Trash) "/" Another
U: m1 OK done"""
    assert await playing(script.replace("\\", "\\x5c"), use) == b"[Gmail]/Trash"


async def test_there_may_be_no_trash() -> None:
    script = 'G: m1 LIST "" "*"\nU: * LIST () NIL INBOX\nU: * LIST\nU: m1 OK done'
    assert await playing(script, lambda client: client.special_use("\\Trash")) is None


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        ('U: * LIST () "/" a*\nU: m1 OK done', True),
        ('U: * LIST () "/" ab\nU: m1 OK done', False),
        ('U: * LIST (\\x5cNoselect) "/" a*\nU: m1 OK done', False),
        ("U: m1 OK done", False),
        ("U: m1 NO never", True),
    ],
)
async def test_a_mailbox_may_be_missing(answer: str, there: bool) -> None:
    script = f'G: m1 LIST "" "a*"\n{answer}'
    assert await playing(script, lambda client: client.knows(b"a*")) is there


async def test_names_in_utf8_are_told_as_they_are_taken() -> None:
    async def use(client: ImapClient) -> tuple[bytes | None, bool]:
        client.utf8 = True
        return await client.special_use("\\Trash"), await client.knows(b"M&APw-ll")

    trash, other = "M\\xc3\\xbcll", "\\xff"
    script = f"""G: m1 LIST "" "*"
U: * LIST () "/" "{other}"
U: * LIST (\\x5cTrash) "/" "{trash}"
U: m1 OK done
G: m2 LIST "" <*>
U: + go on
G: {trash}
U: * LIST () "/" "{other}"
U: * LIST () "/" "{trash}"
U: m2 OK done"""
    assert await playing(script, use) == (b"M&APw-ll", True)


async def test_a_mailbox_is_made() -> None:
    await playing('G: m1 CREATE "Gel&APY-scht"\nU: m1 OK done', lambda client: client.create("Gelöscht"))
