"""Courier as a store: its IMAP and POP3 on one Maildir, unpacked, not installed.

The authentication daemon is this process. Courier looks for its socket at one fixed place below ``/run``, so both
servers live in a mount namespace of their own, where ``/run`` is empty but for that; and in a process namespace,
so that nothing of them outlives it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import needed
from tests.support.servers import Program, free_ports
from tests.support.store_cyrus import copy_libraries
from tests.support.stores import Maildirs, mail_owner

CAPABILITY = "IMAP4rev1 UIDPLUS CHILDREN NAMESPACE THREAD=ORDEREDSUBJECT THREAD=REFERENCES SORT QUOTA IDLE"
"""What Debian's configuration announces."""

SCRIPT = """\
set -e
mount -t tmpfs none /run
mkdir /run/courier
ln -s {folder}/auth /run/courier/authdaemon
serve() {{
    {folder}/bin/couriertcpd -address=127.0.0.1 -maxprocs=500 -maxperip=500 -nodnslookup -noidentlookup "$@" Maildir
}}
serve {imap} {folder}/bin/imaplogin {folder}/bin/imapd &
serve {pop3} {folder}/bin/courierpop3login {folder}/bin/courierpop3d &
wait
"""


class CourierStore(Maildirs):
    """See the module."""

    name = "courier"

    def __init__(self, imap: int, pop3: int, folder: Path) -> None:
        super().__init__(imap, pop3, mail_owner())
        self._folder = folder
        self._passwords: dict[str, str] = {}

    def add_user(self, name: str, password: str) -> None:
        maildir = self.maildir(name)
        for place in (maildir.parent, maildir, *(maildir / part for part in ("cur", "new", "tmp"))):
            place.mkdir()
            os.chown(place, *self.owner)
        self.users[name] = self._passwords[name] = password

    def maildir(self, user: str, folder: str = "INBOX") -> Path:
        home = self._folder / "mail" / user / "Maildir"
        return home if folder == "INBOX" else home / f".{folder}"

    def deliver(self, user: str, message: bytes, folder: str = "INBOX") -> None:
        # Courier's files have LF alone; a CR would be sent as part of the line.
        super().deliver(user, message.replace(b"\r\n", b"\n"), folder)

    def account(self, request: bytes) -> bytes:
        """Answer one question of the authentication daemon's protocol (courier-authlib, README_authlib)."""
        question = request.partition(b"AUTH ")[2].decode().split("\n")
        _, _, kind, name, password, *_ = [*question, *5 * [""]]
        if kind != "login" or self._passwords.get(name) != password:
            return b"FAIL\n"
        home = self.maildir(name).parent
        uid, gid = self.owner
        lines = f"UID={uid}", f"GID={gid}", f"HOME={home}", f"ADDRESS={name}", f"MAILDIR={home}/Maildir", "."
        return "".join(f"{line}\n" for line in lines).encode()


def _answer(listening: socket.socket, store: CourierStore) -> None:
    while True:
        try:
            sock, _ = listening.accept()
        except OSError:
            return
        with sock:
            request = b""
            # The password's line is the fifth, behind an optional one with the client's address.
            while request.partition(b"AUTH ")[2].count(b"\n") < 5 and (data := sock.recv(4096)):
                request += data
            sock.sendall(store.account(request))


@contextlib.contextmanager
def run(packages: Path, folder: Path) -> Iterator[CourierStore]:
    """Run Courier in ``folder`` until the block ends."""
    for name in ("bin", "lib", "mail", "auth"):
        (folder / name).mkdir()
    for name in (
        "sbin/couriertcpd",
        "bin/imapd",
        "lib/courier/courier/imaplogin",
        "lib/courier/courier/courierpop3login",
        "lib/courier/courier/courierpop3d",
        "libexec/gam_server",
    ):
        shutil.copy2(packages / "usr" / name, folder / "bin")
    copy_libraries(packages, folder / "lib")
    imap, pop3 = free_ports(2)
    store = CourierStore(imap, pop3, folder)
    env = {
        "LD_LIBRARY_PATH": str(folder / "lib"),
        # It waits two seconds for a file monitor that is not there.
        "GAMIN_DEBUG_SERVER": str(folder / "bin" / "gam_server"),
        "IMAP_CAPABILITY": CAPABILITY,
        "IMAP_KEYWORDS": "1",
        "IMAP_ACL": "1",
        "IMAP_IDLE_TIMEOUT": "60",
        "IMAP_MAILBOX_SANITY_CHECK": "1",
        "IMAP_USELOCKS": "1",
        "IMAP_TRASHFOLDERNAME": "Trash",
        "POP3AUTH": "PLAIN LOGIN",
    }
    command = [needed("unshare"), "--mount", "--pid", "--fork", "--kill-child"]
    if os.getuid() != 0:
        command += ["--map-current-user", "--keep-caps"]
    script = SCRIPT.format(folder=shlex.quote(str(folder)), imap=imap, pop3=pop3)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "auth" / "socket"))
        (folder / "auth" / "socket").chmod(0o777)
        listening.listen(100)
        answering = threading.Thread(target=_answer, args=(listening, store), daemon=True)
        answering.start()
        program = Program([*command, "sh", "-c", script], folder, "courier", env)
        try:
            program.wait_for((imap, pop3))
            yield store
        finally:
            # unshare ignores SIGTERM; with it dies the first process of the namespace, and all others with that.
            program.stop(signal.SIGKILL)
            listening.shutdown(socket.SHUT_RDWR)
            answering.join()
