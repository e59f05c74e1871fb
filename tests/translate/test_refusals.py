"""What a client hears of an error: a refusal, never an empty maildrop."""

from __future__ import annotations

import pytest

from mailgate.errors import MailgateError, UpstreamFailed
from mailgate.model import Failure
from mailgate.translate.imap_client import MailboxChanged, Malformed, Refused, UpstreamLost, Vanished
from mailgate.translate.refusals import refusal_for
from mailgate.translate.store_backend import StoreFailed
from mailgate.translate.uidl import TemplateError


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (Refused("NO", "AUTHENTICATIONFAILED", "x"), "auth_failed", "AUTH"),
        (Refused("NO", "INUSE", "x"), "mailbox_in_use", "IN-USE"),
        (Refused("NO", "NONEXISTENT", "x"), "mailbox_nonexistent", "SYS/PERM"),
        (Refused("NO", "NOPERM", "x"), "mailbox_no_permission", "SYS/PERM"),
        (Refused("NO", "CONTACTADMIN", "x"), "mailbox_refused", "SYS/PERM"),
        (Refused("NO", "LIMIT", "x"), "proxy_dest_connection_limit", "SYS/TEMP"),
        (Refused("NO", "THROTTLED", "x"), "proxy_dest_connection_limit", "SYS/TEMP"),
        (Refused("NO", "SERVERBUG", "x"), "mailbox_refused", "SYS/TEMP"),
        (Refused("NO", "", "x"), "mailbox_refused", "SYS/TEMP"),
        (UpstreamLost("x"), "proxy_dest_remote_failure", "SYS/TEMP"),
        (Malformed("x"), "proxy_dest_protocol_failure", "SYS/TEMP"),
        (MailboxChanged("x"), "mailbox_changed", "SYS/TEMP"),
        (Vanished(3), "message_vanished", ""),
        (StoreFailed("x"), "store_failed", "SYS/TEMP"),
        (TemplateError("x"), "proxy_dest_internal_failure", "SYS/PERM"),
        (UpstreamFailed(Failure.AUTH_REJECTED, "x", "x"), "auth_failed", "AUTH"),
        (MailgateError("x"), "internal_failure", "SYS/TEMP"),
    ],
)
def test_every_error_has_its_refusal(error: MailgateError, reason: str, code: str) -> None:
    refusal = refusal_for(error)
    assert (refusal.reason, refusal.pop3_code) == (reason, code)
    assert refusal.text.isascii()


def test_a_servers_limit_is_a_login_delay_where_one_is_announced() -> None:
    assert refusal_for(Refused("NO", "LIMIT", "x"), login_delay=True).pop3_code == "LOGIN-DELAY"
