"""A new event type needs its definition and its re-export: everything else follows from the definition.

The tests above the last one hold for every class of the union, without a table of their own. The last one adds an event
type to a copy of the package, in two files, and uses it in every way.
"""

import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest

import trio_agentmail
from trio_agentmail import Event, EventType, Subscribe, UnknownEvent, decode_event
from trio_agentmail._event_types import CLASSES, payload_field
from trio_agentmail._events.base import ServerEvent
from trio_agentmail.cli._parameters import complete_event_type
from trio_agentmail.cli._render import event_json, event_line
from trio_agentmail.testing import encode_event, make_event
from trio_agentmail.testing._emulator.trigger import FIELDS

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)

SERVER_EVENTS = [cls for cls in get_args(Event) if issubclass(cls, ServerEvent)]

EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)


def test_every_class_has_an_event_type_and_every_event_type_a_class() -> None:
    assert set(CLASSES) == set(EVENT_TYPES)
    assert set(CLASSES.values()) == set(SERVER_EVENTS)
    for cls in SERVER_EVENTS:
        event_type: Any = attrs.fields_dict(cls)["event_type"].default
        assert CLASSES[event_type] is cls


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_every_event_type_is_made_encoded_decoded_and_rendered(event_type: EventType) -> None:
    event: Any = make_event(event_type)
    assert type(event) is CLASSES[event_type]
    assert event.event_type == event_type
    decoded = decode_event(encode_event(event))
    assert decoded == event
    assert f'"event_type":"{event_type}"' in event_json(decoded)
    line = event_line(event, NOON).plain
    assert line.startswith(f"12:00:00  {event_type}  ")
    payload = getattr(event, payload_field(type(event)).name)
    for place in (event, payload):
        assert getattr(place, "inbox_id", "") in line


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_every_event_type_can_be_subscribed_to_triggered_and_completed(event_type: EventType) -> None:
    assert Subscribe(event_types=[event_type]).event_types == (event_type,)  # a warning would be an error here
    assert event_type in FIELDS
    [completed, *_] = complete_event_type(None, None, event_type)  # type: ignore[arg-type]
    assert completed.value == event_type


@attrs.frozen(kw_only=True)
class Draft:
    inbox_id: str | None = None
    draft_id: str | None = None
    subject: str | None = None


@attrs.frozen(kw_only=True)
class DraftCreatedEvent(ServerEvent):
    event_type: str = "draft.created"
    draft: Draft


def test_an_event_type_without_its_own_line_is_shown_with_its_payload() -> None:
    event: Any = DraftCreatedEvent(draft=Draft(inbox_id="agent@agentmail.to", draft_id="d1", subject="Offer"))
    assert event_line(event, NOON).plain == "12:00:00  draft.created  agent@agentmail.to  Offer"
    assert "\x1b" not in event_line(attrs.evolve(event, draft=Draft(subject="\x1b[2J")), NOON).plain


DEFINITION = '''

@attrs.frozen(kw_only=True)
class Draft:
    """A draft."""

    inbox_id: str
    draft_id: str
    subject: str | None = None
    score: float | None = None
    created_at: datetime | None = None


@attrs.frozen(kw_only=True)
class DraftCreatedEvent(ServerEvent):
    """A draft was created."""

    event_type: str = "draft.created"
    draft: Draft


AnyMailEvent: TypeAlias = (
    DraftCreatedEvent
    | MessageReceivedEvent'''

EDITS = {
    "_events/mail.py": [
        ("\n\nAnyMailEvent: TypeAlias = (\n    MessageReceivedEvent", DEFINITION),
        ('    "message.opened",\n', '    "message.opened",\n    "draft.created",\n'),
        ('    "Delivery",\n', '    "Delivery",\n    "Draft",\n    "DraftCreatedEvent",\n'),
    ],
    "__init__.py": [
        ("    DomainVerifiedEvent,\n", "    DomainVerifiedEvent,\n    DraftCreatedEvent,\n"),
        ('    "DomainVerifiedEvent",\n', '    "DomainVerifiedEvent",\n    "DraftCreatedEvent",\n'),
    ],
}

USE = """
import sys, warnings
from datetime import UTC, datetime
from typing import get_args
import trio, trio.testing
from click.testing import CliRunner
warnings.simplefilter("error")

import trio_agentmail
from trio_agentmail import DraftCreatedEvent, Event, EventType, Subscribe, decode_event, open_agentmail_stream
from trio_agentmail.cli._parameters import complete_event_type
from trio_agentmail.cli._render import event_line, event_json
from trio_agentmail.cli import _commands
from trio_agentmail.events import Draft
from trio_agentmail.testing import FakeAgentMail, encode_event, make_event

assert trio_agentmail.__file__.startswith(sys.argv[1])
assert "DraftCreatedEvent" in trio_agentmail.__all__
assert DraftCreatedEvent in get_args(Event) and "draft.created" in get_args(EventType)
for event in make_event("draft.created"), make_event(DraftCreatedEvent, inbox_id="a@b", subject="Hi", score=0.5):
    assert event == decode_event(encode_event(event)) and type(event) is DraftCreatedEvent, event
assert (event.draft.inbox_id, event.draft.subject, event.draft.score) == ("a@b", "Hi", 0.5) and event.draft.draft_id
assert event.draft.created_at is not None
text = '{"type": "event", "event_type": "draft.created", "draft": {"inbox_id": "a@b"}}'
assert decode_event(text).reason == "draft.created without draft.draft_id"
assert event_line(event, datetime(2026, 1, 2, tzinfo=UTC)).plain == "00:00:00  draft.created  a@b  Hi"
assert '"draft.created"' in event_json(decode_event(encode_event(event)))
assert [item.value for item in complete_event_type(None, None, "draft")] == ["draft.created"]
shown = CliRunner().invoke(_commands.commands, ["trigger", "--help"]).output
assert "draft.created" in shown

async def main():
    fake = FakeAgentMail(api_keys={"am_key": {"message_read"}})
    for subscribe in Subscribe(event_types=["draft.created"], inbox_ids=["a@b"]), Subscribe():
        async with open_agentmail_stream(subscribe, api_key="am_key", backend=fake, recovery=None) as events:
            await events.receive()
            await fake.emit(event)
            assert await events.receive() == event

trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
print("used")
"""


def test_a_new_event_type_touches_two_files_of_the_package(tmp_path: Path) -> None:
    copied = tmp_path / "trio_agentmail"
    shutil.copytree(Path(trio_agentmail.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
    assert len(EDITS) == 2
    for file, edits in EDITS.items():
        text = (copied / file).read_text()
        for before, after in edits:
            assert text.count(before) == 1
            text = text.replace(before, after)
        (copied / file).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "used\n", "")


def test_an_event_of_an_unknown_type_is_an_unknown_event() -> None:
    assert isinstance(decode_event('{"event_type": "draft.created", "draft": {}}'), UnknownEvent)
