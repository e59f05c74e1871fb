"""What the workers of one machine count and lock together, in memory that they share."""

from mailgate.ledger.login_delays import LoginDelays
from mailgate.ledger.maildrops import Held, InUse, MaildropLocks
from mailgate.ledger.register import Register
from mailgate.ledger.seat import Seat
from mailgate.ledger.table import Ledger

__all__ = ["Held", "InUse", "Ledger", "LoginDelays", "MaildropLocks", "Register", "Seat"]
