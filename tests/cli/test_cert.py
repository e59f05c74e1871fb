"""``mailgate cert``: files that TLS takes, and a description that a human reads."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mailgate.cli import main

pytest.importorskip("mailgate.net.certificate")


def cert(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["cert", *map(str, arguments)])


@pytest.mark.parametrize("key_type", ["ecdsa", "rsa"])
def test_a_self_signed_certificate_is_usable_and_private(tmp_path: Path, key_type: str) -> None:
    paths = tmp_path / "c.pem", tmp_path / "k.pem"
    arguments = ("mail.example.org", "127.0.0.1", "--certificate", paths[0], "--key", paths[1])
    result = cert("self-signed", *arguments, "--key-type", key_type, "--days", "30")
    assert result.exit_code == 0, result.output
    assert "mail.example.org, 127.0.0.1, valid for 30 days" in result.stdout
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*paths)
    assert stat.S_IMODE(paths[1].stat().st_mode) == 0o600
    shown = cert("show", paths[0])
    assert shown.exit_code == 0
    assert "mail.example.org" in shown.stdout


def test_files_that_exist_are_kept_unless_forced(tmp_path: Path) -> None:
    paths = tmp_path / "c.pem", tmp_path / "k.pem"
    paths[1].write_text("precious")
    arguments = ("a.example", "--certificate", paths[0], "--key", paths[1])
    refused = cert("self-signed", *arguments)
    assert (refused.exit_code, paths[1].read_text()) == (1, "precious")
    assert "--force" in refused.stderr
    assert cert("self-signed", *arguments, "--force").exit_code == 0
    assert "PRIVATE KEY" in paths[1].read_text()


def test_wrong_command_lines(tmp_path: Path) -> None:
    assert cert("self-signed").exit_code == 2
    assert cert("self-signed", "a", "--days", "0").exit_code == 2
    missing = cert("show", tmp_path / "none.pem")
    assert (missing.exit_code, missing.stderr) == (
        1,
        f"mailgate: {tmp_path / 'none.pem'}: No such file or directory\n",
    )
    (tmp_path / "x.pem").write_text("nothing")
    garbage = cert("show", tmp_path / "x.pem")
    assert garbage.exit_code == 1
    assert garbage.stderr.startswith("mailgate: ")
