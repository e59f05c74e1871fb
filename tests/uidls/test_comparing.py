"""What differs between two listings, and what clients would do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.uidls.comparing import Comparison, Listing, compare


def listing(*uidls: bytes, sizes: tuple[int, ...] | None = None) -> Listing:
    return Listing(uidls, sizes or (100,) * len(uidls))


OLD = listing(b"a", b"b", b"c")


@pytest.mark.parametrize(
    ("new", "expected", "verdict"),
    [
        (OLD, Comparison(3), "no differences: 3 messages"),
        (
            listing(b"1", b"2", b"3"),
            Comparison(3, gone=(b"a", b"b", b"c"), new=(b"1", b"2", b"3")),
            "clients would download everything again: 3 messages",
        ),
        (
            listing(b"a", b"b", b"c", b"d"),
            Comparison(4, new=(b"d",)),
            "clients would download 1 of 4 messages again",
        ),
        (listing(b"a", b"c"), Comparison(2, gone=(b"b",)), "clients would download nothing again, and miss 1 message"),
        (
            listing(),
            Comparison(0, gone=(b"a", b"b", b"c")),
            "clients would download nothing again, and miss 3 messages",
        ),
        (listing(b"b", b"a", b"c"), Comparison(3, moved=(b"b", b"a")), "clients would download nothing again"),
        (
            listing(b"a", b"b", b"c", sizes=(100, 99, 100)),
            Comparison(3, resized=((b"b", 100, 99),)),
            "clients would download nothing again",
        ),
        (listing(b"a", b"b", b"c", b"c"), Comparison(4, repeated=(b"c",)), "clients would download nothing again"),
    ],
)
def test_what_differs_is_told(new: Listing, expected: Comparison, verdict: str) -> None:
    found = compare(OLD, new)
    assert found == expected
    assert found.verdict == verdict
    assert found.same == (verdict.startswith("no differences"))
    assert found.everything == ("everything" in verdict)


def test_two_empty_maildrops_are_the_same() -> None:
    assert compare(listing(), listing()).verdict == "no differences: 0 messages"


def test_mail_that_came_meanwhile_to_an_empty_maildrop_is_not_everything_again() -> None:
    assert compare(listing(), listing(b"a")).verdict == "clients would download 1 of 1 message again"


@given(st.lists(st.binary(min_size=1, max_size=2), unique=True, max_size=8), st.data())
def test_everything_that_differs_is_found(uidls: list[bytes], data: st.DataObject) -> None:
    other = data.draw(st.permutations(uidls))
    keep = data.draw(st.integers(0, len(uidls)))
    found = compare(listing(*uidls), listing(*other[:keep]))
    assert set(found.gone) == set(other[keep:])
    assert found.new == ()
    assert found.same == (list(uidls) == other[:keep])
