"""Real programs for tests: each on free ports of loopback, in a folder of its own, stopped by its own pid."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 20.0
STOP_SECONDS = 20.0


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


class Program:
    """A child process that serves on ports; its output goes to ``log``, and it is given some open ``descriptors``.

    Run by root it may be another ``user``.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        name: str,
        env: dict[str, str] | None = None,
        descriptors: Sequence[int] = (),
        user: str | None = None,
    ) -> None:
        self.log = folder / f"{name}.out"
        self._file = self.log.open("wb")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | (env or {}),
            pass_fds=descriptors,
            user=user,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        """Return what the program has printed so far."""
        return self.log.read_text("utf-8", "replace")

    def records(self) -> list[dict[str, Any]]:
        """Return the lines of its log in JSON that are written to their ends."""
        whole = self.output().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def wait_for(self, ports: Sequence[int]) -> None:
        """Wait until every port accepts connections."""
        deadline = time.monotonic() + START_SECONDS
        for port in ports:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.process.args!r} does not serve port {port}:\n{self.output()}")
                time.sleep(0.02)

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Stop the program and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._file.close()
        return self.process.returncode

    def workers(self) -> list[int]:
        """Return the pids of the program's children."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def resident(self) -> int:
        """Return the resident memory of the program and its children in bytes; what they share counts for each."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (self.pid, *self.workers()))
        return pages * os.sysconf("SC_PAGE_SIZE")

    def peak(self) -> int:
        """Return the largest resident memory of the program and its children since :meth:`forget_peak`, in bytes."""
        status = [Path(f"/proc/{pid}/status").read_text() for pid in (self.pid, *self.workers())]
        return sum(int(one.partition("VmHWM:")[2].split()[0]) for one in status) * 1024

    def forget_peak(self) -> None:
        for pid in (self.pid, *self.workers()):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


DOVECOT = """
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
protocols = imap pop3
listen = 127.0.0.1
{users}
mail_location = maildir:~/Maildir
mail_max_userip_connections = 1000
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
auth_cache_size = 1M
login_trusted_networks = 127.0.0.0/8
pop3_uidl_format = %08Xu%08Xv
maildir_very_dirty_syncs = yes
mail_fsync = never
ssl = yes
ssl_cert = <{certificate}
ssl_key = <{key}
ssl_min_protocol = TLSv1.2
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {folder}/users
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={folder}/mail/%u
}}
service imap-login {{
  process_min_avail = 1
  service_count = 0
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service pop3-login {{
  process_min_avail = 1
  service_count = 0
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = {pop3s}
    ssl = yes
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
service anvil {{
  client_limit = 4000
  # Wrong passwords are part of the tests: nobody waits for them.
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  client_limit = 4000
}}
service imap {{
  process_limit = 2000
}}
{extra}
"""


@dataclass
class Dovecot:
    """A running Dovecot: IMAP and POP3, in clear (with STARTTLS) and over TLS."""

    folder: Path
    program: Program
    imap: int
    imaps: int
    pop3: int
    pop3s: int
    users: dict[str, str] = field(default_factory=dict)

    def add_user(self, name: str, password: str) -> None:
        """Let somebody in, a second later at most; the mailbox comes into being with the first login."""
        self.users[name] = password
        with (self.folder / "users").open("a", encoding="utf-8") as file:
            file.write(f"{name}:{{PLAIN}}{password}\n")

    @property
    def log(self) -> str:
        return (self.folder / "dovecot.log").read_text("utf-8", "replace")


@contextlib.contextmanager
def dovecot(
    binary: str, folder: Path, certificate: Path, key: Path, extra: str = "", env: dict[str, str] | None = None
) -> Iterator[Dovecot]:
    """Run Dovecot in ``folder`` until the block ends.

    It drops its rights, so every folder above must let it pass: pytest's own do not.
    """
    folder.chmod(0o755)
    for name in ("mail", "run", "state"):
        (folder / name).mkdir()
    (folder / "users").touch()
    if os.getuid() == 0:
        owner = pwd.getpwnam("mail")
        uid, gid, users = owner.pw_uid, owner.pw_gid, ""
        os.chown(folder / "mail", uid, gid)
    else:
        me = pwd.getpwuid(os.getuid()).pw_name
        uid, gid = os.getuid(), os.getgid()
        users = f"default_internal_user = {me}\ndefault_login_user = {me}\ndefault_internal_group = {gid}\n"
        users += (
            "service imap-login {\n  chroot =\n}\nservice pop3-login {\n  chroot =\n}\nservice anvil {\n  chroot =\n}\n"
        )
    imap, imaps, pop3, pop3s = free_ports(4)
    config = folder / "dovecot.conf"
    config.write_text(
        DOVECOT.format(
            folder=folder,
            users=users + "first_valid_uid = 1\n",
            uid=uid,
            gid=gid,
            certificate=certificate,
            key=key,
            imap=imap,
            imaps=imaps,
            pop3=pop3,
            pop3s=pop3s,
            extra=extra,
        )
    )
    program = Program([binary, "-F", "-c", str(config)], folder, "dovecot", env)
    try:
        program.wait_for((imap, imaps, pop3, pop3s))
        yield Dovecot(folder, program, imap, imaps, pop3, pop3s)
    finally:
        program.stop()


@contextlib.contextmanager
def mailgate(folder: Path, config: str, ports: Sequence[int], *, name: str = "mailgate") -> Iterator[Program]:
    """Run ``mailgate run`` with a configuration until the block ends; it must stop in good order."""
    path = folder / f"{name}.toml"
    path.write_text(config, encoding="utf-8")
    program = Program([sys.executable, "-m", "mailgate", "run", str(path)], folder, name)
    try:
        program.wait_for(ports)
        yield program
    finally:
        status = program.stop()
    if status != 0:
        raise RuntimeError(f"mailgate ended with status {status}:\n{program.output()}")
