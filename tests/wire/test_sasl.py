from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mailgate.errors import RemoteProtocolError
from mailgate.model import Mechanism, Secret
from mailgate.wire.sasl import (
    Cancelled,
    Challenge,
    Credentials,
    SaslError,
    begin,
    decode_initial,
    decode_line,
    encode,
    has_control,
    initial_response,
    respond,
)

PLAIN, LOGIN, XOAUTH2, OAUTHBEARER = Mechanism.PLAIN, Mechanism.LOGIN, Mechanism.XOAUTH2, Mechanism.OAUTHBEARER
EXTERNAL = Mechanism.EXTERNAL
EMPTY = Challenge(b"")


def credentials(user: bytes, secret: bytes, authzid: bytes = b"") -> Credentials:
    return Credentials(user, authzid, Secret(secret))


# -------------------------------------------------------------------- base64


@pytest.mark.parametrize(
    ("line", "data"),
    [(b"", b""), (b"dGVzdA==", b"test"), (b"dGVzdDE=", b"test1"), (b"/+Az", b"\xff\xe03"), (b"AGEAYg==", b"\0a\0b")],
)
def test_base64_of_a_line_and_of_an_initial_response(line: bytes, data: bytes) -> None:
    assert decode_line(line) == data
    assert decode_initial(line) == data
    assert encode(data) == (line or b"=")


@pytest.mark.parametrize(
    "line",
    [
        b"dGVzdA", b"dGVzdA=", b"dGVzdA===", b"==", b"a===", b"dGVz dA==", b" dGVzdA==", b"dGVzdA==\n", b"dGVzdA==\r",
        b"d-_z", b"dGVz=", b"dGVz==", b"dGVz===", b"dGVzdA==dGVz", b"\xff\xff\xff\xff", b"**", b"*a==", b"a", b"dG\0z",
    ],
)  # fmt: skip
def test_bad_base64(line: bytes) -> None:
    for decode in (decode_line, decode_initial):
        with pytest.raises(SaslError) as caught:
            decode(line)
        assert caught.value.reason == "invalid_base64"
        assert str(caught.value) == "invalid_base64"
        assert isinstance(caught.value, RemoteProtocolError)


def test_an_empty_initial_response_is_an_equals_sign_and_only_there() -> None:
    assert encode(b"") == b"="
    assert decode_initial(b"=") == b""
    with pytest.raises(SaslError, match="invalid_base64"):
        decode_line(b"=")


def test_a_star_cancels_and_only_in_a_line() -> None:
    assert decode_line(b"*") == Cancelled()
    with pytest.raises(SaslError, match="invalid_base64"):
        decode_initial(b"*")


@given(st.binary(max_size=100))
def test_base64_round_trip(data: bytes) -> None:
    assert decode_initial(encode(data)) == data
    assert decode_line(base64.b64encode(data)) == data


@pytest.mark.parametrize("octet", range(256))
def test_control_characters(octet: int) -> None:
    assert has_control(b"a%cb" % octet) is (octet < 32 or octet == 127)


# -------------------------------------------------------------------- the server's side


@pytest.mark.parametrize(
    ("mechanism", "response", "expected"),
    [
        (PLAIN, b"\0fred\0secret", credentials(b"fred", b"secret")),
        (PLAIN, b"fred\0fred\0secret", credentials(b"fred", b"secret")),
        (PLAIN, b"admin\0fred\0secret", credentials(b"fred", b"secret", b"admin")),
        (PLAIN, b"\0fred\0", credentials(b"fred", b"")),
        (PLAIN, "\0jürgen\0pässword \xff".encode(), credentials("jürgen".encode(), "pässword \xff".encode())),
        (PLAIN, b"\0\xff\0\xfe", credentials(b"\xff", b"\xfe")),
        (XOAUTH2, b"user=fred\x01auth=Bearer tok=\x01\x01", credentials(b"fred", b"tok=")),
        (XOAUTH2, b"user=fred\x01host=x\x01Auth=bearer   t\x01\x01", credentials(b"fred", b"t")),
        (XOAUTH2, b"user=a=b\x01auth=BEARER t t\x01\x01", credentials(b"a=b", b"t t")),
        (OAUTHBEARER, b"n,a=fred,\x01auth=Bearer tok=\x01\x01", credentials(b"fred", b"tok=")),
        (OAUTHBEARER, b"y,a=fred,\x01host=x\x01port=143\x01auth=Bearer t\x01\x01", credentials(b"fred", b"t")),
        (OAUTHBEARER, b"n,a=a=3Db=2Cc=3D2C,\x01auth=Bearer t\x01\x01", credentials(b"a=b,c=2C", b"t")),
        (OAUTHBEARER, b"n,a=fred,\x01auth=Bearer t\x01", credentials(b"fred", b"t")),
        (OAUTHBEARER, b"n,a=fred,\x01auth\x01auth=Bearer t\x01\x01", credentials(b"fred", b"t")),
    ],
)  # fmt: skip
def test_a_mechanism_whose_client_speaks_first(mechanism: Mechanism, response: bytes, expected: Credentials) -> None:
    assert begin(mechanism).step(response) == expected
    exchange = begin(mechanism)
    assert exchange.step(None) == EMPTY
    assert exchange.step(response) == expected


