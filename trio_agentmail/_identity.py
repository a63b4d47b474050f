"""What tells whether two events are the same one."""

import hashlib
import math
import zlib
from datetime import datetime

from ._event_types import RECEIVED_TYPES
from ._events.base import ServerEvent
from .events import Event, MessageReceivedEvent, UnknownEvent

__all__ = [
    "DIGEST_SIZE",
    "LISTED",
    "PLAUSIBLE",
    "RECOVERED",
    "digest",
    "identity",
    "is_mail",
    "is_same_push",
    "mail_key",
    "push_record",
    "variant",
]

DIGEST_SIZE = 16
"""Bytes; see `mail_key`."""

PLAUSIBLE = 3600.0
"""Seconds by which the `created_at` of a mail may be ahead of the clock. Beyond that it is no time."""

RECOVERED = "recovered"
"""The `origin` of a mail that was found through the REST API."""

_KINDS = {event_type: number for number, event_type in enumerate(RECEIVED_TYPES, start=1)}

LISTED = 0
"""The `push_record` of a mail that was found in a listing."""


def identity(event: Event) -> bytes | None:
    """The identity of an event: two deliveries with one identity are the same event. `None`: the event has none.

    For a received mail it is made of `mail_key`, the event_type and the whole second of the mail's timestamp. A
    listing through the REST API has all of these, whereas it has no `event_id`. For any other event it is made of the
    `event_id`, and where that is missing of its text. `Subscribed`, `ErrorEvent` and notices tell something new every
    time, and an event that was made by hand, without `event_id` and `raw`, resembles no other.

    The identity does not depend on the process, so that a journal can keep it.
    """
    if isinstance(event, MessageReceivedEvent):
        message = event.message
        return mail_key(message.inbox_id, message.message_id) + variant(event.event_type) + _second(message.timestamp)
    if not isinstance(event, (ServerEvent, UnknownEvent)):
        return None
    if event.event_id:
        return digest(event.event_id)
    return None if event._raw == "" else digest(event._raw)  # what was received is bytes, even if it is empty


def mail_key(inbox_id: str, message_id: str) -> bytes:
    """The first 16 bytes of a received mail's identity, whatever its event_type and its time.

    It is a hash of 16 bytes: a Message-ID is chosen by whoever sends the mail, so remembering one must cost no more
    than remembering another, and nobody must be able to find two that collide.
    """
    return digest(f"{inbox_id}\0{message_id}")


def is_mail(identity: bytes) -> bool:
    """Whether this is the identity of a received mail."""
    return len(identity) > DIGEST_SIZE


def push_record(event: MessageReceivedEvent) -> int:
    """What tells two pushes of one mail from pushes of two mails, in 60 bits: CPython keeps them in 32 bytes.

    They are the event_type, a hash of the event_id (25 bits) and the timestamp in milliseconds (its last 32 bits, so
    50 days). A hash of 0 means that the event cannot make a second mail. That two mails with one Message-ID are taken
    for one has a chance of one in thirty million.
    """
    if event.origin == RECOVERED:
        return LISTED
    kind = _KINDS.get(event.event_type, 7)
    time = event.message.timestamp
    if not event.event_id or time is None:
        return kind << 57
    hashed = zlib.crc32(event.event_id.encode(errors="surrogatepass")) & 0x1FFFFFF or 1
    return kind << 57 | hashed << 32 | math.floor(time.timestamp() * 1000) & 0xFFFFFFFF


def is_same_push(one: int, other: int) -> bool:
    """Whether two records of one Message-ID are of one event."""
    if one == LISTED or other == LISTED:
        return True
    if one >> 57 != other >> 57:
        return False
    event_id, other_event_id = one >> 32 & 0x1FFFFFF, other >> 32 & 0x1FFFFFF
    if not event_id or not other_event_id or event_id == other_event_id:
        return True
    apart = (one - other) & 0xFFFFFFFF
    return min(apart, 2**32 - apart) < 1000


def variant(event_type: str) -> bytes:
    """The part of a received mail's identity that stands for its event_type."""
    return RECEIVED_TYPES.index(event_type).to_bytes() if event_type in RECEIVED_TYPES else digest(event_type)[:2]


def _second(time: datetime | None) -> bytes:
    return b"" if time is None else math.floor(time.timestamp()).to_bytes(6, signed=True)


def digest(text: str | bytes) -> bytes:
    """A hash of `DIGEST_SIZE` bytes."""
    data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()
