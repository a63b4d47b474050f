"""Events and subscriptions are encoded to frames."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from tests.helpers.decoding import IDS, NOON, decode, received
from trio_agentmail._codec import decode_event, encode_subscribe, parse_object, recovered_event, with_message
from trio_agentmail._settings import Subscribe
from trio_agentmail.events import (
    CaughtUp,
    Disconnected,
    ErrorEvent,
    Message,
    MessageReceivedEvent,
    RecoveryFailed,
    Subscribed,
    UnknownEvent,
)
from trio_agentmail.testing._encode import encode_event


def test_a_subscription_without_filters_is_sent_without_filters() -> None:
    assert encode_subscribe(Subscribe()) == '{"type":"subscribe"}'


def test_a_subscription_is_sent_with_its_filters() -> None:
    subscribe = Subscribe(inbox_ids=["é@agentmail.to"], event_types=["message.received", "message.sent"])
    assert json.loads(encode_subscribe(subscribe)) == {
        "type": "subscribe",
        "inbox_ids": ["é@agentmail.to"],
        "event_types": ["message.received", "message.sent"],
    }
    assert json.loads(encode_subscribe(Subscribe(pod_ids=["pod_1"]))) == {
        "type": "subscribe",
        "pod_ids": ["pod_1"],
    }


def test_an_event_is_encoded_as_agentmail_sends_it() -> None:
    event = MessageReceivedEvent(
        event_id="evt_1",
        message=Message(
            **IDS,
            from_="Jane <jane@example.com>",
            to=("a@x.com",),
            timestamp=datetime(2026, 1, 2, tzinfo=UTC),
        ),
        raw="stale",
        origin="recovered",
    )
    frame = json.loads(encode_event(event))
    assert {name: value for name, value in frame.items() if name != "message"} == {
        "type": "event",
        "event_type": "message.received",
        "event_id": "evt_1",
    }
    assert frame["message"]["from"] == "Jane <jane@example.com>"
    assert "from_" not in frame["message"]
    assert "subject" not in frame["message"]
    assert frame["message"]["to"] == ["a@x.com"]
    assert frame["message"]["timestamp"] == "2026-01-02T00:00:00Z"


def test_control_frames_are_encoded_with_their_own_type() -> None:
    assert json.loads(encode_event(Subscribed(pod_ids=("pod_1",)))) == {
        "type": "subscribed",
        "pod_ids": ["pod_1"],
    }
    error = {"type": "error", "name": "forbidden", "message": "no"}
    assert json.loads(encode_event(ErrorEvent(name="forbidden", message="no"))) == error


def test_an_encoded_event_can_be_sent_as_utf8_whatever_its_strings() -> None:
    event = MessageReceivedEvent(message=Message(**IDS, text="é \ud83d"))
    written = encode_event(event)
    assert "é" in written
    written.encode()
    assert decode_event(written) == MessageReceivedEvent(message=Message(**IDS, text="é \ufffd"))


def test_an_unknown_event_is_encoded_as_its_payload() -> None:
    event = decode({"type": "event", "event_type": "message.new", "new": {"text": None}})
    assert json.loads(encode_event(event)) == event.payload
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Disconnected(reason="x"), "Disconnected has no wire form: .* cut the connection instead"),
        (CaughtUp(since=NOON), "CaughtUp has no wire form: the client makes it"),
        (RecoveryFailed(since=NOON, reason="x"), "RecoveryFailed has no wire form: the client makes it"),
        (UnknownEvent(raw="{", reason="not JSON"), "without a payload has no wire form"),
        (UnknownEvent(payload={"a": float("nan")}), "no wire form: "),
        (UnknownEvent(payload={"a": object()}), "not JSON serializable"),
        (received(timestamp=datetime(2026, 1, 2)), "the time timestamp has no offset"),
        (UnknownEvent(payload=datetime(2026, 1, 2)), "not JSON serializable"),
        ({"type": "subscribed"}, "encode_event takes an event, not dict"),
        (MessageReceivedEvent, "encode_event takes an event, not type"),
        (Message(**IDS), "encode_event takes an event, not Message"),
    ],
)
def test_an_event_without_a_wire_form_is_a_type_error_with_the_reason(event: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        encode_event(event)


def test_encoding_keeps_the_offset_of_a_time() -> None:
    time = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert '"2026-01-02T03:04:05.000006+05:30"' in encode_event(received(timestamp=time))


# Answers of the REST API as the raw text of an event


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


WRITTEN: list[str] = [
    f'{{"a":{nested(300)},"b":[],"c":{{}},"d":[{{"e":[1,2.5,null,true,"ü\\n"]}},[]],"":{{"\\"":0}}}}',
    '{"a":' * 300 + "{}" + "}" * 300,
    "[[" + nested(300) + ",[],1]," + nested(300) + "]",
]


@pytest.mark.parametrize("value", WRITTEN, ids=["mixed", "objects", "lists"])
def test_json_deeper_than_orjson_writes_is_encoded_unchanged(value: str) -> None:
    item = parse_object(f'{{"inbox_id":"a","message_id":"m","new_field":{value}}}'.encode())
    assert item is not None
    event = recovered_event(item, "message.received", "recovered")
    assert event is not None
    assert event.raw == (
        '{"type":"event","event_type":"message.received",'
        f'"message":{{"inbox_id":"a","message_id":"m","new_field":{value}}}}}'
    )
    assert decode_event(event.raw) == event


@pytest.mark.parametrize("levels", range(1_015, 1_030))
def test_json_of_any_depth_is_either_a_mail_or_refused(levels: int) -> None:
    item = parse_object(f'{{"inbox_id":"a","message_id":"m","new_field":{nested(levels)}}}'.encode())
    if item is None:
        assert levels > 1_020  # deeper than orjson reads
        return
    event = recovered_event(item, "message.received", "recovered")
    assert event is None or decode_event(event.raw) == event


@pytest.mark.parametrize("levels", [1, 253, 254, 255, 300, 1_000, 1_021, 1_022, 1_023, 1_024, 1_025])
def test_the_fetched_body_is_put_into_a_pushed_mail_with_any_other_fields(levels: int) -> None:
    pushed = decode_event(
        '{"type":"event","event_type":"message.received","event_id":"e","new_field":'
        f'{nested(min(levels, 1_000))},"message":{{"inbox_id":"a","message_id":"m"}}}}'
    )
    assert isinstance(pushed, MessageReceivedEvent)
    message = parse_object(f'{{"message_id":"m","text":"Hello","new_field":{nested(levels)}}}'.encode())
    if message is None:
        return
    whole = with_message(pushed, message)
    if levels <= 1_000:
        assert whole is not None
    if whole is not None:
        assert whole.message.text == "Hello"
        assert decode_event(whole.raw) == whole
