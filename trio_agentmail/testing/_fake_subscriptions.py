"""What a client may say on its WebSocket, how it is answered, and which events are for it."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import attrs
import orjson

from trio_agentmail._codec import parse_object
from trio_agentmail._settings import Subscribe

from ._mail.events import RECEIVED
from ._permissions import PERMISSION_TO_READ

__all__ = ["RefusedFrame", "describe", "error_frame", "mismatch", "parse_subscribe", "subscribed_frame"]

PERMISSION_FOR = {
    event_type: PERMISSION_TO_READ[label] for event_type, label in RECEIVED.items() if label in PERMISSION_TO_READ
}
"""The event types that one has to ask for, and the permission that it takes."""

READ_MESSAGES = "message_read"
"""What events about messages take. That is our choice: AgentMail does not say that they take it, but a mail that the
REST API keeps from a key should not come to it by another way."""

READ_CALENDAR = "calendar_event_read"
"""What calendar events take. (Source: AgentMail's API definition.)"""

FILTERS = ("inbox_ids", "pod_ids", "event_types")


class RefusedFrame(Exception):
    """What a client sent is answered with an `error` frame of this name and message."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message


def parse_subscribe(data: str | bytes, permissions: Collection[str] | None) -> Subscribe:
    """Read a frame of the client's.

    Raises:
        RefusedFrame: it is no valid subscription, or the permissions do not suffice.
    """
    frame = parse_object(data if isinstance(data, bytes) else data.encode())
    if frame is None or frame.get("type") != "subscribe":
        raise RefusedFrame("ValidationError", 'expected a JSON object of type "subscribe"')
    # The official SDK sends null for a filter that is not set.
    filters = {field: frame[field] for field in FILTERS if frame.get(field) is not None}
    if not all(isinstance(value, list) for value in filters.values()):
        raise RefusedFrame("ValidationError", "a filter is a list of strings")
    try:
        with warnings.catch_warnings(action="ignore"):  # the client's own Subscribe has warned it
            subscribe = Subscribe(**filters)
    except (TypeError, ValueError) as exc:
        raise RefusedFrame("ValidationError", str(exc)) from None
    for permission in _permissions_for(subscribe):
        if permissions is not None and permission not in permissions:
            raise RefusedFrame("forbidden", f"{permission} is forbidden")
    return subscribe


def _permissions_for(subscribe: Subscribe) -> Iterator[str]:
    if subscribe.event_types is None:
        # Calendar events are left out, and nothing refused, if the key lacks their permission: see `mismatch`.
        yield READ_MESSAGES
    for event_type in subscribe.event_types or ():
        if event_type in PERMISSION_FOR:
            yield PERMISSION_FOR[event_type]
        if event_type.startswith("message."):
            yield READ_MESSAGES
        elif event_type.startswith("calendar."):
            yield READ_CALENDAR


def subscribed_frame(subscribe: Subscribe) -> str:
    """The frame that confirms a subscription: the filters that were given."""
    filters = attrs.asdict(subscribe, filter=lambda _, value: value is not None)
    return orjson.dumps({"type": "subscribed"} | filters).decode()


def error_frame(name: str, message: str) -> str:
    """The frame that says what is wrong."""
    return orjson.dumps({"type": "error", "name": name, "message": message}).decode()


def mismatch(
    subscribe: Subscribe | None, frame: Any, pods: Mapping[str, str], permissions: Collection[str] | None
) -> str | None:
    """Why the event in a frame is not for this subscription; `None`: it is.

    An inbox that is named, or is in a pod that is named, matches: AgentMail documents it so for webhooks,
    and for the WebSocket not at all.

    Args:
        frame: The frame as parsed from JSON. What is no event is for everybody.
        pods: The pods of the inboxes that are in one, by the inboxes' ids in lower case.
        permissions: What the key might do when it subscribed; `None`: everything.
    """
    if subscribe is None:
        return "has not subscribed"
    event_type = frame.get("event_type") if isinstance(frame, dict) else None
    if event_type is None:
        return None
    if subscribe.event_types is None:
        if event_type in PERMISSION_FOR:
            return f"has no event_types, and {event_type} must be asked for"
        if str(event_type).startswith("calendar.") and permissions is not None and READ_CALENDAR not in permissions:
            return f"may not do {READ_CALENDAR}, which {event_type} takes"
    elif event_type not in subscribe.event_types:
        return f"listens to event_types {_join(subscribe.event_types)}"
    if subscribe.inbox_ids is None and subscribe.pod_ids is None:
        return None
    # Calendar events name their inbox themselves; in the others it is the payload that does.
    objects = [frame, *_parts(frame)]
    inboxes = {str(part["inbox_id"]).lower() for part in objects if "inbox_id" in part}
    in_pods = {str(part["pod_id"]) for part in objects if "pod_id" in part}
    in_pods |= {pods[inbox] for inbox in inboxes if inbox in pods}
    if inboxes.isdisjoint(map(str.lower, subscribe.inbox_ids or ())) and in_pods.isdisjoint(subscribe.pod_ids or ()):
        filters = {"inbox_ids": subscribe.inbox_ids, "pod_ids": subscribe.pod_ids}
        wanted = " and ".join(f"{name} {_join(ids)}" for name, ids in filters.items() if ids is not None)
        origin = [*sorted(inboxes), *(f"the pod {pod}" for pod in sorted(in_pods) if subscribe.pod_ids is not None)]
        return f"listens to {wanted}, and this is of {_join(origin) or 'no inbox'}"
    return None


def describe(frame: Any) -> str:
    """A frame that is pushed, in a few words."""
    if not isinstance(frame, dict):
        return "a frame that is no JSON object"
    words = [str(frame.get("event_type") or frame.get("type"))]
    for part in (frame, *_parts(frame)):
        if "inbox_id" in part and len(words) == 1:
            words.append(f"in {part['inbox_id']}")
        if "from" in part:
            words += [repr(part["subject"])] if "subject" in part else []
            words.append(f"from {part['from']}")
        if isinstance(part.get("recipients"), list) and "senders" not in part:  # that would be the thread
            words.append(f"to {_join([str(_address(recipient)) for recipient in part['recipients']])}")
    return " ".join(words)


def _address(recipient: Any) -> Any:
    return recipient.get("address") if isinstance(recipient, dict) else recipient


def _parts(frame: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for value in frame.values() if isinstance(value, dict)]


def _join(words: Collection[str]) -> str:
    return ", ".join(words)
