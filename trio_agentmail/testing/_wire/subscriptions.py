"""The frames on a WebSocket: parsing those of clients, and making those of the server."""

import warnings
from collections.abc import Collection
from typing import Any

import attrs
import orjson

from trio_agentmail._codec import parse_object
from trio_agentmail._settings import Subscribe
from trio_agentmail.testing._agentmail.subscriptions import missing_permission

__all__ = ["InvalidFrame", "describe", "error_frame", "parse_subscribe", "subscribed_frame"]

FILTERS = ("inbox_ids", "pod_ids", "event_types")


class InvalidFrame(Exception):
    """A client's frame is invalid, and the answer is an `error` frame of this name and message."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message


def parse_subscribe(data: str | bytes, permissions: Collection[str] | None) -> Subscribe:
    """Parse a client's frame.

    Args:
        permissions: The permissions of the client's key. `None` means all.

    Raises:
        InvalidFrame: The frame is not a valid subscription, or the key lacks a permission for it.
    """
    frame = parse_object(data if isinstance(data, bytes) else data.encode())
    if frame is None or frame.get("type") != "subscribe":
        raise InvalidFrame("ValidationError", 'expected a JSON object of type "subscribe"')
    # The official SDK sends null for a filter that is not set.
    filters = {field: frame[field] for field in FILTERS if frame.get(field) is not None}
    if not all(isinstance(value, list) for value in filters.values()):
        raise InvalidFrame("ValidationError", "a filter is a list of strings")
    try:
        with warnings.catch_warnings(action="ignore"):  # the client's own Subscribe has warned already
            subscribe = Subscribe(**filters)
    except (TypeError, ValueError) as exc:
        raise InvalidFrame("ValidationError", str(exc)) from None
    if (permission := missing_permission(subscribe, permissions)) is not None:
        raise InvalidFrame("forbidden", f"{permission} is forbidden")
    return subscribe


def subscribed_frame(subscribe: Subscribe) -> str:
    """Return the frame that confirms a subscription. It repeats the given filters."""
    filters = attrs.asdict(subscribe, filter=lambda _, value: value is not None)
    return orjson.dumps({"type": "subscribed"} | filters).decode()


def error_frame(name: str, message: str) -> str:
    return orjson.dumps({"type": "error", "name": name, "message": message}).decode()


def describe(frame: Any) -> str:
    """Describe a pushed frame for the log."""
    if not isinstance(frame, dict):
        return "a frame that is not a JSON object"
    words = [str(frame.get("event_type") or frame.get("type"))]
    for part in (frame, *(value for value in frame.values() if isinstance(value, dict))):
        if "inbox_id" in part and len(words) == 1:
            words.append(f"in {part['inbox_id']}")
        if "from" in part:
            words += [repr(part["subject"])] if "subject" in part else []
            words.append(f"from {part['from']}")
        if isinstance(part.get("recipients"), list) and "senders" not in part:  # a part with senders is the thread
            words.append(f"to {', '.join(str(_address(recipient)) for recipient in part['recipients'])}")
    return " ".join(words)


def _address(recipient: Any) -> Any:
    return recipient.get("address") if isinstance(recipient, dict) else recipient
