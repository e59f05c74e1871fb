"""The linear-time patterns, with Python's backtracking ``re`` as an oracle for what they mean."""

from __future__ import annotations

import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailgate.config.pattern import MAX_DEPTH, MAX_NAME, MAX_STEPS, Pattern

TEXTS = [
    "",
    "a",
    "b",
    "ab",
    "aab",
    "abc",
    "A",
    "aB",
    "a.b",
    "a-b",
    "1",
    "a1",
    "_",
    " ",
    "é",
    "]",
    "^",
    "a@b.c",
    "\udce9",
]


@pytest.mark.parametrize(
    "source",
    [
        "",
        "a",
        "a*",
        "a+b",
        "a?b?c?",
        "a|b",
        "a||b",
        "(a|ab)(c|bc)?",
        "(?:a|b)*",
        "(a*)*b",
        "(a+)+",
        "()*a",
        ".",
        ".*",
        ".+@.+",
        "a{2}b",
        "a{0}b",
        "a{1,}b",
        "a{0,2}b",
        "a*?b",
        "(ab?){2,3}?",
        "^a$",
        "^$",
        "a^b",
        "(^a|b)c?$",
        "$",
        "[ab]+",
        "[^a]",
        "[a-c]*",
        "[]a]",
        "[^]a]",
        "[a-]+",
        "[-a]+",
        r"[\d_]",
        r"[\w.-]+",
        r"\d",
        r"\D",
        r"\w+",
        r"\W",
        r"\s",
        r"\S",
        r"a\.b",
        r"\^",
        r"\]",
        "]",
        "}",
        "(?i)a",
        "(?i)[^a]",
        "(?i)[a-b]+",
        r"(?i)A\.B",
        "é",
    ],
)
def test_pattern_means_what_re_means(source: str) -> None:
    oracle = re.compile(source, re.ASCII | re.DOTALL)
    pattern = Pattern(source)
    for text in TEXTS:
        assert pattern.matches(text) is bool(oracle.fullmatch(text)), text


_atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^b]", r"\w", "^", "$", "é"])
_patterns = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,1}?", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@given(_patterns, st.text("abé", max_size=6))
def test_any_pattern_means_what_re_means(source: str, text: str) -> None:
    assert Pattern(source).matches(text) is bool(re.fullmatch(source, text, re.ASCII | re.DOTALL))


@given(st.text("ab(){}[]*+?|\\^$.,:0129i-", max_size=20))
def test_only_value_error_leaves(source: str) -> None:
    with contextlib.suppress(ValueError):
        Pattern(source).matches("aab")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("(a", r"a \( without its \) \(at character 3"),
        ("a)", r"a \) without its \( \(at character 2"),
        ("[a", r"a \[ without its \]"),
        ("[", r"a \[ without its \]"),
        ("*a", "nothing to repeat"),
        ("a|+", "nothing to repeat"),
        ("{2}", "nothing to repeat"),
        ("a**", "cannot be repeated"),
        ("a{2}{3}", "cannot be repeated"),
        ("a*+", "cannot be repeated"),
        ("^*", "anchor"),
        ("a{", r"a brace itself is"),
        ("a{x}", r"a brace itself is"),
        ("a{,3}", r"a brace itself is"),
        ("a{3,2}", "counts upwards"),
        ("a{1001}", "counts upwards"),
        ("a{9999999}", "a brace itself"),
        (r"(a)\1", "back references"),
        (r"a\b", "unknown escape"),
        ("a\\", "unknown escape"),
        ("(?=a)", "looking ahead"),
        ("(?<!a)b", "looking ahead"),
        ("(?P<n>a)", "looking ahead"),
        ("a(?i)b", "very beginning"),
        ("[b-a]", "a later one"),
        (r"[\d-z]", "a later one"),
        (r"[\D]", "do not stand in a class"),
        ("[[:alpha:]]", "not known"),
        (f"{'(' * (MAX_DEPTH + 1)}a{')' * (MAX_DEPTH + 1)}", "nested"),
        ("((a{30}){30}){30}", "too large"),
        ("a{900}b{900}", "too large"),
    ],
)
def test_what_is_not_known_is_refused_with_its_place(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pattern(source)


@pytest.mark.parametrize("source", ["(a+)+b", "(a|a)*b", "(a|aa)+b", "(.*)*b", "a*a*a*a*a*a*b", "(a?){200}a{200}b"])
def test_no_name_makes_a_pattern_slow(source: str) -> None:
    began = time.process_time()
    assert not Pattern(source).matches("a" * MAX_NAME)
    # Backtracking would need longer than the universe is old; the bound leaves room for slow machines.
    assert time.process_time() - began < 5


def test_names_that_are_too_long_match_nothing() -> None:
    assert Pattern("a*").matches("a" * MAX_NAME)
    assert not Pattern("a*").matches("a" * (MAX_NAME + 1))


def test_sizes_at_the_bound_are_taken() -> None:
    assert Pattern(f"a{{{MAX_STEPS}}}").source == "a{1000}"
    assert "a{1000}" in repr(Pattern("a{1000}"))
