"""The public API is complete and typed, and importing it costs no more than it needs."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, get_args, get_type_hints

import attrs
import httpx2
import pytest
from mypy import api as mypy

import trio_agentmail
from trio_agentmail import (
    EventType,
    UnknownEvent,
    decode_event,
    errors,
    events,
    journal,
    open_agentmail_stream,
    testing,
)
from trio_agentmail._codec import decoded_classes
from trio_agentmail._supervisor import Supervisor
from trio_agentmail.testing import FakeAgentMail, encode_event, make_event
from trio_agentmail.testing._make_event import EVENT_TYPES

ROOT = Path(__file__).parents[2]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

PUBLIC_NAMES = [
    "open_agentmail_stream",
    "open_agentmail_session",
    "AgentMailSession",
    "Subscribe",
    "AgentMailEnvironment",
    "ReconnectPolicy",
    "Recovery",
    "State",
    "Statistics",
    "Event",
    "EventType",
    "decode_event",
    "Backend",
    "WebSocket",
    "Journal",
    "SQLiteJournal",
    "DeadLetter",
    "Subscribed",
    "MessageReceivedEvent",
    "MessageSentEvent",
    "MessageDeliveredEvent",
    "MessageBouncedEvent",
    "MessageComplainedEvent",
    "MessageRejectedEvent",
    "MessageOpenedEvent",
    "MessageSecurityCompletedEvent",
    "MessageSecurityReviewEvent",
    "MessageSecurityOverrideEvent",
    "DomainVerifiedEvent",
    "CalendarEventCreatedEvent",
    "CalendarEventUpdatedEvent",
    "CalendarEventDeletedEvent",
    "CalendarEventRespondedEvent",
    "CalendarEventStartingEvent",
    "CalendarEventEndingEvent",
    "ErrorEvent",
    "UnknownEvent",
    "Disconnected",
    "CaughtUp",
    "RecoveryFailed",
    "Message",
    "ThreadItem",
    "AgentMailError",
    "ApiError",
    "AuthenticationError",
    "PermissionDeniedError",
    "SubscriptionRejectedError",
    "ConnectionFailedError",
    "JournalError",
    "JournalInUseError",
    "JournalMismatchError",
]


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_can_be_imported_from_the_package(name: str) -> None:
    assert name in trio_agentmail.__all__
    assert hasattr(trio_agentmail, name)


def test_all_lists_every_public_name_and_no_other() -> None:
    assert [name for name in trio_agentmail.__all__ if not hasattr(trio_agentmail, name)] == []
    assert len(trio_agentmail.__all__) == len(set(trio_agentmail.__all__))
    named = {name for name in dir(trio_agentmail) if not name.startswith(("_", "@"))}  # pytest adds names with an @
    public = named - {"TYPE_CHECKING"}
    assert inspect.ismodule(trio_agentmail.journal)  # imported here, if nothing else has imported it
    modules = {name.rpartition(".")[2] for name in sys.modules if name.startswith("trio_agentmail.")}
    assert public - modules == set(trio_agentmail.__all__) - {"__version__"}


def test_events_are_at_the_root_and_their_parts_only_in_the_events_module() -> None:
    decoded = {cls.__name__ for cls in decoded_classes() if cls not in get_args(events.Event)}
    parts = decoded - {"Message", "ThreadItem"} | {"Notice"}
    assert parts <= set(events.__all__)
    assert set(events.__all__) & set(trio_agentmail.__all__) == set(events.__all__) - parts


def test_event_type_lists_exactly_the_types_that_have_a_class() -> None:
    known = set(get_args(EventType))
    assert len(known) == len(get_args(EventType))
    assert known == EVENT_TYPES.keys()
    defaults = {
        fields["event_type"].default
        for cls in get_args(events.Event)
        if cls is not UnknownEvent and "event_type" in (fields := attrs.fields_dict(cls))
    }
    received = {"message.received" + kind for kind in (".spam", ".blocked", ".unauthenticated")}
    assert known == defaults | received
    for event_type in known:
        event = make_event(event_type)
        assert type(decode_event(encode_event(event))) is EVENT_TYPES[event_type]


def test_errors_end_in_error() -> None:
    assert [name for name in errors.__all__ if not name.endswith("Error")] == []


def test_the_errors_module_exports_exactly_the_exceptions() -> None:
    exceptions = [
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert errors.__all__ == sorted(exceptions)
    assert all(issubclass(getattr(errors, name), errors.AgentMailError) for name in errors.__all__)


# Type hints at run time


def functions_of(cls: type) -> Iterator[tuple[str, FunctionType]]:
    """Yield the public methods, the accessors of public properties and the `__init__` of a class, with their names."""
    for base in cls.__mro__:
        if not base.__module__.startswith("trio_agentmail"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_") and name != "__init__":
                continue
            member = getattr(member, "__func__", member)  # of a static or class method
            accessors = [member.fget, member.fset] if isinstance(member, property) else [member]
            yield from ((f"{base.__name__}.{name}", each) for each in accessors if isinstance(each, FunctionType))


def annotated() -> dict[str, list[Any]]:
    """Return the public classes, methods and functions by their names, with those of the parts of a fake."""
    modules = (trio_agentmail, events, errors, journal, testing)
    public = {getattr(module, name) for module in modules for name in module.__all__ if name != "__version__"}
    parts = {type(part) for part in (FakeAgentMail().mail, FakeAgentMail().faults, FakeAgentMail().record)}
    found: dict[str, list[Any]] = {}
    for each in public | parts:
        if isinstance(each, type):
            found.setdefault(each.__name__, []).append(each)
            for name, function in functions_of(each):
                found.setdefault(name, []).append(function)
        elif isinstance(each, FunctionType):
            found.setdefault(each.__name__, []).append(each)
    return found


# The modules of these names are imported for the first stream, so that importing the public names stays cheap. A caller
# of `get_type_hints` has to pass the names.
LAZY: dict[str, dict[str, Any]] = {
    "Backend.http_transport": {"httpx2": httpx2},
    "AgentMailSession.__init__": {"Supervisor": Supervisor},
}


@pytest.mark.parametrize("name", sorted(annotated().keys() - LAZY))
def test_the_type_hints_of_every_public_class_and_function_can_be_resolved(name: str) -> None:
    for each in annotated()[name]:
        get_type_hints(each)


@pytest.mark.parametrize("name", LAZY)
def test_the_type_hints_that_need_a_lazy_import_can_be_resolved_with_it(name: str) -> None:
    [function] = annotated()[name]
    with pytest.raises(NameError, match=f"name '{next(iter(LAZY[name]))}' is not defined"):
        get_type_hints(function)
    get_type_hints(function, localns=LAZY[name])


def test_importing_the_public_names_imports_nothing_unneeded() -> None:
    unwanted = {
        "agentmail",
        "asyncio",
        "click",
        "difflib",
        "httpx",
        "httpx2",
        "hypothesis",
        "pytest",
        "rich",
        "trio.testing",
        "trio_agentmail.testing",
        "websockets",
    }
    code = f"import sys; from trio_agentmail import *; print(*({unwanted} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_examples_and_the_readme_pass_mypy_strict(tmp_path: Path) -> None:
    files = [Path(__file__).with_name("typing_examples.py")]
    blocks = PYTHON_BLOCK.findall((ROOT / "README.md").read_text())
    assert blocks, "README.md has no example"
    for number, block in enumerate(blocks):
        file = tmp_path / f"readme_{number}.py"
        file.write_text(block)
        files.append(file)
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    # The wrong code is checked in the same run, because starting mypy takes most of the time.
    out, err, _ = mypy.run(["--strict", "--no-error-summary", "--no-pretty", *map(str, [*files, wrong])])
    assert err == ""
    reported = {int(match[1]) for match in re.finditer(r"wrong\.py:(\d+): error", out)}
    assert reported == {number for number, line in enumerate(WRONG.splitlines(), 1) if "# wrong" in line}, out
    assert [line for line in out.splitlines() if "wrong.py" not in line] == []
    # The parameters are written once, and a type checker shows them for both.
    revealed = re.findall(r'Revealed type is "def \((.*)\) -> contextlib\.AbstractAsyncContextManager\[', out)
    assert len(revealed) == 2
    for shown in revealed:
        assert re.findall(r"(?:^|, )(\w+): ", shown) == list(inspect.signature(open_agentmail_stream).parameters)


WRONG = """
from typing import assert_never

