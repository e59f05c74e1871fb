"""From a POP3 login to an open maildrop on an IMAP server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mailgate import translating
from mailgate.errors import UpstreamFailed
from mailgate.events import LimitStruck, MaildropClosed, MaildropOpened, UpstreamRefused
from mailgate.model import End, Failure, Login, Mechanism, Peer, Protocol, Route, Secret, Session, Side
from mailgate.session.dialogue import SignedIn
from mailgate.translate.imap_client import Refused
from mailgate.translate.opening import open_maildrop
from mailgate.translate.store_backend import StoreFailed
from mailgate.translating import CAPABILITIES, LIMITED_SECONDS, Stores, asked_folder, split
from tests.session.conftest import (
    OAUTHBEARER,
    PLAIN,
    XOAUTH2,
    FakeSignedIn,
    World,
    b64,
)
from tests.support.dialogue import Wire
from tests.support.mailbox import Folder
from tests.support.translated import IN, LOGIN, Machine, client, client_beside, configured

# -------------------------------------------------------------------- signing in


@pytest.mark.parametrize(
    "script",
    [
        "C: USER joe\nS: +OK <*>\nC: PASS secret",
        f"C: AUTH PLAIN {PLAIN}",
        f"C: AUTH PLAIN\nS: + <*>\nC: {PLAIN}",
        f"C: AUTH LOGIN\nS: + <*>\nC: {b64('joe')}\nS: + <*>\nC: {b64('secret')}",
        f"C: AUTH XOAUTH2 {XOAUTH2}",
        f"C: AUTH OAUTHBEARER {OAUTHBEARER}",
        f"C: AUTH PLAIN {b64('anna' + chr(0) + 'joe' + chr(0) + 'secret')}",
    ],
)
async def test_every_way_to_sign_in_leads_to_the_maildrop(autojump_clock: object, script: str) -> None:
    async with client(Machine()) as world:
        await world.stage.play(f"S: +OK <*>\n{script}\nS: +OK Logged in\nC: STAT\nS: +OK 3 81\nC: QUIT\nS: +OK Bye")
    assert world.end == End(Side.CLIENT, "logged_out")
    assert world.told == (
        "MaildropOpened SessionEstablished CommandFinished(STAT ok) CommandFinished(QUIT ok) "
        "SessionClosed(client logged_out)"
    )


async def test_a_session_from_its_login_to_quit(autojump_clock: object) -> None:
    machine = Machine()
    async with client(machine) as world:
        await world.stage.play(f"""
            {IN}
            C: RETR 2
            S: +OK 27 octets
            S: Subject: mail 2
            S:
            S: mail 2
            S: .
            C: DELE 2
            S: +OK <*>
            C: QUIT
            S: +OK Bye
        """)
    assert machine.store.inbox.contents() == ["mail 1", "mail 3"]
    assert machine.store.removed == [(b"INBOX", "mail 2")]
    closed = next(event for event in world.stage.events if isinstance(event, MaildropClosed))
    assert (closed.removed, closed.kept) == (1, 0)
    (opened,) = [event for event in world.stage.events if isinstance(event, MaildropOpened)]
    assert (opened.messages, opened.octets, opened.notes) == (3, 81, ())


async def test_the_password_is_wrong(autojump_clock: object) -> None:
    async with client(Machine()) as world:
        world.dial_fails = [Failure.AUTH_REJECTED, Failure.CONNECT]
        await world.stage.play(f"""
            {LOGIN}
            S: -ERR [AUTH] Authentication failed.
            C: USER joe
            S: +OK <*>
            C: PASS secret
            S: -ERR [SYS/TEMP] <*>
            C: USER joe
            S: +OK <*>
            C: PASS secret
            S: +OK Logged in
        """)


async def test_what_came_behind_the_password(autojump_clock: object) -> None:
    machine = Machine()
    async with client(machine) as world:
        await world.stage.client.stream.send_all(b"USER joe\r\nPASS secret\r\nSTAT\r\nDELE 1\r\nQUIT\r\n")
        await world.stage.play("S: +OK <*>\nS: +OK <*>\nS: +OK Logged in\nS: +OK 3 81\nS: +OK <*>\nS: +OK Bye")
    assert len(machine.store.inbox.mails) == 2


async def test_stls_and_a_second_login_are_over(autojump_clock: object) -> None:
    async with client(Machine(), tls="starttls-optional") as world:
        await world.stage.play(f"{IN}\nC: STLS\nS: -ERR [SYS/PERM] <*>\nC: USER joe\nS: -ERR [SYS/PERM] <*>")


async def test_notes_of_the_opening_are_told(autojump_clock: object) -> None:
    machine = Machine()
    machine.store.inbox.sticky = False
    async with client(machine) as world:
        await world.stage.play(f"{IN}")
    (opened,) = [event for event in world.stage.events if isinstance(event, MaildropOpened)]
    assert opened.notes == ("uids_not_sticky",)


@pytest.mark.parametrize("answers", [True, False])
async def test_utf8_is_enabled_over_every_connection(autojump_clock: object, answers: bool) -> None:
    machine = Machine(capabilities="UIDPLUS UTF8=ACCEPT")
    enabled = []
    async with client(machine) as world:
        dial = world.dial

        async def watched() -> SignedIn:
            signed_in = await dial()
            send = signed_in.stream.send_all

            async def send_all(data: Any) -> None:
                if bytes(data).split()[1:2] == [b"ENABLE"]:
                    enabled.append(bytes(data))
                    if not answers:
                        data = data.replace(b"ENABLE", b"ENBALE")
                await send(data)

            signed_in.stream.send_all = send_all  # type: ignore[method-assign]
            return signed_in

        world.dial = watched  # type: ignore[method-assign]
        await world.stage.play(f"S: +OK <*>\nC: UTF8\nS: +OK <*>\n{LOGIN.split(chr(10), 2)[2]}\nS: +OK Logged in")
        machine.wires[0].reset()
        await world.stage.play("C: RETR 1\nS: +OK <*>\nS: Subject: mail 1\nS:\nS: mail 1\nS: .")
    assert enabled == [b"m1 ENABLE UTF8=ACCEPT\r\n"] * 2


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_server_that_goes_when_utf8_is_enabled(autojump_clock: object, cancelled: bool) -> None:
    machine = Machine(capabilities="UIDPLUS UTF8=ACCEPT")
    world = machine.world()
    login = Login(Protocol.POP3, b"joe", Secret(b"x"), Mechanism.COMMAND, utf8=True)
    policy = machine.config.pop3
    near, far = trio.testing.memory_stream_pair()
    wire = Wire(near)

    async def dial() -> SignedIn:
        await trio.lowlevel.checkpoint()
        if not cancelled:
            await far.aclose()
        return FakeSignedIn(wire, capabilities=machine.store.capabilities)

    session = Session("s", Protocol.POP3, "test", Peer("192.0.2.1", 4711), 0.0)
    failed: list[UpstreamFailed] = []
    with trio.move_on_after(1) as scope:
        try:
            await world.translating.open(policy, login, session, dial, None)
        except UpstreamFailed as error:
            failed.append(error)
    assert scope.cancelled_caught is cancelled
    assert [error.failure for error in failed] == ([] if cancelled else [Failure.AUTH_TEMPORARY])
    assert wire.closed


# -------------------------------------------------------------------- refused before it is open


@pytest.mark.parametrize(
    ("refused", "reply"),
    [
        (Refused("NO", "NONEXISTENT", "x"), "[SYS/PERM] There is no such mailbox."),
        (Refused("NO", "NOPERM", "x"), "[SYS/PERM] The mailbox may not be opened."),
        (Refused("NO", "INUSE", "x"), "[IN-USE] The mailbox is in use by another session."),
        (Refused("NO", "LIMIT", "x"), "[SYS/TEMP] Too much was asked of the mail server, wait."),
        (Refused("NO", "", "x"), "[SYS/TEMP] The mailbox is not available at the moment."),
    ],
)
async def test_a_mailbox_that_cannot_be_opened_is_never_an_empty_one(
    autojump_clock: object, refused: Refused, reply: str
) -> None:
    machine = Machine()

    def refuse() -> None:
        raise refused

    machine.store.between[1] = refuse
    async with client(machine) as world:
        await world.stage.play(f"{LOGIN}\nS: -ERR {reply}")
        assert [wire.closed for wire in machine.wires] == [True]
        machine.clock.now += LIMITED_SECONDS
        # The connection goes on, and so may the next try.
        await world.stage.play("C: USER joe\nS: +OK <*>\nC: PASS secret\nS: +OK Logged in\nC: STAT\nS: +OK 3 81")
    told = [event for event in world.stage.events if isinstance(event, UpstreamRefused)]
    assert [(event.state, event.reached) for event in told] == [("maildrop/login", True)]


@pytest.mark.parametrize("command", [1, 2])
async def test_a_server_that_goes_while_the_maildrop_is_opened(autojump_clock: object, command: int) -> None:
    machine = Machine()
    machine.store.faults[command] = "before"
    async with client(machine) as world:
        await world.stage.play(f"{LOGIN}\nS: -ERR [SYS/TEMP] The mailbox is not available at the moment.")


async def test_a_servers_limit_is_a_login_delay_where_there_is_one(autojump_clock: object) -> None:
    machine = Machine(login_delay="60s")
    machine.store.faults[1] = "no"
    async with client(machine) as world:
        await world.stage.play(f"{LOGIN}\nS: -ERR [LOGIN-DELAY] Too much was asked of the mail server, wait.")


async def test_a_server_that_limits_a_user_is_left_alone_for_a_minute(autojump_clock: object) -> None:
    machine = Machine()
    machine.store.faults[1] = "no"
    refused = f"{LOGIN}\nS: -ERR [SYS/TEMP] Too much was asked of the mail server, wait."
    async with client(machine) as world:
        await world.stage.play(refused)
    machine.clock.now += 59
    async with client(machine) as world:
        await world.stage.play(refused)
        assert len(machine.wires) == 1
    assert "LimitStruck(server_limit deny)" in world.told
    machine.clock.now += 1
    async with client(machine) as world:
        await world.stage.play(IN)


async def test_a_login_that_comes_too_soon(autojump_clock: object) -> None:
    machine = Machine(login_delay="60s")
    async with client(machine) as world:
        await world.stage.play(
            f"{IN}\nC: CAPA\nS: +OK <*>\n{CAPA_AFTER}\nS: LOGIN-DELAY 60\nS: IMPLEMENTATION <*>\nS: ."
        )
    machine.clock.now += 59
    async with client(machine) as world:
        await world.stage.play(f"{LOGIN}\nS: -ERR [LOGIN-DELAY] Too soon after the last login.")
        assert machine.wires[1].closed
        machine.clock.now += 1
        await world.stage.play("C: USER joe\nS: +OK <*>\nC: PASS secret\nS: +OK Logged in")
    assert "LimitStruck(login_delay deny) LoginRefused(login_delay) MaildropOpened" in world.told


async def test_a_login_that_fails_delays_nobody(autojump_clock: object) -> None:
    machine = Machine(login_delay="60s")
    machine.store.faults[1] = "before"
    async with client(machine) as world:
        await world.stage.play(f"{LOGIN}\nS: -ERR <*>\nC: USER joe\nS: +OK <*>\nC: PASS secret\nS: +OK Logged in")


class Failing:
    """A store that fails."""

    def of(self, owner: bytes) -> Any:
        return self

    async def load(self, folder: bytes) -> Any:
        await trio.lowlevel.checkpoint()
        raise StoreFailed("the disk is full")


async def test_a_store_that_fails_is_not_one_that_remembers_nothing(autojump_clock: object) -> None:
    async with client(Machine()) as world:
        world.translating._store = Failing()  # type: ignore[assignment]
        await world.stage.play(f"{LOGIN}\nS: -ERR [SYS/TEMP] The mailbox is not available at the moment.")
    assert "LoginRefused(store_failed)" in world.told


# -------------------------------------------------------------------- one at a time


async def test_a_second_session_is_refused(autojump_clock: object) -> None:
    machine = Machine(lock="refuse")
    async with client(machine) as first:
        await first.stage.play(IN)
        async with client_beside(machine) as second:
            await second.stage.play(f"{LOGIN}\nS: -ERR [IN-USE] Another session has this maildrop open.")
            await first.stage.play("C: QUIT\nS: +OK Bye")
            await second.stage.play("C: USER joe\nS: +OK <*>\nC: PASS secret\nS: +OK Logged in")
    assert "LimitStruck(maildrop_lock deny) LoginRefused(maildrop_in_use)" in second.told


async def test_a_second_session_waits(autojump_clock: object) -> None:
    machine = Machine()
    async with client(machine) as first:
        await first.stage.play(IN)
        async with client_beside(machine) as second:
            await second.stage.play(f"{LOGIN}\nwait: 5\nsilent: client")
            await first.stage.play("close: client")
            await second.stage.play("S: +OK Logged in")
    struck = [event for event in second.stage.events if isinstance(event, LimitStruck)]
    assert [(event.rule, event.action) for event in struck] == [("maildrop_lock", "delay")]
    assert struck[0].seconds == pytest.approx(5, abs=0.1)
    (opened,) = [event for event in second.stage.events if isinstance(event, MaildropOpened)]
    assert opened.seconds < 1


async def test_an_idle_session_is_taken_over(autojump_clock: object) -> None:
    machine = Machine(lock="takeover")
    async with client(machine) as first:
        await first.stage.play(f"{IN}\nC: DELE 1\nS: +OK <*>")
        async with client_beside(machine) as second:
            await second.stage.play(f"{IN}\nC: STAT\nS: +OK 3 81")
            await first.stage.play("closed: client")
    assert first.end == End(Side.PROXY, "taken_over")
    assert not machine.store.removed


async def test_a_session_that_is_opened_is_taken_over(autojump_clock: object) -> None:
    machine = Machine(lock="takeover")
    machine.store.faults[1] = "hang"
    machine.store.between[2] = lambda: None
    async with client(machine) as first:
        await first.stage.play(LOGIN)
        await trio.testing.wait_all_tasks_blocked()
        machine.store.faults.clear()
        async with client_beside(machine) as second:
            await second.stage.play(LOGIN)
            await trio.testing.wait_all_tasks_blocked()
            # The first hears of it when its maildrop could have been opened, and by then has no server any more.
            machine.wires[0].reset()
            await first.stage.play("S: -ERR <*>")
            await second.stage.play("S: +OK Logged in")


async def test_a_session_that_was_told_to_give_way_before_it_began(autojump_clock: object) -> None:
    machine = Machine(lock="takeover")
    async with client(machine) as first:
        opened = trio.Event()
        go_on = trio.Event()
        emit = first.translating._emit

        async def hold(*arguments: Any) -> Any:
            found = await open_maildrop(*arguments)
            opened.set()
            await go_on.wait()
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(translating, "open_maildrop", hold)
            await first.stage.play(LOGIN)
            await opened.wait()
        async with client_beside(machine) as second:
            await second.stage.play(LOGIN)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
            await first.stage.play("S: -ERR [IN-USE] Another session has taken over this maildrop.")
            await second.stage.play("S: +OK Logged in")
        assert emit


async def test_a_session_that_deletes_is_not_taken_over(autojump_clock: object) -> None:
    machine = Machine(lock="takeover")
    async with client(machine) as first:
        await first.stage.play(f"{IN}\nC: DELE 1\nS: +OK <*>")
        machine.store.faults[len(machine.store.said) + 2] = "hang"
        await first.stage.play("C: QUIT")
        await trio.testing.wait_all_tasks_blocked()
        async with client_beside(machine) as second:
            await second.stage.play(f"{LOGIN}\nwait: 5\nsilent: client")
            machine.wires[0].reset()
            await first.stage.play("S: +OK Bye")
            await second.stage.play("S: +OK Logged in\nC: STAT\nS: +OK 2 54")
    assert first.end == End(Side.CLIENT, "logged_out")


async def test_another_folder_is_another_maildrop(autojump_clock: object) -> None:
    machine = Machine(lock="refuse", login_folder="+")
    machine.store.folders[b"Entw&APw-rfe"] = Folder(uidvalidity=9)
    machine.store.folders[b"Entw&APw-rfe"].add("a draft")
    async with client(machine) as first:
        await first.stage.play(IN)
        async with client_beside(machine) as second:
            await second.stage.play(f"""
                S: +OK <*>
                C: USER joe+inbox
                S: +OK <*>
                C: PASS secret
                S: -ERR [IN-USE] <*>
                C: USER joe+Nowhere
                S: +OK <*>
                C: PASS secret
                S: -ERR [SYS/PERM] There is no such mailbox.
                C: USER joe+\\xff
                S: +OK <*>
                C: PASS secret
                S: -ERR [SYS/PERM] There is no such mailbox.
                C: AUTH PLAIN {b64("joe+Entw" + chr(0xC3) + chr(0xBC) + "rfe" + chr(0) + "master" + chr(0) + "x")}
                S: +OK Logged in
                C: STAT
                S: +OK 1 29
            """)
    assert second.login.user == b"master"


# -------------------------------------------------------------------- what is promised


CAPA_AFTER = "\n".join(f"S: {name}" for name in (*CAPABILITIES, "EXPIRE NEVER"))


async def test_what_is_promised_before_the_login_holds_behind_it(autojump_clock: object) -> None:
    machine = Machine(login_delay="90s", last=True)
    async with client(machine) as world:
        world.known = world.translating.capabilities(world.known, ["default"])
        await world.stage.play("S: +OK <*>\nC: CAPA")
        before = await lines(world)
        await world.stage.play("C: AUTH PLAIN " + PLAIN + "\nS: +OK Logged in\nC: CAPA")
        after = await lines(world)
    promised = set(before) - {"USER", "SASL PLAIN LOGIN XOAUTH2 OAUTHBEARER"}
    assert promised <= set(after)
    assert set(after) - promised == {"LAST"}
    assert {"EXPIRE NEVER", "LOGIN-DELAY 90", "UTF8", "LANG", "TOP", "UIDL", "PIPELINING"} <= promised


async def lines(world: World) -> list[str]:
    found = []
    while (line := (await world.stage.client.line()).decode()) != ".":
        found.append(line)
    return found[1:]


@pytest.mark.parametrize(
    ("known", "promised"),
    [
        ([], []),
        ([frozenset({"IMAP4REV1", "AUTH=PLAIN"})], ["AUTH=PLAIN", "LOGIN-DELAY 2"]),
    ],
)
def test_what_is_known_of_servers_adds_mechanisms(known: list[frozenset[str]], promised: list[str]) -> None:
    found = Machine(login_delay="1.5s").world().translating.capabilities(known, ["default"])
    assert [set(one) for one in found] == [{*CAPABILITIES, "EXPIRE NEVER", *promised} for _ in known]


# -------------------------------------------------------------------- who asks for which mailbox


@pytest.mark.parametrize(
    ("user", "found"),
    [
        (b"joe", None),
        (b"joe@example.org", None),
        (b"joe+Archive", (b"joe", b"Archive")),
        (b"joe+Archive+2026", (b"joe", b"Archive+2026")),
        (b"joe+Archive@example.org", (b"joe@example.org", b"Archive")),
        (b"joe@example.org+Archive", (b"joe@example.org", b"Archive")),
        (b"joe@example.org+", None),
        (b"joe+", None),
        (b"+Archive", None),
        (b"+Archive@example.org", None),
    ],
)
def test_a_user_name_that_carries_a_mailbox(user: bytes, found: tuple[bytes, bytes] | None) -> None:
    assert split(user, b"+") == found


def test_a_domain_with_a_hyphen_carries_no_mailbox() -> None:
    assert split(b"joe@my-company.example", b"-") is None
    assert split(b"joe-Archive@my-company.example", b"-") == (b"joe@my-company.example", b"Archive")


@pytest.mark.parametrize(
    ("folder", "wire"),
    [
        (b"Archive", b"Archive"),
        (b"R&D", b"R&-D"),
        (b"R&-D", b"R&-D"),
        ("Entwürfe".encode(), b"Entw&APw-rfe"),
        (b"Entw&APw-rfe", b"Entw&APw-rfe"),
        (b"\xff", None),
        (b"a\tb", None),
        (b"x" * 255, b"x" * 255),
        (b"x" * 256, None),
    ],
)
def test_a_mailbox_is_understood_as_people_and_servers_write_it(folder: bytes, wire: bytes | None) -> None:
    assert asked_folder(folder) == wire


def test_names_are_left_alone_where_they_are_to_be() -> None:
    login = Login(Protocol.POP3, b"joe+a", Secret(b"x"), Mechanism.COMMAND)
    imap = Login(Protocol.IMAP, b"joe+a", Secret(b"x"), Mechanism.COMMAND)
    assert Machine().world().translating.rewritten(login) is None
    folders = Machine(login_folder="+").world().translating
    assert folders.rewritten(imap) is None
    rewritten = folders.rewritten(login)
    assert rewritten is not None
    assert (rewritten[0].user, rewritten[1]) == (b"joe", b"a")


def test_imap_clients_are_not_translated() -> None:
    translated = Machine().world().translating
    assert translated.policy(Route("default", "main"), Protocol.IMAP) is None
    assert translated.policy(Route("default", "main"), Protocol.POP3) is not None
    assert translated.policy(Route("other", "main"), Protocol.POP3) is None


async def test_a_store_is_opened_once_for_all_configurations(tmp_path: Path) -> None:
    stores = Stores()
    settings = configured(store={"path": str(tmp_path / "x.sqlite")}).pop3.store
    assert stores.get(settings) is stores.get(settings)
    assert stores.get(None) is not stores.get(settings)
    await stores.aclose()