@pytest.mark.parametrize(
    ("mechanism", "response"),
    [
        (PLAIN, b""),
        (PLAIN, b"fred"),
        (PLAIN, b"fred\0secret"),
        (PLAIN, b"\0fred\0secret\0"),
        (PLAIN, b"\0\0secret"),
        (PLAIN, b"admin\0\0secret"),
        (PLAIN, b"\0fr\ned\0secret"),
        (PLAIN, b"\0fred\0sec\rret"),
        (PLAIN, b"ad\x7fmin\0fred\0secret"),
        (XOAUTH2, b""),
        (XOAUTH2, b"user=fred\x01auth=Bearer t"),
        (XOAUTH2, b"user=fred\x01auth=Bearer t\x01"),
        (XOAUTH2, b"User=fred\x01auth=Bearer t\x01\x01"),
        (XOAUTH2, b"\x01user=fred\x01auth=Bearer t\x01\x01"),
        (XOAUTH2, b"auth=Bearer t\x01user=fred\x01\x01"),
        (XOAUTH2, b"user=\x01auth=Bearer t\x01\x01"),
        (XOAUTH2, b"user=fred\x01\x01"),
        (XOAUTH2, b"user=fred\x01auth=Basic t\x01\x01"),
        (XOAUTH2, b"user=fred\x01auth=Bearert\x01\x01"),
        (XOAUTH2, b"user=fred\x01auth=Basic t\x01auth=Bearer t\x01\x01"),
        (XOAUTH2, b"user=fred\x01auth= Bearer t\x01\x01"),
        (XOAUTH2, b"user=fr\0ed\x01auth=Bearer t\x01\x01"),
        (XOAUTH2, b"user=fred\x01auth=Bearer t\n\x01\x01"),
        (OAUTHBEARER, b""),
        (OAUTHBEARER, b"\x01"),
        (OAUTHBEARER, b"n,a=fred,"),
        (OAUTHBEARER, b"n,a=fred,\x01"),
        (OAUTHBEARER, b"n,a=fred,\x01\x01"),
        (OAUTHBEARER, b"n,a=fred,\x01auth=Bearer t"),
        (OAUTHBEARER, b"n,a=fred\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,a=fred,x\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,a=fred,,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"p=tls-unique,a=fred,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"F,n,a=fred,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,fred,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,A=fred,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,a=,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,a=fr=ed,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,a=fr=2ced,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,a=fred=,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,a=fr\ted,\x01auth=Bearer t\x01\x01"),
        (OAUTHBEARER, b"n,a=fred,\x01auth=Basic t\x01\x01"),
    ],
)
def test_credentials_that_are_not_well_formed(mechanism: Mechanism, response: bytes) -> None:
    with pytest.raises(SaslError) as caught:
        begin(mechanism).step(response)
    assert caught.value.reason == "invalid_credentials"


def test_login_asks_twice() -> None:
    exchange = begin(LOGIN)
    assert exchange.step(None) == Challenge(b"Username:")
    assert exchange.step(b"fred") == Challenge(b"Password:")
    assert exchange.step(b"secret") == credentials(b"fred", b"secret")


def test_login_takes_the_name_as_an_initial_response() -> None:
    exchange = begin(LOGIN)
    assert exchange.step(b"fred") == Challenge(b"Password:")
    assert exchange.step(b"") == credentials(b"fred", b"")


def test_an_exchange_that_goes_on_takes_nothing_for_an_empty_response() -> None:
    exchange = begin(LOGIN)
    exchange.step(b"fred")
    assert exchange.step(None) == credentials(b"fred", b"")


@pytest.mark.parametrize(("user", "password"), [(b"", b"x"), (b"fr\ned", b"x"), (b"fred", b"\0"), (b"fred", b"x\x7f")])
def test_login_refuses_what_is_not_well_formed_at_its_end(user: bytes, password: bytes) -> None:
    exchange = begin(LOGIN)
    assert exchange.step(user) == Challenge(b"Password:")
    with pytest.raises(SaslError, match=r"^invalid_credentials$"):
        exchange.step(password)


