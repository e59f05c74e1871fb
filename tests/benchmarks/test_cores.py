"""The figures of the relay cores: each case is a dialogue that the cores understand to its end."""

from __future__ import annotations

import pytest

from benchmarks import cores
from mailgate.model import Protocol
from mailgate.policy.gate import Gate, GateSettings


@pytest.mark.parametrize("case", cores.cases(), ids=lambda case: case.name)
def test_every_case_leaves_no_command_under_way_and_alters_nothing(case: cores.Case) -> None:
    core = cores.core_for(cores.Asker(Gate(GateSettings()), case.protocol))
    for sent, answered in case.exchanges[:3]:
        assert core.client_sent(bytearray(sent), len(sent), 0.0) == len(sent)
        core.upstream_sent(bytearray(answered), len(answered), 1.0)
        assert b"".join(core.to_upstream) == sent
        assert b"".join(core.to_client) == answered
        assert len(core.finished) == sent.count(b"\r\n")
        for left in (core.to_upstream, core.to_client, core.finished):
            left.clear()
    assert not core.busy


@pytest.mark.parametrize(("protocol", "limit"), [(Protocol.IMAP, 750), (Protocol.POP3, 600)])
def test_an_idle_core_is_small(protocol: Protocol, limit: int) -> None:
    assert cores.idle_bytes(protocol, 200) < limit


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cores.main(["--rounds", "1", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(case.name in printed for case in cores.cases())
