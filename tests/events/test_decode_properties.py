"""Any text is decoded to an event, and an encoded event is decoded to an equal one."""

import copy
import json
import pickle
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from types import UnionType
from typing import Any, get_args, get_origin

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.hypothesis_settings import json_values, repeatable
from trio_agentmail._codec import decode_event
from trio_agentmail._identity import identity
from trio_agentmail.events import (
    CaughtUp,
    Disconnected,
    ErrorEvent,
    Event,
    MessageReceivedEvent,
    RecoveryFailed,
    Subscribed,
    UnknownEvent,
)
from trio_agentmail.testing._encode import encode_event

often = settings(repeatable, max_examples=200)

# Strategies, derived from the classes

offsets = st.just(UTC) | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))

LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(min_size=1, max_size=20),
    bytes: st.binary(),
    int: st.integers(-(2**63), 2**64 - 1),
    bool: st.booleans(),
    datetime: st.datetimes(timezones=offsets),
    type(None): st.none(),
    Any: json_values,
}


def values(type_: Any) -> st.SearchStrategy[Any]:
    if type_ in LEAVES:
        return LEAVES[type_]
    if attrs.has(type_):
        return instances(type_)
    if isinstance(type_, UnionType):
        return st.one_of([values(arg) for arg in get_args(type_)])
    if get_origin(type_) is tuple:
        return st.lists(values(get_args(type_)[0]), max_size=3).map(tuple)
    assert get_origin(type_) is Mapping
    return st.dictionaries(st.text(), st.text(), max_size=3)


def instances(cls: Any) -> st.SearchStrategy[Any]:
    fields = {field.alias: values(field.type) for field in attrs.fields(cls)}
    if cls is MessageReceivedEvent:
        variants = ("", ".spam", ".blocked", ".unauthenticated")
        fields["event_type"] = st.sampled_from(["message.received" + variant for variant in variants])
    elif "event_type" in fields and cls is not Subscribed:
        fields["event_type"] = st.just(attrs.fields_dict(cls)["event_type"].default)
    return st.builds(cls, **fields)


SERVER_CLASSES = [cls for cls in get_args(Event) if cls not in (Disconnected, CaughtUp, RecoveryFailed, UnknownEvent)]
server_events = st.one_of([instances(cls) for cls in SERVER_CLASSES])


@st.composite
def distorted_frames(draw: st.DrawFn) -> Any:
    """Draw the frame of some class, with fields removed, replaced or added at any depth."""
    frame = json.loads(encode_event(draw(server_events)))
    for _ in range(draw(st.integers(1, 4))):
        place = frame
        while True:
            inner = [key for key in place if isinstance(place[key], dict) and place[key]]
            if not inner or draw(st.booleans()):
                break
            place = place[draw(st.sampled_from(inner))]
        key = draw(st.sampled_from(sorted(place)) | st.text() if place else st.text())
        if draw(st.booleans()):
            place.pop(key, None)
        else:
            place[key] = draw(json_values)
    return frame


# Properties of every decoded event


def conforms(value: Any, type_: Any) -> bool:
    if type_ is Any:
        return True
    if isinstance(type_, UnionType):
        return any(conforms(value, arg) for arg in get_args(type_))
    if get_origin(type_) is tuple:
        return type(value) is tuple and all(conforms(item, get_args(type_)[0]) for item in value)
    if get_origin(type_) is Mapping:
        return isinstance(value, dict) and all(type(text) is str for item in value.items() for text in item)
    if type_ is datetime and isinstance(value, datetime):
        return value.tzinfo is not None
    if attrs.has(type_) and type(value) is type_:
        return all(conforms(getattr(value, field.name), field.type) for field in attrs.fields(type_))
    return type(value) is type_


def check(text: str) -> Event:
    event = decode_event(text)
    assert type(event) in get_args(Event)
    assert not isinstance(event, Disconnected | CaughtUp | RecoveryFailed)
    assert conforms(event, type(event))
    assert event.raw == text
    assert (event.origin, event.attempt) == ("live", 1)
    assert isinstance(event, UnknownEvent) is bool(getattr(event, "reason", ""))
    assert isinstance(identity(event), Hashable)
    repr(event).encode()
    return event


