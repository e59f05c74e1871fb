"""Many users' maildrops at two POP3 servers, compared some at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from mailgate.errors import MailgateError
from mailgate.model import Secret
from mailgate.uidls.comparing import Comparison, Listing, compare
from mailgate.uidls.places import User
from mailgate.uidls.pop3_server import Pop3Server


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one user: a comparison, or in words why there is none."""

    user: User
    comparison: Comparison | None = None
    failure: str = ""


SignIn = Callable[[bytes, Secret], Awaitable[Pop3Server]]
"""How to sign in at a server; raises MailgateError."""


async def survey(users: Sequence[User], old: SignIn, new: SignIn, tell: Callable[[], None], jobs: int) -> list[Outcome]:
    """Compare the maildrops of all users, ``jobs`` at a time; ``tell`` is called when one is done."""
    outcomes: dict[int, Outcome] = {}
    places = trio.CapacityLimiter(jobs)

    async def one(index: int, user: User) -> None:
        async with places:
            try:
                # One behind the other: both may stand before the same store, which lets one session in.
                before = await listing(old, user.name, user.old_secret, "the old server")
                after = await listing(new, user.name, user.secret, "the new server")
                outcomes[index] = Outcome(user, compare(before, after))
            except MailgateError as error:
                outcomes[index] = Outcome(user, failure=str(error))
            tell()

    async with trio.open_nursery() as nursery:
        for index, user in enumerate(users):
            nursery.start_soon(one, index, user)
    return [outcomes[index] for index in range(len(users))]


async def listing(sign_in: SignIn, user: bytes, secret: Secret, where: str) -> Listing:
    """Return what a server shows of a maildrop. Raises MailgateError."""
    try:
        server = await sign_in(user, secret)
        try:
            return await server.listing()
        finally:
            await server.quit()
    except MailgateError as error:
        raise MailgateError(f"{where}: {error}") from error
