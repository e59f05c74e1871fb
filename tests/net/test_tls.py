"""TLS towards clients, with real handshakes over loopback."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509

from mailgate.config import Tls
from mailgate.model import Protocol, TlsInfo
from mailgate.net.certificate import read, self_signed, write
from mailgate.net.tls import PLAIN_ANSWERS, HandshakeFailed, ServerTls, TlsFilesError
from mailgate.stream import SocketStream
from tests.support.certificates import Authority, Issued, authority, write_short_key

IMAP = Protocol.IMAP
MINUTE = 60.0


@pytest.fixture(scope="module")
def ca() -> Authority:
    return authority()


@pytest.fixture
def issued(ca: Authority, tmp_path: Path) -> Issued:
    return ca.issue("mail.example.org", "127.0.0.1", parent=tmp_path)


def settings(pair: Issued, **more: Any) -> Tls:
    return Tls.model_validate({"certificate": pair.certificate, "key": pair.key} | more)


def server_tls(pair: Issued, profile: str = "intermediate", protocol: Protocol = IMAP, **more: Any) -> ServerTls:
    return ServerTls(settings(pair, **more), [(profile, protocol)])  # type: ignore[list-item]


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[SocketStream, trio.SocketStream]]:
    """A connection: the gateway's end and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = await trio.open_tcp_stream("127.0.0.1", listening.getsockname()[1])
        accepted, _ = listening.accept()
    near = SocketStream(accepted)
    try:
        with trio.fail_after(10):
            yield near, client
    finally:
        near.abort()
        client.socket.close()


async def handshake(
    tls: ServerTls,
    context: ssl.SSLContext,
    name: str | None = "mail.example.org",
    *,
    profile: str = "intermediate",
    protocol: Protocol = IMAP,
    session: ssl.SSLSession | None = None,
) -> tuple[TlsInfo | HandshakeFailed, ssl.SSLObject | Exception]:
    """Do a handshake; return what both sides make of it."""
    outcome: list[Any] = [None, None]
    async with connected() as (near, client):

        async def serve() -> None:
            try:
                outcome[0] = await tls.accept(near, protocol, profile, MINUTE)  # type: ignore[arg-type]
                await near.send_all(b"hello")
            except HandshakeFailed as failed:
                outcome[0] = failed
            finally:
                await near.aclose()

        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls_object = context.wrap_bio(incoming, outgoing, server_hostname=name, session=session)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                await drive(tls_object.do_handshake, client, incoming, outgoing)
                assert await drive(lambda: tls_object.read(100), client, incoming, outgoing) == b"hello"
                outcome[1] = tls_object
            except (ssl.SSLError, trio.BrokenResourceError) as error:
                outcome[1] = error
            client.socket.close()
    return outcome[0], outcome[1]


async def drive(step: Any, client: trio.SocketStream, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> Any:
    while True:
        try:
            result = step()
        except ssl.SSLWantReadError:
            if out := outgoing.read():
                await client.send_all(out)
            if data := await client.receive_some():
                incoming.write(data)
            else:
                incoming.write_eof()
        except ssl.SSLError:
            await client.send_all(outgoing.read())
            raise
        else:
            if out := outgoing.read():
                await client.send_all(out)
            return result


def old(version: ssl.TLSVersion, ca: Authority, ciphers: str = "DEFAULT:@SECLEVEL=0") -> ssl.SSLContext:
    """A client that speaks one version of TLS only."""
    context = ca.client()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers)
    return context


def leaf(tls: ssl.SSLObject | Exception) -> x509.Certificate:
    assert isinstance(tls, ssl.SSLObject), tls
    return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")


