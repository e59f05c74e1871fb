"""pymap as a store: IMAP only, mail in memory; with users from a file that may grow."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.servers import Program, free_ports
from tests.support.stores import Store


class PymapStore(Store):
    """See the module."""

    name = "pymap"

    def __init__(self, imap: int, file: Path) -> None:
        super().__init__(imap, None)
        self._file = file

    def add_user(self, name: str, password: str) -> None:
        self.users[name] = password
        with self._file.open("a") as file:
            file.write(f"{name}:{password}\n")


@contextlib.contextmanager
def run(folder: Path) -> Iterator[PymapStore]:
    """Run pymap in ``folder`` until the block ends."""
    (port,) = free_ports(1)
    users = folder / "users"
    users.touch()
    command = [sys.executable, "-m", "tests.support.store_pymap", str(users)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--no-tls"]
    command += ["--no-service", "admin", "--no-service", "managesieve", "dict"]
    program = Program(command, folder, "pymap", {"PYTHONPATH": str(Path(__file__).parents[2])})
    try:
        program.wait_for((port,))
        yield PymapStore(port, users)
    finally:
        program.stop()


def _serve() -> None:
    """Be pymap, with the users of the file that is the first argument: one in a line, name and password."""
    from pymap.backend.dict import Config, DictBackend, Login
    from pymap.main import main
    from pymap.user import UserMetadata
    from pysasl.hashing import Cleartext

    file = Path(sys.argv.pop(1))

    class Users(dict[str, Any]):
        def __init__(self, config: Config) -> None:
            self.config = config

        def get(self, name: str, default: Any = None) -> Any:
            known = dict(line.split(":", 1) for line in file.read_text().splitlines())
            return UserMetadata(self.config, name, password=known[name]) if name in known else default

    async def init(cls: type[DictBackend], args: Any, **overrides: Any) -> tuple[DictBackend, Config]:
        config = Config.from_args(args, hash_context=Cleartext(), **overrides)
        login = Login(config)
        login.users_dict = Users(config)
        return cls(login, config), config

    DictBackend.init = classmethod(init)  # type: ignore[method-assign,assignment]
    main()


if __name__ == "__main__":
    _serve()