import httpx
import trio
from trio_agentmail import (
    Disconnected, Event, EventType, MessageReceivedEvent, Subscribe, open_agentmail_session, open_agentmail_stream
)
from trio_agentmail.testing import FakeAgentMail


def handle(event: Event) -> None:
    event.message  # wrong: not every event has one
    match event:
        case MessageReceivedEvent():
            event.message.nothing  # wrong: no such field
            event.event_id = "x"  # wrong: frozen
            event.reason  # wrong: of another class
        case Disconnected():
            event.code + ""  # wrong: a number or None
        case _:
            assert_never(event)  # wrong: there are others


misspelt: EventType = "mesage.received"  # wrong: no such type


async def main() -> None:
    async with open_agentmail_stream(Subscribe(inbox_ids=5)) as events:  # wrong: no list
        events.send_nowait  # wrong: only a receiver
        text: str = await events.receive()  # wrong: an Event
    async with open_agentmail_stream("agent@agentmail.to"):  # wrong: no Subscribe
        pass
    async with open_agentmail_stream(api_key=5):  # wrong: neither a string nor a callable
        pass
    async with open_agentmail_stream(pings=5):  # wrong: no such argument
        pass
    async with open_agentmail_stream(recovery=True):  # wrong: a Recovery or None
        pass
    async with open_agentmail_session() as session:
        await session.subscribe("agent@agentmail.to")  # wrong: no Subscribe
        session.state = "closed"  # wrong: read only
        if session.state == "open":  # wrong: no such state
            pass
        session.statistics().nothing  # wrong: no such field
    async with open_agentmail_session(pings=5):  # wrong: no such argument
        pass
    async with open_agentmail_stream(Subscribe(), "am_key"):  # wrong: by position
        pass


def old(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200)


FakeAgentMail().faults.answer_requests(old)  # wrong: it is given an httpx2.Request


reveal_type(open_agentmail_stream)
reveal_type(open_agentmail_session)
"""
