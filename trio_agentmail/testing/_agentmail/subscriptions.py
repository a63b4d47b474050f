"""Decides which subscriptions a key may make, and which events are pushed to a subscription."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from trio_agentmail._settings import Subscribe

from .mail.directory import Inbox
from .mail.events import RECEIVED
from .permissions import PERMISSION_TO_READ

__all__ = ["mismatch", "missing_permission"]

PERMISSION_FOR = {
    event_type: PERMISSION_TO_READ[label] for event_type, label in RECEIVED.items() if label in PERMISSION_TO_READ
}
"""The event types that are pushed only to subscriptions that name them, and the permission that each requires."""

READ_MESSAGES = "message_read"
"""The permission for events about messages.

AgentMail does not document that these events require it. It is required here so that a mail which the REST API hides
from a key is not pushed to it.
"""

READ_CALENDAR = "calendar_event_read"
"""The permission for calendar events. (Source: AgentMail's API definition.)"""


def missing_permission(subscribe: Subscribe, permissions: Collection[str] | None) -> str | None:
    """Return the first permission that a key lacks for a subscription, or `None` if it may make the subscription.

    Args:
        permissions: The permissions of the key; `None` means all.
    """
    if permissions is None:
        return None
    return next((permission for permission in _required(subscribe) if permission not in permissions), None)


def _required(subscribe: Subscribe) -> Iterator[str]:
    if subscribe.event_types is None:
        # A key without READ_CALENDAR may subscribe, but gets no calendar events; see `mismatch`.
        yield READ_MESSAGES
    for event_type in subscribe.event_types or ():
        if event_type in PERMISSION_FOR:
            yield PERMISSION_FOR[event_type]
        if event_type.startswith("message."):
            yield READ_MESSAGES
        elif event_type.startswith("calendar."):
            yield READ_CALENDAR


def mismatch(
    subscribe: Subscribe | None, frame: Any, inboxes: Mapping[str, Inbox], permissions: Collection[str] | None
) -> str | None:
    """Return why an event is not pushed to a subscription, or `None` if it is.

    A subscription to inboxes and pods gets the events of an inbox if it names the inbox or its pod. AgentMail documents
    this only for webhooks, and not for the WebSocket.

    Args:
        subscribe: The subscription, or `None` if the connection has none yet.
        frame: The frame, parsed from JSON. A frame that is not an event is pushed to every subscription.
        inboxes: The inboxes by their ids in lower case.
        permissions: The permissions that the key had when it subscribed; `None` means all.
    """
    if subscribe is None:
        return "has not subscribed"
    event_type = frame.get("event_type") if isinstance(frame, dict) else None
    if event_type is None:
        return None
    if subscribe.event_types is None:
        if event_type in PERMISSION_FOR:
            return f"has no event_types, and {event_type} must be requested"
        if str(event_type).startswith("calendar.") and permissions is not None and READ_CALENDAR not in permissions:
            return f"lacks {READ_CALENDAR}, which {event_type} requires"
    elif event_type not in subscribe.event_types:
        return f"listens to event_types {', '.join(subscribe.event_types)}"
    if subscribe.inbox_ids is None and subscribe.pod_ids is None:
        return None
    # A calendar event names its inbox at the top level, other events in their payload.
    objects = [frame, *(value for value in frame.values() if isinstance(value, dict))]
    inbox_ids = {str(part["inbox_id"]).lower() for part in objects if "inbox_id" in part}
    pod_ids = {str(part["pod_id"]) for part in objects if "pod_id" in part}
    pod_ids |= {inboxes[inbox_id].pod_id for inbox_id in inbox_ids if inbox_id in inboxes}
    if inbox_ids.isdisjoint(map(str.lower, subscribe.inbox_ids or ())) and pod_ids.isdisjoint(subscribe.pod_ids or ()):
        filters = {"inbox_ids": subscribe.inbox_ids, "pod_ids": subscribe.pod_ids}
        wanted = " and ".join(f"{name} {', '.join(ids)}" for name, ids in filters.items() if ids is not None)
        origin = [*sorted(inbox_ids), *(f"the pod {pod}" for pod in sorted(pod_ids) if subscribe.pod_ids is not None)]
        return f"listens to {wanted}, and this is of {', '.join(origin) or 'no inbox'}"
    return None
