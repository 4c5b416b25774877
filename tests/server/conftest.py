"""Servers for the tests, and the answers of plain vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.client import Answer, ask, metric_types
from tests.server.hall import Hall, Reference
from tests.server.media import serve_pictures
from tests.server.process import Server
from tests.server.questions import (
    FEATURES,
    REFUSED,
    bad_pictures,
    good,
    odd_pictures,
    with_options,
)


@pytest.fixture(scope="session")
def hall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    made = Hall(tmp_path_factory.mktemp("servers"))
    yield made
    made.clear()


@pytest.fixture(scope="session")
def media() -> Iterator[str]:
    with serve_pictures() as address:
        yield address


@pytest.fixture(scope="session")
def reference(hall: Hall, media: str) -> Reference:
    plain = hall.server("plain")

    def answers(bodies: dict[str, dict[str, Any]]) -> dict[str, Answer]:
        return {name: ask(plain, each)[0] for name, each in bodies.items()}  # each alone: no batch to depend on

    options = {**FEATURES, **REFUSED}
    return Reference(
        answers(good()),
        answers(odd_pictures()),
        dict(zip(bad_pictures(media), ask(plain, *bad_pictures(media).values()), strict=True)),
        answers({name: with_options(each) for name, each in options.items()}),
        metric_types(plain),
    )


@pytest.fixture
def server(hall: Hall, reference: Reference) -> Server:
    """The server with a draft VLM; plain vLLM's answers are known by then."""
    return hall.server("draft")


@pytest.fixture
def always_server(hall: Hall, reference: Reference) -> Server:
    """The server whose draft VLM drafts in every step, whether that pays or not."""
    return hall.server("always")


@pytest.fixture
def lookup_server(hall: Hall, reference: Reference) -> Server:
    """The server that drafts from the text so far."""
    return hall.server("lookup")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the server's log beside a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    held = getattr(item, "funcargs", {}).get("hall")
    if report.failed and isinstance(held, Hall) and (tail := held.tail()):
        report.sections.append(("the server's log, its end", tail))