def names(certificate: x509.Certificate) -> list[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


def key_type(certificate: x509.Certificate) -> str:
    return type(certificate.public_key()).__name__


# ---------------------------------------------------------------- profiles

V10, V11, V12, V13 = (ssl.TLSVersion[name] for name in ("TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"))


@pytest.mark.parametrize(
    ("profile", "version", "agreed"),
    [
        ("modern", V13, "TLSv1.3"),
        ("modern", V12, None),
        ("intermediate", V13, "TLSv1.3"),
        ("intermediate", V12, "TLSv1.2"),
        ("intermediate", V11, None),
        ("intermediate", V10, None),
        ("legacy", V13, "TLSv1.3"),
        ("legacy", V12, "TLSv1.2"),
        ("legacy", V11, "TLSv1.1"),
        ("legacy", V10, "TLSv1"),
    ],
)
async def test_versions(
    profile: str, version: ssl.TLSVersion, agreed: str | None, ca: Authority, issued: Issued
) -> None:
    near, far = await handshake(server_tls(issued, profile), old(version, ca), profile=profile)
    if agreed is None:
        assert isinstance(near, HandshakeFailed)
        assert near.reason == "protocol_version"
        assert isinstance(far, ssl.SSLError)
        assert far.reason == "TLSV1_ALERT_PROTOCOL_VERSION"
    else:
        assert isinstance(near, TlsInfo)
        assert isinstance(far, ssl.SSLObject)
        assert (near.version, far.version()) == (agreed, agreed)
        assert near.cipher == far.cipher()[0]  # type: ignore[index]


async def test_weak_ciphers_are_for_legacy_alone(ca: Authority, issued: Issued) -> None:
    client = old(V12, ca, "AES128-SHA:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    near, _ = await handshake(server_tls(issued), client)
    assert isinstance(near, HandshakeFailed)
    assert near.reason == "no_shared_cipher"
    near, _ = await handshake(server_tls(issued, "legacy"), client, profile="legacy")
    assert isinstance(near, TlsInfo)
    assert near.cipher == "ECDHE-ECDSA-AES128-SHA"


async def test_a_client_that_does_not_know_the_authority(issued: Issued) -> None:
    near, far = await handshake(server_tls(issued), old(V12, Authority(authority().ca.__class__())))
    assert isinstance(near, HandshakeFailed)
    assert near.reason == "unknown_certificate"
    assert isinstance(far, ssl.SSLCertVerificationError)


# ---------------------------------------------------------------- which certificate


@pytest.mark.parametrize(
    ("asked", "shown", "known"),
    [
        ("mail.example.org", "mail.example.org", None),
        (None, "mail.example.org", None),
        ("unknown.example.net", "mail.example.org", None),
        ("imap.example.com", "imap.example.com", "imap.example.com"),
        ("IMAP.Example.COM", "imap.example.com", "imap.example.com"),
        ("a.example.com", "*.example.com", "a.example.com"),
        ("a.b.example.com", "mail.example.org", None),
        ("example.com", "mail.example.org", None),
        ("localhost", "mail.example.org", None),
    ],
)
async def test_the_certificate_follows_the_name(
    asked: str | None, shown: str, known: str | None, ca: Authority, issued: Issued, tmp_path: Path
) -> None:
    sni = []
    for stem, name in (("exact", "imap.example.com"), ("wild", "*.example.com")):
        pair = ca.issue(name, parent=tmp_path, stem=stem)
        sni.append({"names": [name], "certificate": pair.certificate, "key": pair.key})
    near, far = await handshake(server_tls(issued, sni=sni), ca.client(check_hostname=False), asked)
    assert names(leaf(far))[0] == shown
    assert isinstance(near, TlsInfo)
    assert near.server_name == known


async def test_rsa_stands_beside_ecdsa(ca: Authority, issued: Issued, tmp_path: Path) -> None:
    rsa = ca.issue("mail.example.org", parent=tmp_path, rsa=True, stem="rsa")
    tls = server_tls(issued, alternate={"certificate": rsa.certificate, "key": rsa.key})
    for ciphers, kind in (("ECDHE+ECDSA", "ECPublicKey"), ("ECDHE+aRSA", "RSAPublicKey")):
        _, far = await handshake(tls, old(V12, ca, ciphers))
        assert kind.removesuffix("PublicKey") in key_type(leaf(far))
    assert tls.expiry().keys() == {str(issued.certificate), str(rsa.certificate)}


# ---------------------------------------------------------------- ALPN, and what is no TLS


@pytest.mark.parametrize("protocol", list(Protocol))
async def test_the_protocol_is_agreed_on(protocol: Protocol, ca: Authority, issued: Issued) -> None:
    context = ca.client()
    context.set_alpn_protocols(["h2", protocol.value])
    near, far = await handshake(server_tls(issued, protocol=protocol), context, protocol=protocol)
    assert isinstance(near, TlsInfo)
    assert isinstance(far, ssl.SSLObject)
    assert far.selected_alpn_protocol() == protocol.value


async def test_a_client_that_wants_another_protocol_gets_the_alert(ca: Authority, issued: Issued) -> None:
    context = ca.client()
    context.set_alpn_protocols(["h2", "http/1.1"])
    near, far = await handshake(server_tls(issued), context)
    assert isinstance(near, HandshakeFailed)
    assert near.reason == "alpn"
    assert isinstance(far, ssl.SSLError)
    assert "alert no application protocol" in str(far)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: mail\r\n\r\n", PLAIN_ANSWERS["http"]),
        (b"a1 CAPABILITY\r\n", PLAIN_ANSWERS["imap"]),
        (b"CAPA\r\n", PLAIN_ANSWERS["pop3"]),
        (b"EHLO mail.example.org\r\n", b""),
        (b"\x80\x2e\x01\x03\x01\x00\x15", b""),
        (b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", b""),
        (b"\x16\x01\x00", b""),
    ],
)
async def test_what_is_no_tls_is_answered_in_kind(said: bytes, answer: bytes, issued: Issued) -> None:
    async with connected() as (near, client):
        await client.send_all(said)
        with pytest.raises(HandshakeFailed) as caught:
            await server_tls(issued).accept(near, IMAP, "intermediate", MINUTE)
        assert caught.value.reason == "not_tls"
        await near.aclose()
        received = b""
        while data := await client.receive_some():
            received += data
        assert received == answer


async def test_a_hello_in_many_pieces(ca: Authority, issued: Issued) -> None:
    outgoing = ssl.MemoryBIO()
    tls_object = ca.client().wrap_bio(incoming := ssl.MemoryBIO(), outgoing, server_hostname="mail.example.org")
    with pytest.raises(ssl.SSLWantReadError):
        tls_object.do_handshake()
    hello = outgoing.read()
    async with connected() as (near, client), trio.open_nursery() as nursery:

        async def serve() -> None:
            await server_tls(issued).accept(near, IMAP, "intermediate", MINUTE)
            await near.send_all(b"done")

        nursery.start_soon(serve)
        for begin, end in pairwise((0, 1, 5, 6, 100, len(hello) - 1, len(hello))):
            await client.send_all(hello[begin:end])
            await trio.testing.wait_all_tasks_blocked()
        await drive(tls_object.do_handshake, client, incoming, outgoing)
        assert await drive(lambda: tls_object.read(10), client, incoming, outgoing) == b"done"


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET"])
@pytest.mark.parametrize("how", ["timeout", "closed", "reset"])
async def test_a_client_that_does_not_finish(said: bytes, how: str, issued: Issued) -> None:
    async with connected() as (near, client):
        if said:
            await client.send_all(said)
        if how == "closed":
            await client.send_eof()
        elif how == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.socket.close()
        with pytest.raises(HandshakeFailed) as caught:
            await server_tls(issued).accept(near, IMAP, "intermediate", 0.05 if how == "timeout" else MINUTE)
    assert caught.value.reason == ("timeout" if how == "timeout" else "closed")


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_goes_after_its_hello(reset: bool, ca: Authority, issued: Issued) -> None:
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ca.client().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="mail.example.org").do_handshake()
    async with connected() as (near, client):
        await client.send_all(outgoing.read())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave, client, reset)
            with pytest.raises(HandshakeFailed) as caught:
                await server_tls(issued).accept(near, IMAP, "intermediate", MINUTE)
    assert caught.value.reason == "closed"


