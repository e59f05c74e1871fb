"""What is remembered of a folder: once shown, a UIDL stays with its message and comes to no other."""

from __future__ import annotations

import random
import time
from array import array

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mailgate.translate.columns import packed
from mailgate.translate.memory import Exceptions, FolderMemory, Measured, Snapshot, Span, bound_template
from mailgate.translate.uidl import Rendered, Stored, Template, is_valid

TEMPLATES = ["dovecot", "uw", "cyrus-old", "courier-v1", "UID{uid}-2", "{uid:x}.{folder}"]


def bound(text: str, uidvalidity: int = 7, prefix: bytes = b"") -> Template:
    return bound_template(Template.parse(text), uidvalidity, b"INBOX", prefix)


def seen(memory: FolderMemory, *uids: int) -> list[bytes]:
    uidls = memory.uidls(array("I", uids))
    assert len(uidls) == len(uids)
    assert uidls.among(range(len(uids))) == [uidls[index] for index in range(len(uids))]
    return [uidls[index] for index in range(len(uidls))]


def copy(memory: FolderMemory) -> FolderMemory:
    return FolderMemory.decode(*memory.encode())


def test_another_template_is_for_messages_that_were_never_shown() -> None:
    memory = FolderMemory(7)
    memory.freeze([5, 6, 9], bound("cyrus-old"))
    memory = copy(memory)
    assert memory.unnamed([3, 5, 6, 9, 12]) == [3, 12]
    memory.freeze([3, 12], bound("courier-v1"))
    assert seen(memory, 3, 5, 6, 9, 12) == [b"UID3", b"5", b"6", b"9", b"UID12"]
    assert memory.spans == [Span(3, 3, "UID{uid}"), Span(5, 9, "{uid}"), Span(12, 12, "UID{uid}")]


def test_a_span_of_the_same_template_grows_at_both_ends() -> None:
    memory = FolderMemory(7)
    for uids in ([50, 60], [70], [10, 20], [65]):
        memory.freeze(memory.unnamed(uids), bound("dovecot"))
    assert [(span.first, span.last) for span in memory.spans] == [(10, 70)]
    assert isinstance(memory.uidls(array("I", [10, 70])), Rendered)


def test_an_exception_goes_before_the_span_and_before_a_later_template() -> None:
    memory = FolderMemory(7)
    memory.freeze([1, 2, 3], bound("cyrus-old"))
    memory.name({2: (b"imported", b""), 9: (b"soon", b"")}, exact=True)
    memory.freeze(memory.unnamed([1, 2, 3, 9, 10]), bound("uw"))
    assert seen(memory, 1, 2, 3, 9, 10) == [b"1", b"imported", b"3", b"soon", b"000000070000000a"]
    assert memory.uidl(2) == b"imported"
    assert memory.uidl(11) is None


def test_a_duplicate_gets_a_number_and_keeps_it() -> None:
    memory = FolderMemory(7)
    memory.name({4: (b"same", b"Ha"), 2: (b"same", b"Ha"), 3: (b"same", b"Ha")})
    assert seen(memory, 2, 3, 4) == [b"same", b"same-2", b"same-3"]
    memory = copy(memory)
    # The first has gone; those behind it do not move up, and a new one does not take its place.
    memory.gone([3, 4, 5])
    memory.name({5: (b"same", b"Ha")})
    assert seen(memory, 3, 4, 5) == [b"same-2", b"same-3", b"same-4"]
    assert isinstance(memory.uidls(array("I", [3, 4, 5])), Stored)


def test_a_template_never_gives_a_uidl_that_an_import_gave() -> None:
    memory = FolderMemory(7)
    memory.name({1: (b"UID3", b""), 2: (b"UID9", b"")}, exact=True)
    memory.freeze([3, 4], bound("courier-v1"))
    assert seen(memory, 1, 2, 3, 4) == [b"UID3", b"UID9", b"UID3-2", b"UID4"]
    memory.freeze([9], bound("courier-v1"))
    assert seen(memory, 9) == [b"UID9-2"]


def test_an_import_takes_a_uidl_from_the_message_that_a_template_gave_it() -> None:
    memory = FolderMemory(7)
    memory.freeze([1, 2, 3], bound("courier-v1"))
    memory.name({1: (b"UID2", b""), 2: (b"UID1", b""), 3: (b"x", b"")}, exact=True)
    assert seen(memory, 1, 2, 3) == [b"UID2", b"UID1", b"x"]
    memory.name({2: (b"UID2", b""), 3: (b"UID1", b"")}, exact=True)
    assert seen(memory, 2, 3) == [b"UID2", b"UID1"]
    assert seen(memory, 1) == [b"UID2-2"]


