from __future__ import annotations

from mailgate.wire.relay import MAX_IN_FLIGHT, CopyRelay


def test_the_limit_of_commands_in_flight() -> None:
    assert MAX_IN_FLIGHT == 1000


def test_the_copying_core_knows_nothing_and_says_so() -> None:
    core = CopyRelay()
    assert core.client_sent(b"a LOGOUT\r\n", 10, 0.0) == 10
    core.upstream_sent(b"* BYE\r\na OK\r\n", 13, 1.0)
    assert (core.finished, core.delay, core.logged_out, core.fatal, core.opaque) == ([], 0.0, False, "", True)
    assert (core.at_boundary, core.blocked, core.held, core.awaited) == (False, False, False, 1)


def test_the_copying_core_forwards_views_of_the_burst() -> None:
    core = CopyRelay()
    burst = bytearray(b"anything and more")
    core.client_sent(burst, 8, 0.0)
    core.upstream_sent(burst, 3, 0.0)
    for (piece,), expected in ((core.to_upstream, b"anything"), (core.to_client, b"any")):
        assert isinstance(piece, memoryview)
        assert piece.obj is burst
        assert piece == expected


def test_a_copy_never_knows_that_nothing_is_under_way() -> None:
    assert CopyRelay().busy
