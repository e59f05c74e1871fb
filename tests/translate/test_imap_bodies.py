"""Messages from an IMAP server, in pieces and asked for ahead: what comes, what does not, and what is dropped."""

from __future__ import annotations

import pytest

from mailgate.translate.imap_client import (
    ImapClient,
    Malformed,
    Refused,
    UpstreamLost,
    Vanished,
)
from tests.translate.imap import body_of, playing


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