@pytest.mark.parametrize("entries", [{0: (b"x", b"")}, {1 << 32: (b"x", b"")}, {1: (b"", b"")}, {1: (b"a b", b"")}])
def test_what_is_no_uid_or_no_uidl_is_refused(entries: dict[int, tuple[bytes, bytes]]) -> None:
    memory = FolderMemory(7)
    with pytest.raises(ValueError, match="UID"):
        memory.name(entries)
    assert not memory.exceptions


def test_messages_keep_their_uidls_by_key_when_uidvalidity_changes() -> None:
    memory = FolderMemory(7)
    memory.name({1: (b"a", b"E1"), 2: (b"b", b"E2"), 3: (b"c", b""), 4: (b"d", b"E4"), 5: (b"e", b"E4")})
    memory = copy(memory.renewed(8))
    assert memory.unnamed([1, 2, 3]) == [1, 2, 3]
    memory.carry({b"E2": [1], b"E4": [7, 8, 9], b"E9": [2]})
    assert seen(memory, 1, 7, 8) == [b"b", b"d", b"e"]
    assert memory.unnamed([1, 2, 3, 7, 8, 9]) == [2, 3, 9]
    # What was not found again is given to no other message.
    memory.name({2: (b"a", b"E9"), 3: (b"c", b"")})
    assert seen(memory, 2, 3) == [b"a-2", b"c-2"]


def test_uidls_of_an_earlier_uidvalidity_come_to_no_other_message() -> None:
    memory = FolderMemory(7)
    memory.freeze([1, 2, 5], bound("cyrus-old"))
    memory = copy(memory.renewed(8))
    memory.freeze([4, 5, 6], bound("cyrus-old", 8))
    assert seen(memory, 4, 5, 6) == [b"4-2", b"5-2", b"6"]


@pytest.mark.parametrize("template", ["dovecot", "cyrus-old"])
def test_a_uidvalidity_that_comes_back_has_its_uidls_again(template: str) -> None:
    """A replica is in use for some days, or two pools have users of one realm."""
    memory = FolderMemory(7)
    memory.freeze([1, 2, 5], bound(template))
    memory.shown(1)
    first, others = seen(memory, 1, 2, 5), []
    for _ in range(3):
        memory = copy(memory.renewed(9))
        memory.freeze(memory.unnamed([1, 2, 3]), bound(template, 9))
        others.append(seen(memory, 1, 2, 3))
        assert not {*others[-1]} & {*first}
        memory = copy(memory.renewed(7))
        assert memory.window == 1
        assert memory.unnamed([1, 2, 5, 6]) == [6]
        assert seen(memory, 1, 2, 5) == first
    assert others[1:] == others[:-1]


def test_a_uidvalidity_that_comes_back_does_not_name_what_an_import_had_named() -> None:
    memory = FolderMemory(7)
    memory.freeze([1, 2, 3], bound("dovecot"))
    memory.name({2: (b"imported", b"E2")}, exact=True)
    memory = copy(copy(memory.renewed(9)).renewed(7))
    assert memory.unnamed([1, 2, 3]) == [2]
    memory.carry({b"E2": [2]})
    assert seen(memory, 1, 2, 3) == [b"0000000100000007", b"imported", b"0000000300000007"]


def test_a_uidvalidity_that_comes_back_shares_no_uidl_with_what_is_found_by_its_key() -> None:
    memory = FolderMemory(7)
    memory.freeze([1, 2], bound("dovecot"))
    memory = copy(memory.renewed(9))
    memory.name({5: (b"0000000200000007", b"E2")}, exact=True)
    memory = copy(memory.renewed(7))
    memory.carry({b"E2": [3]})
    memory.freeze(memory.unnamed([1, 2, 3]), bound("dovecot"))
    assert len(set(seen(memory, 1, 2, 3))) == 3


def test_a_rewound_uidvalidity_that_comes_back_names_none_of_what_was_before() -> None:
    memory = FolderMemory(7)
    memory.freeze([1, 2, 3], bound("dovecot"))
    memory.rewound(2)
    memory = copy(copy(memory.renewed(9)).renewed(7))
    assert memory.unnamed([1, 2, 3]) == [2, 3]
    memory.freeze([2, 3], bound("dovecot"))
    assert seen(memory, 1, 2, 3) == [b"0000000100000007", b"0000000200000007-2", b"0000000300000007-2"]


