"""The identity of events, for de-duplication."""

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
"""The length of a digest, in bytes. See `mail_key`."""

PLAUSIBLE = 3600.0
"""Seconds by which a mail's `created_at` may be ahead of AgentMail's clock. A later `created_at` is ignored."""

RECOVERED = "recovered"
"""The `origin` of a mail that was found through the REST API."""

_KINDS = {event_type: number for number, event_type in enumerate(RECEIVED_TYPES, start=1)}

LISTED = 0
"""The `push_record` of a mail that was found in a listing."""


def identity(event: Event) -> bytes | None:
    """Return the identity of an event, or `None` if it has none. Events with the same identity are the same event.

    The identity of a received mail consists of its `mail_key`, its event_type and the whole second of its timestamp. A
    listing through the REST API has all of these, but no `event_id`. The identity of any other event comes from its
    `event_id`, or from its text if the `event_id` is missing. Notices have no identity, because each
    of them is new information. An event that was constructed without `event_id` and `raw` has none
    either.

    The identity is the same in every process, so a journal can store it.
    """
    if isinstance(event, MessageReceivedEvent):
        message = event.message
        return mail_key(message.inbox_id, message.message_id) + variant(event.event_type) + _second(message.timestamp)
    if not isinstance(event, (ServerEvent, UnknownEvent)):
        return None
    if event.event_id:
        return digest(event.event_id)
    return None if event._raw == "" else digest(event._raw)  # a received text is bytes, even if it is empty


def mail_key(inbox_id: str, message_id: str) -> bytes:
    """Return the first 16 bytes of a received mail's identity, which depend on neither its event_type nor its time.

    They are a cryptographic hash, because senders choose Message-IDs: a long one must not take more memory than a short
    one, and a sender must not be able to find two that collide.
    """
    return digest(f"{inbox_id}\0{message_id}")


def is_mail(identity: bytes) -> bool:
    """Return whether an identity is that of a received mail."""
    return len(identity) > DIGEST_SIZE


def push_record(event: MessageReceivedEvent) -> int:
    """Return an integer that tells two pushes of one mail from pushes of two mails with the same Message-ID.

    It has 60 bits, for which CPython needs 32 bytes: the event_type, a hash of the event_id (25 bits) and the timestamp
    in milliseconds (its last 32 bits, which span 50 days). A hash of 0 means that the event cannot be a second mail.
    The probability that two mails with the same Message-ID are taken for one is one in thirty million.
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
    """Return whether two push records of one `mail_key` belong to the same mail."""
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
    """Return the part of a received mail's identity that encodes its event_type."""
    return RECEIVED_TYPES.index(event_type).to_bytes() if event_type in RECEIVED_TYPES else digest(event_type)[:2]


def _second(time: datetime | None) -> bytes:
    return b"" if time is None else math.floor(time.timestamp()).to_bytes(6, signed=True)


def digest(text: str | bytes) -> bytes:
    """Return a cryptographic hash of `DIGEST_SIZE` bytes."""
    data = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()
