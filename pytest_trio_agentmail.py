"""The pytest plug-in of trio-agentmail: the fixture `fake_agentmail`, and what happened at it in a failure's report.

pytest loads it in every run wherever trio-agentmail is installed. So it is not inside of the package, which it would
import by that, and imports it only for a test that asks for the fixture.
"""

import sys
from collections import deque
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trio_agentmail.testing import FakeAgentMail

__all__ = ["fake_agentmail"]


@pytest.fixture
def fake_agentmail() -> "Iterator[FakeAgentMail]":
    """An AgentMail in memory: streams that the test, or the code under test, opens without a `backend` come here."""
    from trio_agentmail.testing import FakeAgentMail

    with FakeAgentMail().installed() as fake:
        yield fake


made: "deque[FakeAgentMail]" = deque(maxlen=8)
"""The fakes that have been made since the present test began: the last ones, since it may make thousands."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    made.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell in the report of a failed test what happened at the fakes that it has made, or has among its fixtures."""
    report = yield
    if report.failed:
        fixtures = getattr(item, "funcargs", {}).values()
        testing = sys.modules.get("trio_agentmail.testing")
        older = [value for value in fixtures if testing is not None and isinstance(value, testing.FakeAgentMail)]
        for fake in {id(fake): fake for fake in (*older, *made)}.values():
            report.sections.append(("AgentMail (fake)", fake.explain()))
    return report
