"""The ``mailgate`` command: arguments, files and exit statuses; what it does is done elsewhere.

Exit statuses: 0 when all went well, 1 when something failed, 2 for a wrong command line, 78
(EX_CONFIG of sysexits.h) for a configuration that cannot be used.
"""

from mailgate.cli.cert import cert
from mailgate.cli.commands import main
from mailgate.cli.reload import reload
from mailgate.cli.sessions import kick, sessions
from mailgate.cli.trace import trace
from mailgate.cli.uidl import uidl
from mailgate.cli.upgrade import upgrade

main.add_command(cert)
main.add_command(kick)
main.add_command(reload)
main.add_command(sessions)
main.add_command(trace)
main.add_command(uidl)
main.add_command(upgrade)

__all__ = ["main"]
