"""The maildrop is opened: mailboxes are selected, what is in them is listed, and every message gets its UIDL.

A failure is raised and never becomes an empty maildrop: clients would forget what they had, and download everything
again. What a client is to see is in the store before it sees it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import trio

from mailgate.config.pop3 import Pop3Policy
from mailgate.translate.columns import among
from mailgate.translate.imap_client import ImapClient, MailboxChanged, Refused, Selected, Vanished
from mailgate.translate.maildrop import FolderView, Maildrop
from mailgate.translate.memory import FolderMemory, Snapshot, bound_template
from mailgate.translate.store import Memories
from mailgate.translate.survey import Asking, Known, Survey, known, survey
from mailgate.translate.uidl import BY_HEADER, Facts, Template, folder_id, folder_prefix, numbered
from mailgate.wire.dotted import MessageEncoder
from mailgate.wire.mailbox_name import canonical

MEASURED_AT_ONCE: Final = 500
"""Messages that are counted between two writes to the store: a client that gives up waits for less next time."""

NAMED_AT_ONCE: Final = 1000
"""Messages that get UIDLs between two moments in which other sessions have their turn: some 10 ms."""

AHEAD: Final = 4
"""Messages that are asked for before the one that is counted has come, so that round trips are not waited for."""

_MONTHS: Final = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_CAPABILITY: Final = {"emailid": "OBJECTID", "gm_msgid": "X-GM-EXT-1"}
_KEYS: Final = {b"E": "emailid", b"G": "gm_msgid", b"H": "headers"}


@dataclass(slots=True)
class OpenFolder:
    """A mailbox of an open maildrop; ``name`` is in the wire's bytes.

    ``notes`` say where the configuration could not be followed: ``uids_not_sticky``, ``no_emailid``, ``no_gm_msgid``.
    """

    name: bytes
    selected: Selected
    memory: FolderMemory
    notes: tuple[str, ...] = ()
    uids: array[int] = field(default_factory=lambda: array("I"))

    @property
    def key(self) -> bytes:
        """The name under which it is remembered."""
        return canonical(self.name)


@dataclass(slots=True)
class Opened:
    """An open maildrop and its mailboxes; the last of them is selected."""

    maildrop: Maildrop
    folders: tuple[OpenFolder, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the configuration could not be followed, each once."""
        return tuple(dict.fromkeys(note for folder in self.folders for note in folder.notes))

    def measured(self, number: int, octets: int) -> None:
        """Note the size that a message turned out to have: listed now, and at later logins."""
        drop = self.maildrop
        drop.correct_size(number, octets)
        self.folders[drop.folder(number)].memory.measured.put(drop.uid(number), octets)

    def removed(self, uids: Mapping[int, Iterable[int]]) -> None:
        """Note what this session removed, by the folder's place, so that the next opening does not have to ask."""
        for place, gone in uids.items():
            memory = self.folders[place].memory
            if memory.snapshot is not None:
                memory.snapshot = memory.snapshot.without(gone)

    async def remember(self, memories: Memories) -> None:
        """Keep what this session learnt; raises StoreFailed. What clients have seen was kept before they saw it."""
        for folder in self.folders:
            folder.memory = await memories.save(folder.key, folder.memory)


def template_for(client: ImapClient, selected: Selected, text: str) -> tuple[Template, tuple[str, ...]]:
    """Return the template that can be used in a mailbox, and why it is not the one of this text.

    Raises TemplateError for a text that is none.
    """
    template = Template.parse(text)
    if template.uses_uid and not selected.uids_sticky:
        return Template.parse(BY_HEADER), ("uids_not_sticky",)
    for need in sorted(template.needs & _CAPABILITY.keys()):
        if _CAPABILITY[need] not in client.capabilities:
            return Template.parse(BY_HEADER), (f"no_{need}",)
    return template, ()


async def open_maildrop(
    client: ImapClient, settings: Pop3Policy, memories: Memories, folders: Sequence[bytes], now: float
) -> Opened:
    """Open the mailboxes; ``now`` is the time in seconds since 1970.

    ``folders`` are names in the wire's bytes. Messages of the first have the UIDLs that they would have alone, those of
    the others begin with the folder's id. Raises ClientError, StoreFailed, TemplateError, for
    each of which :mod:`mailgate.translate.refusals` has an answer.
    """
    opened: list[OpenFolder] = []
    views: list[FolderView] = []
    taken: set[bytes] = set()
    for place, name in enumerate(folders):
        prefix = folder_prefix(name) if place else b""
        opening = _Opening(client, settings, memories, name, prefix)
        folder = await opening.open(now, taken)
        uidls = folder.memory.uidls(folder.uids)
        if len(folders) > 1:
            taken.update(uidls[index] for index in range(len(uidls)))
        opened.append(folder)
        views.append(FolderView(folder.uids, opening.sizes(folder), uidls))
    return Opened(Maildrop.of(views), tuple(opened))


