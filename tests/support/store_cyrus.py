"""Cyrus IMAP as a store, with its POP3: unpacked, not installed, with a user database of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.servers import Program, free_ports
from tests.support.stores import Store, mail_owner

IMAPD = """\
configdirectory: {folder}/conf
partition-default: {folder}/spool
defaultpartition: default
cyrus_user: {user}
servername: localhost
allowplaintext: yes
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {folder}/conf/sasldb2
sasl_mech_list: PLAIN LOGIN
altnamespace: yes
unixhierarchysep: yes
autocreate_quota: 0
popminpoll: 0
failedloginpause: 0
munge8bit: no
duplicatesuppression: no
"""

MASTER = """\
START {{
  recover cmd="{folder}/bin/ctl_cyrusdb -C {folder}/imapd.conf -r"
}}
SERVICES {{
  imap cmd="{folder}/bin/imapd -C {folder}/imapd.conf" listen="127.0.0.1:{imap}" prefork=1 proto="tcp4" maxchild=200
  pop3 cmd="{folder}/bin/pop3d -C {folder}/imapd.conf" listen="127.0.0.1:{pop3}" prefork=1 proto="tcp4" maxchild=200
}}
EVENTS {{
}}
"""


class CyrusStore(Store):
    """See the module. Mail comes by APPEND, which refuses bare LFs and NULs."""

    name = "cyrus"
    lenient = False

    def __init__(self, imap: int, pop3: int, folder: Path, env: dict[str, str]) -> None:
        super().__init__(imap, pop3)
        self._folder = folder
        self._env = env

    def add_user(self, name: str, password: str) -> None:
        self.users[name] = password
        database = self._folder / "conf" / "sasldb2"
        command = [self._folder / "bin" / "saslpasswd2", "-p", "-c", "-f", database, "-u", "localhost", name]
        subprocess.run(command, input=password.encode(), env=os.environ | self._env, check=True, capture_output=True)
        os.chown(database, *mail_owner())


@contextlib.contextmanager
def run(packages: Path, folder: Path) -> Iterator[CyrusStore]:
    """Run Cyrus in ``folder`` until the block ends."""
    uid, gid = mail_owner()
    # It drops its rights before it looks for its parts, which need not be let through to where they were unpacked.
    binaries = folder / "bin"
    libraries = folder / "lib"
    for place in (binaries, libraries, folder / "conf", folder / "spool"):
        place.mkdir()
    for name in ("lib/cyrus/bin/master", "lib/cyrus/bin/imapd", "lib/cyrus/bin/pop3d", "lib/cyrus/bin/ctl_cyrusdb"):
        shutil.copy2(packages / "usr" / name, binaries)
    shutil.copy2(packages / "usr/sbin/saslpasswd2", binaries)
    copy_libraries(packages, libraries)
    for place in (folder / "conf", folder / "spool"):
        os.chown(place, uid, gid)
    imap, pop3 = free_ports(2)
    config, services = folder / "imapd.conf", folder / "cyrus.conf"
    config.write_text(IMAPD.format(folder=folder, user=pwd.getpwuid(uid).pw_name))
    services.write_text(MASTER.format(folder=folder, imap=imap, pop3=pop3))
    plugins = [str(libraries / "sasl2"), *map(str, Path("/usr/lib").glob("*/sasl2"))]
    env = {"LD_LIBRARY_PATH": str(libraries), "SASL_PATH": os.pathsep.join(plugins)}
    command = [str(binaries / "master"), "-C", str(config), "-M", str(services), "-p", str(folder / "conf" / "pid")]
    program = Program(command, folder, "cyrus", env)
    try:
        program.wait_for((imap, pop3))
        yield CyrusStore(imap, pop3, folder, env)
    finally:
        program.stop()


def copy_libraries(packages: Path, into: Path) -> None:
    """Copy all shared libraries of unpacked packages, with what lies in folders beside them, to one place."""
    for place in (*packages.glob("lib/*-linux-*"), *packages.glob("usr/lib/*-linux-*"), packages / "usr/lib"):
        for found in place.glob("*.so*"):
            if not (into / found.name).exists():
                shutil.copy2(found, into)
        if (place / "sasl2").is_dir():
            shutil.copytree(place / "sasl2", into / "sasl2", dirs_exist_ok=True)
