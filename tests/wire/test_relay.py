from __future__ import annotations

from mailgate.wire.relay import MAX_IN_FLIGHT, SHORT, CopyRelay, cut, spellings


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


def test_a_short_piece_is_copied_and_a_long_one_is_a_view() -> None:
    burst = bytearray(b"x" * (SHORT + 2))
    short, long = cut(burst, 1, SHORT + 1), cut(burst, 1, SHORT + 2)
    assert isinstance(long, memoryview)
    assert (len(short), len(long)) == (SHORT, SHORT + 1)
    burst[:] = b"y" * len(burst)
    assert bytes(short) == b"x" * SHORT
    assert bytes(long) == b"y" * (SHORT + 1)


def test_verbs_are_found_as_clients_spell_them() -> None:
    table = spellings(frozenset({"NOOP", "UID FETCH"}))
    assert {table[spelled] for spelled in (b"NOOP", b"noop", b"Noop")} == {"NOOP"}
    assert {table[spelled] for spelled in (b"UID FETCH", b"uid fetch", b"Uid Fetch")} == {"UID FETCH"}
    assert b"nOOP" not in table
    assert spellings(frozenset({"UID FETCH", "NOOP"})) is table