class _Opening:
    """One mailbox while it is opened."""

    def __init__(
        self, client: ImapClient, settings: Pop3Policy, memories: Memories, name: bytes, prefix: bytes
    ) -> None:
        self._client = client
        self._settings = settings
        self._memories = memories
        self._name = name
        self._prefix = prefix
        self._survey: Survey

    async def open(self, now: float, taken: set[bytes]) -> OpenFolder:
        """Return the open mailbox; ``taken`` are the UIDLs of mailboxes before it."""
        client, settings = self._client, self._settings
        # What is remembered is older than what the server says next, so that a lower UIDNEXT means a server set back.
        stored = await self._memories.load(canonical(self._name))
        selected = await self._select()
        template, notes = template_for(client, selected, settings.uidl)
        memory = stored if stored is not None else FolderMemory(selected.uidvalidity)
        stale = not selected.uids_sticky or memory.uidvalidity != selected.uidvalidity
        if stale and stored is not None:
            memory = stored.renewed(selected.uidvalidity)
        lost = stale and len(memory.orphans) > 0
        asking = Asking(
            settings.keyword.encode("ascii") if settings.delete == "keyword" else b"",
            settings.show_deleted,
            template.needs,
            self._wanted(template, memory) if lost or not memory.last else frozenset(),
            template.digest,
        )
        earlier = memory.snapshot
        found = self._survey = await survey(client, selected, earlier, asking)
        uids = found.snapshot.uids
        if selected.uidnext is not None and selected.uidnext <= memory.last and not (uids and uids[-1] >= memory.last):
            memory.rewound(min(selected.uidnext, _first_other(earlier, found.snapshot)))
        if lost:
            memory.carry(_by_key(found.known))
        visible = found.visible()
        lowest = await self._lowest(visible, memory, now)
        shown = visible[bisect_left(visible, lowest) :] if lowest > 1 else visible
        unnamed = memory.unnamed(shown)
        await self._name_all(unnamed, template, memory, selected)
        apart = self._keep_apart(shown, memory, taken) if taken else False
        if shown:
            memory.shown(shown[0])
        folder = OpenFolder(self._name, selected, memory, notes, shown)
        changed = found.snapshot is not earlier or bool(unnamed) or apart or stored is None or stale
        if selected.uids_sticky:
            memory.snapshot = found.snapshot
            memory.gone(uids)
        if settings.size == "exact":
            await self._measure(folder)
        if changed or settings.size == "exact":
            folder.memory = await self._memories.save(folder.key, folder.memory)
            if taken and folder.memory is not memory and self._keep_apart(shown, folder.memory, taken):
                # What another session saved meanwhile may be like another mailbox's.
                folder.memory = await self._memories.save(folder.key, folder.memory)
        if folder.memory.uidvalidity != selected.uidvalidity:
            # Another session saw another one meanwhile and saved sooner: what is remembered is not of these UIDs.
            raise MailboxChanged("another session saw another UIDVALIDITY")
        return folder

    async def _select(self) -> Selected:
        """Open the mailbox. Raises Refused, with NONEXISTENT where the server only says NO and lists no such one."""
        client = self._client
        try:
            return await client.select(self._name, read_only=self._settings.read_only)
        except Refused as refused:
            if refused.status != "NO" or refused.code or await client.knows(self._name):
                raise
            raise Refused(refused.status, "NONEXISTENT", refused.text) from refused

    def _wanted(self, template: Template, memory: FolderMemory) -> frozenset[str]:
        """Return what to ask of every message: for its UIDL, and to find those again that had one."""
        want = set(template.needs)
        kinds = {memory.orphans.keys[index][:1] for index in range(len(memory.orphans))}
        for kind in sorted(kinds & _KEYS.keys()):
            need = _KEYS[kind]
            to_be_had = need not in _CAPABILITY or _CAPABILITY[need] in self._client.capabilities
            if to_be_had and not want | {need} >= {"emailid", "gm_msgid"}:
                want.add(need)
        return frozenset(want)

    async def _lowest(self, visible: array[int], memory: FolderMemory, now: float) -> int:
        """Return the UID from which on messages are shown; 1 for all."""
        settings = self._settings
        lowest = 1
        if settings.max_messages and len(visible) > settings.max_messages:
            lowest = visible[-settings.max_messages]
        if settings.max_age and visible:
            young = await self._client.search(_younger(self._client, settings.max_age, now))
            lowest = max(lowest, young[0] if young else visible[-1] + 1)
        if memory.window:
            lowest = min(lowest, memory.window)
        if memory.exceptions and memory.exceptions.uids[0] < lowest:
            # They kept their UIDLs over a change of UIDVALIDITY, or were imported: clients have seen them.
            lowest = next((uid for uid in memory.exceptions.uids if uid >= lowest or among(visible, uid)), lowest)
        return lowest

    async def _name_all(
        self, unnamed: Sequence[int], template: Template, memory: FolderMemory, selected: Selected
    ) -> None:
        """Give a UIDL to messages that have none."""
        if not unnamed:
            return
        if not template.needs:
            memory.freeze(unnamed, bound_template(template, selected.uidvalidity, self._name, self._prefix))
            return
        told = self._survey.known
        if missing := [uid for uid in unnamed if uid not in told]:
            asking = Asking(want=template.needs, digest=template.digest)
            told = told | await known(self._client, missing, asking)
        prefix = b"" if template.names_folder else self._prefix
        entries: dict[int, tuple[bytes, bytes]] = {}
        for index, uid in enumerate(unnamed):
            if index % NAMED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            one = told.get(uid, Known())
            gmail = "gm_msgid" in template.needs and one.identity.isdigit()
            facts = Facts(
                uid,
                selected.uidvalidity,
                emailid=one.identity if "emailid" in template.needs else b"",
                gm_msgid=int(one.identity) if gmail else 0,
                folder=folder_id(self._name),
                digest=one.digest,
            )
            entries[uid] = (template.render(facts, prefix), _key(one, template.needs))
        memory.name(entries)

    def _keep_apart(self, shown: array[int], memory: FolderMemory, taken: set[bytes]) -> bool:
        """Give a number to what has a UIDL of another mailbox's message: both were opened alone before, and alike.

        Return whether there was any.
        """
        uidls = memory.uidls(shown)
        own = memory.taken(1)
        given: set[bytes] = set()

        def held(name: bytes) -> bool:
            return name in taken or name in given or own(name)

        entries: dict[int, tuple[bytes, bytes]] = {}
        for index, uid in enumerate(shown):
            if (uidl := uidls[index]) in taken:
                entries[uid] = (numbered(uidl, held), b"")
                given.add(entries[uid][0])
        memory.name(entries)
        return bool(entries)

    async def _measure(self, folder: OpenFolder) -> None:
        """Count the octets of messages of which they are not known, by reading each once."""
        memory, client = folder.memory, self._client
        wanted = [uid for uid in folder.uids if memory.measured.get(uid) is None]
        for uid in wanted[:AHEAD]:
            client.ask_body(uid)
        for index, uid in enumerate(wanted):
            if index + AHEAD < len(wanted):
                client.ask_body(wanted[index + AHEAD])
            try:
                await client.begin_body(uid)
                encoder = MessageEncoder(nul=None)
                while (piece := await client.next_piece()) is not None:
                    encoder.feed(piece)
            except Vanished:
                continue
            encoder.finish()
            memory.measured.put(uid, encoder.octets)
            if (index + 1) % MEASURED_AT_ONCE == 0:
                memory = folder.memory = await self._memories.save(folder.key, memory)

    def sizes(self, folder: OpenFolder) -> array[int]:
        """Return the sizes of what is shown, an array of its own."""
        snapshot = self._survey.snapshot
        uids, measured = folder.uids, folder.memory.measured
        if len(uids) == len(snapshot.uids):
            sizes = snapshot.sizes[:]
        else:
            sizes = array("Q", [snapshot.sizes[bisect_left(snapshot.uids, uid)] for uid in uids])
        if self._settings.size != "trust":
            for uid, octets in zip(measured.uids, measured.sizes, strict=True):
                index = bisect_left(uids, uid)
                if index < len(uids) and uids[index] == uid:
                    sizes[index] = octets
        return sizes


