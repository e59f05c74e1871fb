"""QUIT deletes exactly what was marked, whatever goes wrong at whichever command, and reports what it left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailgate.translate.deletion import Way
from mailgate.translate.update import SOME_KEPT, Outcome
from tests.support.mailbox import Fault, Folder, Store
from tests.translate.quits import BOTH, CASES, DELETING, MAILS, MARKED, RETRIEVED, Case, Client, Marks, World, a_store


@pytest.fixture(autouse=True, params=["model", "wire"])
def _face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "face", request.param)


# ---------------------------------------------------------------- all is well


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_policy_does_what_it_says(case: Case) -> None:
    world = World(a_store(case), case)
    outcome = await world.quit()
    world.check(outcome)
    deleting = case.way is not Way.NOTHING
    assert outcome == Outcome(removed=len(MARKED) if deleting else 0, asked=True)
    removed = case.way in (Way.EXPUNGE, Way.SHUFFLE, Way.MOVE)
    mails = world.store.inbox.mails
    assert set(MARKED) & mails.keys() == (set() if removed else set(MARKED))
    assert {uid for uid, mail in mails.items() if "\\Seen" in mail.flags} == set(RETRIEVED) & mails.keys()
    if case.trash:
        trash = world.store.folders[case.trash]
        assert trash.contents() == ["mail 1", "mail 2", "mail 5"]
        assert ["\\Seen" in trash.mails[uid].flags for uid in sorted(trash.mails)] == [True, True, False]


@pytest.mark.parametrize("case", DELETING, ids=str)
async def test_many_messages_take_many_lines_of_which_none_is_long(case: Case) -> None:
    store = Store(case.capabilities)
    for number in range(1500):
        store.inbox.add(f"mail {number}")
    marks = Marks({0: range(1, 1500, 2)}, {0: range(1, 1500, 3)})
    world = World(store, case, marks)
    outcome = await world.quit()
    world.check(outcome)
    assert outcome == Outcome(removed=750, asked=True)


async def test_nothing_to_do_says_nothing() -> None:
    world = World(a_store(CASES[0]), CASES[0], Marks({}, {}))
    assert await world.quit() == Outcome()
    assert world.store.said == []


async def test_the_mark_seen_can_be_left_out() -> None:
    world = World(a_store(CASES[0]), CASES[0], Marks({}, {0: (1, 2)}))
    assert await world.quit(mark_seen="never") == Outcome()
    world.marks.deleted = {0: (5,)}
    assert (await world.quit(mark_seen="never")).removed == 1
    assert not [mail for mail in world.store.inbox.mails.values() if "\\Seen" in mail.flags]


async def test_a_copy_is_left_and_marked_seen_with_delete_never() -> None:
    case = Case(BOTH, {"delete": "never"}, Way.NOTHING)
    world = World(a_store(case), case)
    assert await world.quit() == Outcome(asked=True)
    assert len(world.store.inbox.mails) == MAILS
    assert world.store.said == ["NOOP", "UID STORE +\\Seen"]


async def test_expunge_is_four_commands_and_one_of_them_looks_back() -> None:
    world = World(a_store(CASES[0]), CASES[0], Marks({0: MARKED}, {}))
    await world.quit()
    assert world.store.said == ["NOOP", "UID STORE +\\Deleted", "UID EXPUNGE", "UID SEARCH"]


# ---------------------------------------------------------------- something goes wrong


async def commands_of(case: Case) -> int:
    world = World(a_store(case), case)
    await world.quit()
    return len(world.store.said)


@pytest.mark.parametrize("fault", ["before", "half", "torn", "after"])
@pytest.mark.parametrize("case", DELETING, ids=str)
async def test_a_connection_that_ends_at_any_command_is_replaced_and_all_is_done(case: Case, fault: Fault) -> None:
    for number in range(1, await commands_of(case) + 1):
        world = World(a_store(case), case)
        world.store.faults[number] = fault
        outcome = await world.quit()
        world.check(outcome)
        assert outcome.ok, (number, outcome)
        assert world.undone() == set()
        assert world.store.connections == 2
        assert world.store.inbox.deleted() >= {3, 6, 9}
        assert {4} <= {uid for uid, mail in world.store.inbox.mails.items() if "\\Seen" in mail.flags}
        assert not outcome.unseen


@pytest.mark.parametrize("fault", ["before", "half", "torn", "after"])
@pytest.mark.parametrize("case", DELETING, ids=str)
async def test_a_second_connection_that_ends_too_leaves_nothing_unreported(case: Case, fault: Fault) -> None:
    most = await commands_of(case) + 5
    for first in range(1, most):
        for second in range(first + 1, most + first):
            world = World(a_store(case), case)
            world.store.faults = {first: fault, second: fault}
            outcome = await world.quit()
            world.check(outcome)
            assert world.store.connections <= 2
            assert outcome.ok or outcome.detail


@pytest.mark.parametrize("fault", ["before", "half", "torn", "after"])
@pytest.mark.parametrize("case", DELETING, ids=str)
async def test_a_server_that_is_gone_leaves_nothing_unreported(case: Case, fault: Fault) -> None:
    for number in range(1, await commands_of(case) + 1):
        world = World(a_store(case), case)
        world.store.faults[number] = fault
        world.refuses = True
        outcome = await world.quit()
        world.check(outcome)
        assert "no second connection" in outcome.detail


@pytest.mark.parametrize("case", DELETING, ids=str)
async def test_a_command_that_is_refused_leaves_nothing_unreported(case: Case) -> None:
    for number in range(1, await commands_of(case) + 4):
        for other in range(number, number + 4):
            world = World(a_store(case), case)
            world.store.faults = {number: "no", other: "no"}
            outcome = await world.quit()
            world.check(outcome)
            assert world.store.connections == 1


@pytest.mark.parametrize("case", DELETING, ids=str)
async def test_a_server_that_hangs_costs_a_third_of_the_time(
    case: Case, autojump_clock: trio.testing.MockClock
) -> None:
    for number in range(1, await commands_of(case) + 1):
        world = World(a_store(case), case)
        world.store.faults[number] = "hang"
        began = trio.current_time()
        outcome = await world.quit(quit_timeout=30)
        world.check(outcome)
        assert outcome.ok
        assert trio.current_time() - began == pytest.approx(10)


@pytest.mark.parametrize("case", DELETING, ids=str)
async def test_the_time_is_limited_and_the_connection_of_no_use_then(
    case: Case, autojump_clock: trio.testing.MockClock
) -> None:
    for number in range(1, await commands_of(case) + 1):
        world = World(a_store(case), case)
        world.store.faults = {number: "hang"}

        async def never() -> Client:
            await trio.sleep_forever()
            raise AssertionError

        world.reconnect = never  # type: ignore[method-assign]
        began = trio.current_time()
        outcome = await world.quit(quit_timeout=12)
        world.check(outcome)
        assert trio.current_time() - began == pytest.approx(12)
        assert not world.client.alive
        assert "the time of 12 s was over" in outcome.detail


async def test_a_caller_that_is_cancelled_does_not_stop_it() -> None:
    world = World(a_store(CASES[0]), CASES[0])
    world.cancelled = True
    outcome = await world.quit()
    world.check(outcome)
    assert outcome.ok


async def test_a_connection_that_is_lost_already_is_replaced_first() -> None:
    world = World(a_store(CASES[0]), CASES[0])
    world.lost = True
    outcome = await world.quit()
    world.check(outcome)
    assert outcome == Outcome(removed=3, asked=True)
    assert world.store.said[0] == "SELECT"


async def test_what_is_copied_is_not_copied_again() -> None:
    case = Case("UIDPLUS", {"delete": "trash"}, Way.EXPUNGE, b"Trash")
    marks = Marks({0: range(1, 201)}, {})
    for number in range(1, 12):
        store = Store("UIDPLUS")
        store.fill(200)
        world = World(store, case, marks)
        store.faults[number] = "before"
        outcome = await world.quit()
        assert outcome.ok
        assert sorted(store.folders[b"Trash"].contents()) == sorted(f"mail {uid}" for uid in range(1, 201))


async def test_a_copy_whose_answer_was_lost_is_made_twice_rather_than_lost() -> None:
    case = Case("UIDPLUS", {"delete": "trash"}, Way.EXPUNGE, b"Trash")
    world = World(a_store(case), case, Marks({0: MARKED}, {}))
    world.store.faults[await world_number(case, "UID COPY")] = "after"
    assert (await world.quit()).ok
    assert world.store.folders[b"Trash"].contents() == ["mail 1", "mail 2", "mail 5"] * 2


async def world_number(case: Case, command: str) -> int:
    """Return at which place a command comes when all goes well and nothing is marked as seen."""
    world = World(a_store(case), case, Marks({0: MARKED}, {}))
    await world.quit()
    return world.store.said.index(command) + 1


# ---------------------------------------------------------------- the mailbox is another one


@pytest.mark.parametrize("case", DELETING, ids=str)
async def test_nothing_is_done_where_uidvalidity_has_changed(case: Case) -> None:
    world = World(a_store(case), case)
    world.meanwhile = lambda: setattr(world.store.inbox, "uidvalidity", 8)
    outcome = await world.quit()
    assert (outcome.removed, outcome.kept, outcome.unknown) == (0, 3, 0)
    assert outcome.refusal == SOME_KEPT
    assert world.store.inbox.deleted() == {3, 6, 9}
    assert len(world.store.inbox.mails) == MAILS
    assert all("\\Seen" not in mail.flags for mail in world.store.inbox.mails.values())


@pytest.mark.parametrize("case", DELETING, ids=str)
async def test_nothing_more_is_done_where_uidvalidity_changes_while_reconnecting(case: Case) -> None:
    for number in range(1, await commands_of(case) + 1):
        world = World(a_store(case), case)
        world.store.faults[number] = "before"

        def renumber(world: World = world) -> None:
            inbox = Folder(uidvalidity=8)
            for content in world.store.inbox.contents():
                inbox.add(f"new {content}")
            world.store.folders[b"INBOX"] = inbox

        original = world.reconnect

        async def reconnect(renumber: Callable[[], None] = renumber, original: Any = original) -> Client:
            renumber()
            return await original()

        world.reconnect = reconnect  # type: ignore[method-assign]
        outcome = await world.quit()
        assert all(not mail.flags for mail in world.store.inbox.mails.values())
        assert outcome.removed + outcome.kept == 3


async def test_where_uids_are_not_kept_only_the_same_connection_deletes() -> None:
    for lost in (False, True):
        store = a_store(CASES[0])
        store.inbox.sticky = False
        world = World(store, CASES[0])
        world.lost = lost
        outcome = await world.quit()
        assert (outcome.removed, outcome.kept, outcome.unknown) == ((0, 3, 0) if lost else (3, 0, 0))


async def test_a_mailbox_that_is_gone_keeps_what_was_marked() -> None:
    world = World(a_store(CASES[0]), CASES[0])
    world.lost = True
    world.meanwhile = lambda: world.store.folders.pop(b"INBOX")
    outcome = await world.quit()
    assert (outcome.removed, outcome.kept) == (0, 3)
    assert outcome.detail == "refused [NONEXISTENT]"


async def test_a_mailbox_that_became_read_only_keeps_what_was_marked() -> None:
    world = World(a_store(CASES[0]), CASES[0])
    world.lost = True
    world.meanwhile = lambda: setattr(world.store.inbox, "read_only", True)
    outcome = await world.quit()
    assert (outcome.removed, outcome.kept, outcome.unknown) == (0, 3, 0)


# ---------------------------------------------------------------- other clients


async def test_what_another_client_expunged_counts_as_removed() -> None:
    world = World(a_store(CASES[0]), CASES[0])
    world.store.vanished_refuses = True
    del world.store.inbox.mails[2]
    outcome = await world.quit()
    world.check(outcome)
    assert outcome == Outcome(removed=3, asked=True)


async def test_others_that_are_deleted_stay_where_only_a_plain_expunge_exists() -> None:
    case = Case("", {"delete": "expunge", "without_uidplus": "shuffle"}, Way.SHUFFLE)
    world = World(a_store(case), case)
    assert (await world.quit()).ok
    assert world.store.inbox.deleted() == {3, 6, 9}


async def test_others_get_their_mark_back_where_the_expunge_is_refused() -> None:
    case = Case("", {"delete": "expunge", "without_uidplus": "shuffle"}, Way.SHUFFLE)
    world = World(a_store(case), case)
    world.store.faults[await world_number(case, "EXPUNGE")] = "no"
    outcome = await world.quit()
    assert (outcome.removed, outcome.kept, outcome.unknown) == (0, 3, 0)
    assert world.store.inbox.deleted() == {3, 6, 9}


async def test_shuffling_gives_up_where_others_cannot_be_kept_apart() -> None:
    case = Case("", {"delete": "expunge", "without_uidplus": "shuffle"}, Way.SHUFFLE)
    world = World(a_store(case), case)

    def again() -> None:
        for uid in (3, 6, 9):
            world.store.inbox.mails[uid].flags.add("\\Deleted")

    world.store.between = dict.fromkeys(range(1, 30), again)
    outcome = await world.quit()
    assert (outcome.removed, outcome.kept) == (0, 3)
    assert "EXPUNGE" not in world.store.said
    assert world.store.inbox.deleted() == {3, 6, 9}


@pytest.mark.parametrize("also", [4, 5, 6, 99])
async def test_what_is_kept_can_be_seen_in_the_next_session(also: int) -> None:
    world = World(a_store(CASES[0]), CASES[0], Marks({0: MARKED}, {}))
    world.store.faults = {3: "no", also: "no"}
    outcome = await world.quit()
    world.check(outcome)
    assert outcome.removed == 0
    # Only where the server refuses this as well does the mark stay.
    assert world.store.inbox.deleted() == {3, 6, 9} | (set(MARKED) if also == 6 else set())


Act = tuple[str, int, str]
"""What another client does: it sets or takes a flag of a message, removes it, or appends one."""


def act(store: Store, what: Act) -> None:
    verb, uid, flag = what
    mail = store.inbox.mails.get(uid)
    if verb == "append":
        store.inbox.add("new")
    elif mail is not None and verb == "expunge":
        del store.inbox.mails[uid]
    elif mail is not None:
        (set.add if verb == "set" else set.discard)(mail.flags, flag)


ACTS = st.tuples(
    st.sampled_from(["set", "set", "take", "expunge", "append"]),
    st.integers(1, MAILS + 2),
    st.sampled_from(["\\Deleted", "\\Seen", "\\Flagged"]),
)
FAULTS: Sequence[Fault] = ("before", "half", "torn", "after", "no")


@pytest.mark.parametrize("case", DELETING, ids=str)
@given(
    marked=st.sets(st.integers(1, MAILS), min_size=1),
    retrieved=st.sets(st.integers(1, MAILS)),
    script=st.dictionaries(st.integers(1, 12), st.lists(ACTS, min_size=1, max_size=3)),
    faults=st.dictionaries(st.integers(1, 14), st.sampled_from(FAULTS), max_size=3),
    vanished_refuses=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_clients_and_faults_never_make_it_remove_what_was_not_marked(
    case: Case,
    marked: set[int],
    retrieved: set[int],
    script: dict[int, list[Act]],
    faults: dict[int, Fault],
    vanished_refuses: bool,
) -> None:
    store = a_store(case)
    store.faults = faults
    store.vanished_refuses = vanished_refuses
    for number, acts in script.items():
        store.between[number] = lambda acts=acts: [act(store, one) for one in acts] and None
    world = World(store, case, Marks({0: sorted(marked)}, {0: sorted(retrieved)}))

    outcome = trio.run(world.quit)

    assert outcome.removed + outcome.kept == len(marked)
    removed = {content for folder, content in store.removed if folder == b"INBOX"}
    ours = {f"mail {uid}" for uid in marked}
    others = set()
    if case.way is Way.SHUFFLE:
        # The documented race: what others mark between the last look and EXPUNGE goes with it.
        marking = [uid for acts in script.values() for verb, uid, flag in acts if (verb, flag) == ("set", "\\Deleted")]
        others = {f"mail {uid}" if uid <= MAILS else "new" for uid in marking}
    assert removed <= ours | others
    if case.way not in (Way.FLAG, Way.KEYWORD):
        # There another client may show again what was hidden, and has the last word.
        assert len(world.undone()) <= outcome.kept
    if case.trash:
        trash = store.folders.get(case.trash, Folder()).contents()
        assert removed - others <= set(trash)
    for uid, mail in store.inbox.mails.items():
        # Nobody but other clients has marked what was not marked here.
        if uid <= MAILS and uid not in marked and "\\Deleted" in mail.flags:
            touched = [one for acts in script.values() for one in acts if one[1] == uid]
            assert touched or uid % 3 == 0


# ---------------------------------------------------------------- several folders


async def test_several_folders_are_done_one_after_another() -> None:
    case = Case(BOTH, {"delete": "expunge"}, Way.EXPUNGE)
    store = a_store(case)
    store.folders[b"Archive"] = Folder(uidvalidity=3)
    for number in range(4):
        store.folders[b"Archive"].add(f"old {number}")
    marks = Marks({0: MARKED, 1: (2, 3)}, {1: (1,)})
    for number in range(13):
        world = World(_copied(store), case, marks, [b"INBOX", b"Archive"])
        if number:
            world.store.faults[number] = "after"
        outcome = await world.quit()
        assert (outcome.removed, outcome.kept) == (5, 0)
        assert world.store.folders[b"Archive"].contents() == ["old 0", "old 3"]
        assert world.store.folders[b"Archive"].mails[1].flags == {"\\Seen"}


async def test_a_folder_that_changed_does_not_keep_the_next_from_being_done() -> None:
    case = Case(BOTH, {"delete": "expunge"}, Way.EXPUNGE)
    store = a_store(case)
    store.folders[b"Archive"] = Folder(uidvalidity=3)
    store.folders[b"Archive"].add("old")
    world = World(store, case, Marks({0: MARKED, 1: (1,)}, {}), [b"INBOX", b"Archive"])
    world.meanwhile = lambda: setattr(store.inbox, "uidvalidity", 8)
    outcome = await world.quit()
    assert (outcome.removed, outcome.kept, outcome.unknown) == (1, 3, 0)
    assert store.folders[b"Archive"].contents() == []


async def test_what_is_deleted_in_the_trash_is_removed() -> None:
    case = Case(BOTH, {"delete": "trash"}, Way.EXPUNGE)
    store = Store()
    store.folders[b"Trash"].add("old")
    world = World(store, case, Marks({0: (1,)}, {}), [b"Trash"])
    assert (await world.quit()).ok
    assert store.folders[b"Trash"].contents() == []


def _copied(store: Store) -> Store:
    copy = Store(" ".join(store.capabilities))
    for name, folder in store.folders.items():
        copy.folders[name] = Folder(folder.uidvalidity)
        for mail in folder.contents():
            copy.folders[name].add(mail)
    return copy
