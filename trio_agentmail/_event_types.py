"""The event types, the class of each, and the payload field of each class, derived from the event classes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

import attrs

from ._events.base import ServerEvent
from .events import Event, EventType

__all__ = ["CLASSES", "EVENT_TYPES", "RECEIVED_TYPES", "payload_field"]

EVENT_TYPES: tuple[str, ...] = get_args(EventType)
"""All event types that have a class."""

RECEIVED_TYPES = tuple(event_type for event_type in EVENT_TYPES if event_type.startswith("message.received"))
"""The event types of received mail."""


def _classes() -> dict[str, Any]:
    """Return the class of each event type.

    An event type belongs to the class that has it as its default. A variant, such as `message.received.spam`, belongs
    to the class of the type that it extends.
    """
    own: dict[Any, Any] = {
        attrs.fields_dict(cls)["event_type"].default: cls for cls in get_args(Event) if issubclass(cls, ServerEvent)
    }
    classes = {}
    for event_type in EVENT_TYPES:
        name = event_type
        while name not in own:
            name = name[: name.rindex(".")]
        classes[event_type] = own[name]
    return classes


CLASSES: Mapping[str, Any] = MappingProxyType(_classes())
"""The class of each event type."""


def payload_field(cls: Any) -> "attrs.Attribute[Any]":
    """Return the field that holds the payload of an event class: the one field that has no default."""
    payload: attrs.Attribute[Any]
    [payload] = [field for field in attrs.fields(cls) if field.default is attrs.NOTHING]
    return payload
