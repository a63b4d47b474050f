"""The mails of the soak. A mail follows from its number and its two times, so that the server keeps nothing else."""

from datetime import UTC, datetime
from typing import Any

from tests.benchmarks.frames import ASCII

KEY = "am_soak"
INBOXES = tuple(f"soak-{number}@agentmail.to" for number in range(4))


def inbox_of(number: int) -> str:
    return INBOXES[number % len(INBOXES)]


def message_id_of(number: int) -> str:
    return f"<{number}@soak.example>"


def number_of(message_id: str) -> int:
    """The number in a `message_id`, or a ValueError."""
    return int(message_id.removeprefix("<").removesuffix("@soak.example>"))


def text_of(number: int) -> str:
    return f"Mail {number}. " + ASCII * (1 + number % 9)


def listed(number: int, created: int, dated: int) -> dict[str, Any]:
    """A mail as a listing describes it: without its body.

    Args:
        created: When it came, in milliseconds since the epoch.
        dated: Its own time, which its sender chose.
    """
    came = iso(created)
    return {
        "inbox_id": inbox_of(number),
        "thread_id": f"thread-{number}",
        "message_id": message_id_of(number),
        "labels": ["received", "unread"],
        "timestamp": iso(dated),
        "from": "Jane Doe <jane.doe@example.com>",
        "to": [inbox_of(number)],
        "subject": f"Figures of the quarter, {number}",
        "preview": text_of(number)[:60],
        "size": 2048,
        "updated_at": came,
        "created_at": came,
    }


def whole(number: int, created: int, dated: int) -> dict[str, Any]:
    """A mail as it is fetched."""
    text = text_of(number)
    return listed(number, created, dated) | {"text": text, "extracted_text": text}


def pushed(number: int, created: int, dated: int) -> dict[str, Any]:
    """The event that tells of a mail: 0.9 to 2.4 KB."""
    thread = {
        "inbox_id": inbox_of(number),
        "thread_id": f"thread-{number}",
        "labels": ["received", "unread"],
        "timestamp": iso(dated),
        "last_message_id": message_id_of(number),
        "message_count": 1,
    }
    return {
        "type": "event",
        "event_type": "message.received",
        "event_id": f"evt-{number}",
        "message": whole(number, created, dated),
        "thread": thread,
    }


def iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
