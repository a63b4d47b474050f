"""Events as lines of text and of JSON."""

import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial

import attrs
import pytest

from tests.helpers.commands import HOSTILE, NOON, run
from trio_agentmail._codec import decode_event
from trio_agentmail.cli._render import event_json, event_line
from trio_agentmail.events import (
    AgentArmorManualOverride,
    AgentArmorResult,
    Bounce,
    CalendarEvent,
    CalendarEventStartingEvent,
    CaughtUp,
    Complaint,
    Delivery,
    Disconnected,
    Domain,
    DomainVerifiedEvent,
    ErrorEvent,
    Event,
    Message,
    MessageBouncedEvent,
    MessageComplainedEvent,
    MessageDeliveredEvent,
    MessageOpenedEvent,
    MessageReceivedEvent,
    MessageRejectedEvent,
    MessageSecurity,
    MessageSecurityCompletedEvent,
    MessageSecurityOverride,
    MessageSecurityOverrideEvent,
    MessageSecurityReviewEvent,
    MessageSentEvent,
    Open,
    Recipient,
    RecoveryFailed,
    Reject,
    Send,
    Subscribed,
    UnknownEvent,
)
from trio_agentmail.testing import encode_event


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Subscribed(), "subscribed"),
        (Subscribed(inbox_ids=("a", "b"), pod_ids=("p",)), "subscribed  a, b  p"),
        (Disconnected(reason="cut", code=1006), "disconnected  cut  (code 1006)"),
        (Disconnected(reason="cut"), "disconnected  cut  (code 1006)"),
        (CaughtUp(since=NOON, requests=1), "caught up  0 recovered  (since 2026-01-02 12:00:00+00:00)"),
        (
            CaughtUp(since=NOON.replace(microsecond=5), recovered=1, known=2, held=3, failed=4, requests=5),
            "caught up  1 recovered, 2 known, 3 held, 4 failed  (since 2026-01-02 12:00:00+00:00)",
        ),
        (
            RecoveryFailed(inbox_id="a", since=NOON, reason="status 500"),
            "recovery failed  a  status 500  (since 2026-01-02 12:00:00+00:00)",
        ),
        (
            RecoveryFailed(pod_id="p", since=NOON, reason="cut"),
            "recovery failed  p  cut  (since 2026-01-02 12:00:00+00:00)",
        ),
        (ErrorEvent(name="rate_limit", message="slow down"), "error  rate_limit  slow down"),
        (UnknownEvent(reason="its type is not known: x"), "unknown  its type is not known: x"),
        (
            MessageReceivedEvent(message=Message(inbox_id="a", message_id="m", from_="b", preview="Hi")),
            "message.received  a  b  Hi",
        ),
        (MessageSentEvent(send=Send(inbox_id="a", recipients=("b", "c"))), "message.sent  a  to b, c"),
        (MessageDeliveredEvent(delivery=Delivery(inbox_id="a", message_id="m")), "message.delivered  a  m"),
        (
            MessageBouncedEvent(
                bounce=Bounce(type="Permanent", recipients=(Recipient(address="b"), Recipient(address="c")))
            ),
            "message.bounced  to b, c  Permanent",
        ),
        (
            MessageComplainedEvent(complaint=Complaint(type="abuse", sub_type="x", recipients=("b",))),
            "message.complained  to b  abuse, x",
        ),
        (MessageRejectedEvent(reject=Reject(inbox_id="a", reason="virus")), "message.rejected  a  virus"),
        (MessageOpenedEvent(open=Open(inbox_id="a", message_id="m")), "message.opened  a  m"),
        (
            MessageSecurityCompletedEvent(
                message=MessageSecurity(inbox_id="a", agent_armor=AgentArmorResult(verdict="clear", reason="fine"))
            ),
            "message.security.completed  a  clear  fine",
        ),
        (MessageSecurityReviewEvent(message=MessageSecurity(message_id="m")), "message.security.review  m"),
        (
            MessageSecurityOverrideEvent(
                message=MessageSecurityOverride(inbox_id="a", manual_override=AgentArmorManualOverride(reason="known"))
            ),
            "message.security.override  a  known",
        ),
        (MessageSecurityOverrideEvent(message=MessageSecurityOverride(inbox_id="a")), "message.security.override  a"),
        (
            DomainVerifiedEvent(domain=Domain(domain="x.example", status="verified")),
            "domain.verified  x.example  VERIFIED",
        ),
        (
            CalendarEventStartingEvent(inbox_id="a", calendar_event=CalendarEvent(title="Lunch", start="12:00")),
            "calendar.event.starting  a  Lunch  12:00",
        ),
    ],
)
def test_each_event_has_its_line(event: Event, line: str) -> None:
    assert event_line(event, NOON).plain == f"12:00:00  {line}"