async def leave(client: trio.SocketStream, reset: bool) -> None:
    if reset:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.testing.wait_all_tasks_blocked()
    client.socket.close()


# ---------------------------------------------------------------- tickets


@pytest.mark.parametrize("version", [V12, V13])
async def test_a_session_is_resumed_also_after_a_reload(version: ssl.TLSVersion, ca: Authority, issued: Issued) -> None:
    tls = server_tls(issued)
    context = old(version, ca, "DEFAULT")
    near, far = await handshake(tls, context)
    assert isinstance(near, TlsInfo)
    assert isinstance(far, ssl.SSLObject)
    assert near.resumed is False
    near, _ = await handshake(tls, context, session=far.session)
    assert isinstance(near, TlsInfo)
    assert near.resumed is True
    renewed = ca.issue("mail.example.org", parent=issued.folder)
    assert renewed.der != issued.der
    assert tls.reload() == []
    near, _ = await handshake(tls, context, session=far.session)
    assert isinstance(near, TlsInfo)
    assert near.resumed is True


# ---------------------------------------------------------------- files


async def test_a_renewed_certificate_is_shown_from_then_on(ca: Authority, issued: Issued) -> None:
    tls = server_tls(issued)
    renewed = ca.issue("mail.example.org", parent=issued.folder)
    _, far = await handshake(tls, ca.client())
    assert leaf(far).serial_number != x509.load_der_x509_certificate(renewed.der).serial_number
    assert tls.reload() == []
    _, far = await handshake(tls, ca.client())
    assert leaf(far).serial_number == x509.load_der_x509_certificate(renewed.der).serial_number


