"""The pytest plug-in: the fixture `fake_agentmail`, and the history of each fake in the report of a failed test.

pytest loads this module in every run wherever trio-agentmail is installed. It must stay cheap, so it imports Trio and
the rest of the package only for a test that uses the fixture.
"""

import sys
from collections import deque
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import FakeAgentMail

__all__ = ["fake_agentmail"]


@pytest.fixture
def fake_agentmail() -> "Iterator[FakeAgentMail]":
    """A `FakeAgentMail`, to which all streams that are opened without a `backend` connect."""
    from .testing import FakeAgentMail

    with FakeAgentMail().installed() as fake:
        yield fake


made: "deque[FakeAgentMail]" = deque(maxlen=8)
"""The fakes that the current test has made. Only the latest are kept, because a test may make thousands."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    made.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the history of each fake that a failed test has made or requested as a fixture."""
    report = yield
    if report.failed:
        fixtures = getattr(item, "funcargs", {}).values()
        testing = sys.modules.get("trio_agentmail.testing")
        requested = [value for value in fixtures if testing is not None and isinstance(value, testing.FakeAgentMail)]
        for fake in {id(fake): fake for fake in (*requested, *made)}.values():
            report.sections.append(("AgentMail (fake)", fake.explain()))
    return report