def test_an_event_that_was_not_pushed_is_marked() -> None:
    event = MessageReceivedEvent(message=Message(inbox_id="a", message_id="m", from_="b", subject="Hi"))
    for origin in ("recovered", "redelivered"):
        line = event_line(attrs.evolve(event, origin=origin), NOON).plain
        assert line == f"12:00:00  message.received ({origin})  a  b  Hi"
    unknown = event_json(UnknownEvent(reason="new", raw="null", origin="redelivered"))
    assert json.loads(unknown)["origin"] == "redelivered"


def test_a_long_piece_of_text_is_cut() -> None:
    line = event_line(ErrorEvent(name="x" * 5000), NOON).plain
    assert len(line) < 200
    assert line.endswith("…")


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        # The type has today's spelling, and unknown fields stay.
        (
            '{"type": "message_sent", "send": {"inbox_id": "a"}, "new": 1}',
            {"type": "event", "event_type": "message.sent", "origin": "live", "send": {"inbox_id": "a"}, "new": 1},
        ),
        # A server cannot forge the origin.
        (
            '{"type": "message_sent", "send": {}, "origin": "recovered"}',
            {"type": "event", "event_type": "message.sent", "origin": "live", "send": {}},
        ),
        ('{"type": "error", "name": "x", "code": 7}', {"type": "error", "name": "x", "code": 7}),
        # A server cannot forge an event that is made here.
        (
            '{"type": "disconnected"}',
            {
                "type": "unknown",
                "event_type": "disconnected",
                "event_id": None,
                "origin": "live",
                "reason": "its type is not known: disconnected",
                "payload": {"type": "disconnected"},
            },
        ),
        (
            '{"type": "caught_up", "event_type": "recovery_failed"}',
            {
                "type": "unknown",
                "event_type": "recovery_failed",
                "event_id": None,
                "origin": "live",
                "reason": "its type is not known: recovery_failed",
                "payload": {"type": "caught_up", "event_type": "recovery_failed"},
            },
        ),
        (
            "null",
            {
                "type": "unknown",
                "event_type": None,
                "event_id": None,
                "origin": "live",
                "reason": "JSON, but not an object",
                "raw": "null",
            },
        ),
        # Strict parsers refuse lone surrogates, which appear where JavaScript cuts an emoji in half.
        (
            r'{"type": "error", "name": "\ud83d", "message": "\ud83d\ude00"}',
            {"type": "error", "name": "\ufffd", "message": "😀"},
        ),
    ],
)
def test_json_is_the_servers_object_with_a_type_that_cannot_be_forged(frame: str, expected: object) -> None:
    line = event_json(decode_event(frame))
    assert json.loads(line) == expected
    assert line.isascii()
    assert line.isprintable()


def test_a_loss_is_a_json_object_of_our_own() -> None:
    assert json.loads(event_json(Disconnected(reason="cut"))) == {
        "type": "disconnected",
        "reason": "cut",
        "code": 1006,
        "last_received": None,
    }
    line = event_json(Disconnected(reason="\x7f", code=1006, last_received=NOON))
    assert line == (
        r'{"type":"disconnected","reason":"\u007f","code":1006,"last_received":"2026-01-02T12:00:00+00:00"}'
    )


