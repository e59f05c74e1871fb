"""A mailbox on an IMAP server: every word on the wire, and what each answer comes to."""

from __future__ import annotations

from array import array

import pytest
import trio

from mailgate.translate.imap_client import (
    ImapClient,
    MailboxChanged,
    Malformed,
    Overview,
    Refused,
    Selected,
    UpstreamLost,
    Vanished,
)
from tests.translate.imap import SIZES, playing, selecting


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    """Of the buffer that bursts are read into."""
    return int(request.param)


async def body_of(client: ImapClient, uid: int, section: bytes = b"", *part: int) -> bytes:
    announced = await client.begin_body(uid, section, *part)
    whole = b""
    while (piece := await client.next_piece()) is not None:
        whole += piece
    assert len(whole) == announced
    return whole


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


# -------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "answer",
    [
        "* 1 FETCH (UID 7 BODY[] {12}\\r\\nab\\r\\n* x {9}\\x5c)",
        "* 1 FETCH (UID 7 BODY[] {12}\\nab\\r\\n* x {9}\\x5c)",
        "* 1 FETCH (UID 7 BODY[] ~{12}\\r\\nab\\r\\n* x {9}\\x5c)",
        "* 1 FETCH (BODY[] {12}\\r\\nab\\r\\n* x {9}\\x5c UID 7 FLAGS (\\x5cSeen))",
        "* 1 fetch (FLAGS () uid 7 body[] {12}\\r\\nab\\r\\n* x {9}\\x5c)",
        "* 1 FETCH (UID 7 RFC822 {12}\\r\\nab\\r\\n* x {9}\\x5c)",
        "* 1 FETCH (UID 7 FLAGS ())\\r\\n* 2 EXPUNGE\\r\\n* 0 FETCH (UID 7 BODY[] {12}\\r\\nab\\r\\n* x {9}\\x5c)",
        "* 1 FETCH (UID 6 BODY[] {3}\\r\\nabc)\\r\\n* 1 FETCH (UID 7 BODY[] {12}\\r\\nab\\r\\n* x {9}\\x5c)",
    ],
)
async def test_a_body_in_every_form(answer: str, size: int) -> None:
    script = f"G: m1 UID FETCH 7 (UID BODY.PEEK[])\nU: {answer}\nU: * 3 EXISTS\nU: m1 OK done"
    assert await playing(script, lambda client: body_of(client, 7), size=size) == b"ab\r\n* x {9}\\"


async def test_a_body_as_a_quoted_string(size: int) -> None:
    script = 'G: m1 UID FETCH 7 (UID BODY.PEEK[])\nU: * 1 FETCH (UID 7 BODY[] "a\\x5c"b\\x5c\\x5c")\nU: m1 OK done'
    assert await playing(script, lambda client: body_of(client, 7), size=size) == b'a"b\\'


@pytest.mark.parametrize(
    "answer",
    [
        "m1 OK done",
        "* 1 FETCH (UID 7 BODY[] NIL)\\r\\nm1 OK done",
        '* 1 FETCH (UID 7 BODY[] "")\\r\\nm1 OK done',
        "* 1 FETCH (UID 7 BODY[] {0}\\r\\n)\\r\\nm1 OK done",
        "* 1 FETCH (UID 7 FLAGS ())\\r\\nm1 OK done",
        "m1 NO gone",
        "m1 NO [EXPUNGEISSUED] gone",
    ],
)
async def test_a_message_that_is_gone(answer: str) -> None:
    async def use(client: ImapClient) -> bytes:
        with pytest.raises(Vanished) as vanished:
            await client.begin_body(7)
        assert vanished.value.uid == 7
        assert await client.next_piece() is None
        return await body_of(client, 8)

    script = f"G: m1 UID FETCH 7 (UID BODY.PEEK[])\nU: {answer}\n"
    script += "G: m2 UID FETCH 8 (UID BODY.PEEK[])\nU: * 8 FETCH (UID 8 BODY[] {1}\nU: x)\nU: m2 OK done"
    assert await playing(script, use) == b"x"


@pytest.mark.parametrize("answer", ["NO [SERVERBUG] x", "NO [LIMIT] x", "NO [THROTTLED] x", "BAD x"])
async def test_a_refusal_does_not_mean_that_a_message_is_gone(answer: str) -> None:
    with pytest.raises(Refused):
        await playing(f"G: m1 <*>\nU: m1 {answer}", lambda client: client.begin_body(7))


async def test_a_refusal_behind_a_body_is_no_end_of_it() -> None:
    with pytest.raises(Refused):
        await playing("G: m1 <*>\nU: * 1 FETCH (UID 7 BODY[] {1}\nU: x)\nU: m1 NO oh", lambda c: body_of(c, 7))


