"""The result of an operation: a value for the caller, and the events to push."""

from typing import Generic, TypeVar

import attrs

from trio_agentmail.events import Event

__all__ = ["Outcome"]

T = TypeVar("T")


@attrs.frozen
class Outcome(Generic[T]):
    """The result of an operation that causes events.

    Attributes:
        value: The value for the caller.
        events: The events, in the order in which AgentMail pushes them.
    """

    value: T
    events: tuple[Event, ...]
