"""UIDLs: templates and their mistakes, headers that POP3 and IMAP show alike, validity and uniqueness."""

from __future__ import annotations

import hashlib
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.translate.uidl import (
    FORMATS,
    LONGEST_OF_UID,
    Facts,
    Rendered,
    Stored,
    Template,
    TemplateError,
    fitted,
    folder_id,
    folder_prefix,
    header_hash,
    is_valid,
    numbered,
    stable_header,
)

UIDS = st.integers(1, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("name", "uidl"),
    [
        ("dovecot", b"0000002a5f3c0a11"),
        ("dovecot-old", b"1597770257.42"),
        ("uw", b"5f3c0a110000002a"),
        ("courier", b"UID42-1597770257"),
        ("courier-v1", b"UID42"),
        ("cyrus", b"1597770257.42"),
        ("cyrus-old", b"42"),
        ("gmail", b"GmailId13c0ffee13c0ffee"),
        ("{uid:010d}-{uidvalidity:X}", b"0000000042-5F3C0A11"),
        ("{{{uid:x}}}", b"{2a}"),
        ("100%{uid}", b"100%42"),
        ("{emailid}", b"M6d99ac3275bb4e"),
        ("{folder}.{uid}", b"9aa4d5f5.42"),
        ("{message_id}", b"<a@example.org>"),
    ],
)
def test_a_template_makes_the_uidl(name: str, uidl: bytes) -> None:
    facts = Facts(
        42,
        0x5F3C0A11,
        emailid=b"M6d99ac3275bb4e",
        gm_msgid=0x13C0FFEE13C0FFEE,
        header=b"Subject: x\r\nMessage-ID:\r\n <a@example.org>\r\n\r\n",
        folder=b"9aa4d5f5",
    )
    assert Template.parse(name).render(facts) == uidl


@pytest.mark.parametrize(
    ("text", "message", "position"),
    [
        ("dovcot", "no format has this name", 1),
        ("", "no format has this name", 1),
        ("x{uid", '"{" without "}"', 2),
        ("x{uid}}", '"}" without "{"', 7),
        ("{uid} {uidvalidity}", "printable ASCII", 6),
        ("ä{uid}", "printable ASCII", 1),
        ("{uid.__class__}", "no field of this name", 1),
        ("{0}{uid}", "no field of this name", 1),
        ("{}", "no field of this name", 1),
        ("{uid!r}", "no field of this name", 1),
        ("{uid:}", "with a width", 1),
        ("{uid:999999999d}", "with a width", 1),
        ("{uid:021x}", "with a width", 1),
        ("{uid:>8}", "with a width", 1),
        ("{header_md5:.8}", "16 to 32", 1),
        ("{header_sha1:x}", "16 to 40", 1),
        ("{emailid:8}", "as it is", 1),
        ("{uidvalidity}", "all messages would be the same", 1),
        ("{uid}{uid}", "once", 1),
        ("{emailid}{gm_msgid}", "different servers", 1),
        ("{folder}", "all messages would be the same", 1),
        ("{header_sha256}{uid}", "up to 74 characters", 1),
        ("a" * 60 + "{uid:08x}", "up to 68 characters", 1),
    ],
)
def test_a_wrong_template_says_what_and_where(text: str, message: str, position: int) -> None:
    with pytest.raises(TemplateError) as caught:
        Template.parse(text)
    assert message in str(caught.value)
    assert caught.value.position == position


@pytest.mark.parametrize(
    ("text", "needs", "uses_uid"),
    [
        ("dovecot", set(), True),
        ("gmail", {"gm_msgid"}, False),
        ("{emailid}", {"emailid"}, False),
        ("{header_md5}{uid}", {"headers"}, True),
        ("{message_id}", {"headers"}, False),
    ],
)
def test_a_template_says_what_it_needs(text: str, needs: set[str], uses_uid: bool) -> None:
    template = Template.parse(text)
    assert template.needs == needs
    assert template.uses_uid is uses_uid


BY_UID = sorted(text for text in FORMATS.values() if not Template.parse(text).needs)


@given(
    text=st.sampled_from([*BY_UID, "{uid:x}07%{{", "{uid:X}.{folder}"]),
    uids=st.sets(UIDS, min_size=1, max_size=50).map(sorted),
    uidvalidity=st.integers(0, 0xFFFFFFFF),
    prefix=st.sampled_from([b"", folder_prefix(b"Archive")]),
)
def test_uidls_of_uids_are_valid_unique_and_tell_the_uid(
    text: str, uids: list[int], uidvalidity: int, prefix: bytes
) -> None:
    template = Template.parse(text)
    rendered = Rendered(template, array("I", uids), uidvalidity, prefix)
    uidls = [rendered[index] for index in range(len(rendered))]
    assert rendered.among(range(len(rendered))) == uidls
    assert rendered.among([0]) == uidls[:1]
    assert len(set(uidls)) == len(uids)
    assert all(is_valid(uidl) and len(uidl) <= LONGEST_OF_UID + len(prefix) for uidl in uidls)
    bound = template.bound(uidvalidity, prefix)
    assert [bound.uid_of(uidl) for uidl in uidls] == uids
    again = Template.of_bound(bound.text)
    assert [again.of_uid(uid) for uid in uids] == uidls


