"""``mailgate upgrade`` against a real HTTP server on a Unix socket."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from mailgate.cli import main
from tests.cli.test_reload import answering
from tests.cli.test_trace import Gateway, gateway  # noqa: F401


def upgrade(place: str) -> Result:
    return CliRunner().invoke(main, ["upgrade", "--socket", place])


@pytest.mark.parametrize(
    ("leaving", "told"), [(2, "Earlier workers that let their sessions end: 2.\n"), (0, ""), ("x", "")]
)
def test_what_serves_now_is_told(gateway: Gateway, leaving: object, told: str) -> None:  # noqa: F811
    result = upgrade(answering(gateway, 200, version="2.0\x1b[2J", before="1.0", leaving=leaving))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "mailgate 2.0\\x1b[2J serves; it was 1.0 before.\n" + told
    assert gateway.asked == [("POST", "/v1/upgrade", None)]


def test_new_code_that_is_refused_exits_1(gateway: Gateway) -> None:  # noqa: F811
    result = upgrade(answering(gateway, 409, error="SyntaxError: invalid syntax"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "mailgate: the gateway refuses: SyntaxError: invalid syntax\n"