async def test_parts_of_a_message() -> None:
    async def use(client: ImapClient) -> list[bytes]:
        return [await body_of(client, 7, b"HEADER"), await body_of(client, 7, b"TEXT", 0, 4096)]

    script = (
        "G: m1 UID FETCH 7 (UID BODY.PEEK[HEADER])\nU: * 1 FETCH (UID 7 BODY[HEADER] {4}\nU: a\\r\\n)\nU: m1 OK x\n"
    )
    script = script.replace("{4}", "{3}")
    script += "G: m2 UID FETCH 7 (UID BODY.PEEK[TEXT]<0.4096>)\nU: * 1 FETCH (UID 7 BODY[TEXT]<0> {0}\nU: )\nU: m2 OK x"
    assert await playing(script, use) == [b"a\r\n", b""]


async def test_an_empty_message_where_the_server_has_such() -> None:
    script = 'G: m1 <*>\nU: * 1 FETCH (UID 7 BODY[] "")\nU: m1 OK done'
    assert await playing(script, lambda c: body_of(c, 7), quirks=frozenset({"empty-is-message"})) == b""


async def test_what_is_asked_ahead_goes_with_the_first(size: int) -> None:
    async def use(client: ImapClient) -> list[bytes]:
        client.ask_body(2)
        found = [await body_of(client, 2)]
        client.ask_body(3)
        client.ask_body(4)
        await client.begin_body(3)
        client.ask_body(5)
        first = await client.next_piece()
        found.append(bytes(first or b""))
        await client.skip_body()
        found.append(await body_of(client, 5))
        return found

    script = "G: m1 UID FETCH 2 (UID BODY.PEEK[])\nU: * 2 FETCH (UID 2 BODY[] {1}\nU: 2)\nU: m1 OK x\n"
    script += "G: m2 UID FETCH 3 <*>\nG: m3 UID FETCH 4 <*>\nU: * 3 FETCH (UID 3 BODY[] {2}\nG: m4 UID FETCH 5 <*>\n"
    script += "U: 33)\nU: m2 OK x\nU: * 4 FETCH (UID 4 BODY[] {1}\nU: 4)\nU: m3 OK x\n"
    script += "U: * 5 FETCH (UID 5 BODY[] {1}\nU: 5)\nU: m4 OK x"
    found = await playing(script, use, size=size)
    assert found[0] == b"2"
    assert found[1] in (b"3", b"33")
    assert found[2] == b"5"


async def test_another_command_drops_what_was_asked_ahead() -> None:
    async def use(client: ImapClient) -> None:
        client.ask_body(2)
        client.ask_body(3)
        await client.begin_body(2)
        await client.noop()
        client.ask_body(4)
        await client.noop()

    script = "G: m1 <*>\nG: m2 <*>\nU: * 2 FETCH (UID 2 BODY[] {2}\nU: 22)\nU: m1 OK x\n"
    script += "U: * 3 FETCH (UID 3 BODY[] {2}\nU: 33)\nU: m2 OK x\nG: m3 NOOP\nU: m3 OK x\nG: m5 NOOP\nU: m5 OK x"
    await playing(script, use)


@pytest.mark.parametrize("early", ["{2}\r\n33", '"33"'])
async def test_a_body_that_comes_before_the_answer_it_was_asked_behind(early: str) -> None:
    async def use(client: ImapClient) -> bytes:
        client.ask_body(2)
        client.ask_body(3)
        with pytest.raises(Vanished):
            await client.begin_body(2)
        return await body_of(client, 3)

    # Dovecot's way when another client has removed message 2.
    script = "G: m1 <*>\nG: m2 <*>\n"
    script += f"U: * 3 FETCH (UID 3 BODY[] {early})\r\nm1 NO [EXPUNGEISSUED] x\r\nm2 OK\n"
    script = script.replace("\r\n", "\\r\\n")
    script += "G: m3 UID FETCH 3 (UID BODY.PEEK[])\nU: * 3 FETCH (UID 3 BODY[] {2}\nU: 33)\nU: m3 OK"
    assert await playing(script, use) == b"33"


async def test_bodies_that_come_before_the_ends_of_those_before_them(size: int) -> None:
    async def use(client: ImapClient) -> list[bytes]:
        for uid in (2, 3, 4, 5):
            client.ask_body(uid)
        found = [await body_of(client, 2), await body_of(client, 3)]
        assert client.ahead == 2
        assert not client.idle
        found.append(await body_of(client, 5))
        await client.noop()
        assert client.idle
        return found

    # Dovecot's way with commands that it has before it answered.
    script = "G: m1 <*>\nG: m2 <*>\nG: m3 <*>\nG: m4 <*>\n"
    script += "".join(f"U: * {uid} FETCH (UID {uid} BODY[] {{1}}\nU: {uid})\n" for uid in (2, 3, 4, 5))
    script += "U: m1 OK\nU: m2 OK\nU: m3 OK\nU: m4 OK\nG: m5 NOOP\nU: m5 OK"
    assert await playing(script, use, size=size) == [b"2", b"3", b"5"]


