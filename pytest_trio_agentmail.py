"""The pytest plug-in of trio-agentmail: the fixture `agentmail`, and what happened at it in the report of a failure.

pytest loads it in every run wherever trio-agentmail is installed. So it is not inside of the package, which it would
import by that, and imports it only for a test that asks for the fixture.
"""

import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from trio_agentmail.testing import FakeAgentMail

__all__ = ["agentmail"]


@pytest.fixture
def agentmail() -> "Iterator[FakeAgentMail]":
    """An AgentMail in memory: streams that the test, or the code under test, opens without a `backend` come here."""
    from trio_agentmail.testing import FakeAgentMail

    with FakeAgentMail().installed() as fake:
        yield fake


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell in the report of a failed test what happened at the fakes among its fixtures."""
    report = yield
    testing = sys.modules.get("trio_agentmail.testing")
    if report.failed and testing is not None:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, testing.FakeAgentMail):
                report.sections.append(("AgentMail (fake)", value.explain()))
    return report
