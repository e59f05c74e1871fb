"""The models of POP3 clients on IMAP servers: what a translated session shows, deletes and remembers."""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, field_validator, model_validator

from mailgate.config.tls import shown
from mailgate.config.values import FilePath, Flag, Seconds, SecretSource, Settings, Texts

Delete = Literal["expunge", "trash", "flag", "keyword", "never"]
WithoutUidplus = Literal["refuse", "flag", "shuffle"]
Conflict = Literal["wait", "refuse", "takeover", "off"]
QUIRKS: Final = {
    "no-examine": "read_only opens with SELECT",
    "no-pipelining": "one command at a time",
    "empty-is-message": 'a message that is "" is an empty one, and not one that was removed',
}
"""What can be said of servers that need it, and what it does. Courier needs the first: EXAMINE gives no UIDVALIDITY."""

DATABASES: Final = ("postgresql", "mariadb")
"""What several gateways can share: the beginnings of URLs."""

_ATOM_SPECIALS = frozenset('(){%*"\\] ')


class Pop3Policy(Settings):
    """How POP3 clients are served from an IMAP mailbox; of a route: what is given there goes before [pop3]."""

    uidl: str = Field(
        default="dovecot",
        min_length=1,
        max_length=200,
        description="How unique-ids are made: the format of the server that clients used before (dovecot, dovecot-old, "
        'uw, courier, cyrus, cyrus-old, gmail), or a template such as "{uid:08x}{uidvalidity:08x}".',
    )
    delete: Delete = Field(
        default="expunge",
        description="What QUIT does with deleted messages. expunge: removes them. trash: moves them to the trash. "
        "flag: sets \\Deleted. keyword: hides them from POP3 clients alone. never: leaves them.",
    )
    trash: str = Field(
        default="",
        max_length=255,
        json_schema_extra=shown("the mailbox that the server marks as \\Trash"),
        description="The mailbox for delete = trash.",
    )
    keyword: str = Field(
        default="$POP3Deleted", min_length=1, max_length=64, description="The keyword for delete = keyword."
    )
    without_uidplus: WithoutUidplus = Field(
        default="refuse",
        description="What delete = expunge does on servers that can remove single messages by neither UIDPLUS nor "
        "MOVE. refuse: answers DELE with an error. flag: sets \\Deleted. shuffle: RFC 4315 §2.1's procedure, which "
        "another client can spoil.",
    )
    mark_seen: Literal["retr", "never"] = Field(
        default="retr", description="Whether messages that were retrieved whole are marked \\Seen at QUIT."
    )
    size: Literal["trust", "cache", "exact"] = Field(
        default="trust",
        description="Whose word on sizes LIST repeats. trust: the server's. cache: what was seen at an earlier RETR, "
        "else the server's. exact: every message is read once to count.",
    )
    nul: Literal["replace", "keep"] = Field(
        default="replace", description="NUL bytes in messages: replaced by 0x80, since clients stop there, or kept."
    )
    utf8: Literal["passthrough", "strict"] = Field(
        default="passthrough",
        description="Messages with UTF-8 in their headers for clients that did not say UTF8: sent as they are, or "
        "refused with [UTF8] (RFC 6856).",
    )
    last: Flag = Field(default=False, description="Whether LAST (RFC 1460) is answered, for very old clients.")
    folders: Texts = Field(
        default=("INBOX",),
        min_length=1,
        max_length=32,
        description="The mailboxes that a maildrop is made of; several are merged in this order.",
    )
    max_age: Seconds = Field(
        default=0.0,
        ge=0.0,
        description="Messages that came earlier than this are not shown; 0 shows all. One that was shown stays.",
    )
    max_messages: int = Field(
        default=0,
        strict=True,
        ge=0,
        le=10_000_000,
        description="Only so many of the newest messages are shown; 0 shows all. One that was shown stays.",
    )
    show_deleted: Flag = Field(default=False, description="Whether messages that carry \\Deleted already are shown.")
    read_only: Flag = Field(default=False, description="Whether the mailbox is opened so that nothing can change it.")
    lock: Conflict = Field(
        default="wait",
        description="A second session of the same maildrop. wait: waits for lock_wait, then is refused with [IN-USE]. "
        "refuse: at once. takeover: ends the first. off: both go on.",
    )
    lock_wait: Seconds = Field(default=10.0, ge=0.1, le=300.0, description="How long a login waits for the maildrop.")
    login_delay: Seconds = Field(
        default=0.0,
        ge=0.0,
        le=86400.0,
        description="The least time between two logins of a user, on this machine; sooner ones hear [LOGIN-DELAY].",
    )
    realm: str = Field(
        default="",
        max_length=64,
        pattern=r"^[A-Za-z0-9_.-]*$",
        description="Whose users these are. A user name of one realm is one user, whatever pool it is routed to: "
        "routes whose users may share names need realms of their own.",
    )
    quirks: Texts = Field(
        default=(),
        max_length=10,
        description=" ".join(["What servers need, by name.", *(f"{name}: {what}." for name, what in QUIRKS.items())]),
    )
    quit_timeout: Seconds = Field(
        default=60.0,
        ge=1.0,
        le=3600.0,
        description="How long QUIT may take to delete, whether or not the client still waits for the answer.",
    )

    @field_validator("keyword")
    @classmethod
    def _keyword(cls, keyword: str) -> str:
        if not keyword.isascii() or not keyword.isprintable() or _ATOM_SPECIALS & set(keyword):
            raise ValueError('a keyword is an IMAP atom such as "$POP3Deleted" (RFC 9051 §2.3.2)')
        return keyword

    @field_validator("folders")
    @classmethod
    def _folders(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple("INBOX" if name.upper() == "INBOX" else name for name in folders)
        if any(not name or not name.isprintable() for name in names):
            raise ValueError("a mailbox has a name without control characters")
        if len(set(names)) < len(names):
            raise ValueError("each mailbox once")
        return names

    @field_validator("quirks")
    @classmethod
    def _quirks(cls, quirks: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [quirk for quirk in quirks if quirk not in QUIRKS]:
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(QUIRKS)}")
        return quirks

    @field_validator("trash")
    @classmethod
    def _trash(cls, trash: str) -> str:
        if trash and not trash.isprintable():
            raise ValueError("a mailbox has a name without control characters")
        return trash


class Pop3Store(Settings):
    """Where it is kept what POP3 clients once saw: a file of this machine, or a database that gateways share."""

    path: FilePath | None = Field(
        default=None, description="A SQLite database on a local disk, made when it is not there; for one gateway."
    )
    url: str | None = Field(
        default=None,
        max_length=1000,
        description='A database for several gateways, "postgresql://user@host/name" or "mariadb://user@host/name", '
        "without a password; what stands behind ? goes to its driver, such as ?sslmode=verify-full.",
    )
    password: SecretSource | None = Field(default=None, description="Where the database's password is read from.")

    @field_validator("url")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in DATABASES:
            raise ValueError(f"a database begins with {' or '.join(f'{name}://' for name in DATABASES)}")
        if parts.password is not None:
            raise ValueError('a secret does not stand in the configuration: write store.password = { file = "/path" }')
        if not parts.path.strip("/"):
            raise ValueError('the name of the database is missing: "postgresql://user@host/name"')
        try:
            valid = parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError("the port must be a number from 1 to 65535")
        if "options" in parse_qs(parts.query):
            raise ValueError("options cannot be given: mailgate limits the time of statements by them")
        return url

    @model_validator(mode="after")
    def _one_place(self) -> Pop3Store:
        if (self.path is None) == (self.url is None):
            raise ValueError('give either path = "/file" or url = "postgresql://…"')
        if self.url is None and self.password is not None:
            raise ValueError("a password has no effect without url: the file's mode protects it")
        return self


class Pop3Settings(Pop3Policy):
    """POP3 clients on IMAP servers: what holds for every route, and what is remembered."""

    login_folder: str = Field(
        default="",
        max_length=1,
        pattern=r"^[+%/=#-]?$",
        json_schema_extra=shown("no folders in user names"),
        description='The sign behind which a user name may carry a mailbox: with "+", anna+Archive@example.org and '
        "anna@example.org+Archive open Archive.",
    )
    gateways: Literal["one", "several"] = Field(
        default="one",
        description="Whether the same users are served by this gateway alone or by several, which then must share "
        "one store. lock and login_delay hold on one machine only.",
    )
    store: Pop3Store | None = Field(
        default=None,
        json_schema_extra=shown("nothing is remembered"),
        description="Where it is kept what clients once saw, so that a changed setting, a window or an import holds.",
    )


def merged(defaults: Pop3Settings, own: Pop3Policy) -> Pop3Policy:
    """Return a route's policy: its own words, for the rest those of ``[pop3]``."""
    values: dict[str, Any] = {name: getattr(defaults, name) for name in Pop3Policy.model_fields}
    values |= {name: getattr(own, name) for name in own.model_fields_set}
    return Pop3Policy(**values)