async def test_another_command_waits_for_the_answers_that_are_owed(size: int) -> None:
    async def use(client: ImapClient) -> None:
        for uid in (2, 3, 4):
            client.ask_body(uid)
        await body_of(client, 2)
        await client.noop()
        assert client.ahead == 0

    script = "G: m1 <*>\nG: m2 <*>\nG: m3 <*>\n"
    script += "".join(f"U: * {uid} FETCH (UID {uid} BODY[] {{1}}\nU: {uid})\n" for uid in (2, 3, 4))
    script += "U: m1 OK\nU: m2 OK\nU: m3 OK\nG: m4 NOOP\nU: m4 OK"
    await playing(script, use, size=size)


async def test_a_no_that_comes_after_the_message_was_taken_for_whole() -> None:
    async def use(client: ImapClient) -> None:
        client.ask_body(2)
        client.ask_body(3)
        assert await body_of(client, 2) == b"2"
        with pytest.raises(UpstreamLost):
            await body_of(client, 3)
        assert not client.alive

    script = "G: m1 <*>\nG: m2 <*>\nU: * 2 FETCH (UID 2 BODY[] {1}\nU: 2)\nU: * 3 FETCH (UID 3 BODY[] {1}\nU: 3)\n"
    await playing(script + "U: m1 NO [SERVERBUG] x", use)


@pytest.mark.parametrize("early", ["* 4 FETCH (UID 4 BODY[] {1}\nU: 4)", "* 3 FETCH (UID 3 BODY[HEADER] {1}\nU: 3)"])
async def test_a_body_that_nobody_waits_for_does_not_end_another(early: str) -> None:
    async def use(client: ImapClient) -> list[bytes]:
        client.ask_body(2)
        client.ask_body(3)
        return [await body_of(client, 2), await body_of(client, 3)]

    script = f"G: m1 <*>\nG: m2 <*>\nU: * 2 FETCH (UID 2 BODY[] {{1}}\nU: 2)\nU: {early}\nU: m1 OK\n"
    script += "U: * 3 FETCH (UID 3 BODY[] {1}\nU: 3)\nU: m2 OK"
    if "HEADER" in early:
        script += "\nG: m3 UID FETCH 3 <*>\nU: * 3 FETCH (UID 3 BODY[] {1}\nU: 3)\nU: m3 OK"
    assert await playing(script, use) == [b"2", b"3"]


@pytest.mark.parametrize("section", ["", "HEADER", "TEXT"])
async def test_what_courier_says_in_place_of_a_message_that_is_gone(section: str, size: int) -> None:
    head = "From: System Administrator <root@localhost>\\r\\nSubject: message unavailable\\r\\n\\r\\n"
    text = "This message is no longer available on the server.\\r\\n"
    said = {"": head + text, "HEADER": head, "TEXT": text}[section]
    octets = len(said.replace("\\r\\n", "xx"))
    script = f"G: m1 <*>\nU: * 2 FETCH (UID 2 BODY[{section}] {{{octets}}}\nU: {said})\nU: m1 OK"
    with pytest.raises(Vanished):
        await playing(script, lambda client: client.begin_body(2, section.encode()), size=size)
    # A message of the same size is one.
    assert octets == len(await playing(script.replace("a", "e"), lambda c: body_of(c, 2, section.encode()), size=size))


async def test_a_body_that_turns_out_to_be_another_messages() -> None:
    with pytest.raises(Malformed):
        await playing("G: m1 <*>\nU: * 1 FETCH (BODY[] {1}\nU: x UID 8)\nU: m1 OK x", lambda c: body_of(c, 7))


async def test_pieces_are_views_and_what_follows_is_kept(autojump_clock: object) -> None:
    async def use(client: ImapClient) -> list[object]:
        await client.begin_body(7)
        pieces: list[object] = []
        while (piece := await client.next_piece()) is not None:
            pieces.append(bytes(piece) if isinstance(piece, bytes) else type(piece))
        await client.noop()
        return pieces

    script = "G: m1 <*>\nU: * 1 FETCH (UID 7 BODY[] {6}\\r\\nabc\\\nwait: 1\nU: def)\\r\\nm1 OK\nG: m2 NOOP\nU: m2 OK"
    assert await playing(script, use) == [b"abc", memoryview]


