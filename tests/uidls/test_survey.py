"""Many users are compared some at a time, and one that fails harms no other."""

from __future__ import annotations

import trio
import trio.testing

from mailgate.errors import MailgateError
from mailgate.model import Secret
from mailgate.uidls.comparing import Listing
from mailgate.uidls.places import User
from mailgate.uidls.survey import survey


class Server:
    """Shows a listing after a second, and notes how many were signed in at once."""

    def __init__(self, name: str, listings: dict[bytes, Listing]) -> None:
        self.name = name
        self.listings = listings
        self.signed_in = 0
        self.most = 0
        self.secrets: list[bytes] = []

    async def sign_in(self, user: bytes, secret: Secret) -> Session:
        self.secrets.append(secret.reveal())
        if user not in self.listings:
            raise MailgateError("auth_rejected")
        self.signed_in += 1
        self.most = max(self.most, self.signed_in)
        return Session(self, self.listings[user])


class Session:
    def __init__(self, server: Server, listing: Listing) -> None:
        self.server = server
        self.found = listing

    async def listing(self) -> Listing:
        await trio.sleep(1)
        return self.found

    async def quit(self) -> None:
        self.server.signed_in -= 1


async def test_users_are_compared_side_by_side_and_told_in_order(autojump_clock: trio.testing.MockClock) -> None:
    one, two = Listing((b"a",), (1,)), Listing((b"b",), (1,))
    names = [b"user%d" % number for number in range(10)]
    old = Server("old", dict.fromkeys(names[1:], one))
    new = Server("new", dict.fromkeys(names, one) | {names[9]: two})
    users = [User(name, Secret(b"new"), Secret(b"old")) for name in names]
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    outcomes = await survey(users, old.sign_in, new.sign_in, tell, 3)  # type: ignore[arg-type]
    assert [outcome.user.name for outcome in outcomes] == names
    assert outcomes[0].failure == "the old server: auth_rejected"
    assert [outcome.comparison.same for outcome in outcomes if outcome.comparison] == [True] * 8 + [False]
    assert told == 10
    assert (old.most, old.signed_in, new.signed_in) == (3, 0, 0)
    assert set(old.secrets) == {b"old"}
    assert set(new.secrets) == {b"new"}
    # Nine users, three at a time, a second at either server.
    assert 6 <= trio.current_time() <= 8
