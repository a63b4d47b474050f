"""Many small values take few function calls each."""

import gc
import sys

import pytest

from tests.helpers.decoding import IDS, decode
from trio_agentmail._codec import decode_event
from trio_agentmail.events import Attachment, MessageReceivedEvent


def calls(field: str, value: str) -> int:
    """Count the calls, in Python and C, to decode a mail that has this JSON in a field."""
    frame = (
        f'{{"event_type": "message.received", "message": {{"inbox_id": "a", "message_id": "b", "{field}": {value}}}}}'
    )
    counted = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    decode_event(frame)  # the first call generates functions
    gc.disable()  # it may run callbacks
    sys.setprofile(count)
    try:
        event = decode_event(frame)
    finally:
        sys.setprofile(None)
        gc.enable()
    assert isinstance(event, MessageReceivedEvent)
    return counted


@pytest.mark.parametrize(
    ("field", "item", "at_most"),
    [
        ("attachments", "{}", 3),
        ("attachments", '{"a": 1}', 3),
        ("attachments", "1", 2),
        ("to", "1", 1),
        ("to", '"a"', 1),
        ("to", '{"name": "a,", "email": "b"}', 9),
        ("from", '{"email": "a"}', 0),
    ],
)
def test_many_small_values_take_few_calls_each(field: str, item: str, at_most: int) -> None:
    few, many = (calls(field, f"[{', '.join([item] * n)}]") for n in (100, 1_100))
    assert (many - few) / 1_000 <= at_most


@pytest.mark.parametrize("text", [r"\ud800", r"\n\ud800", r"\\\udc00", r"\ud83d\ude00\ud83d"])
def test_many_escapes_take_no_call_each(text: str) -> None:
    assert calls("text", f'"{text * 10}"') == calls("text", f'"{text * 1_000}"')


@pytest.mark.parametrize("character", [r"\"", r"\\"])
def test_many_escapes_in_a_name_take_no_call_each(character: str) -> None:
    few, many = (calls("to", f'[{{"name": "{character * n}", "email": "a"}}]') for n in (10, 1_000))
    assert few == many


def test_objects_without_a_known_field_share_one_instance() -> None:
    event = decode({"event_type": "message.received", "message": IDS | {"attachments": [{}, {"a": 1}, {"size": 1}]}})
    first, second, third = event.message.attachments
    assert first == second == Attachment()
    assert first is second
    assert third == Attachment(size=1)