async def test_a_server_that_must_not_be_hurried() -> None:
    async def use(client: ImapClient) -> bytes:
        client.ask_body(3)
        await client.store([1, 3], b"\\Deleted")
        await client.store(range(1, 900, 2), b"\\Deleted")
        return await body_of(client, 3)

    script = "G: m1 UID STORE 1,3 +FLAGS.SILENT (\\x5cDeleted)\nU: m1 OK\n"
    for tag in (2, 3):
        script += f"G: m{tag} UID STORE <*>\nsilent: upstream\nU: m{tag} OK\n"
    script += "G: m4 UID FETCH 3 <*>\nU: * 3 FETCH (UID 3 BODY[] {1}\nU: 3)\nU: m4 OK x"
    assert await playing(script, use, quirks=frozenset({"no-pipelining"})) == b"3"


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


# -------------------------------------------------------------------- the session


async def test_enable_and_noop() -> None:
    async def use(client: ImapClient) -> frozenset[str]:
        enabled = await client.enable("QRESYNC", "UTF8=ACCEPT")
        await client.noop()
        return enabled

    script = "G: m1 ENABLE QRESYNC UTF8=ACCEPT\nU: * ENABLED qresync UTF8=ACCEPT\nU: m1 OK\nG: m2 NOOP\nU: m2 OK"
    assert await playing(script, use) == {"QRESYNC", "UTF8=ACCEPT"}


async def test_what_was_received_behind_the_login_counts() -> None:
    script = "G: m1 NOOP\nU: m1 OK"

    async def use(client: ImapClient) -> frozenset[str]:
        await client.noop()
        return client.capabilities

    assert await playing(script, use, residual=b"* CAPABILITY idle\r\n") == {"IDLE"}


ENDS = {
    "BYE": "U: * BYE [UNAVAILABLE] later",
    "endless BYE": "U: * BYE\\r\\n* BYE\\r\\n* BYE",
    "the end": "close: upstream",
    "a reset": "reset: upstream",
    "silence": "wait: 61",
    "nonsense": "U: nonsense",
    "another tag": "U: m77 OK",
    "a number that is none": "U: * 999999999999999999999 EXISTS",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_the_connection_is_lost(end: str, autojump_clock: object) -> None:
    async def use(client: ImapClient) -> None:
        with pytest.raises(UpstreamLost):
            await client.noop()
        assert not client.alive
        with pytest.raises(UpstreamLost):
            await client.noop()
        await client.logout()

    await playing(f"G: m1 NOOP\n{end}", use)


async def test_the_connection_is_lost_in_a_message() -> None:
    with pytest.raises(UpstreamLost):
        await playing("G: m1 <*>\nU: * 1 FETCH (UID 7 BODY[] {9}\nU: x\nclose: upstream", lambda c: body_of(c, 7))


@pytest.mark.parametrize("said", ["* OK [UIDVALIDITY 78] new", "* OK [CLOSED] gone", "[UIDVALIDITY 78] new"])
async def test_the_mailbox_changed(said: str) -> None:
    async def use(client: ImapClient) -> None:
        await client.select(b"INBOX")
        with pytest.raises(MailboxChanged):
            await client.noop()
        assert not client.alive

    await playing(selecting(1) + f"G: m2 NOOP\nU: {said}\nU: m2 OK", use)


async def test_the_same_uidvalidity_again_is_no_change() -> None:
    async def use(client: ImapClient) -> int:
        await client.select(b"INBOX")
        await client.noop()
        return client.exists

    assert await playing(selecting(1) + "G: m2 NOOP\nU: * OK [UIDVALIDITY 77] x\nU: * 4 EXISTS\nU: m2 OK", use) == 4


async def test_a_command_that_was_cancelled_ends_the_connection(autojump_clock: object) -> None:
    async def use(client: ImapClient) -> None:
        with trio.move_on_after(1):
            await client.noop()
        with pytest.raises(UpstreamLost):
            await client.noop()

    await playing("G: m1 NOOP\nwait: 2", use)


async def test_silence_is_measured_from_the_last_byte(autojump_clock: object) -> None:
    script = "G: m1 NOOP\nwait: 50\nU: * OK still here\nwait: 50\nU: m1 OK"
    await playing(script, lambda client: client.noop())


@pytest.mark.parametrize("answer", ["U: * BYE bye\\x0d\\x0am1 OK", "U: m1 OK", "close: upstream", "wait: 6"])
async def test_goodbye(answer: str, autojump_clock: object) -> None:
    await playing(f"G: m1 LOGOUT\n{answer}", lambda client: client.logout())


async def test_goodbye_in_the_middle_of_a_message_waits_for_nothing() -> None:
    async def use(client: ImapClient) -> None:
        await client.begin_body(7)
        await client.logout()

    await playing("G: m1 <*>\nU: * 1 FETCH (UID 7 BODY[] {9}\nclosed: upstream", use)


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


async def test_a_mailbox_is_made() -> None:
    await playing('G: m1 CREATE "Gel&APY-scht"\nU: m1 OK done', lambda client: client.create("Gelöscht"))
