"""Everything about a fault follows from its entry in the table of faults, under one name."""

import inspect
from random import Random
from typing import Annotated, Any

import httpx2
import pytest
import trio
from click.testing import CliRunner
from trio.testing import MockClock

from tests.cli.test_emulate import KEY, serving
from tests.helpers import fault_lists
from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import Subscribed, UnknownEvent
from trio_agentmail.cli._fault import command, fault_commands
from trio_agentmail.testing import FakeAgentMail
from trio_agentmail.testing._emulator.faults import REMOTE_FAULTS
from trio_agentmail.testing._faults.arguments import Argument, Text, Times, Whole
from trio_agentmail.testing._faults.entry import Kind, queued, table_of
from trio_agentmail.testing._faults.table import CHAOS, FAULTS, Faults
from trio_agentmail.testing._wire.hooks import PushFault

INBOX = "agent@agentmail.to"


class NewFault(Faults):
    @queued(Kind.PUSH, chaos=lambda faults, draw: faults.shout_pushes("!", draw.randint(2, 3)))
    def shout_pushes(
        self,
        mark: Annotated[str, Text("What to shout.")],
        times: Times = 1,
        loudness: Annotated[int, Whole("a number", 1, 9, "How loud.")] = 3,
    ) -> PushFault:
        """Push the next event
        shouted.

        It is no JSON.
        """
        return PushFault(on_push=lambda text, push_now: push_now(text, text.upper() + mark * loudness))


async def test_a_fault_is_one_method_from_which_everything_else_follows(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    faults = NewFault(fake.faults._pending, fake._connections, fake._log)
    faults.shout_pushes("?", loudness=1)
    faults.shout_pushes("?", 2)
    async with open_agentmail_stream(backend=fake) as events:
        assert isinstance(await events.receive(), Subscribed)
        await fake.deliver(inbox_id=INBOX)
        event = await events.receive()
        assert isinstance(event, UnknownEvent)
        assert event.raw.endswith("}?")
    assert "fault shout_pushes('?', loudness=1)" in fake.explain()
    assert fake.explain().endswith("still to come: shout_pushes('?'), times=2")

    entry = table_of(NewFault)["shout_pushes"]
    assert (entry.name, entry.kind, entry.help) == ("shout_pushes", Kind.PUSH, "Push the next event shouted.")
    assert entry.parameters is not None
    assert [(name, one.is_required) for name, one in entry.parameters.items()] == [
        ("mark", True),
        ("times", False),
        ("loudness", False),
    ]
    assert entry.chaos is not None
    entry.chaos(faults, Random(1))
    assert "shout_pushes('!'), times=" in fake.explain()
    shown = " ".join(CliRunner().invoke(command(entry), ["--help"]).stdout.split())
    assert "MARK Push the next event shouted." in shown
    assert "--loudness INTEGER RANGE How loud. [default: 3]" in shown
    assert '--times N How many times, or "all" until the faults are cleared. [default: 1]' in shown


def test_a_fault_has_one_name_everywhere() -> None:
    public = {name for name in vars(Faults) if not name.startswith("_")}
    assert public == {*FAULTS, "clear"}
    assert set(fault_commands.commands) == {*REMOTE_FAULTS, "clear"}
    assert CHAOS.keys() < FAULTS.keys()
    assert REMOTE_FAULTS.keys() < FAULTS.keys()


def test_only_what_json_cannot_say_is_for_python_alone() -> None:
    assert FAULTS.keys() - REMOTE_FAULTS.keys() == {
        "fail_connections",
        "answer_connections",
        "push_before_confirming",
        "answer_requests",
    }


@pytest.mark.parametrize("name", ["testing.md", "emulator.md"])
def test_the_documentation_lists_the_faults_of_the_table(name: str) -> None:
    document = (fault_lists.DOCS / name).read_text()
    assert fault_lists.LIST.findall(document) == [fault_lists.lists()[name]], "run python -m tests.helpers.fault_lists"


def test_editors_and_help_show_the_parameters() -> None:
    signature = inspect.signature(Faults.reject_handshakes)
    assert list(signature.parameters) == ["self", "status", "headers", "body", "retry_after", "times"]
    assert signature.return_annotation is None
    assert (Faults.reject_handshakes.__doc__ or "").startswith("Answer the next WebSocket handshake")


VALUES: dict[str, Any] = {"code": 4000, "name": "forbidden", "message": "no"}


def value(name: str, argument: Argument) -> Any:
    return VALUES.get(name, getattr(argument, "low", None) or 1)


@pytest.mark.parametrize("name", REMOTE_FAULTS)
async def test_every_fault_can_be_asked_for_by_a_command(name: str) -> None:
    parameters = REMOTE_FAULTS[name].parameters or {}
    required = {one: value(one, parameter.argument) for one, parameter in parameters.items() if parameter.is_required}
    assert all(parameters[one].argument.accepts(given) for one, given in required.items())
    async with serving() as served:
        positional = [str(given) for one, given in required.items() if one != "seed"]
        result = await served.command("fault", name.replace("_", "-"), *positional)
        assert result.exit_code == 0, result.output
        await served.ok("fault", "clear")
        assert (await served.post("faults", {"fault": name, **required})).status_code == 200
        await served.ok("fault", "clear")
        async with open_agentmail_stream(api_key=KEY, environment=served.environment) as events:
            assert isinstance(await events.receive(), Subscribed)


def test_the_number_of_copies_has_one_limit_in_python_in_the_control_api_and_in_commands() -> None:
    entry = REMOTE_FAULTS["duplicate_pushes"]
    assert entry.parameters is not None
    argument = entry.parameters["copies"].argument
    assert (argument.accepts(1000), argument.accepts(1001)) == (True, False)
    refused = CliRunner().invoke(command(entry), ["--copies", "1001"])
    assert refused.exit_code == 2
    assert "1001 is not in the range 1<=x<=1000" in refused.stderr
    fake = FakeAgentMail()
    with pytest.raises(ValueError, match="copies is 1 to 1000, not 1001"):
        fake.faults.duplicate_pushes(copies=1001)
    fake.faults.duplicate_pushes(copies=1000)
    assert fake.explain().endswith("still to come: duplicate_pushes(copies=1000)")


async def test_a_retry_after_can_be_given_without_headers(autojump_clock: MockClock) -> None:
    fake = FakeAgentMail()
    fake.faults.reject_handshakes(503, retry_after=7)
    fake.faults.fail_requests(503, retry_after=9)
    async with open_agentmail_stream(backend=fake):
        assert trio.current_time() == 7
    async with httpx2.AsyncClient(transport=fake.http_transport()) as client:
        assert (await client.get("https://x/v0/inboxes")).headers["Retry-After"] == "9"
    with pytest.raises(ValueError, match="retry_after is 0 or more, not -1"):
        fake.faults.reject_handshakes(503, retry_after=-1)
