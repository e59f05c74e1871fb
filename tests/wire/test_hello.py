from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.wire.hello import (
    HELLO_LIMIT,
    RECORDS,
    ClientHello,
    NotTls,
    no_application_protocol_alert,
    read_client_hello,
)

UNKNOWN = NotTls("unknown")


def from_openssl(name: str | None, alpn: Iterable[str] = (), maximum: ssl.TLSVersion | None = None) -> bytes:
    """What a real client sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if maximum is not None:
        context.maximum_version = maximum
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def record(data: bytes, kind: int = 22) -> bytes:
    return bytes([kind, 3, 1]) + vector(2, data)


def message(body: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(3, body)


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, content)


def body(*extensions: bytes, version: int = 0x0303, session: bytes = b"s" * 32) -> bytes:
    start = version.to_bytes(2, "big") + b"r" * 32 + vector(1, session) + vector(2, b"\x13\x01") + vector(1, b"\0")
    return start + vector(2, b"".join(extensions))


def hello(*extensions: bytes) -> bytes:
    return record(message(body(*extensions)))


def in_records(data: bytes, size: int) -> bytes:
    """The handshake message in one record, spread over records of ``size`` bytes."""
    handshake = data[5:]
    return b"".join(record(handshake[at : at + size]) for at in range(0, len(handshake), size))


def sni(name: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, bytes([kind]) + vector(2, name)))


def alpn(*names: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, name) for name in names)))


# -------------------------------------------------------------------- real clients


@pytest.mark.parametrize("name", [None, "mail.example.org", "MAIL.Example.org"])
@pytest.mark.parametrize("protocols", [(), ("imap",), ("h2", "http/1.1")])
@pytest.mark.parametrize("maximum", [None, ssl.TLSVersion.TLSv1_2])
def test_what_openssl_sends_is_read(
    name: str | None, protocols: tuple[str, ...], maximum: ssl.TLSVersion | None
) -> None:
    found = read_client_hello(from_openssl(name, protocols, maximum))
    assert isinstance(found, ClientHello)
    assert found.server_name == (name and name.lower())
    assert found.alpn == (tuple(one.encode() for one in protocols) or None)
    assert found.versions == ((0x0303,) if maximum else (0x0304, 0x0303))


@pytest.mark.parametrize("size", [8, 9, 100, 1000])
def test_a_message_may_be_spread_over_records(size: int) -> None:
    data = from_openssl("mail.example.org", ["imap"])
    assert read_client_hello(in_records(data, size)) == read_client_hello(data)


@pytest.mark.parametrize("size", [50, 1 << 16])
def test_what_is_not_complete_is_awaited_and_what_follows_does_not_matter(size: int) -> None:
    data = in_records(from_openssl("mail.example.org", ["imap"]), size)
    for stop in range(len(data)):
        assert read_client_hello(data[:stop]) is None
    complete = read_client_hello(data)
    assert isinstance(complete, ClientHello)
    assert read_client_hello(data + b"\x17\x03\x03\x00\x01x") == complete
    assert read_client_hello(data + b"\n") == complete


# -------------------------------------------------------------------- made by hand


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ((), ClientHello(None, None, (0x0303,))),
        ((sni(b"Example.ORG"),), ClientHello("example.org", None, (0x0303,))),
        ((sni(b"example.org", kind=1),), ClientHello(None, None, (0x0303,))),
        ((extension(0, vector(2, b"")),), ClientHello(None, None, (0x0303,))),
        ((extension(0, b""),), ClientHello(None, None, (0x0303,))),
        ((extension(10, b"\0\0"), sni(b"a"), extension(0x0A0A, b"")), ClientHello("a", None, (0x0303,))),
        ((alpn(b"imap"),), ClientHello(None, (b"imap",), (0x0303,))),
        ((alpn(b"h2", b"", b"\xff" * 255),), ClientHello(None, (b"h2", b"", b"\xff" * 255), (0x0303,))),
        ((alpn(),), ClientHello(None, (), (0x0303,))),
        ((extension(43, b"\x06\x7a\x7a\x03\x04\x03\x03"),), ClientHello(None, None, (0x7A7A, 0x0304, 0x0303))),
        ((extension(43, b"\x00"),), ClientHello(None, None, ())),
        ((alpn(b"pop3"), sni(b"b"), extension(43, b"\x02\x03\x04")), ClientHello("b", (b"pop3",), (0x0304,))),
    ],
)
def test_extensions(extensions: tuple[bytes, ...], expected: ClientHello) -> None:
    assert read_client_hello(hello(*extensions)) == expected


def test_a_hello_without_extensions() -> None:
    bare = body(session=b"", version=0x0301)[:-2]
    assert read_client_hello(record(message(bare))) == ClientHello(None, None, (0x0301,))


def test_empty_records_do_not_count() -> None:
    data = hello(sni(b"a"))
    assert read_client_hello(record(b"") * 3 + data) == read_client_hello(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x02",
        b"\x16\x04\x01\x00\x05",
        record(message(b"", kind=2)),
        record(message(body(), kind=2)),
        record(message(b"")),
        record(message(body())[:10]) + record(message(body())[10:], kind=23),
        record(message(body())[:10]) + b"\x17",
        record(message(body()[:20])),
        record(message(body()[:34])),
        record(message(body()[:40])),
        record(message(body()[:67])),
        record(message(body()[:-1])),
        hello(extension(0, vector(2, b"\x00\x00\x05a"))),
        hello(sni(b"caf\xe9")),
        hello(extension(0, b"\x00\x09\x00")),
        hello(extension(16, b"\x00\x03\x04ab")),
        hello(extension(16, b"")),
        hello(extension(43, b"\x05\x03\x04")),
        hello(extension(43, b"")),
        hello(b"\x00"),
        hello(b"\x00\x10\x00"),
        hello(b"\x00\x10\x00\x05a"),
    ],
)
def test_what_is_framed_like_tls_but_broken_is_no_tls(data: bytes) -> None:
    assert read_client_hello(data) == UNKNOWN


def test_a_hello_is_bounded() -> None:
    assert (HELLO_LIMIT, RECORDS) == (65_536, 128)
    assert read_client_hello(record(b"\x01\x01\x00\x00" + b"x" * 100)) is None
    endless = record(b"\x01\xff\xff\xff" + b"x" * 996) + record(b"x" * 995) * 70
    assert read_client_hello(endless[: HELLO_LIMIT - 1]) is None
    assert read_client_hello(endless[:HELLO_LIMIT]) == UNKNOWN


# -------------------------------------------------------------------- other protocols


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GET / HTTP/1.1\r\n", "http"),
        (b"PRI * HTTP/2.0\r\n", "http"),
        (b"OPTIONS ", "http"),
        (b"CAPA\r\n", "pop3"),
        (b"user fred\r\n", "pop3"),
        (b"QUIT\n", "pop3"),
        (b"AUTH PLAIN\r\n", "pop3"),
        (b"a1 CAPABILITY\r\n", "imap"),
        (b"A login fred x\r\n", "imap"),
        (b"." * 32 + b" ID NIL\r\n", "imap"),
        (b"." * 33 + b" ID NIL\r\n", "unknown"),
        (b"noop noop\r\n", "pop3"),
        (b"\x80\x2e\x01\x03\x01", "sslv2"),
        (b"\xff\xff\x01", "sslv2"),
        (b"\x80\x2e\x02", "unknown"),
        (b"EHLO there\r\n", "unknown"),
        (b"GETTING\n", "unknown"),
        (b"CAPABLE\r\n", "unknown"),
        (b"a1 LOGINS\r\n", "unknown"),
        (b"get / HTTP/1.1\r\n", "unknown"),
        (b"\r\n", "unknown"),
        (b"\0", "unknown"),
        (b"\x15\x03\x01\x00\x02\x02\x00", "unknown"),
        (b"\x1f", "unknown"),
        (b"\x01abc", "unknown"),
        (b"caf\xe9", "unknown"),
        (b"x" * 256, "unknown"),
    ],
)
def test_who_speaks_in_clear_is_told_by_the_first_bytes(data: bytes, kind: str) -> None:
    assert read_client_hello(data) == NotTls(kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [b"", b"G", b"GET", b"CAPA", b"a1 LOGIN", b"a1 ", b" ", b"ab\x01", b"x" * 255, b"\x80", b"\x80\x2e", b"\x16"],
)
def test_too_few_bytes_to_tell(data: bytes) -> None:
    assert read_client_hello(data) is None


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"CAPA\r\n", b"a1 CAPABILITY\r\n", b"\x80\x2e\x01\x03\x01", b"EHLO x\r\n", b"\x80\x2e\x02"],
)
def test_what_was_told_once_stays_so(data: bytes) -> None:
    answers = [read_client_hello(data[:stop]) for stop in range(len(data) + 1)]
    first = next(at for at, answer in enumerate(answers) if answer is not None)
    assert answers[first:] == [answers[-1]] * (len(answers) - first)
    assert answers[0] is None


def test_the_alert_is_the_one_that_openssl_understands() -> None:
    assert no_application_protocol_alert() == bytes.fromhex("15 0303 0002 02 78")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming = ssl.MemoryBIO()
    client = context.wrap_bio(incoming, ssl.MemoryBIO(), server_hostname="x")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(no_application_protocol_alert())
    with pytest.raises(ssl.SSLError, match="no application protocol"):
        client.do_handshake()


# -------------------------------------------------------------------- properties

ANSWERS = (ClientHello, NotTls, type(None))


@given(st.one_of(st.binary(max_size=400), st.binary(max_size=400).map(lambda data: b"\x16\x03\x01" + data)))
def test_no_bytes_raise(data: bytes) -> None:
    assert isinstance(read_client_hello(data), ANSWERS)


@given(st.binary(max_size=300))
def test_no_handshake_message_raises(content: bytes) -> None:
    assert isinstance(read_client_hello(record(message(content))), ClientHello | NotTls)
    assert isinstance(read_client_hello(hello(content)), ClientHello | NotTls)


@given(st.data())
def test_no_changed_byte_of_a_real_hello_raises(data: st.DataObject) -> None:
    real = bytearray(hello(sni(b"mail.example.org"), alpn(b"imap", b"pop3"), extension(43, b"\x04\x03\x04\x03\x03")))
    for _ in range(3):
        real[data.draw(st.integers(0, len(real) - 1))] = data.draw(st.integers(0, 255))
    assert isinstance(read_client_hello(bytes(real)), ANSWERS)


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=5), st.integers(4, 50))
def test_what_is_offered_is_read_back(names: list[bytes], size: int) -> None:
    data = in_records(hello(alpn(*names)), size)
    assert read_client_hello(data) == ClientHello(None, tuple(names), (0x0303,))


# -------------------------------------------------------------------- floods


@pytest.mark.parametrize("fragment", [b"", b"\0"])
def test_a_hello_in_thousands_of_records_is_refused_after_some(fragment: bytes) -> None:
    begun = record(b"\x01\0\xff\xff")
    assert read_client_hello(begun + record(fragment) * (RECORDS - 2)) is None
    assert read_client_hello(begun + record(fragment) * (RECORDS - 1)) == UNKNOWN
