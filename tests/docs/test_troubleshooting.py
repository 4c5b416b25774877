"""Messages that the troubleshooting page explains are those that the program prints."""

from __future__ import annotations

import pytest

from tests.docs.messages import ROOT, said


def explained() -> list[str]:
    """First cells of the tables of messages, without their marks of code."""
    text = (ROOT / "docs/troubleshooting.md").read_text()
    tables = text.split("<!-- messages -->")[1].split("<!-- /messages -->")[0]
    cells = [line.split(" | ")[0].removeprefix("| ") for line in tables.splitlines() if line.startswith("| `")]
    return [cell.removeprefix("`").removesuffix("`") for cell in cells]


def in_sources(message: str) -> bool:
    """Whether the sources have this text; the end of a sentence may have been put behind a value."""
    return any(message in (known, known + ".") for known in said())


def test_there_are_messages() -> None:
    assert len(explained()) > 20
    assert not in_sources("The draft '…' is missing an eye; give it one.")


@pytest.mark.parametrize("message", explained())
def test_messages_are_the_programs_own(message: str) -> None:
    assert in_sources(message)


def test_links_lead_somewhere() -> None:
    """Between the pages of the documentation, and from the README to them."""
    for page in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"):
        for link in page.read_text().split("](")[1:]:
            target = link.split(")")[0].split("#")[0]
            if target and "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
