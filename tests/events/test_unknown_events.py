"""Input that is no known event is an `UnknownEvent`, and invalid text is repaired or readable."""

import json
import sys
from typing import Any

import attrs
import pytest

from tests.helpers.decoding import IDS, decode
from trio_agentmail import events
from trio_agentmail._codec import as_unknown, decode_event
from trio_agentmail.events import ErrorEvent, MessageReceivedEvent, Subscribed, UnknownEvent

# Unknown events


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON: "),
        ("hello", "not JSON: "),
        ('{"type": "event"', "not JSON: "),
        ("{'type': 'event'}", "not JSON: "),
        ('{"size": NaN}', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "not JSON: "),
        ("1" * 100_000, "not JSON: "),
        ("\ufeff{}", "not JSON: "),
    ],
)
def test_a_text_that_is_not_json_is_unknown_with_the_reason(text: str, reason: str) -> None:
    event = decode_event(text)
    assert isinstance(event, UnknownEvent)
    assert event.raw == text
    assert event.payload is None
    assert event.reason.startswith(reason)


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "event", ["event"], []])
def test_json_that_is_not_an_object_is_unknown(value: Any) -> None:
    event = decode(value)
    assert event == UnknownEvent(payload=value, reason="JSON, but not an object")
    assert event.raw == json.dumps(value)


@pytest.mark.parametrize(
    ("frame", "event_type", "reason"),
    [
        ({}, None, "it names no type"),
        ({"type": "event"}, None, "it names no type"),
        ({"type": 7}, None, "it names no type"),
        ({"type": [], "event_type": {}}, None, "it names no type"),
        ({"type": "event", "event_type": "message.new"}, "message.new", "its type is not known: message.new"),
        ({"type": "pong"}, "pong", "its type is not known: pong"),
        ({"type": "x\x1b[2J\n"}, "x\x1b[2J\n", "its type is not known: x [2J"),
        ({"type": "disconnected", "reason": "x"}, "disconnected", "its type is not known: disconnected"),
        ({"event_type": "Disconnected"}, "Disconnected", "its type is not known: Disconnected"),
        ({"event_type": "subscribed"}, "subscribed", "its type is not known: subscribed"),
        ({"event_type": "message.sent"}, "message.sent", "message.sent without its object send"),
        ({"event_type": "message.sent", "send": []}, "message.sent", "message.sent without its object send"),
        ({"type": "domain_verified"}, "domain.verified", "domain.verified without its object domain"),
        (
            {"event_type": "message.received", "message": {"message_id": "<1@x>"}},
            "message.received",
            "message.received without message.inbox_id",
        ),
        (
            {"event_type": "message.received.spam", "message": {"inbox_id": "a@b.c", "message_id": 7}},
            "message.received.spam",
            "message.received.spam without message.message_id",
        ),
        (
            {"event_type": "message.received", "message": {"inbox_id": "a@b.c", "message_id": ""}},
            "message.received",
            "message.received without message.message_id",
        ),
    ],
)
def test_an_object_that_is_not_a_known_event_is_unknown_with_the_reason(
    frame: dict[str, Any], event_type: str | None, reason: str
) -> None:
    event = decode(frame | {"event_id": "evt_1"})
    assert event == UnknownEvent(
        event_type=event_type, event_id="evt_1", payload=frame | {"event_id": "evt_1"}, reason=reason
    )
    assert json.loads(event.raw) == event.payload


@pytest.mark.parametrize("data", [None, 7, ["x"], bytearray(b"{}")])
def test_a_value_that_is_not_text_is_a_type_error(data: Any) -> None:
    with pytest.raises(TypeError, match=r"str or bytes, not (NoneType|int|list|bytearray)"):
        decode_event(data)


# Lone surrogates and invalid UTF-8


