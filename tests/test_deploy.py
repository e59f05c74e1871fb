"""The units for systemd are ones that systemd understands, and fit each other and the documents."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mailgate.config import Endpoint, Shutdown
from mailgate.supervisor import LATE_SECONDS

DEPLOY = Path(__file__).parents[1] / "deploy"
SERVICE = (DEPLOY / "mailgate.service").read_text("utf-8")
SOCKET = (DEPLOY / "mailgate.socket").read_text("utf-8")


def values(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    # Where mailgate is not installed, its path would be a mistake of the unit's.
    tmp_path.joinpath("mailgate.service").write_text(SERVICE.replace("/opt/mailgate/bin/mailgate", "/bin/true"))
    tmp_path.joinpath("mailgate.socket").write_text(SOCKET)
    units = [str(tmp_path / name) for name in ("mailgate.service", "mailgate.socket")]
    done = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "mailgate" in line]) == (0, [])


def test_a_stop_has_the_time_that_a_drain_takes() -> None:
    (seconds,) = values(SERVICE, "TimeoutStopSec")
    assert float(seconds) > Shutdown().drain + LATE_SECONDS


def test_sockets_are_written_as_binds_are() -> None:
    streams = values(SOCKET, "ListenStream")
    assert [str(Endpoint.parse(stream)) for stream in streams] == streams
    assert len(streams) == 4


@pytest.mark.parametrize("line", ["NoNewPrivileges=yes", "ProtectSystem=strict", "Type=notify", "OOMPolicy=continue"])
def test_what_the_documents_promise(line: str) -> None:
    assert f"\n{line}\n" in SERVICE


def test_no_right_but_that_for_low_ports() -> None:
    assert (
        values(SERVICE, "CapabilityBoundingSet") == values(SERVICE, "AmbientCapabilities") == ["CAP_NET_BIND_SERVICE"]
    )