async def test_a_renewed_certificate_of_another_key_type_leaves_nothing_behind(ca: Authority, issued: Issued) -> None:
    tls = server_tls(issued)
    ca.issue("mail.example.org", parent=issued.folder, rsa=True)
    assert tls.reload() == []
    near, _ = await handshake(tls, old(V12, ca, "ECDHE+ECDSA"))
    assert isinstance(near, HandshakeFailed)
    assert near.reason == "no_shared_cipher"
    _, far = await handshake(tls, old(V12, ca, "ECDHE+aRSA"))
    assert "RSA" in key_type(leaf(far))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda pair, other: shutil.copy(other.key, pair.key), "the key is not the certificate's"),
        (lambda pair, other: shutil.copy(other.certificate, pair.certificate), "the key is not the certificate's"),
        (lambda pair, other: pair.certificate.unlink(), "No such file or directory"),
        (lambda pair, other: pair.key.unlink(), "No such file or directory"),
        (lambda pair, other: pair.certificate.write_text("nothing"), "not a certificate and its key in PEM form"),
        (lambda pair, other: pair.key.write_text("nothing"), "not a certificate and its key in PEM form"),
    ],
)
async def test_a_bad_pair_leaves_the_old_one_in_force(
    damage: Any, problem: str, ca: Authority, issued: Issued, tmp_path: Path
) -> None:
    tls = server_tls(issued)
    before = issued.der
    other = ca.issue("other.example.org", parent=tmp_path, stem="other")
    damage(issued, other)
    problems = tls.reload()
    assert len(problems) == 1
    assert str(tmp_path) in problems[0]
    assert problem in problems[0]
    assert tls.reload() == [], "a problem is told once"
    _, far = await handshake(tls, ca.client())
    assert leaf(far) == x509.load_der_x509_certificate(before)
    ca.issue("mail.example.org", parent=issued.folder)
    assert tls.reload() == []
    _, far = await handshake(tls, ca.client())
    assert leaf(far) != x509.load_der_x509_certificate(before)