@pytest.mark.parametrize(
    ("escaped", "expected"),
    [
        (r"half an emoji \ud83d", "half an emoji \ufffd"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\ud83d\ud83d\ude00", "\ufffd😀"),
        (r"\uD83D\uDE00 \uDBFF", "😀 \ufffd"),
        (r"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (r"\"\ud83d\"\u0000", '"\ufffd"\0'),
    ],
)
def test_a_mail_with_a_lone_surrogate_is_decoded(escaped: str, expected: str) -> None:
    start = '{"event_type":"message.received","message":{"inbox_id":"a","message_id":"b","text":"'
    text = start + escaped + '"}}'
    event = decode_event(text)
    assert isinstance(event, MessageReceivedEvent)
    assert event.message.text == expected
    assert event.raw == text


@pytest.mark.parametrize(
    ("escaped", "expected"),
    [
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\ud83d\ude00\ude00", "\U0001f600\ufffd"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\uD83D\uDE00\uDbFf", "\U0001f600\ufffd"),
        (r"\\ud83d\ude00", "\\ud83d\ufffd"),
        (r"\ud83d\\ude00", "\ufffd\\ude00"),
        (r"\\\ud83d\\\\ud83d", "\\\ufffd\\\\ud83d"),
        (r"\ud83d\"\ude00\n", '\ufffd"\ufffd\n'),
        (r"\ud7ff\ud800\ue000", "\ud7ff\ufffd\ue000"),
    ],
)
def test_each_lone_surrogate_is_replaced_and_nothing_else(escaped: str, expected: str) -> None:
    event = decode_event(f'{{"type": "error", "name": "{escaped}"}}')
    assert event == ErrorEvent(name=expected)


def test_bytes_that_are_not_utf8_are_not_repaired() -> None:
    event = decode_event(b'{"type": "error", "name": "\xff\\ud83d"}')
    assert isinstance(event, UnknownEvent)
    assert event.reason.startswith("not JSON: ")


def test_a_string_with_lone_surrogates_is_read_as_if_they_were_escapes() -> None:
    text = '{"event_type":"message.opened","open":{"thread_id":"é\ud83d","inbox_id":"\ud83d\ude00"}}'
    event = decode_event(text)
    assert isinstance(event, events.MessageOpenedEvent)
    assert (event.open.thread_id, event.open.inbox_id) == ("é\ufffd", "😀")
    assert event.raw.encode().decode() == text.replace("\ud83d", r"\ud83d").replace("\ude00", r"\ude00")


def test_an_event_keeps_its_bytes_and_its_strings_keep_no_second_copy() -> None:
    def size_when_new(text: str) -> int:
        return sys.getsizeof(text[:1] + text[1:])

    text = json.dumps({"event_type": "message.received", "message": IDS | {"text": "é👋" * 1000}}, ensure_ascii=False)
    data = text.encode()
    for event in (decode_event(data), decode_event(text)):
        assert isinstance(event, MessageReceivedEvent)
        assert event.message.text is not None
        assert sys.getsizeof(event.message.text) == size_when_new(event.message.text)
        assert sys.getsizeof(event.raw) == size_when_new(text)
    assert sys.getsizeof(text) == size_when_new(text)
    assert attrs.asdict(decode_event(data))["_raw"] is data


def test_bytes_that_are_not_utf8_are_unknown_and_kept_readable() -> None:
    event = decode_event(b'{"type":"event\xff\xc3\xa9"}')
    assert isinstance(event, UnknownEvent)
    assert event.raw == '{"type":"event\\xffé"}'
    assert event.reason.startswith("not JSON: ")


def test_a_confirmation_that_does_not_match_is_unknown_with_its_frame_and_text() -> None:
    event = decode_event(b'{"type":"subscribed","new":1}')
    assert isinstance(event, Subscribed)
    unknown = as_unknown(event, "another one")
    assert unknown == UnknownEvent(
        event_type="subscribed", payload={"type": "subscribed", "new": 1}, reason="another one"
    )
    assert unknown.raw == event.raw


def test_the_last_of_repeated_keys_counts() -> None:
    assert decode_event('{"type":"error","type":"subscribed"}') == Subscribed()
