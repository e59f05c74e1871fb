"""How each policy deletes on each kind of server, and what is known never to work before anything is deleted."""

from __future__ import annotations

from typing import Any

import pytest

from mailgate.config.pop3 import Pop3Policy
from mailgate.model import Refusal
from mailgate.translate.deletion import NO_FLAG, NO_TRASH, NO_UIDPLUS, READ_ONLY, Deletion, Way, plan
from mailgate.translate.update import Outcome
from tests.support.mailbox import ALL_FLAGS, Folder, Store
from tests.translate.quits import CASES, RETRIEVED, Case, Marks, Opened, World, a_store


async def planned(store: Store, **policy: Any) -> Deletion | Refusal:
    opened = [Opened(b"INBOX", store.inbox.selected())]
    (found,) = await plan(store.client(), opened, Pop3Policy(**policy))
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_each_policy_is_planned_before(case: Case) -> None:
    store = a_store(case)
    assert await planned(store, **case.policy) == Deletion(case.way, case.trash)
    if not case.trash or case.policy.get("trash"):
        assert store.said == [], "nothing is asked of the server without need"


@pytest.mark.parametrize(
    ("capabilities", "policy", "refusal"),
    [
        ("", {"delete": "expunge"}, NO_UIDPLUS),
        ("MOVE", {"delete": "expunge"}, NO_UIDPLUS),
        ("UIDPLUS MOVE", {"delete": "trash"}, NO_TRASH),
        ("UIDPLUS MOVE X-GM-EXT-1", {"delete": "expunge"}, NO_TRASH),
        ("", {"delete": "trash", "trash": "Trash"}, NO_UIDPLUS),
        ("UIDPLUS", {"read_only": True}, READ_ONLY),
        ("UIDPLUS", {"read_only": True, "delete": "trash"}, READ_ONLY),
    ],
    ids=str,
)
async def test_what_can_never_work_is_known_before(capabilities: str, policy: dict[str, Any], refusal: Refusal) -> None:
    assert await planned(Store(capabilities, trash=None), **policy) == refusal
    assert refusal.pop3_code == "SYS/PERM"


@pytest.mark.parametrize(
    ("kept", "policy", "found"),
    [
        (ALL_FLAGS - {"\\DELETED"}, {"delete": "expunge"}, NO_FLAG),
        (ALL_FLAGS - {"\\DELETED"}, {"delete": "flag"}, NO_FLAG),
        (ALL_FLAGS - {"\\DELETED"}, {"delete": "trash"}, Deletion(Way.MOVE, b"Trash")),
        (ALL_FLAGS - {"\\*"}, {"delete": "keyword"}, NO_FLAG),
        (ALL_FLAGS - {"\\*"} | {"$POP3DELETED"}, {"delete": "keyword"}, Deletion(Way.KEYWORD)),
    ],
    ids=str,
)
async def test_a_mark_must_be_one_that_the_mailbox_keeps(
    kept: frozenset[str], policy: dict[str, Any], found: Deletion | Refusal
) -> None:
    store = Store()
    store.inbox.flags_kept = kept
    assert await planned(store, **policy) == found


async def test_a_read_only_mailbox_deletes_and_marks_nothing() -> None:
    store = a_store(CASES[0])
    store.inbox.read_only = True
    assert await planned(store) == READ_ONLY
    assert await World(store, CASES[0], Marks({}, {0: RETRIEVED})).quit() == Outcome()


async def test_a_server_that_refuses_to_list_has_no_trash() -> None:
    store = Store()
    store.faults[1] = "no"
    assert await planned(store, delete="trash") == NO_TRASH


async def test_each_folder_has_a_way_of_its_own() -> None:
    store = Store()
    store.folders[b"Shared"] = Folder(read_only=True)
    opened = [Opened(name, store.folders[name].selected()) for name in (b"INBOX", b"Shared", b"Trash")]
    assert await plan(store.client(), opened, Pop3Policy(delete="trash")) == (
        Deletion(Way.MOVE, b"Trash"),
        READ_ONLY,
        Deletion(Way.EXPUNGE),
    )
    assert store.said == ["LIST"]
