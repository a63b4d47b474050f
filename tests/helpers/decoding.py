"""Shorthands for decoding, and the ids of a mail."""

import json
from datetime import UTC, datetime
from typing import Any

from trio_agentmail._codec import decode_event
from trio_agentmail.events import Message, MessageReceivedEvent

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)

IDS: dict[str, Any] = {"inbox_id": "agent@agentmail.to", "message_id": "<1@example.com>"}


def decode(frame: Any) -> Any:
    return decode_event(json.dumps(frame))


def received(event_type: str = "message.received", **changes: Any) -> MessageReceivedEvent:
    return MessageReceivedEvent(event_type=event_type, message=Message(**(IDS | changes)))
