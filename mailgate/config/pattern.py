"""Regular expressions over user names that match in linear time.

A user name comes from anyone who can open a connection, and Python's ``re`` backtracks: with a
pattern such as ``(a+)+b`` a name of forty letters would stop the whole process for hours. The
engine here walks all alternatives of a pattern at once (Thompson's construction), so a name costs
at most its length times the pattern's size, whatever the pattern. It knows what such an engine can
know: literals, ``.``, classes, groups, alternatives, repetition, anchors and ``(?i)``. What needs
backtracking (back references, looking ahead or behind) is an error with its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

# A pattern costs its size for each character of a name; RFC 5321 §4.5.3.1 ends addresses at 320.
MAX_STEPS: Final = 1_000
MAX_NAME: Final = 512
MAX_DEPTH: Final = 40

_DIGIT: Final = ((48, 57),)
_WORD: Final = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Final = ((9, 13), (32, 32))
_EVERYTHING: Final = ((0, 0x10FFFF),)


class _Chars(NamedTuple):
    """A set of characters, as ranges of code points."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def has(self, code: int, folded: bool) -> bool:
        found = self._in(code)
        if not found and folded and (65 <= code <= 90 or 97 <= code <= 122):
            found = self._in(code ^ 32)
        return found != self.negated

    def _in(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges)


class _Anchor(NamedTuple):
    at_end: bool


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    branches: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    body: _Node
    low: int
    high: int | None


_Node = _Chars | _Anchor | _Sequence | _Choice | _Repeat

_CLASSES: Final = {
    "d": _Chars(_DIGIT),
    "D": _Chars(_DIGIT, True),
    "w": _Chars(_WORD),
    "W": _Chars(_WORD, True),
    "s": _Chars(_SPACE),
    "S": _Chars(_SPACE, True),
}


class _Split(NamedTuple):
    """Continue at all of these steps."""

    targets: tuple[int, ...]


class _Step(NamedTuple):
    """Take one character of the set, or stand at an anchor, then continue at the next step."""

    test: _Chars | _Anchor


