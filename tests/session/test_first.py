from tests.session.conftest import on_stage


async def test_login(autojump_clock: object) -> None:
    async with on_stage("imap") as world:
        await world.stage.play("""
            S: * OK [CAPABILITY <*>] mail.example.org ready
            C: a LOGIN alice secret
            login: alice COMMAND
            S: a OK [CAPABILITY IMAP4rev1 LITERAL+ IDLE] Logged in
            events: SessionEstablished
            C: b NOOP
            G: b NOOP
            U: b OK done
            S: b OK done
            events: CommandFinished(NOOP ok)
            close: client
            closed: upstream
            events: SessionClosed(client closed)
        """)
