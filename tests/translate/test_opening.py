"""The maildrop is opened: little is asked where much is known, nothing is missed, no failure is an empty maildrop."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from mailgate.config.pop3 import Pop3Policy
from mailgate.errors import MailgateError
from mailgate.translate.imap_client import MailboxChanged, Refused
from mailgate.translate.memory import FolderMemory
from mailgate.translate.opening import Opened, open_maildrop
from mailgate.translate.refusals import refusal_for
from mailgate.translate.store import NoStore
from mailgate.translate.store_backend import StoreFailed
from mailgate.translate.uidl import folder_prefix, header_hash
from tests.support.memories import Kept
from tests.translate.mailboxes import Mailbox, Message, Server

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()


async def opened(server: Server, kept: Kept | None = None, /, *folders: bytes, **policy: object) -> Opened:
    server.heard.clear()
    found: Opened | None = None
    failed: Exception | None = None
    async with server.client() as client:
        try:
            wanted = Pop3Policy.model_validate(policy)
            found = await open_maildrop(client, wanted, kept or NoStore().of(b""), folders or (b"INBOX",), NOW)
        except Exception as error:
            failed = error
    if failed is not None:
        raise failed
    assert found is not None
    return found


def uids(found: Opened) -> list[int]:
    return [found.maildrop.uid(number) for number in range(1, found.maildrop.total + 1)]


def uidls(found: Opened) -> list[bytes]:
    return [found.maildrop.uidl(number) for number in range(1, found.maildrop.total + 1)]


def sizes(found: Opened) -> list[int]:
    return [found.maildrop.size(number) for number in range(1, found.maildrop.total + 1)]


def filled(count: int, **mailbox: object) -> Server:
    server = Server({b"INBOX": Mailbox(**mailbox)})  # type: ignore[arg-type]
    for _ in range(count):
        server.inbox.append()
    return server


async def test_a_mailbox_is_opened() -> None:
    server = filled(3)
    server.inbox.append("\\Deleted", gap=4)
    found = await opened(server)
    assert uids(found) == [1, 2, 3]
    assert uidls(found) == [b"0000000100000007", b"0000000200000007", b"0000000300000007"]
    assert sizes(found) == [len(one.body.replace(b"\n", b"\r\n")) for one in server.inbox.messages[:3]]
    assert found.folders[0].selected.uidvalidity == 7
    assert found.notes == ()
    assert uids(await opened(server, show_deleted=True)) == [1, 2, 3, 8]


async def test_an_empty_mailbox_is_not_fetched() -> None:
    server = Server()
    found = await opened(server, Kept())
    assert found.maildrop.total == 0
    assert server.heard == ['SELECT "INBOX"']


async def test_read_only_examines() -> None:
    server = filled(1)
    await opened(server, read_only=True)
    assert server.heard[0] == 'EXAMINE "INBOX"'


async def test_a_keyword_hides() -> None:
    server = filled(3)
    server.inbox.flag(server.inbox.messages[1], "$POP3Deleted")
    kept = Kept()
    assert uids(await opened(server, kept, delete="keyword")) == [1, 3]
    server.inbox.flag(server.inbox.messages[0], "$POP3Deleted")
    assert uids(await opened(server, kept, delete="keyword")) == [3]
    assert server.heard[1:] == ["UID SEARCH OR DELETED KEYWORD $POP3Deleted"]
    assert uids(await opened(server, kept, delete="keyword", show_deleted=True)) == [3]
    assert uids(await opened(server, kept)) == [1, 2, 3]


# -------------------------------------------------------------------- little is asked where much is known


async def test_nothing_is_asked_where_nothing_changed() -> None:
    server, kept = filled(5), Kept()
    first = await opened(server, kept)
    saves = kept.saves
    again = await opened(server, kept)
    assert server.heard == ['SELECT "INBOX"']
    assert kept.saves == saves
    assert (uids(again), uidls(again), sizes(again)) == (uids(first), uidls(first), sizes(first))


async def test_only_what_is_new_is_fetched() -> None:
    server, kept = filled(5), Kept()
    await opened(server, kept)
    server.inbox.append()
    server.inbox.flag(server.inbox.messages[0], "\\Deleted")
    assert uids(await opened(server, kept)) == [2, 3, 4, 5, 6]
    assert server.heard[1:] == ["UID FETCH 6:* (UID FLAGS RFC822.SIZE)", "UID SEARCH DELETED"]


async def test_what_vanished_is_found_by_the_count() -> None:
    server, kept = filled(5), Kept()
    await opened(server, kept)
    server.inbox.expunge(server.inbox.messages[1])
    server.inbox.append()
    found = await opened(server, kept)
    assert uids(found) == [1, 3, 4, 5, 6]
    assert sizes(found) == sizes(await opened(server))
    server.inbox.expunge(*server.inbox.messages[3:])
    assert uids(await opened(server, kept)) == [1, 3, 4]
    assert server.heard[1:] == ["UID SEARCH DELETED", "UID SEARCH UID 1:6"]


async def test_what_this_session_removed_needs_no_question() -> None:
    server, kept = filled(5), Kept()
    found = await opened(server, kept)
    server.inbox.expunge(*server.inbox.messages[:2])
    found.removed({0: [1, 2]})
    await found.remember(kept)
    assert uids(await opened(server, kept)) == [3, 4, 5]
    assert server.heard[1:] == ["UID SEARCH DELETED"]


@pytest.mark.parametrize("tells", [{"tells_uidnext": False}, {"tells_modseq": False}])
async def test_a_server_that_tells_less_is_asked_more(tells: dict[str, bool]) -> None:
    server, kept = filled(4, **tells), Kept()
    await opened(server, kept)
    server.inbox.expunge(server.inbox.messages[3])
    server.inbox.append(gap=2)
    server.inbox.flag(server.inbox.messages[0], "\\Deleted")
    assert uids(await opened(server, kept)) == [2, 3, 7]


class Race(Exception):
    pass


@pytest.mark.parametrize("command", ["UID FETCH", "UID SEARCH DELETED", "UID SEARCH UID"])
@pytest.mark.parametrize("does", ["append", "expunge old", "expunge new", "both"])
async def test_others_change_the_mailbox_while_it_is_opened(command: str, does: str) -> None:
    server, kept = filled(4), Kept()
    await opened(server, kept)
    inbox = server.inbox
    inbox.expunge(inbox.messages[0])
    new = inbox.append()

    def act() -> None:
        if does in ("append", "both"):
            inbox.append()
        if does in ("expunge old", "both"):
            inbox.expunge(inbox.messages[0])
        if does == "expunge new":
            inbox.expunge(new)

    server.before[command] = act
    found = uids(await opened(server, kept))
    # What came or went meanwhile may be there or not; everything else must be.
    assert {3, 4} <= set(found) <= {2, 3, 4, 5, 6}
    assert found == sorted(set(found))
    assert not server.before
    assert uids(await opened(server, kept)) == [one.uid for one in inbox.messages]


# -------------------------------------------------------------------- UIDLs


async def test_a_changed_template_is_for_new_messages_alone() -> None:
    server, kept = filled(2), Kept()
    await opened(server, kept)
    server.inbox.append()
    assert uidls(await opened(server, kept, uidl="uw")) == [
        b"0000000100000007",
        b"0000000200000007",
        b"0000000700000003",
    ]


async def test_uidls_of_emailids_are_fetched_once_and_duplicates_keep_their_numbers() -> None:
    server, kept = Server(), Kept()
    for identity in (5, 6, 5):
        server.inbox.append(identity=identity)
    assert uidls(await opened(server, kept, uidl="{emailid}")) == [b"M5", b"M6", b"M5-2"]
    assert server.heard[1:] == ["UID FETCH 1:* (UID FLAGS RFC822.SIZE EMAILID)"]
    server.inbox.expunge(server.inbox.messages[0])
    server.inbox.append(identity=5)
    assert uidls(await opened(server, kept, uidl="{emailid}")) == [b"M6", b"M5-2", b"M5-3"]
    assert server.heard[1] == "UID FETCH 4:* (UID FLAGS RFC822.SIZE EMAILID)"
    assert uidls(await opened(server, kept, uidl="dovecot")) == [b"M6", b"M5-2", b"M5-3"]


async def test_uidls_of_gmail() -> None:
    server = filled(1)
    server.capabilities |= {"X-GM-EXT-1"}
    assert uidls(await opened(server, uidl="gmail")) == [b"GmailId1000000000000001"]


@pytest.mark.parametrize(
    ("uidl", "sticky", "note"),
    [("dovecot", False, "uids_not_sticky"), ("gmail", True, "no_gm_msgid"), ("{emailid}", True, "no_emailid")],
)
async def test_headers_stand_in_where_the_template_cannot_be_used(uidl: str, sticky: bool, note: str) -> None:
    server = filled(2, sticky=sticky)
    server.capabilities = frozenset({"IMAP4REV1"})
    found = await opened(server, uidl=uidl)
    assert found.notes == (note,)
    assert uidls(found) == [
        header_hash(b"Message-ID: <%d@example.org>\nSubject: %d\n" % (n, n)).hex().encode() for n in (1, 2)
    ]


async def test_uids_that_do_not_last_are_found_again_by_their_headers() -> None:
    server, kept = filled(2, sticky=False), Kept()
    copy = server.inbox.append(identity=1)
    before = dict(zip(server.inbox.messages, uidls(await opened(server, kept)), strict=True))
    assert before[copy].endswith(b"-2")
    for _ in range(3):
        server.inbox.append()
        server.inbox.messages.sort(key=lambda one: one.number == 2)
        server.inbox.renumber(7)
        now = dict(zip(server.inbox.messages, uidls(await opened(server, kept)), strict=True))
        assert {one: now[one] for one in before} == before


async def test_uidls_are_carried_over_a_change_of_uidvalidity() -> None:
    server, kept = filled(3), Kept()
    before = dict(zip(server.inbox.messages, uidls(await opened(server, kept, uidl="{emailid}")), strict=True))
    gone = server.inbox.messages[0]
    server.inbox.expunge(gone)
    server.inbox.messages.reverse()
    server.inbox.renumber(8)
    server.inbox.append()
    # The template is another by now, and still what clients have seen is kept.
    found = await opened(server, kept, uidl="dovecot")
    third, second, _ = server.inbox.messages
    assert uidls(found) == [before[third], before[second], b"0000000300000008"]
    assert uidls(await opened(server, kept, uidl="dovecot")) == uidls(found)
    assert server.heard == ['SELECT "INBOX"']


async def test_a_server_set_back_does_not_give_seen_uidls_to_new_messages() -> None:
    server, kept = filled(5), Kept()
    before = uidls(await opened(server, kept))
    server.inbox.expunge(*server.inbox.messages[3:])
    server.inbox.uidnext = 4
    server.inbox.append()
    now = uidls(await opened(server, kept))
    assert now == [*before[:3], b"0000000400000007-2"]


async def test_several_folders() -> None:
    server, kept = filled(2), Kept()
    archive = server.folders[b"Archive"] = Mailbox()
    for _ in range(2):
        archive.append()
    found = await opened(server, kept, b"INBOX", b"Archive")
    prefix = folder_prefix(b"Archive")
    assert uidls(found) == [b"0000000100000007", b"0000000200000007"] + [prefix + b"%08x00000007" % n for n in (1, 2)]
    assert uids(found) == [1, 2, 1, 2]
    assert found.maildrop.folder(3) == 1
    # Their order may change, and a folder be opened alone: what was seen stays.
    again = await opened(server, kept, b"Archive", b"INBOX")
    assert uidls(again) == uidls(found)[2:] + uidls(found)[:2]
    assert uidls(await opened(server, kept, b"Archive")) == uidls(found)[2:]


async def test_folders_that_were_opened_alone_before_are_merged() -> None:
    server, kept = filled(2), Kept()
    server.folders[b"Archive"] = Mailbox(messages=[Message(2, 1), Message(3, 2)], uidnext=4)
    await opened(server, kept)
    await opened(server, kept, b"Archive")
    found = uidls(await opened(server, kept, b"INBOX", b"Archive"))
    assert found == [b"0000000100000007", b"0000000200000007", b"0000000200000007-2", b"0000000300000007"]
    assert uidls(await opened(server, kept, b"INBOX", b"Archive")) == found
    # When the one is gone, the other's id does not become its: a client would take it for what it has.
    server.inbox.expunge(server.inbox.messages[1])
    assert uidls(await opened(server, kept, b"INBOX", b"Archive")) == [found[0], *found[2:]]


async def test_what_another_session_saved_sooner_is_kept_apart_from_another_mailbox_too() -> None:
    class Late(Kept):
        async def save(self, folder: bytes, memory: FolderMemory) -> FolderMemory:
            if folder == b"Archive" and folder not in self.records:
                other = FolderMemory(7)
                other.name({2: (b"0000000200000007", b"")})
                memory = memory.merged(other)
            return await super().save(folder, memory)

    server, kept = filled(2), Late()
    server.folders[b"Archive"] = Mailbox(messages=[Message(2, 1)], uidnext=3)
    for _ in range(2):
        found = uidls(await opened(server, kept, b"INBOX", b"Archive"))
        assert found == [b"0000000100000007", b"0000000200000007", b"0000000200000007-2"]


async def test_a_session_that_saw_another_uidvalidity_and_saved_sooner_ends_this_one() -> None:
    class Late(Kept):
        async def save(self, folder: bytes, memory: FolderMemory) -> FolderMemory:
            other = FolderMemory(8)
            other.name({1: (b"other", b"")})
            return await super().save(folder, memory.merged(other))

    with pytest.raises(MailboxChanged):
        await opened(filled(2), Late())


async def test_a_server_that_goes_back_to_an_earlier_uidvalidity_shows_what_it_showed() -> None:
    server, kept = filled(6), Kept()
    first = uidls(await opened(server, kept, max_messages=4))
    server.inbox.uidvalidity = 9
    assert not {*uidls(await opened(server, kept, max_messages=2))} & {*first}
    server.inbox.uidvalidity = 7
    assert uidls(await opened(server, kept, max_messages=2)) == first


# -------------------------------------------------------------------- windows and sizes


async def test_a_window_opens_for_what_is_imported_after_the_first_login() -> None:
    server, kept = filled(6), Kept()
    assert uids(await opened(server, kept, max_messages=2)) == [5, 6]
    memory = await kept.load(b"INBOX")
    assert memory is not None
    memory.name({2: (b"gone", b""), 3: (b"old", b"")}, exact=True)
    await kept.save(b"INBOX", memory)
    server.inbox.expunge(server.inbox.messages[1])
    found = await opened(server, kept, max_messages=2)
    assert uids(found) == [3, 4, 5, 6]
    assert uidls(found)[0] == b"old"


async def test_a_window_of_messages_never_closes_over_what_was_shown() -> None:
    server, kept = filled(6), Kept()
    assert uids(await opened(server, kept, max_messages=3)) == [4, 5, 6]
    server.inbox.append()
    assert uids(await opened(server, kept, max_messages=3)) == [4, 5, 6, 7]
    server.inbox.expunge(server.inbox.messages[3])
    assert uids(await opened(server, kept, max_messages=1)) == [5, 6, 7]
    assert uids(await opened(server, kept, max_messages=5)) == [2, 3, 5, 6, 7]
    assert uids(await opened(server, kept)) == [1, 2, 3, 5, 6, 7]
    assert uids(await opened(server, kept, max_messages=1)) == [1, 2, 3, 5, 6, 7]


async def test_a_window_of_time() -> None:
    server, kept = Server(), Kept()
    for day in (1, 10, 20, 5, 22):
        server.inbox.append(day=date(2026, 11, day))
    assert uids(await opened(server, kept, max_age=4 * 86400.0)) == [3, 4, 5]
    assert server.heard[-1] == "UID SEARCH SINCE 18-Nov-2026"
    assert uids(await opened(server, kept, max_age=86400.0)) == [3, 4, 5]
    assert uids(await opened(server, kept, max_age=22 * 86400.0)) == [1, 2, 3, 4, 5]


async def test_a_window_of_time_with_nothing_in_it() -> None:
    server, kept = Server(), Kept()
    server.inbox.append(day=date(2026, 1, 1))
    server.capabilities |= {"WITHIN"}
    server.refuse["UID SEARCH YOUNGER 3600"] = "OK nothing"
    assert uids(await opened(server, kept, max_age=3600.0)) == []
    assert kept.records


async def test_sizes() -> None:
    server, kept = filled(12), Kept()
    for message in server.inbox.messages:
        message.told = 999
    right = [len(one.body.replace(b"\n", b"\r\n")) for one in server.inbox.messages]
    assert sizes(await opened(server, kept)) == [999] * 12
    found = await opened(server, kept, size="cache")
    found.measured(3, right[2])
    await found.remember(kept)
    assert sizes(await opened(server, kept, size="cache"))[:4] == [999, 999, right[2], 999]
    assert sizes(await opened(server, kept, size="exact")) == right
    assert sum("BODY.PEEK[]" in command for command in server.heard) == 11
    assert sizes(await opened(server, kept, size="exact")) == right
    assert server.heard == ['SELECT "INBOX"']


async def test_a_message_that_vanishes_while_sizes_are_counted_keeps_the_told_one() -> None:
    server = filled(3)
    server.before["UID FETCH 2 "] = lambda: server.inbox.expunge(server.inbox.messages[1])
    assert len(sizes(await opened(server, size="exact"))) == 3


# -------------------------------------------------------------------- never an empty maildrop


@pytest.mark.parametrize("command", ["SELECT", "UID FETCH 1:", "UID FETCH 4:", "UID SEARCH"])
@pytest.mark.parametrize("answer", ["NO [UNAVAILABLE] x", "BAD x", "", "OK [CLOSED] x"])
async def test_every_failure_is_an_error(command: str, answer: str) -> None:
    server, kept = filled(3), Kept()
    if command in ("UID FETCH 4:", "UID SEARCH"):
        await opened(server, kept)
        server.inbox.append()
    server.refuse[command] = answer
    try:
        found = await opened(server, kept)
    except MailgateError as error:
        assert refusal_for(error).pop3_code == "SYS/TEMP"  # noqa: PT017
    else:
        assert answer.startswith("OK")
        assert found.maildrop.total


@pytest.mark.parametrize(
    ("said", "listed", "code"),
    [
        ("NO there is none", "OK done", "NONEXISTENT"),
        ("NO there is none", "NO never", ""),
        ("NO [NOPERM] x", "OK done", "NOPERM"),
    ],
)
async def test_a_mailbox_that_is_not_there_is_told_from_one_that_cannot_be_had(
    said: str, listed: str, code: str
) -> None:
    server = filled(1)
    server.refuse = {"SELECT": said, "LIST": listed}
    with pytest.raises(Refused) as caught:
        await opened(server, Kept())
    assert caught.value.code == code


async def test_a_store_that_fails_is_an_error() -> None:
    kept = Kept()
    kept.fails = True
    with pytest.raises(StoreFailed):
        await opened(filled(1), kept)


# -------------------------------------------------------------------- many logins


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_a_uidl_once_shown_stays_with_its_message(seed: int) -> None:
    trio.run(many_logins, seed)


async def many_logins(seed: int) -> None:
    rng = random.Random(seed)
    server, kept = filled(rng.randrange(6), tells_uidnext=rng.random() < 0.8, tells_modseq=rng.random() < 0.7), Kept()
    inbox = server.inbox
    shown: dict[Message, bytes] = {}
    # Copies of one message cannot be told apart then.
    renumbers = rng.random() < 0.3
    policy: dict[str, object] = {}
    for _ in range(12):
        for _ in range(rng.randrange(4)):
            inbox.append(identity=None if renumbers else rng.randrange(1, 4), gap=rng.randrange(2))
        for message in rng.sample(inbox.messages, min(len(inbox.messages), rng.randrange(3))):
            if rng.random() < 0.5:
                inbox.expunge(message)
            else:
                inbox.flag(message, "\\Deleted")
        if rng.random() < 0.4:
            policy = {
                "uidl": rng.choice(["dovecot", "uw", "cyrus-old", "{emailid}", "{header_sha1}", "{message_id}"]),
                "max_messages": rng.choice([0, 0, 2, 4]),
                "size": rng.choice(["trust", "exact"]),
            }
        keeps = policy.get("uidl", "dovecot") in ("{emailid}", "{header_sha1}", "{message_id}")
        if renumbers and rng.random() < 0.3 and keeps and not (await kept.load(b"INBOX") or FolderMemory(0)).spans:
            inbox.renumber(inbox.uidvalidity + 1)
        found = await opened(server, kept, **policy)
        fresh = await opened(server, **{**policy, "max_messages": 0})
        by_uid = {message.uid: message for message in inbox.messages}
        now = dict(zip([by_uid[uid] for uid in uids(found)], uidls(found), strict=True))
        assert len(set(now.values())) == len(now)
        assert set(uids(found)) <= set(uids(fresh))
        right = dict(zip(uids(fresh), sizes(fresh), strict=True))
        assert sizes(found) == [right[uid] for uid in uids(found)]
        if not policy.get("max_messages"):
            assert uids(found) == uids(fresh)
        owners = {uidl: message for message, uidl in shown.items()}
        for message, uidl in now.items():
            assert shown.get(message, uidl) == uidl
            assert owners.get(uidl, message) is message
        for message in shown:
            assert message in now or message not in inbox.messages or "\\Deleted" in message.flags
        shown |= now