class Pattern:
    """A compiled regular expression; raises ValueError with the place of what it does not know."""

    __slots__ = ("_folded", "_program", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self._folded = source.startswith("(?i)")
        tree = _Parser(source, 4 if self._folded else 0).parse()
        self._program: list[_Split | _Step] = []
        self._emit(tree)

    def __repr__(self) -> str:
        return f"Pattern({self.source!r})"

    def matches(self, text: str) -> bool:
        """Whether the whole of ``text`` matches; a text of more than MAX_NAME characters never does."""
        if len(text) > MAX_NAME:
            return False
        final = len(self._program)
        last = len(text)
        states = self._follow({0}, 0, last)
        for position, character in enumerate(text):
            code = ord(character)
            taken = set()
            for state in states:
                step = self._program[state] if state < final else None
                test = step.test if isinstance(step, _Step) else None
                if isinstance(test, _Chars) and test.has(code, self._folded):
                    taken.add(state + 1)
            if not taken:
                return False
            states = self._follow(taken, position + 1, last)
        return final in states

    def _follow(self, states: set[int], position: int, last: int) -> set[int]:
        """Return ``states`` and all that are reached from them without taking a character."""
        seen = set(states)
        pending = list(states)
        while pending:
            state = pending.pop()
            step = self._program[state] if state < len(self._program) else None
            targets: tuple[int, ...] = ()
            if isinstance(step, _Split):
                targets = step.targets
            elif isinstance(step, _Step) and isinstance(step.test, _Anchor):
                targets = (state + 1,) if position == (last if step.test.at_end else 0) else ()
            for target in targets:
                if target not in seen:
                    seen.add(target)
                    pending.append(target)
        return seen

    def _emit(self, node: _Node) -> None:
        program = self._program
        if len(program) >= MAX_STEPS:
            raise ValueError(f"the pattern is too large: over {MAX_STEPS} steps with repetitions written out")
        match node:
            case _Chars() | _Anchor():
                program.append(_Step(node))
            case _Sequence(parts):
                for part in parts:
                    self._emit(part)
            case _Choice(branches):
                self._choose(branches)
            case _Repeat(body, low, high):
                for _ in range(low):
                    self._emit(body)
                if high is None:
                    self._loop(body)
                else:
                    self._options(body, high - low)

    def _choose(self, branches: tuple[_Node, ...]) -> None:
        program = self._program
        fork = len(program)
        program.append(_Split(()))
        starts, exits = [], []
        for branch in branches:
            starts.append(len(program))
            self._emit(branch)
            exits.append(len(program))
            program.append(_Split(()))
        program[fork] = _Split(tuple(starts))
        for place in exits:
            program[place] = _Split((len(program),))

    def _loop(self, body: _Node) -> None:
        program = self._program
        fork = len(program)
        program.append(_Split(()))
        self._emit(body)
        program.append(_Split((fork,)))
        program[fork] = _Split((fork + 1, len(program)))

    def _options(self, body: _Node, count: int) -> None:
        program = self._program
        forks = []
        for _ in range(count):
            forks.append(len(program))
            program.append(_Split(()))
            self._emit(body)
        for fork in forks:
            program[fork] = _Split((fork + 1, len(program)))


class _Parser:
    """A recursive descent over the pattern's text."""

    def __init__(self, source: str, start: int) -> None:
        self._source = source
        self._at = start
        self._depth = 0

    def parse(self) -> _Node:
        tree = self._choice()
        if self._at < len(self._source):
            raise self._wrong("a ) without its (")
        return tree

    def _wrong(self, what: str) -> ValueError:
        return ValueError(f"{what} (at character {self._at + 1} of the pattern)")

    def _peek(self) -> str:
        return self._source[self._at] if self._at < len(self._source) else ""

    def _take(self) -> str:
        character = self._peek()
        self._at += 1
        return character

    def _choice(self) -> _Node:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._take()
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _Choice(tuple(branches))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom()))
        return _Sequence(tuple(parts))

    def _repeated(self, atom: _Node) -> _Node:
        bounds = self._bounds()
        if bounds is None:
            return atom
        if isinstance(atom, _Anchor):
            raise self._wrong("an anchor cannot be repeated")
        if self._peek() == "?":
            # Greed decides what a group holds, never whether the whole text matches.
            self._take()
        if self._peek() in ("*", "+", "?", "{"):
            raise self._wrong("a repetition cannot be repeated; use a group")
        return _Repeat(atom, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        sign = self._peek()
        if sign in simple:
            self._take()
            return simple[sign]
        if sign != "{":
            return None
        end = self._source.find("}", self._at)
        low, comma, high = self._source[self._at + 1 : max(end, 0)].partition(",")
        if not (_is_number(low) and (_is_number(high) or not high)):
            raise self._wrong(r"a repetition is {3}, {3,} or {3,5}; a brace itself is \{")
        bounds = (int(low), int(high) if high else None) if comma else (int(low), int(low))
        if max(bounds[0], bounds[1] or 0) > MAX_STEPS or (bounds[1] is not None and bounds[1] < bounds[0]):
            raise self._wrong(f"a repetition counts upwards to at most {MAX_STEPS}")
        self._at = end + 1
        return bounds

    def _atom(self) -> _Node:
        character = self._peek()
        if character in ("*", "+", "?", "{"):
            raise self._wrong(rf"nothing to repeat; the character itself is \{character}")
        self._take()
        match character:
            case ".":
                return _Chars(_EVERYTHING)
            case "^" | "$":
                return _Anchor(at_end=character == "$")
            case "[":
                return self._class()
            case "(":
                return self._group()
            case "\\":
                return self._escape()
        return _single(character)

    def _group(self) -> _Node:
        if self._peek() == "?":
            if self._source.startswith("?i)", self._at):
                raise self._wrong("(?i) stands at the very beginning")
            if not self._source.startswith("?:", self._at):
                raise self._wrong("only ( ), (?: ) and a leading (?i) are known; looking ahead or behind is not")
            self._at += 2
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(f"more than {MAX_DEPTH} nested groups")
        inner = self._choice()
        if self._take() != ")":
            self._at -= 1
            raise self._wrong("a ( without its )")
        self._depth -= 1
        return inner

    def _escape(self) -> _Chars:
        character = self._take()
        if character in _CLASSES:
            return _CLASSES[character]
        if not character or character.isalnum():
            self._at -= 1
            raise self._wrong(r"unknown escape; \d \w \s and escaped punctuation are known, back references are not")
        return _single(character)

    def _class(self) -> _Chars:
        opened = self._at
        negated = self._peek() == "^"
        if negated:
            self._take()
        ranges: list[tuple[int, int]] = []
        first = True
        while first or self._peek() != "]":
            if not self._peek():
                self._at = opened
                raise self._wrong("a [ without its ]")
            ranges += self._class_item()
            first = False
        self._take()
        return _Chars(tuple(ranges), negated)

    def _class_item(self) -> tuple[tuple[int, int], ...]:
        if self._source.startswith("[:", self._at):
            raise self._wrong(r"classes such as [:alpha:] are not known; write [A-Za-z] or \w")
        low = self._class_character()
        if self._peek() != "-" or self._source[self._at + 1 : self._at + 2] in ("]", ""):
            return low.ranges
        self._take()
        high = self._class_character()
        if not (_is_single(low) and _is_single(high)) or high.ranges[0][0] < low.ranges[0][0]:
            raise self._wrong("a range goes from one character to a later one")
        return ((low.ranges[0][0], high.ranges[0][0]),)

    def _class_character(self) -> _Chars:
        character = self._take()
        if character != "\\":
            return _single(character)
        chars = self._escape()
        if chars.negated:
            raise self._wrong(r"\D, \W and \S do not stand in a class")
        return chars


def _single(character: str) -> _Chars:
    return _Chars(((ord(character), ord(character)),))


def _is_single(chars: _Chars) -> bool:
    return len(chars.ranges) == 1 and chars.ranges[0][0] == chars.ranges[0][1]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 6
