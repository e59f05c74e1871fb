"""The order in which a login tries the servers of a pool."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mailgate.balance.choose import RETRY_AFTER, RoundRobin


def test_every_login_begins_with_the_next_server() -> None:
    choose: RoundRobin[str] = RoundRobin()
    assert ["".join(choose.order("abc", 0.0)) for _ in range(4)] == ["abc", "bca", "cab", "abc"]


def test_a_server_that_failed_comes_last_until_its_time_is_over() -> None:
    choose: RoundRobin[str] = RoundRobin()
    choose.failed("a", 10.0)
    assert [choose.order("abc", 10.0 + RETRY_AFTER - 1)[-1] for _ in range(3)] == ["a", "a", "a"]
    assert choose.down("abc", 10.0) == ["a"]
    assert choose.down("abc", 10.0 + RETRY_AFTER) == []
    assert {choose.order("abc", 10.0 + RETRY_AFTER)[0] for _ in range(3)} == {"a", "b", "c"}


def test_a_server_that_answered_is_healthy_at_once() -> None:
    choose: RoundRobin[str] = RoundRobin()
    choose.failed("a", 0.0)
    choose.succeeded("a")
    choose.succeeded("never failed")
    assert choose.order("ab", 0.0) == ["a", "b"]


def test_the_share_of_a_dead_server_is_spread_evenly() -> None:
    choose: RoundRobin[str] = RoundRobin()
    choose.failed("b", 0.0)
    first = Counter(choose.order("abc", 1.0)[0] for _ in range(100))
    assert first == {"a": 50, "c": 50}


def test_when_all_have_failed_the_one_that_failed_first_is_tried_first() -> None:
    choose: RoundRobin[str] = RoundRobin(retry_after=5.0)
    for server, when in (("a", 2.0), ("b", 1.0), ("c", 3.0)):
        choose.failed(server, when)
    assert [choose.order("abc", 3.0) for _ in range(2)] == [["b", "a", "c"]] * 2


def test_no_server_is_no_order() -> None:
    assert RoundRobin[str]().order([], 0.0) == []


@given(
    st.lists(st.integers(0, 9), unique=True, min_size=1),
    st.lists(st.tuples(st.sampled_from(["order", "failed", "succeeded"]), st.integers(0, 9), st.floats(0, 9))),
)
def test_every_server_is_always_in_the_order_once(servers: list[int], history: list[tuple[str, int, float]]) -> None:
    choose: RoundRobin[int] = RoundRobin(retry_after=3.0)
    now = 0.0
    for what, server, later in history:
        now += later
        if what == "failed":
            choose.failed(server, now)
        elif what == "succeeded":
            choose.succeeded(server)
        order = choose.order(servers, now)
        assert sorted(order) == sorted(servers)
        down = choose.down(servers, now)
        assert set(order[len(order) - len(down) :]) == set(down)
