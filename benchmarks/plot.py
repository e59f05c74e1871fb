"""The ratios as a picture: one row per figure and peer, on a logarithmic scale, written as plain SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape

from benchmarks.plan import COSTS, title
from benchmarks.proxies import MAILGATE, PROXIES
from benchmarks.ratios import Ratio, Samples, ratio
from benchmarks.targets import TARGETS

COLOURS = {
    "login-only": "#666666",
    "two-workers": "#999999",
    "dovecot": "#1b6ca8",
    "nginx": "#2e8b57",
    "haproxy": "#c1440e",
    "stunnel": "#8a6d3b",
    "perdition": "#7b4397",
}
UPSTREAMS = {"plain": "upstream plain", "tls": "upstream TLS"}
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
LABELS, WIDTH, GAP, LINE, TOP, BOTTOM = 260, 420, 40, 13, 70, 40


def svg(raw: Mapping[str, Mapping[str, Mapping[str, Samples]]]) -> str:
    """Return the picture of one protocol's samples, by upstream, way and figure."""
    peers = [name for name in COLOURS if any(name in ways for ways in raw.values())]
    height = TOP + len(COSTS) * (len(peers) + 1) * LINE + BOTTOM
    width = LABELS + len(raw) * (WIDTH + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(10, 18, "mailgate's cost as a multiple of each peer's: left of 1 mailgate is cheaper", 14),
        *_legend(peers),
    ]
    for number, figure in enumerate(COSTS):
        parts.append(_text(10, _top(number, peers) + len(peers) * LINE / 2 + 4, title(figure, "imap")))
    for number, (upstream, ways) in enumerate(raw.items()):
        parts += _panel(LABELS + number * (WIDTH + GAP), height - BOTTOM, upstream, ways, peers)
    return "\n".join([*parts, "</svg>\n"])


def _panel(
    left: float, bottom: float, upstream: str, ways: Mapping[str, Mapping[str, Samples]], peers: list[str]
) -> Iterator[str]:
    yield _text(left, TOP - 8, UPSTREAMS[upstream], 12)
    for tick in TICKS:
        x = left + _across(tick)
        yield _line(x, TOP, x, bottom, "#333333" if tick == 1 else "#dddddd")
        yield _text(x, bottom + 15, f"{tick:g}", anchor="middle")
    for number, figure in enumerate(COSTS):
        for row, peer in enumerate(peers):
            found = ratio(ways.get(MAILGATE, {}).get(figure, ()), ways.get(peer, {}).get(figure, ()))
            y = _top(number, peers) + row * LINE + LINE / 2
            if found is not None:
                yield from _mark(left, y, found, COLOURS[peer])
            for target in TARGETS:
                if (target.figure, target.upstream, target.peer) == (figure, upstream, peer):
                    x = left + _across(target.limit)
                    yield _line(x, y - 6, x, y + 6, "#000000", 2)


def _mark(left: float, y: float, found: Ratio, colour: str) -> Iterator[str]:
    yield _line(left + _across(found.low), y, left + _across(found.high), y, colour, 2)
    yield f'<circle cx="{left + _across(found.median):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'


def _legend(peers: list[str]) -> Iterator[str]:
    x = 10.0
    for peer in peers:
        yield f'<circle cx="{x + 4}" cy="36" r="4" fill="{COLOURS[peer]}"/>'
        yield _text(x + 13, 40, f"/ {PROXIES[peer].title}")
        x += 30 + 7 * len(PROXIES[peer].title)
    yield _line(x + 4, 30, x + 4, 42, "#000000", 2)
    yield _text(x + 13, 40, "target; lines are intervals")


def _top(number: int, peers: list[str]) -> float:
    return TOP + number * (len(peers) + 1) * LINE + LINE / 2


def _across(value: float) -> float:
    """Return where a ratio lies in a panel; what is off the scale lies on its edge."""
    low, high = math.log(TICKS[0]), math.log(TICKS[-1])
    return WIDTH * (min(max(math.log(value), low), high) - low) / (high - low)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    at = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {at} stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