def test_what_is_no_mechanism_between_client_and_gateway() -> None:
    with pytest.raises(SaslError) as caught:
        begin(Mechanism.COMMAND)
    assert caught.value.reason == "invalid_mech"


@pytest.mark.parametrize("identity", [b"", b"fred", b"fred@example.org", b"fr\xe4d"])
def test_external_names_whom_to_act_as_and_nothing_else(identity: bytes) -> None:
    sent = initial_response(EXTERNAL, b"not told", identity, Secret(b"not told"))
    assert begin(EXTERNAL).step(decode_initial(encode(sent))) == Credentials(b"", identity, Secret(b""))
    asked = begin(EXTERNAL)
    assert asked.step(None) == Challenge(b"")
    assert asked.step(decode_line(encode(sent) if sent else b"")) == Credentials(b"", identity, Secret(b""))


@pytest.mark.parametrize("identity", [b"fr\0ed", b"fred\r\na LOGOUT", b"\x7f"])
def test_external_refuses_control_characters(identity: bytes) -> None:
    with pytest.raises(SaslError, match=r"^invalid_credentials$"):
        begin(EXTERNAL).step(identity)


def test_credentials_do_not_print_their_secret() -> None:
    found = begin(PLAIN).step(b"\0fred\0hunter2")
    assert "hunter2" not in repr(found)


# -------------------------------------------------------------------- the client's side


@pytest.mark.parametrize(
    ("mechanism", "user", "authzid", "expected"),
    [
        (PLAIN, b"fred", b"", b"\0fred\0s,=t"),
        (PLAIN, b"fred", b"admin", b"admin\0fred\0s,=t"),
        (LOGIN, b"fred", b"", b"fred"),
        (XOAUTH2, b"fr=e,d", b"", b"user=fr=e,d\x01auth=Bearer s,=t\x01\x01"),
        (OAUTHBEARER, b"fr=e,d", b"", b"n,a=fr=3De=2Cd,\x01auth=Bearer s,=t\x01\x01"),
    ],
)
def test_initial_responses(mechanism: Mechanism, user: bytes, authzid: bytes, expected: bytes) -> None:
    assert initial_response(mechanism, user, authzid, Secret(b"s,=t")) == expected


def test_what_is_no_mechanism_between_gateway_and_upstream() -> None:
    with pytest.raises(SaslError, match=r"^invalid_mech$"):
        initial_response(Mechanism.COMMAND, b"fred", b"", Secret(b"x"))


@pytest.mark.parametrize(
    ("mechanism", "answer"), [(LOGIN, b"secret"), (OAUTHBEARER, b"\x01"), (XOAUTH2, b""), (PLAIN, None),
                              (Mechanism.EXTERNAL, None), (Mechanism.COMMAND, None)]
)  # fmt: skip
@pytest.mark.parametrize("number", [0, 1, 2])
def test_answers_to_challenges(mechanism: Mechanism, number: int, answer: bytes | None) -> None:
    if number == 1 and answer is not None:
        assert respond(mechanism, number, Secret(b"secret")) == answer
    else:
        with pytest.raises(SaslError, match=r"^invalid_mech$"):
            respond(mechanism, number, Secret(b"secret"))


TEXT = st.binary(min_size=1, max_size=30).filter(lambda value: not has_control(value))


@given(st.sampled_from([PLAIN, LOGIN, XOAUTH2, OAUTHBEARER]), TEXT, TEXT, TEXT, st.booleans())
def test_what_a_client_says_the_server_reads_back(
    mechanism: Mechanism, user: bytes, secret: bytes, authzid: bytes, initial: bool
) -> None:
    assume(mechanism is PLAIN or not secret.startswith(b" "))
    authzid = authzid if mechanism is PLAIN and authzid != user else b""
    first = decode_initial(encode(initial_response(mechanism, user, authzid, Secret(secret))))
    exchange = begin(mechanism)
    if not initial:
        assert isinstance(exchange.step(None), Challenge)
    heard = exchange.step(first)
    number = 0
    while isinstance(heard, Challenge):
        number += 1
        heard = exchange.step(respond(mechanism, number, Secret(secret)))
    assert heard == credentials(user, secret, authzid)


@given(st.sampled_from([PLAIN, LOGIN, XOAUTH2, OAUTHBEARER]), st.lists(st.binary(max_size=60), min_size=2, max_size=2))
def test_no_response_raises_anything_else(mechanism: Mechanism, responses: list[bytes]) -> None:
    exchange = begin(mechanism)
    found: object = None
    with contextlib.suppress(SaslError):
        for response in responses:
            found = exchange.step(response)
            if isinstance(found, Credentials):
                break
    if isinstance(found, Credentials):
        assert found.user
        assert not has_control(found.user + found.authzid + found.secret.reveal())