def test_the_notices_of_recovery_are_json_objects_of_our_own() -> None:
    assert event_json(CaughtUp(since=NOON, recovered=1, known=2, held=3, failed=4, requests=5)) == (
        '{"type":"caught_up","since":"2026-01-02T12:00:00+00:00",'
        '"recovered":1,"known":2,"held":3,"failed":4,"requests":5}'
    )
    assert json.loads(event_json(RecoveryFailed(since=NOON, reason="cut"))) == {
        "type": "recovery_failed",
        "inbox_id": None,
        "pod_id": None,
        "since": "2026-01-02T12:00:00+00:00",
        "reason": "cut",
    }
    line = event_json(RecoveryFailed(inbox_id=HOSTILE, pod_id=HOSTILE, since=NOON, reason=HOSTILE))
    assert re.fullmatch(r"[ -~]*", line)
    assert json.loads(line)["inbox_id"] == HOSTILE


def test_the_notices_of_recovery_cannot_control_the_terminal() -> None:
    line = event_line(RecoveryFailed(inbox_id=HOSTILE, pod_id=HOSTILE, since=NOON, reason=HOSTILE), NOON).plain
    assert line.isprintable()
    assert line.count("[red]r[/red]") == 3


def test_an_incomplete_recovery_has_another_colour_than_a_complete_one() -> None:
    styles = [
        event_line(event, NOON).spans[-1].style
        for event in (
            CaughtUp(since=NOON, recovered=1),
            CaughtUp(since=NOON, recovered=1, failed=1),
            RecoveryFailed(since=NOON, reason="cut"),
        )
    ]
    assert styles == ["green", "yellow", "bold red"]


def test_the_help_names_every_type_of_object() -> None:
    shown = run("listen", "--help").output
    for name in ("event", "subscribed", "error", "disconnected", "caught_up", "recovery_failed", "unknown"):
        assert f'"{name}"' in shown


@pytest.mark.parametrize(
    "event",
    [
        # Python's version decides whether a thousand nested lists are too many.
        decode_event('{"type": "event", "event_type": "new", "event_id": "e", "x": ' + "[" * 1000 + "]" * 1000 + "}"),
        UnknownEvent(event_type="new", event_id="e", payload={"x": math.inf}, raw='{"x": Infinity}'),
    ],
)
def test_an_object_that_python_cannot_write_as_json_is_passed_on_as_text(event: UnknownEvent) -> None:
    written = event_json(event)
    assert written.startswith('{"type":"unknown","event_type":"new","event_id":"e","origin":"live","reason":"')
    assert '"raw":' in written or '"payload":' in written


@pytest.mark.parametrize(
    "text",
    [
        "語" * 1000,
        "aé" * 1000,
        "\U0001f600" * 1000,
        "\x7f" * 1000,
        "a line\r\n" * 1000,
        "\\" * 1000,
        "\\\x7f" * 1000,
        r"\ud83d" * 1000,
        '"\u2028\x9b\x00' * 1000,
    ],
)
def test_a_large_text_becomes_json_without_a_call_per_character(text: str) -> None:
    event = decode_event(encode_event(MessageReceivedEvent(message=Message(inbox_id="a", message_id="m", text=text))))
    line, calls = count_calls(partial(event_json, event))
    assert re.fullmatch(r"[ -~]*", line)
    assert json.loads(line)["message"]["text"] == text
    assert calls < 100


def test_lone_surrogates_become_json_without_a_call_for_each() -> None:
    halves = UnknownEvent(payload={"x": "\ud83d \ude00 \U0001f600 \\ud83d" * 1000}, raw="null")
    line, calls = count_calls(partial(event_json, halves))
    assert json.loads(line)["payload"] == {"x": "\ufffd \ufffd \U0001f600 \\ud83d" * 1000}
    assert line.isascii()
    assert calls < 100


def test_a_line_with_many_recipients_shows_only_a_few() -> None:
    event = MessageSentEvent(send=Send(inbox_id="a", recipients=("bob@example.com",) * 100_000))
    line, calls = count_calls(lambda: event_line(event, NOON).plain)
    assert line.endswith("…")
    assert calls < 1000


def count_calls(function: Callable[[], str]) -> tuple[str, int]:
    """Return the result of a function, and how many calls of Python functions it made."""
    calls = 0

    def count(_frame: object, what: str, _argument: object) -> None:
        nonlocal calls
        calls += what == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        return function(), calls
    finally:
        sys.setprofile(before)
