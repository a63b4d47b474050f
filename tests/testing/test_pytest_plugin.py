"""The pytest plug-in: it works with pytest-trio and with anyio's, and failure reports show the history of each fake."""

import subprocess
import sys

import pytest
from trio.testing import MockClock

from trio_agentmail.testing import FakeAgentMail

pytest_plugins = ["pytester"]

PLUGIN = "trio_agentmail._pytest_plugin"

AGENT = """
import trio
from trio_agentmail import MessageReceivedEvent, Subscribe, open_agentmail_stream

async def next_subject(*inboxes):
    async with open_agentmail_stream(Subscribe(inbox_ids=inboxes) if inboxes else Subscribe()) as events:
        async for event in events:
            if isinstance(event, MessageReceivedEvent):
                return event.message.subject
"""

PYTEST_TRIO = """
import pytest
import trio
from agent import next_subject

async def test_it(fake_agentmail, autojump_clock):
    async with trio.open_nursery() as nursery:
        @nursery.start_soon
        async def check():
            assert await next_subject() == "Hello"
        await fake_agentmail.wait_subscribed()
        await trio.sleep(86_400)
        await fake_agentmail.deliver(inbox_id="agent@agentmail.to", subject="Hello")
"""

ANYIO = """
import pytest
import trio
from trio.testing import MockClock
from agent import next_subject

@pytest.fixture
def anyio_backend():
    return "trio", {"clock": MockClock(autojump_threshold=0)}

@pytest.mark.anyio
async def test_it(fake_agentmail):
    async with trio.open_nursery() as nursery:
        @nursery.start_soon
        async def check():
            assert await next_subject() == "Hello"
        await fake_agentmail.wait_subscribed()
        await trio.sleep(86_400)
        await fake_agentmail.deliver(inbox_id="agent@agentmail.to", subject="Hello")
"""

FAILING = """
import trio
from agent import next_subject

async def test_it(fake_agentmail, autojump_clock):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(next_subject, "agent@agentmail.to")
        await fake_agentmail.wait_subscribed()
        await fake_agentmail.deliver(inbox_id="other@agentmail.to", subject="Hello")
        with trio.fail_after(60):
            await trio.sleep_forever()

def test_without_a_fake():
    assert False

async def test_that_passes(fake_agentmail, autojump_clock):
    pass
"""

WITHOUT_TRIO = """
import sys

def test_it():
    assert "trio" not in sys.modules
    assert "httpx" not in sys.modules
    assert "httpx2" not in sys.modules
    ours = {name for name in sys.modules if name.startswith("trio_agentmail")}
    assert ours == {"trio_agentmail", "trio_agentmail._pytest_plugin"}
    assert False
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with the agent, in an environment without an API key."""
    monkeypatch.delenv("AGENTMAIL_API_KEY", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    # pytest loaded the plug-in before it started to measure coverage. A project in this process loads it again.
    monkeypatch.delitem(sys.modules, PLUGIN)
    pytester.makepyfile(agent=AGENT)
    return pytester


def test_with_pytest_trio_the_code_under_test_connects_to_the_fake(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\ntrio_mode = true")
    project.makepyfile(PYTEST_TRIO)
    project.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_with_anyio_on_trio_the_code_under_test_connects_to_the_fake(project: pytest.Pytester) -> None:
    project.makepyfile(ANYIO)
    project.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_a_failure_report_says_which_connections_got_an_event_and_why_others_did_not(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\ntrio_mode = true")
    project.makepyfile(FAILING)
    result = project.runpytest("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*- AgentMail (fake) -*",
            "*connection 1: open",
            '*connection 1: {"type":"subscribed","inbox_ids":*agent@agentmail.to*}',
            "*message.received in other@agentmail.to 'Hello' from Jane <jane@example.com>: pushed to no connection; "
            "connection 1 listens to inbox_ids agent@agentmail.to, and this is of other@agentmail.to",
            "*connection 1: cut by the client",
        ]
    )
    assert result.stdout.str().count("AgentMail (fake)") == 1


FAILING_ELSEWHERE = r"""
import pytest
from trio_agentmail.testing import FakeAgentMail

class Holder:
    def __init__(self, fake):
        self.fake = fake

@pytest.fixture
def broken(fake_agentmail):
    raise RuntimeError("a fixture that uses the fake")

@pytest.fixture
async def held():
    fake = FakeAgentMail()
    await fake.deliver(inbox_id="held")
    yield Holder(fake)

@pytest.fixture(scope="module")
def shared():
    return FakeAgentMail()

def test_that_passes(shared):
    pass

def test_in_a_fixture(broken):
    pass

def test_by_name(request):
    request.getfixturevalue("fake_agentmail")
    assert False

async def test_held(held, autojump_clock):
    await FakeAgentMail().deliver("From: J\xf6rg <j@x.com>\r\n\r\nhi".encode(), inbox_id="own")
    assert False

async def test_shared(shared, autojump_clock):
    await shared.deliver(inbox_id="shared", subject="half \ud83d")
    assert False
"""


THOUSANDS = """
from trio_agentmail.testing import FakeAgentMail

async def test_it(autojump_clock):
    for number in range(1000):
        await FakeAgentMail().deliver(inbox_id=str(number))
    assert False
"""


def test_a_failure_report_shows_only_the_last_of_many_fakes(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\ntrio_mode = true")
    project.makepyfile(THOUSANDS)
    text = project.runpytest("-p", "no:cacheprovider").stdout.str()
    assert text.count("AgentMail (fake)") == 8
    assert "message.received in 999" in text


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["here", "xdist"])
def test_a_failure_report_shows_every_fake_that_the_test_has_made(project: pytest.Pytester, workers: list[str]) -> None:
    project.makeini("[pytest]\ntrio_mode = true")
    project.makepyfile(FAILING_ELSEWHERE)
    result = project.runpytest_subprocess("-p", "no:cacheprovider", *workers)
    result.assert_outcomes(passed=1, failed=3, errors=1)
    text = result.stdout.str()
    assert text.count("AgentMail (fake)") == 5
    assert text.count("nothing has happened here") == 2
    assert text.count("message.received in held") == 1
    assert text.count("message.received in own") == 1
    assert text.count("message.received in shared 'half \\ud83d'") == 1


def test_in_a_project_without_trio_nothing_else_of_the_package_is_imported(project: pytest.Pytester) -> None:
    path = project.makepyfile(WITHOUT_TRIO)
    # In a new process, since this one has imported everything, and without plug-ins that import Trio.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:trio",
        "-p",
        "no:anyio",
        "-p",
        "no:hypothesispytest",
        str(path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "assert False" in result.stdout
    assert "1 failed" in result.stdout
    assert "AgentMail" not in result.stdout


async def test_a_fake_works_without_the_plug_in(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.delitem(sys.modules, PLUGIN)
    await FakeAgentMail().deliver(inbox_id="a")