@often
@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_any_text_is_decoded_without_an_error(text: str) -> None:
    event = decode_event(text)
    assert isinstance(event, UnknownEvent)
    event.raw.encode()


@often
@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_decoded_without_an_error(data: bytes) -> None:
    event = decode_event(data)
    assert isinstance(event, UnknownEvent)
    assert event.raw == data.decode(errors="backslashreplace")


@often
@given(json_values)
def test_any_json_is_decoded_without_an_error(value: Any) -> None:
    event = check(json.dumps(value))
    assert isinstance(event, UnknownEvent)
    assert event.payload == value


@repeatable
@given(
    st.sampled_from(["[", '{"message":', '[{"a":']),
    st.integers(0, 3000) | st.sampled_from([100_000, 300_000]),
    st.sampled_from(["", "1"]),
)
def test_json_of_any_depth_is_decoded_without_an_error(opening: str, depth: int, core: str) -> None:
    nested = opening * depth + core
    closing = "".join({"[": "]", "{": "}"}.get(bracket, "") for bracket in opening[::-1])
    for value in (nested, nested + closing * depth):
        event = decode_event('{"event_type":"calendar.event.created","calendar_event":{"metadata":' + value + "}}")
        repr(event)
        identity(event)
        check(value)


@often
@given(distorted_frames())
def test_a_mutated_frame_becomes_its_class_or_is_unknown_with_the_reason(frame: Any) -> None:
    event = check(json.dumps(frame))
    assert type(event) is expected_class(frame)


def expected_class(frame: dict[str, Any]) -> Any:
    control: dict[Any, type] = {"subscribed": Subscribed, "error": ErrorEvent}
    if isinstance(frame.get("type"), str) and frame["type"] in control:
        return control[frame["type"]]
    name = frame.get("event_type")
    if not isinstance(name, str):
        return UnknownEvent
    for cls in SERVER_CLASSES:
        event_type = attrs.fields_dict(cls).get("event_type")
        if cls is Subscribed or event_type is None:
            continue
        if name == event_type.default or (cls is MessageReceivedEvent and name.startswith("message.received.")):
            [needed] = [field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING]
            payload = frame.get(needed)
            if not isinstance(payload, dict):
                return UnknownEvent
            if cls is MessageReceivedEvent:
                ids = [payload.get("inbox_id"), payload.get("message_id")]
                return cls if all(isinstance(id_, str) and id_ for id_ in ids) else UnknownEvent
            return cls
    return UnknownEvent


@often
@given(server_events)
def test_an_encoded_event_is_decoded_to_an_equal_one(event: Event) -> None:
    text = encode_event(event)
    assert check(text) == event
    assert decode_event(text.encode()) == event


@often
@given(server_events)
def test_a_decoded_event_equals_one_made_by_hand(event: Event) -> None:
    decoded: Any = decode_event(encode_event(event))
    by_hand = attrs.evolve(decoded)
    for same in (by_hand, copy.copy(decoded), copy.deepcopy(decoded), pickle.loads(pickle.dumps(decoded))):
        assert type(same) is type(decoded)
        assert same == decoded
        assert same.raw == decoded.raw
        assert repr(same) == repr(decoded)
        assert hash(same) == hash(decoded)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        decoded.origin = "elsewhere"


@often
@given(distorted_frames(), st.booleans())
def test_bytes_mean_what_the_text_means(frame: Any, ascii_only: bool) -> None:
    text = json.dumps(frame, ensure_ascii=ascii_only)
    from_text = decode_event(text)
    from_bytes = decode_event(text.encode(errors="backslashreplace"))
    assert from_text == from_bytes
    assert from_text.raw == from_bytes.raw  # type: ignore[union-attr]
    assert identity(from_text) == identity(from_bytes)


@often
@given(distorted_frames())
def test_any_decoded_event_can_be_encoded_and_decoded_again(frame: Any) -> None:
    event = decode_event(json.dumps(frame))
    assert decode_event(encode_event(event)) == event


@repeatable
@given(server_events, st.text(), st.integers())
def test_events_are_encoded_from_their_fields_and_not_from_raw(event: Any, raw: str, attempt: int) -> None:
    assert encode_event(attrs.evolve(event, raw=raw, origin=raw, attempt=attempt)) == encode_event(event)