@given(st.data())
def test_two_uidvalidities_by_turns_share_no_uidl_and_keep_theirs(data: st.DataObject) -> None:
    memory, uidvalidity = FolderMemory(7), 7
    there: dict[int, list[int]] = {7: [], 9: []}
    ever: dict[bytes, tuple[int, int]] = {}
    lasting: dict[tuple[int, int], bytes] = {}
    for _ in range(data.draw(st.integers(1, 12))):
        last = there[uidvalidity][-1] if there[uidvalidity] else 0
        there[uidvalidity] += range(last + 1, last + 1 + data.draw(st.integers(0, 3)))
        template = bound(data.draw(st.sampled_from(TEMPLATES)), uidvalidity)
        memory.freeze(memory.unnamed(there[uidvalidity]), template)
        for uid in there[uidvalidity]:
            uidl = memory.uidls([uid])[0]
            assert ever.setdefault(uidl, (uidvalidity, uid)) == (uidvalidity, uid)
            assert lasting.get((uidvalidity, uid), uidl) == uidl
            lasting[uidvalidity, uid] = uidl
        if data.draw(st.booleans()):
            uidvalidity = 16 - uidvalidity
            memory = copy(memory.renewed(uidvalidity))


def test_uids_that_a_restored_server_gives_again_get_other_uidls() -> None:
    memory = FolderMemory(7, snapshot=Snapshot(10, 0, array("I"), array("Q"), array("I")))
    memory.freeze([3, 5, 9], bound("dovecot"))
    memory.name({8: (b"x", b"")})
    memory.measured.put(9, 100)
    memory.rewound(6)
    assert memory.snapshot is None
    assert memory.measured.get(9) is None
    assert memory.unnamed([3, 5, 6, 9, 10]) == [6, 9, 10]
    memory.freeze([6, 9, 10], bound("dovecot"))
    memory.name({12: (b"x", b"")})
    assert seen(memory, 5, 9, 10, 12) == [
        b"0000000500000007",
        b"0000000900000007-2",
        b"0000000a00000007",
        b"x-2",
    ]


def test_the_window_only_opens() -> None:
    memory = FolderMemory(7)
    memory.shown(50)
    memory.shown(70)
    assert memory.window == 50
    memory.shown(20)
    assert copy(memory).window == 20


def test_exceptions_of_vanished_messages_are_dropped_when_they_are_very_many() -> None:
    memory = FolderMemory(7)
    memory.name({uid: (b"u%d" % uid, b"") for uid in range(1, 5001)})
    present = array("I", range(4990, 5001))
    memory.gone(present)
    assert len(memory.exceptions) == 1000 + len(present)
    assert seen(memory, *present) == [b"u%d" % uid for uid in present]


def test_sizes_of_vanished_messages_are_dropped() -> None:
    memory = FolderMemory(7)
    for uid, size in ((5, 50), (3, 1 << 33), (9, 90), (5, 55)):
        memory.measured.put(uid, size)
    memory = copy(memory)
    memory.gone([3, 5, 7])
    assert memory.measured.entries() == {3: 1 << 33, 5: 55}
    assert memory.measured.get(9) is None


def test_a_snapshot_without_what_this_session_removed() -> None:
    shot = Snapshot(9, 77, array("I", [1, 2, 8]), array("Q", [10, 20, 80]), array("I", [1, 8]), b"DELETED")
    assert shot.without([2, 8]) == Snapshot(9, 0, array("I", [1]), array("Q", [10]), array("I", [1]), b"DELETED")


def memories(names: str = "ab") -> st.SearchStrategy[FolderMemory]:
    @st.composite
    def build(draw: st.DrawFn) -> FolderMemory:
        memory = FolderMemory(draw(st.integers(0, 0xFFFFFFFF)))
        for _ in range(draw(st.integers(0, 3))):
            uids = sorted(draw(st.sets(st.integers(1, 60), max_size=8)))
            template = bound(draw(st.sampled_from(TEMPLATES)), memory.uidvalidity)
            memory.freeze(memory.unnamed(uids), template)
            entries = st.tuples(st.text(names, min_size=1, max_size=3).map(str.encode), st.binary(max_size=3))
            memory.name(draw(st.dictionaries(st.integers(1, 60), entries, max_size=5)))
            if draw(st.booleans()):
                memory = memory.renewed(memory.uidvalidity ^ 1)
        if draw(st.booleans()):
            uids = sorted(draw(st.sets(st.integers(1, 0xFFFFFF), max_size=9)))
            sizes = [draw(st.integers(0, 1 << 40)) for _ in uids]
            memory.snapshot = Snapshot(
                1 << 25, 1 << 60, array("I", uids), array("Q", sizes), array("I", uids[1:3]), b"DELETED"
            )
            memory.measured = Measured.of(dict(zip(uids, sizes, strict=True)))
            memory.shown(3)
        return memory

    return build()


