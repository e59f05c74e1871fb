"""What the documents list is what the code has: metrics, capabilities, commands, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click import Command, Group

from mailgate.cli import main
from mailgate.model import Failure, Protocol, Refusal
from mailgate.observe.families import FAMILIES
from mailgate.policy import access, answers
from mailgate.translate import refusals

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]


def metrics_table() -> list[str]:
    """Return the table of docs/metrics.md as it should be."""
    rows = []
    for family in FAMILIES:
        suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
        named = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `mailgate_{family.name}{suffix}` | {family.kind} | {named} | {family.text} |")
    return rows


def capability_table() -> list[str]:
    """Return the tables of docs/rfc.md as they should be."""
    rows = []
    for table in (access.IMAP_CAPABILITIES, access.POP3_CAPABILITIES):
        rows += [
            f"| `{name}` | {'shown' if found.relay else 'hidden'} | {found.reason} |"
            for name, found in sorted(table.items())
        ]
    for protocol in Protocol:
        rows += [f"| `{verb}` | refused | {why} |" for verb, why in sorted(access.DENIED_VERBS[protocol].items())]
    return rows


def rows_of(page: str, *headings: str) -> list[str]:
    lines = (DOCS / page).read_text("utf-8").splitlines()
    starts = {f"| {heading} |" for heading in headings}
    found: list[str] = []
    inside = False
    for line in lines:
        if any(line.startswith(start) for start in starts):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|--"):
            found.append(line)
    return found


def test_every_metric_is_documented_with_its_labels() -> None:
    assert rows_of("metrics.md", "Metric") == metrics_table()


def test_every_capability_and_refused_command_is_documented_with_its_reason() -> None:
    assert rows_of("rfc.md", "Capability", "Command") == capability_table()


def test_every_reason_is_explained() -> None:
    text = (DOCS / "logs.md").read_text("utf-8")
    fixed = [*vars(answers).values(), *vars(refusals).values(), *refusals._BY_CODE.values()]
    reasons = {one.reason for one in fixed if isinstance(one, Refusal)}
    reasons |= {answers.refusal_for(failure).reason for failure in Failure}
    assert sorted(reason for reason in reasons if f"`{reason}`" not in text) == []


def test_every_kind_of_upstream_failure_is_named() -> None:
    text = (DOCS / "metrics.md").read_text("utf-8")
    assert [failure.value for failure in Failure if f"`{failure.value}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def commands(group: Command, words: tuple[str, ...] = ("mailgate",)) -> set[str]:
    found = {" ".join(words)}
    if isinstance(group, Group):
        for name, command in group.commands.items():
            found |= commands(command, (*words, name))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_that_pages_name_exist(page: Path) -> None:
    known = commands(main)
    text = page.read_text("utf-8")
    blocks = "\n".join(re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL))
    named = re.findall(r"^\s*(mailgate [a-z-]+(?: [a-z-]+)?)", blocks, re.MULTILINE)
    for line in [*named, *re.findall(r"`(mailgate [a-z-]+(?: [a-z-]+)?)", text)]:
        words = line.split()
        assert " ".join(words[:2]) in known or " ".join(words) in known, f"{page.name}: {line}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [page.name for page in DOCS.glob("*.md") if f"docs/{page.name}" not in readme] == []