def _first_other(earlier: Snapshot | None, now: Snapshot) -> int:
    """Return the first UID that names another message than it did, as far as sizes tell; else UIDNEXT.

    This is asked only where UIDNEXT went back. Taken alone it proves nothing: some servers estimate sizes.
    """
    sizes = dict(zip(earlier.uids, earlier.sizes, strict=True)) if earlier is not None else {}
    told = zip(now.uids, now.sizes, strict=True)
    return next((uid for uid, size in told if sizes.get(uid) != size), now.uidnext) if sizes else now.uidnext


def _younger(client: ImapClient, seconds: float, now: float) -> bytes:
    """Return the search for messages of some age at most (RFC 5032, else by days in whatever zone)."""
    if "WITHIN" in client.capabilities:
        return b"YOUNGER %d" % max(1, round(seconds))
    # SINCE leaves the time zone out of account, so a day more is taken rather than one less.
    day = datetime.fromtimestamp(max(now - seconds, 0), UTC) - timedelta(days=1)
    return f"SINCE {day.day}-{_MONTHS[day.month - 1]}-{day.year}".encode("ascii")


def _key(one: Known, needs: frozenset[str]) -> bytes:
    """Return what finds a message again when UIDVALIDITY has changed."""
    if one.identity and "emailid" in needs:
        return b"E" + one.identity
    if one.identity and "gm_msgid" in needs:
        return b"G" + one.identity
    return b"H" + one.digest[:16] if one.digest else b""


def _by_key(told: Mapping[int, Known]) -> dict[bytes, list[int]]:
    """Return the UIDs by each key that a message may have had."""
    found: dict[bytes, list[int]] = {}
    for uid, one in told.items():
        for key in (b"E" + one.identity, b"G" + one.identity, b"H" + one.digest[:16]):
            if len(key) > 1:
                found.setdefault(key, []).append(uid)
    return found