async def test_files_are_watched(ca: Authority, issued: Issued, autojump_clock: trio.testing.MockClock) -> None:
    tls = server_tls(issued, reload_interval="10s")
    told: list[tuple[float, list[str]]] = []
    began = trio.current_time()

    def tell(problems: list[str]) -> None:
        told.append((trio.current_time() - began, problems))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tls.watch, tell)
        await trio.sleep(25)
        ca.issue("mail.example.org", parent=issued.folder)
        await trio.sleep(20)
        issued.key.write_text("nothing")
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert [(seconds, len(problems)) for seconds, problems in told] == [(30, 0), (50, 1)]


@pytest.mark.parametrize("missing", ["certificate", "key"])
def test_a_file_that_is_missing_at_the_start(missing: str, issued: Issued) -> None:
    path: Path = getattr(issued, missing)
    path.unlink()
    with pytest.raises(TlsFilesError, match="No such file or directory"):
        server_tls(issued)


def test_a_short_key_is_for_legacy_alone(tmp_path: Path) -> None:
    certificate, key = write_short_key(tmp_path)
    short = Tls.model_validate({"certificate": certificate, "key": key})
    ServerTls(short, [("legacy", IMAP)])
    with pytest.raises(TlsFilesError) as caught:
        ServerTls(short, [("legacy", IMAP), ("intermediate", IMAP)])
    assert str(caught.value) == f"{certificate} and {key}: the key is too short for any profile but legacy"


def test_a_pair_that_does_not_match_at_the_start(ca: Authority, issued: Issued, tmp_path: Path) -> None:
    other = ca.issue("other.example.org", parent=tmp_path, stem="other")
    with pytest.raises(TlsFilesError) as caught:
        server_tls(issued, key=other.key)
    assert str(caught.value) == f"{issued.certificate} and {other.key}: the key is not the certificate's"


async def test_an_encrypted_key(ca: Authority, issued: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked, password = issued.locked("s3cret"), tmp_path / "password"
    password.write_text("s3cret\n")
    tls = server_tls(issued, key={"file": locked, "password": {"file": password}})
    near, _ = await handshake(tls, ca.client())
    assert isinstance(near, TlsInfo)
    monkeypatch.setenv("KEY_PASSWORD", "s3cret")
    server_tls(issued, key={"file": locked, "password": {"env": "KEY_PASSWORD"}})


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        (None, "the key is encrypted; set its password in the configuration"),
        ({"file": "wrong"}, "or the wrong password"),
        ({"file": "absent"}, "No such file or directory"),
        ({"env": "NO_SUCH_VARIABLE"}, "its password's variable 'NO_SUCH_VARIABLE' is not set"),
    ],
)
def test_an_encrypted_key_that_stays_closed(
    password: dict[str, Any] | None, problem: str, issued: Issued, tmp_path: Path
) -> None:
    (tmp_path / "wrong").write_text("guess")
    if password is not None and "file" in password:
        password = {"file": tmp_path / password["file"]}
    with pytest.raises(TlsFilesError, match=problem) as caught:
        server_tls(issued, key={"file": issued.locked("s3cret"), "password": password})
    assert "guess" not in str(caught.value)


def test_when_certificates_end(issued: Issued, ca: Authority, tmp_path: Path) -> None:
    other = ca.issue("other.example.org", parent=tmp_path, stem="other")
    sni = [{"names": ["other.example.org"], "certificate": other.certificate, "key": other.key}]
    tls = server_tls(issued, sni=sni)
    ends = x509.load_der_x509_certificate(issued.der).not_valid_after_utc
    in_force = {
        str(issued.certificate): ends,
        str(other.certificate): x509.load_der_x509_certificate(other.der).not_valid_after_utc,
    }
    assert tls.expiry() == in_force
    other.certificate.write_text("nothing")
    os.unlink(issued.certificate)
    assert len(tls.reload()) == 2
    assert tls.expiry() == in_force, "the old ones are still shown to clients"
    write(issued.certificate, issued.key, *self_signed(["mail.example.org"], days=3), replace=True)
    assert len(tls.reload()) == 0
    assert tls.expiry()[str(issued.certificate)] == read(issued.certificate).not_after != ends
