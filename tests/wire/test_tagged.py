from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailgate.wire.tagged import Command, TaggedCommands

tags = st.sampled_from([b"a", b"b", b"c", b"d"])


@given(st.lists(st.tuples(st.booleans(), tags)))
def test_completions_are_matched_with_the_oldest_command_of_their_tag(steps: list[tuple[bool, bytes]]) -> None:
    table = TaggedCommands(opaque=False)
    expected: list[Command] = []
    for number, (begins, tag) in enumerate(steps):
        if begins:
            command = (tag, f"VERB{number % 3}", float(number))
            table._note(command)
            expected.append(command)
        else:
            oldest = next((command for command in expected if command[0] == tag), None)
            assert table._take(tag) is oldest
            if oldest is not None:
                expected.remove(oldest)
        assert table._in_flight == len(expected)
        assert {tag for tag in (b"a", b"b", b"c", b"d") if table._uses(tag)} == {command[0] for command in expected}
        for verb in ("VERB0", "VERB1", "VERB2"):
            assert table._awaits(verb) == any(command[1] == verb for command in expected)


def test_nothing_is_kept_of_commands_that_are_done() -> None:
    table = TaggedCommands(opaque=False)
    for tag in (b"a", b"a", b"b", b"b", b"b"):
        table._note((tag, "NOOP", 0.0))
    for tag in (b"b", b"a", b"b", b"a", b"b"):
        assert table._take(tag) is not None
    assert (table._in_flight, table._first, table._others, table._repeated) == (0, None, None, None)