@given(memories())
def test_what_is_encoded_is_decoded(memory: FolderMemory) -> None:
    encoded = memory.encode()
    again = FolderMemory.decode(*encoded)
    assert again == memory
    assert again.encode() == encoded


@given(memories(), st.data())
def test_damage_is_refused(memory: FolderMemory, data: st.DataObject) -> None:
    parts = list(memory.encode())
    which = data.draw(st.integers(0, 1))
    part = bytearray(parts[which])
    match data.draw(st.sampled_from(["cut", "flip", "more", "swap", "random", "layout"])):
        case "cut":
            del part[data.draw(st.integers(0, len(part) - 1)) :]
        case "flip":
            part[data.draw(st.integers(0, len(part) - 1))] ^= data.draw(st.integers(1, 255))
        case "more":
            part += b"x"
        case "swap":
            part = bytearray(parts[1 - which])
        case "random":
            part[4:] = data.draw(st.binary(max_size=50))
        case _:
            part = bytearray(packed([data.draw(st.binary(max_size=200))]))
    parts[which] = bytes(part)
    try:
        again = FolderMemory.decode(*parts)
    except ValueError:
        return
    # zlib has bits that mean nothing; whatever is taken must be usable.
    assert FolderMemory.decode(*again.encode()) == again


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "not what is remembered"), (b"mgm\x02xx", "layout 02, known is 01"), (b"mgm\1x", "dam")],
)
def test_what_is_refused_is_said(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FolderMemory.decode(data, data)


@pytest.mark.parametrize("text", ["{uid", "{uid}{uid}", "x", "{uid:99x}"])
def test_a_span_with_a_text_that_is_no_template_is_refused(text: str) -> None:
    memory = FolderMemory(7, spans=[Span(1, 2, text)])
    with pytest.raises(ValueError, match="damaged"):
        FolderMemory.decode(*memory.encode())


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(memories("ab"), memories("bc"))
def test_merged_memories_keep_what_either_showed(mine: FolderMemory, stored: FolderMemory) -> None:
    stored.uidvalidity = mine.uidvalidity
    before = {uid: stored.uidl(uid) for uid in range(1, 61)}
    merged = copy(mine).merged(copy(stored))
    own = {uid for uid in mine.exceptions.uids if mine._span(uid) is not None}
    for uid in range(1, 61):
        named = before[uid] is not None and (uid in stored.exceptions.uids or uid not in own)
        assert merged.uidl(uid) == before[uid] or not named
        assert (merged.uidl(uid) is None) == (mine.uidl(uid) is None and before[uid] is None)
    names = [merged.uidls([uid])[0] for uid in merged.exceptions.uids]
    assert len(set(names)) == len(names)
    assert copy(merged) == merged


def test_of_two_first_sessions_with_other_templates_the_one_that_saved_sooner_names_the_messages() -> None:
    stored, mine = FolderMemory(7), FolderMemory(7)
    stored.freeze([1, 2], bound("dovecot"))
    mine.name({1: (b"<a@b>", b"H1"), 2: (b"<c@d>", b"H2"), 3: (b"<e@f>", b"H3")})
    assert seen(mine.merged(copy(stored)), 1, 2, 3) == [*seen(stored, 1, 2), b"<e@f>"]
    # An import names what a span did, and goes before it.
    imported = copy(stored)
    imported.name({2: (b"imported", b"H2")}, exact=True)
    stored.freeze([3], bound("dovecot"))
    assert seen(imported.merged(stored), 1, 2, 3) == [seen(stored, 1)[0], b"imported", seen(stored, 3)[0]]


def test_of_two_uidvalidities_the_later_one_stays_and_the_other_is_not_given_again() -> None:
    old, new = FolderMemory(7), FolderMemory(8)
    old.freeze([1, 2], bound("cyrus-old"))
    old.name({3: (b"x", b"E3")})
    new.name({1: (b"y", b"")})
    for merged in (copy(old).merged(copy(new)), copy(new).merged(copy(old))):
        assert merged.uidvalidity == 8
        assert merged.uidl(1) == b"y"
        assert list(merged.orphans.names()) == [b"x"]
        merged.freeze([2], bound("cyrus-old", 8))
        assert merged.uidl(2) == b"2-2"


class Mailbox(RuleBasedStateMachine):
    """A mailbox over many logins, with templates, imports and UIDVALIDITYs that change in between."""

    @initialize()
    def start(self) -> None:
        self.memory = FolderMemory(1)
        self.uidnext = 1
        self.present: dict[int, int] = {}  # UID → message
        self.messages = 0
        self.shown: dict[int, bytes] = {}  # message → UIDL
        self.template = "dovecot"

    @rule(more=st.integers(1, 4), gap=st.integers(0, 3))
    def append(self, more: int, gap: int) -> None:
        for _ in range(more):
            self.messages += 1
            self.present[self.uidnext] = self.messages
            self.uidnext += 1
        self.uidnext += gap

    @rule(data=st.data())
    def expunge(self, data: st.DataObject) -> None:
        for uid in data.draw(st.sets(st.sampled_from(sorted(self.present)), max_size=3)) if self.present else ():
            del self.present[uid]

    @rule(template=st.sampled_from([*TEMPLATES, "{header_md5}"]))
    def configure(self, template: str) -> None:
        self.template = template

    @rule()
    def uidvalidity_changes(self) -> None:
        # Those that exceptions name with a key of their header keep their UIDLs.
        keys = {b"H%d" % self.present[uid]: [number] for number, uid in enumerate(sorted(self.present), 1)}
        named = self.memory.exceptions.entries()
        kept = {self.present[uid] for uid in self.present if uid in named and named[uid][1][:1] == b"H"}
        self.present = {number: self.present[uid] for number, uid in enumerate(sorted(self.present), 1)}
        self.uidnext = len(self.present) + 1
        self.memory = self.memory.renewed(self.memory.uidvalidity + 1)
        self.memory.carry(keys)
        self.shown = {message: uidl for message, uidl in self.shown.items() if message in kept}

    @rule()
    def login(self) -> None:
        uids = array("I", sorted(self.present))
        unnamed = self.memory.unnamed(uids)
        if self.template == "{header_md5}":
            # Two headers for all messages: most are duplicates.
            self.memory.name({uid: (b"h%d" % (self.present[uid] % 2), b"H%d" % self.present[uid]) for uid in unnamed})
        else:
            self.memory.freeze(unnamed, bound(self.template, self.memory.uidvalidity))
        uidls = self.memory.uidls(uids)
        now = {self.present[uid]: uidls[index] for index, uid in enumerate(uids)}
        assert len(set(now.values())) == len(now)
        assert all(is_valid(uidl) for uidl in now.values())
        for message, uidl in self.shown.items():
            assert now.get(message, uidl) == uidl, "a message changed its UIDL"
        owners = {uidl: message for message, uidl in self.shown.items()}
        for message, uidl in now.items():
            assert owners.get(uidl, message) == message, "a UIDL came to another message"
        self.shown |= now
        self.memory.gone(uids)

    @invariant()
    def survives_the_store(self) -> None:
        if hasattr(self, "memory"):
            self.memory = copy(self.memory)


TestMailbox = Mailbox.TestCase
TestMailbox.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)


