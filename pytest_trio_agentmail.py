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


made_before = pytest.StashKey[int]()
"""How many fakes had been made before the test began."""


def _fakes() -> "dict[int, FakeAgentMail]":
    testing = sys.modules.get("trio_agentmail.testing")
    return {} if testing is None else dict(testing._fake_base.FAKES)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[made_before] = max(_fakes(), default=-1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell in the report of a failed test what happened at the fakes that it has made, or has among its fixtures."""
    report = yield
    if report.failed:
        its_fixtures = list(getattr(item, "funcargs", {}).values())
        for number, fake in _fakes().items():
            if number >= item.stash.get(made_before, 0) or any(fake is value for value in its_fixtures):
                report.sections.append(("AgentMail (fake)", fake.explain()))
    return report
