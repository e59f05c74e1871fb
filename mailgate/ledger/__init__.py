"""What the workers of one machine count together, in memory that they share."""

from mailgate.ledger.seat import Seat
from mailgate.ledger.table import Ledger

__all__ = ["Ledger", "Seat"]
