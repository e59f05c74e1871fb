"""New code takes over a gateway that serves: nobody is refused, nobody is cut off, and bad code changes nothing."""

from __future__ import annotations

import imaplib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import mailgate as package
from tests.real.conftest import Gateway
from tests.real.test_workers import WORKERS, House, User, configuration, running
from tests.support.servers import Dovecot, Program, free_ports

pytestmark = pytest.mark.real

UPGRADES = 5
PATIENCE = 60.0
SOURCE = Path(package.__file__).parent
SHUTTING_DOWN = b"* BYE [UNAVAILABLE] The server is shutting down.\r\n"


@dataclass
class Installed(House):
    """A gateway that runs a copy of the code, which a test can change as an administrator would."""

    code: Path = field(default_factory=Path)

    def install(self, file: str = "__init__.py", old: str = "", new: str = "") -> None:
        """Put the code there as it is, with one change."""
        shutil.rmtree(self.code, ignore_errors=True)
        shutil.copytree(SOURCE, self.code, ignore=shutil.ignore_patterns("__pycache__"))
        path = self.code / file
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def install_version(self, version: str) -> None:
        self.install(old=f'"{package.__version__}"', new=f'"{version}"')

    def upgrade(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mailgate", "upgrade", "-c", str(self.folder / "mailgate.toml")]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.metric(name, **labels)

    def idle(self, user: User) -> imaplib.IMAP4_SSL:
        """Return a session that is in IDLE."""
        client = self.login(user)
        assert client.select()[0] == "OK"
        client.send(b"i IDLE\r\n")
        assert client.readline().startswith(b"+ ")
        return client

    def wake(self, client: imaplib.IMAP4) -> bytes:
        """Return the answer to the end of an IDLE."""
        client.send(b"DONE\r\n")
        # A server says now and then that it is there.
        while (line := client.readline()).startswith(b"* OK "):
            pass
        return line

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.program.output()
            time.sleep(0.02)


@contextmanager
def gateway(
    server: Dovecot, authority: Path, folder: Path, more: str = "", program: Path | None = None
) -> Iterator[Installed]:
    ports = dict(zip(("imaps", "plain", "extra", "metrics"), free_ports(4), strict=True))
    text = configuration(server, authority, folder, ports, WORKERS)
    text = text.replace("drain = 5\n", f"drain = 5\n{more}\n") + "[limits]\nsessions_per_address = 1000\n"
    (folder / "mailgate.toml").write_text(text)
    code = folder / "code"
    command = [sys.executable, "-m", "mailgate"] if program is None else [str(program)]
    command += ["run", "mailgate.toml"]
    house = Installed(None, folder, ports, text, None, code=code / "mailgate")  # type: ignore[arg-type]
    house.install_version("1.0")
    started = house.program = Program(command, folder, "mailgate", {"PYTHONPATH": str(code)})
    house.gateway = Gateway(started, folder, authority, {("imap", "implicit", "off"): ports["imaps"]}, ports["metrics"])
    try:
        started.wait_for([ports["imaps"], ports["plain"], ports["metrics"]])
        house.until(lambda: len(house.log("starting", debug=True)) == WORKERS)
        yield house
    finally:
        for client in house.clients:
            with suppress(OSError):
                client.shutdown()
        status = started.stop()
    assert status == 0, started.output()
    assert "Traceback" not in started.output()


def test_sessions_live_through_an_upgrade_and_all_the_rest_is_the_new_code(
    server: Dovecot, authority: Path, user: User, other: User, tmp_path: Path
) -> None:
    with gateway(server, authority, tmp_path) as house:
        idle = [house.idle(user) for _ in range(4)]
        busy = house.login(other)
        before, old = house.program.pid, house.program.workers()
        logins = house.metric("mailgate_logins_total", protocol="imap", result="ok", reason="")
        house.install_version("2.0")
        answer = house.upgrade()
        assert (answer.returncode, answer.stderr) == (0, "")
        assert (
            answer.stdout
            == "mailgate 2.0 serves; it was 1.0 before.\nEarlier workers that let their sessions end: 2.\n"
        )
        assert [line["version"] for line in house.log("starting")] == ["1.0", "2.0"]
        assert house.program.pid == before
        assert house.program.process.poll() is None
        new = set(house.program.workers()) - set(old)
        assert len(new) == WORKERS
        assert house.noop(busy)
        # The new ones serve whoever comes, and all know of all sessions.
        house.login(user)
        sessions = house.sessions()
        assert len(sessions) == 6
        assert {one["worker"] for one in sessions[:5]} <= {0, 1}
        assert {one["worker"] for one in sessions[5:]} <= {2, 3}
        assert house.metric("mailgate_logins_total", protocol="imap", result="ok", reason="") == logins + 1
        assert house.metric("mailgate_sessions_open", protocol="imap", listener="imaps", state="relay") == 6
        assert house.metric("mailgate_upgrades_total", result="ok") == 1
        assert house.metric("mailgate_build_info", version="2.0") == 1
        (mine,) = (one for one in sessions[:5] if one["user"] == other[0])
        trace = house.gateway.administer("POST", "/v1/trace", {"user": user[0]})
        assert house.gateway.administer("POST", f"/v1/sessions/{mine['id']}/kick") == {"kicked": 1, "missing": []}
        assert busy.readline() == b"* BYE Disconnected by the administrator.\r\n"
        for client in idle:
            assert house.wake(client).startswith(b"i OK")
            assert house.noop(client)
            client.logout()
        house.until(lambda: set(house.program.workers()) == new)
        assert house.log("a worker died") == []
        house.until(lambda: house.metric("mailgate_worker_exits_total", reason="stopped") == WORKERS)
        assert house.gateway.administer("DELETE", f"/v1/trace/{trace['id']}") == {}
        # A reload is one of the new code's.
        assert house.gateway.administer("POST", "/v1/reload") == {"changed": [], "warnings": []}


def test_a_storm_of_logins_sees_no_upgrade(
    server: Dovecot, authority: Path, user: User, other: User, tmp_path: Path
) -> None:
    with gateway(server, authority, tmp_path, "upgrade_drain = 30") as house:
        errors: list[str] = []
        done: Counter[str] = Counter()
        stop = threading.Event()

        def storm(name: str, work: Callable[[], object]) -> None:
            while not stop.is_set():
                try:
                    work()
                except Exception as error:
                    errors.append(f"{name}: {error!r}")
                else:
                    done[name] += 1

        def in_clear() -> None:
            said = house.login_in_clear(other)
            if not said.startswith("a OK"):
                raise ValueError(said)

        def with_tls() -> None:
            client = imaplib.IMAP4_SSL("localhost", house.ports["imaps"], ssl_context=house.gateway.context, timeout=20)
            assert client.login(*user)[0] == "OK"
            assert client.noop()[0] == "OK"
            assert client.logout()[0] == "BYE"

        def counters() -> None:
            found = house.metric("mailgate_logins_total", protocol="imap", result="ok", reason="")
            assert found >= done["highest"], f"{found} after {done['highest']}"
            done["highest"] = int(found)
            time.sleep(0.05)

        idle = house.idle(user)
        works = {"clear": in_clear, "tls": with_tls, "metrics": counters}
        threads = [threading.Thread(target=storm, args=work) for work in (*works.items(), ("tls", with_tls))]
        for thread in threads:
            thread.start()
        try:
            for number in range(UPGRADES):
                house.install_version(f"2.{number}")
                if number % 2:
                    answer = house.upgrade()
                    assert answer.returncode == 0, answer.stderr + house.program.output()
                else:
                    house.program.process.send_signal(signal.SIGUSR2)
                    house.until(lambda number=number: len(house.log("upgraded")) > number)  # type: ignore[misc]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert errors == []
        assert min(done[name] for name in works) >= UPGRADES, done
        assert [line["version"] for line in house.log("upgraded")] == [f"2.{number}" for number in range(UPGRADES)]
        assert house.log("a worker died") == []
        # It was told by the time that it has, if at all; nobody else has.
        assert {line["reason"] for line in house.log("session") if line["user"]} <= {
            "logged_out",
            "closed",
            "shutting_down",
        }
        assert len([line for line in house.log("session") if line["reason"] == "shutting_down"]) <= 1
        idle.shutdown()


def test_code_that_cannot_take_over_changes_nothing(
    server: Dovecot, authority: Path, user: User, tmp_path: Path
) -> None:
    with gateway(server, authority, tmp_path) as house:
        idle = house.idle(user)
        workers = set(house.program.workers())
        path = tmp_path / "mailgate.toml"

        def refused(why: str) -> None:
            answer = house.upgrade()
            assert (answer.returncode, answer.stdout) == (1, "")
            assert why in answer.stderr
            assert why in house.log("upgrade refused, everything goes on as it was")[-1]["error"]
            assert set(house.program.workers()) == workers
            house.login(user).logout()

        house.install("app.py", "class Gateway:", "class Gateway(:")
        refused("SyntaxError")
        house.install("workers/handover.py", "FORMAT: Final = 1", "FORMAT: Final = 2")
        refused("this one knows 2 only: restart")
        house.install("cli/commands.py", "raise SystemExit(_serve(load(), load))", 'raise SystemExit(print("{}"))')
        refused("no mailgate that can take over")
        house.install_version("2.0")
        path.write_text(house.text.replace("sessions_per_address = 1000", "sessions_per_address = 0"))
        refused("limits.sessions_per_address = 0")
        path.write_text(house.text.replace(str(house.ports["plain"]), str(server.imap)))
        refused("something else listens there already")
        path.write_text(house.text.replace("workers = 2", "workers = 17"))
        refused("more than 16 need a restart")
        path.write_text(house.text)
        assert house.metric("mailgate_upgrades_total", result="refused") == 6
        assert [line["version"] for line in house.log("starting")] == ["1.0"]
        assert house.wake(idle).startswith(b"i OK")
        assert house.upgrade().returncode == 0


def test_earlier_workers_serve_when_those_of_the_new_code_do_not_start(
    server: Dovecot, authority: Path, user: User, tmp_path: Path
) -> None:
    with gateway(server, authority, tmp_path) as house:
        idle, old = house.idle(user), set(house.program.workers())
        broken = "    raise MailgateError('it is broken')\n    run_alone(Gateway("
        house.install("app.py", "    run_alone(Gateway(", broken)
        answer = house.upgrade()
        assert answer.returncode == 1
        assert "the new workers do not start, the earlier ones go on serving: it is broken" in answer.stderr
        assert house.log("upgrade failed, the earlier workers go on serving")
        for _ in range(5):
            house.login(user).logout()
        assert old <= set(house.program.workers())
        house.install_version("3.0")
        answer = house.upgrade()
        assert answer.returncode == 0, answer.stderr
        assert house.wake(idle).startswith(b"i OK")
        house.login(user)
        assert {one["worker"] for one in house.sessions()[1:]}.isdisjoint({0, 1})
        assert house.metric("mailgate_upgrades_total", result="failed") == 1
        idle.logout()
        house.until(lambda: old.isdisjoint(house.program.workers()))


def test_code_that_fails_behind_its_trial_tries_again(
    server: Dovecot, authority: Path, user: User, tmp_path: Path
) -> None:
    with gateway(server, authority, tmp_path) as house:
        idle = house.idle(user)
        (tmp_path / "broken").touch()
        house.install("workers/handover.py", "AGAIN_SECONDS: Final = 5.0", "AGAIN_SECONDS: Final = 0.2")
        path = house.code / "app.py"
        begin = "    supervisor = Supervisor(config,"
        broken = "    if not handed.trial and os.path.exists('broken'):\n        raise MailgateError('it is broken')\n"
        path.write_text(path.read_text().replace(begin, broken + begin, 1))
        house.program.process.send_signal(signal.SIGUSR2)
        house.until(lambda: house.program.output().count("trying again: it is broken") >= 2)
        house.login(user).logout()
        (tmp_path / "broken").unlink()
        house.until(lambda: len(house.log("upgraded")) == 1)
        assert house.wake(idle).startswith(b"i OK")
        house.login(user).logout()


def test_idle_sessions_are_told_when_their_time_is_over(
    server: Dovecot, authority: Path, user: User, tmp_path: Path
) -> None:
    with gateway(server, authority, tmp_path, "upgrade_drain = 2") as house:
        clients, old = [house.idle(user) for _ in range(6)], house.program.workers()
        began = time.monotonic()
        assert house.upgrade().returncode == 0
        for client in clients:
            assert client.readline() == SHUTTING_DOWN
        assert time.monotonic() - began > 0.3
        house.until(lambda: not any(running(pid) for pid in old))
        assert house.log("sessions are cut off") == []
        house.login(user)


def test_sigterm_ends_both_generations(server: Dovecot, authority: Path, user: User, tmp_path: Path) -> None:
    with gateway(server, authority, tmp_path) as house:
        first = house.idle(user)
        assert house.upgrade().returncode == 0
        second = house.idle(user)
        workers = house.program.workers()
        assert {one["worker"] // WORKERS for one in house.sessions()} == {0, 1}
        house.program.process.send_signal(signal.SIGTERM)
        assert first.readline() == second.readline() == SHUTTING_DOWN
        assert house.program.process.wait(PATIENCE) == 0
        assert not any(running(pid) for pid in workers)
        assert len(house.log("stopped")) == 1


def test_a_link_that_was_switched_to_another_installation_is_followed(
    server: Dovecot, authority: Path, user: User, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        home = tmp_path / f"mailgate-{version}"
        home.joinpath("bin").mkdir(parents=True)
        shutil.copytree(SOURCE, home / "lib" / "mailgate", ignore=shutil.ignore_patterns("__pycache__"))
        init = home / "lib" / "mailgate" / "__init__.py"
        init.write_text(init.read_text().replace(package.__version__, f"{version}.0"))
        # As pip writes it, but for the path, which an environment's interpreter finds by itself.
        script = home / "bin" / "mailgate"
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, '{home}/lib')\n"
            "from mailgate.cli import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)
    link = tmp_path / "mailgate"
    link.symlink_to("mailgate-1")
    with gateway(server, authority, tmp_path, program=link / "bin" / "mailgate") as house:
        idle = house.idle(user)
        link.with_name("next").symlink_to("mailgate-2")
        link.with_name("next").replace(link)
        answer = house.upgrade()
        assert answer.stdout.startswith("mailgate 2.0 serves; it was 1.0 before.\n")
        assert house.log("the new code is tried")[0]["command"] == f"{link}/bin/mailgate run mailgate.toml"
        assert house.wake(idle).startswith(b"i OK")