@pytest.mark.parametrize("text", ["{uidvalidity}{uid}", "x", "{header_md5}"])
def test_a_text_with_more_than_the_uid_is_no_bound_template(text: str) -> None:
    with pytest.raises(TemplateError):
        Template.of_bound(text)


def test_a_uidl_of_another_form_is_of_no_uid() -> None:
    bound = Template.parse("dovecot").bound(0x10)
    assert bound.uid_of(b"0000002a00000010") == 42
    assert [bound.uid_of(uidl) for uidl in (b"0000002A00000010", b"2a00000010", b"0000002a00000011", b"", b"x")] == [
        None
    ] * 5


HEADER = b"From: a\r\nSubject: x\r\n folded\r\n"


@pytest.mark.parametrize(
    "other",
    [
        HEADER + b"\r\n",
        HEADER.replace(b"\r", b""),
        b"Return-Path: <>\r\n" + HEADER,
        HEADER + b"Status: RO\r\nX-UID: 5\r\nX-UIDL: abc\r\n def\r\n\r\n",
        HEADER + b"content-LENGTH : 5\r\n",
        HEADER + b"no colon here\r\n",
        HEADER + b"\r\r\nLater: after the end\r\n",
    ],
)
def test_headers_that_differ_between_servers_have_one_hash(other: bytes) -> None:
    assert stable_header(other) == b"From: a\nSubject: x\n folded"
    assert header_hash(other) == header_hash(HEADER)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"Subject: a\x00b", b"Subject: a\x80b"),
        ("Subject: grün".encode(), b"Subject: gr?n"),
        ("Subject: grün".encode(), b"Subject: gr??n"),
    ],
)
def test_characters_that_servers_replace_have_one_hash(one: bytes, other: bytes) -> None:
    assert header_hash(one) == header_hash(other)


def test_headers_of_different_messages_differ() -> None:
    assert header_hash(HEADER) != header_hash(HEADER + b"Date: now\r\n")


@pytest.mark.parametrize(("text", "digits"), [("{header_md5}", 32), ("{header_sha1}", 40), ("{header_sha256:.20}", 20)])
def test_header_hashes(text: str, digits: int) -> None:
    name = text[8:].partition(":")[0].strip("}")
    wanted = hashlib.new(name, b"From: a\nSubject: x\n folded").hexdigest()[:digits]
    assert Template.parse(text).render(Facts(1, 2, header=HEADER)) == wanted.encode()


@pytest.mark.parametrize("text", ["{emailid}", "{message_id}", "gmail"])
def test_a_message_without_identity_gets_one_of_its_uid(text: str) -> None:
    template = Template.parse(text)
    one, other = (template.render(Facts(uid, 7)) for uid in (1, 2))
    assert one != other
    assert is_valid(one)
    assert template.render(Facts(1, 7)) == one


@given(header=st.binary(max_size=100), text=st.sampled_from(["{message_id}.{header_md5}", "{header_sha1:.20}{uid}"]))
def test_a_digest_is_as_good_as_the_header(header: bytes, text: str) -> None:
    header += b"\nMessage-ID: <a\0b@example.org>\n"
    template = Template.parse(text)
    digest = template.digest(header)
    assert digest[:16] == header_hash(header)
    rendered = template.render(Facts(9, 1, digest=digest))
    assert is_valid(rendered)
    if "message_id" not in text:
        assert rendered == template.render(Facts(9, 1, header=header))


@given(st.binary(max_size=300))
def test_every_value_fits(value: bytes) -> None:
    assert is_valid(fitted(value))
    assert fitted(value) == fitted(value)
    assert fitted(value) == value or not is_valid(value)


@given(st.lists(st.sampled_from([b"a", b"a-2", b"b" * 70, b"b" * 63, b"c"]), max_size=12))
def test_numbers_make_uidls_unique(values: list[bytes]) -> None:
    taken: set[bytes] = set()
    for value in values:
        name = numbered(value, taken.__contains__)
        assert name not in taken
        assert is_valid(name)
        taken.add(name)
    assert set(values) <= taken


def test_a_folder_has_its_id_wherever_it_stands() -> None:
    assert folder_id(b"inbox") == folder_id(b"INBOX") != folder_id(b"Archive")
    assert folder_prefix(b"Archive") == b"f" + folder_id(b"Archive") + b"."


@given(st.lists(st.binary(max_size=9), max_size=9), st.lists(st.binary(max_size=9), max_size=9), st.data())
def test_stored_texts(one: list[bytes], other: list[bytes], data: st.DataObject) -> None:
    stored = Stored.of(one).plus(Stored.of(other))
    values = one + other
    assert [stored[index] for index in range(len(stored))] == values
    start = data.draw(st.integers(0, len(values)))
    end = data.draw(st.integers(start, len(values)))
    part = stored.part(start, end)
    assert [part[index] for index in range(len(part))] == values[start:end]
    with pytest.raises(IndexError):
        stored[len(values)]
