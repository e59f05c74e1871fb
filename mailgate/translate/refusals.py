"""What a POP3 client hears when its mailbox cannot be opened or read: never an empty maildrop."""

from __future__ import annotations

from typing import Final

from mailgate.errors import MailgateError, UpstreamFailed
from mailgate.model import Refusal
from mailgate.policy import answers
from mailgate.translate.imap_client import MailboxChanged, Malformed, Refused, UpstreamLost, Vanished
from mailgate.translate.store_backend import StoreFailed
from mailgate.translate.uidl import TemplateError

_TEMPORARY: Final = "The mailbox is not available at the moment."
_PERMANENT: Final = "The mailbox cannot be opened."

LOST: Final = Refusal("proxy_dest_remote_failure", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP", close=True)
MALFORMED: Final = Refusal("proxy_dest_protocol_failure", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP", close=True)
CHANGED: Final = Refusal("mailbox_changed", "The mailbox has changed, log in again.", "UNAVAILABLE", "SYS/TEMP", True)
STORE_FAILED: Final = Refusal("store_failed", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP")
MISCONFIGURED: Final = Refusal("proxy_dest_internal_failure", _PERMANENT, "CONTACTADMIN", "SYS/PERM")
VANISHED: Final = Refusal("message_vanished", "This message was removed by another client.")
MAILBOX_REFUSED: Final = Refusal("mailbox_refused", _TEMPORARY, "UNAVAILABLE", "SYS/TEMP")
NO_SUCH_FOLDER: Final = Refusal("mailbox_nonexistent", "There is no such mailbox.", "NONEXISTENT", "SYS/PERM")

_LIMITED: Final = Refusal("proxy_dest_connection_limit", "Too much was asked of the mail server, wait.", "LIMIT")
_AUTH: Final = Refusal("auth_failed", "The mail server refuses this user.", "AUTHORIZATIONFAILED", "AUTH")
_IN_USE: Final = Refusal("mailbox_in_use", "The mailbox is in use by another session.", "INUSE", "IN-USE")
_BY_CODE: Final = {
    "AUTHENTICATIONFAILED": _AUTH,
    "AUTHORIZATIONFAILED": _AUTH,
    "EXPIRED": _AUTH,
    "INUSE": _IN_USE,
    "NONEXISTENT": NO_SUCH_FOLDER,
    "NOPERM": Refusal("mailbox_no_permission", "The mailbox may not be opened.", "NOPERM", "SYS/PERM"),
    "PRIVACYREQUIRED": Refusal("mailbox_refused", _PERMANENT, "PRIVACYREQUIRED", "SYS/PERM"),
    "CONTACTADMIN": Refusal("mailbox_refused", _PERMANENT, "CONTACTADMIN", "SYS/PERM"),
    "CANNOT": Refusal("mailbox_refused", _PERMANENT, "CANNOT", "SYS/PERM"),
}
"""RFC 5530's codes; NO with any other, or with none, is for now."""


def refusal_for(error: MailgateError, *, login_delay: bool = False) -> Refusal:
    """Return what a client hears of an error.

    ``login_delay`` says that a LOGIN-DELAY is configured and announced: then it is what a client
    hears of a server's limits (RFC 2449 §8.1.1).
    """
    match error:
        case Refused(code="LIMIT" | "THROTTLED"):
            code = "LOGIN-DELAY" if login_delay else "SYS/TEMP"
            return Refusal(_LIMITED.reason, _LIMITED.text, _LIMITED.imap_code, code)
        case Refused(code=code):
            return _BY_CODE.get(code, MAILBOX_REFUSED)
        case Malformed():
            return MALFORMED
        case UpstreamLost():
            return LOST
        case MailboxChanged():
            return CHANGED
        case Vanished():
            return VANISHED
        case StoreFailed():
            return STORE_FAILED
        case TemplateError():
            return MISCONFIGURED
        case UpstreamFailed(failure=failure):
            return answers.refusal_for(failure)
        case _:
            return answers.INTERNAL
