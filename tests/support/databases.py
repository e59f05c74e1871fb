"""Real databases for tests: each on a free port of loopback, in a folder of its own, run by nobody in particular."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers import START_SECONDS, Program, free_ports

PASSWORD = "b1rne & k@ese/:"
"""It has everything in it that a URL would have to escape."""


@dataclass
class Database:
    """A running database: a URL without the password, and what tests stop and start again."""

    folder: Path
    url: str
    port: int
    command: list[str]
    user: str | None
    probe: list[str]
    program: Program | None = None

    def stop(self) -> None:
        if self.program is not None:
            # PostgreSQL waits for its clients to leave after SIGTERM, and does not after SIGINT.
            self.program.stop(signal.SIGINT if self.probe else signal.SIGTERM)

    def start(self) -> None:
        self.program = Program(self.command, self.folder, "database", user=self.user)
        self.program.wait_for([self.port])
        # PostgreSQL accepts connections a moment before it lets anybody in.
        deadline = time.monotonic() + START_SECONDS
        while self.probe and subprocess.run(self.probe, capture_output=True, timeout=30).returncode != 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.url} is not ready:\n{self.program.output()}")
            time.sleep(0.02)


def _owner(folder: Path) -> str | None:
    """Return whom a database is run by, and give the folder to them: databases refuse to run as root."""
    if os.getuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    folder.chmod(0o700)
    return "nobody"


@contextlib.contextmanager
def _running(database: Database) -> Iterator[Database]:
    try:
        database.start()
        yield database
    finally:
        database.stop()


def _prepare(command: list[str], folder: Path, user: str | None) -> None:
    done = subprocess.run(command, cwd=folder, user=user, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"{command!r} failed:\n{done.stdout}{done.stderr}")


def postgres_program() -> str | None:
    """Return the path of PostgreSQL's server, which Debian keeps out of the search path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return str(found[-1]) if found else shutil.which("postgres")


@contextlib.contextmanager
def postgresql(binary: str, folder: Path) -> Iterator[Database]:
    """Run PostgreSQL in ``folder`` until the block ends, with a database and a user called mailgate."""
    user = _owner(folder)
    password = folder / "password"
    password.write_text(PASSWORD, "utf-8")
    password.chmod(0o644)
    initdb = [str(Path(binary).resolve().with_name("initdb")), "-D", "data", "-U", "mailgate", "-A", "scram-sha-256"]
    _prepare([*initdb, "--pwfile=password", "--no-sync", "-E", "UTF8", "--locale=C"], folder, user)
    (port,) = free_ports(1)
    settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
    command = [binary, "-D", "data", *(word for setting in settings for word in ("-c", setting))]
    url = f"postgresql://mailgate@127.0.0.1:{port}/postgres"
    probe = [str(Path(binary).resolve().with_name("pg_isready")), "-h", "127.0.0.1", "-p", str(port)]
    with _running(Database(folder, url, port, command, user, probe)) as database:
        yield database


@contextlib.contextmanager
def mariadb(binary: str, folder: Path) -> Iterator[Database]:
    """Run MariaDB in ``folder`` until the block ends, with a database and a user called mailgate."""
    user = _owner(folder)
    install = shutil.which("mariadb-install-db") or "/usr/bin/mariadb-install-db"
    options = ["--no-defaults", f"--datadir={folder}/data"]
    _prepare([install, *options, "--auth-root-authentication-method=normal", "--skip-test-db"], folder, user)
    (folder / "init.sql").write_text(
        "CREATE DATABASE IF NOT EXISTS mailgate;"
        f"\nCREATE USER IF NOT EXISTS mailgate@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';"
        "\nGRANT ALL ON mailgate.* TO mailgate@'127.0.0.1';\n",
        "utf-8",
    )
    (folder / "init.sql").chmod(0o644)
    (port,) = free_ports(1)
    command = [binary, *options, f"--socket={folder}/socket", f"--port={port}", "--bind-address=127.0.0.1"]
    command += [f"--pid-file={folder}/pid", f"--init-file={folder}/init.sql", "--innodb-flush-log-at-trx-commit=0"]
    command += ["--skip-name-resolve", "--innodb-buffer-pool-size=16M"]
    url = f"mariadb://mailgate@127.0.0.1:{port}/mailgate"
    with _running(Database(folder, url, port, command, user, [])) as database:
        yield database
