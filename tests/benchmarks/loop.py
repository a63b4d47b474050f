"""The hand-written loop that the stream is compared with: no supervision, no heartbeat, no de-duplication.

It uses trio-websocket with a receive buffer of 256 KiB and a queue of 256, orjson, and cattrs without detailed
validation. It has four attrs classes, and two more for the benchmark's small events: `Delivery` and
`MessageDeliveredEvent`.
"""

import datetime as dt
from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs
import orjson
import trio_websocket
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, override


@attrs.frozen
class Attachment:
    attachment_id: str
    size: int
    filename: str | None = None
    content_type: str | None = None
    content_disposition: str | None = None
    content_id: str | None = None


@attrs.frozen
class Message:
    inbox_id: str
    thread_id: str
    message_id: str
    labels: list[str]
    timestamp: dt.datetime
    from_: str
    to: list[str]
    size: int
    updated_at: dt.datetime
    created_at: dt.datetime
    cc: list[str] | None = None
    bcc: list[str] | None = None
    reply_to: list[str] | None = None
    subject: str | None = None
    preview: str | None = None
    text: str | None = None
    html: str | None = None
    extracted_text: str | None = None
    extracted_html: str | None = None
    attachments: list[Attachment] | None = None
    in_reply_to: str | None = None
    references: list[str] | None = None
    headers: dict[str, str] | None = None


@attrs.frozen
class Thread:
    inbox_id: str
    thread_id: str
    labels: list[str]
    timestamp: dt.datetime
    senders: list[str]
    recipients: list[str]
    last_message_id: str
    message_count: int
    size: int
    updated_at: dt.datetime
    created_at: dt.datetime
    subject: str | None = None
    preview: str | None = None
    attachments: list[Attachment] | None = None
    received_timestamp: dt.datetime | None = None
    sent_timestamp: dt.datetime | None = None


@attrs.frozen
class MessageReceivedEvent:
    event_type: str
    event_id: str
    message: Message
    thread: Thread


@attrs.frozen
class Delivery:
    inbox_id: str
    thread_id: str
    message_id: str
    timestamp: dt.datetime
    recipients: list[str]


@attrs.frozen
class MessageDeliveredEvent:
    event_type: str
    event_id: str
    delivery: Delivery


converter = Converter(detailed_validation=False)
converter.register_structure_hook(dt.datetime, lambda value, _: dt.datetime.fromisoformat(value))
converter.register_structure_hook(
    Message,
    make_dict_structure_fn(Message, converter, from_=override(rename="from"), _cattrs_detailed_validation=False),
)
HOOKS: dict[str, tuple[Any, type]] = {
    "message.received": (converter.get_structure_hook(MessageReceivedEvent), MessageReceivedEvent),
    "message.delivered": (converter.get_structure_hook(MessageDeliveredEvent), MessageDeliveredEvent),
}


def decode(text: str | bytes) -> Any:
    frame = orjson.loads(text)
    if frame["type"] != "event":
        return frame
    structure, cls = HOOKS[frame["event_type"]]
    return structure(frame, cls)


def connect(url: str, **options: Any) -> AbstractAsyncContextManager[trio_websocket.WebSocketConnection]:
    return trio_websocket.open_websocket_url(
        url, max_message_size=2**24, message_queue_size=256, receive_buffer_size=2**18, **options
    )