def test_a_hundred_thousand_messages_are_small_and_quick() -> None:
    random.seed(4)
    uids = array("I", sorted(random.sample(range(1, 300_000), 100_000)))
    sizes = array("Q", [int(random.lognormvariate(9.5, 1.5)) for _ in uids])
    memory = FolderMemory(7, snapshot=Snapshot(300_001, 5, uids, sizes, array("I")))
    memory.freeze(uids, bound("dovecot"))
    head, rest = memory.encode()
    assert len(head) < 400_000
    assert len(rest) < 100
    start = time.perf_counter()
    again = FolderMemory.decode(head, rest)
    assert time.perf_counter() - start < 0.5
    assert again == memory
    uidls = again.uidls(uids)
    assert isinstance(uidls, Rendered)
    assert uidls[99_999] == b"%08x00000007" % uids[99_999]


def test_a_hundred_thousand_imported_uidls() -> None:
    memory = FolderMemory(7)
    memory.name({uid: (b"%032x" % (uid * 0x9E3779B97F4A7C15), b"") for uid in range(1, 100_001)}, exact=True)
    head, rest = memory.encode()
    assert len(head) < 200
    assert len(rest) < 2_000_000
    memory = FolderMemory.decode(head, rest)
    memory.name({100_001: (b"new", b"")})
    assert isinstance(memory.exceptions, Exceptions)
    assert memory.uidls(array("I", range(1, 100_002)))[100_000] == b"new"
