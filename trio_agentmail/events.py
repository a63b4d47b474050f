"""The events that a stream yields. `Event` is the union of all of them, so a type checker can check a `match` over it.

Fields have the names that they have in AgentMail's official SDK (2.0.18), and the meaning that AgentMail's OpenAPI
definition and the SDK's documentation give them. All `datetime`s are aware. Where AgentMail documents a set of string
values, the type is still `str`, because AgentMail adds values. Fields that a frame leaves out are `None` or empty.

Every event from the server also has the following attributes, which comparison ignores.

- `raw`: The text as received, including unknown fields. It is not in the repr, and `attrs.evolve` does not update it.
  Lone surrogates and undecodable bytes appear as backslash escapes. The event keeps the bytes (the attrs field `_raw`)
  and decodes them each time `raw` is read.
- `origin`: How the event arrived. `"live"`: it was pushed. `"recovered"`: the mail was found through the REST API.
  `"redelivered"`: a journal delivered it again.
- `attempt`: The delivery attempt, counting from 1. It exceeds 1 only if a journal has recorded earlier attempts.

Events that have an `event_type` also have an `event_id`, which is stable: if the same event arrives again, it has the
same id. It is `None` if the frame has none, which has been observed.
"""

# ruff: noqa: F403 (With star imports, a new class is added only to the module of its topic.)

from typing import Literal, TypeAlias

from ._events import calendar as _calendar
from ._events import domains as _domains
from ._events import mail as _mail
from ._events import security as _security
from ._events import stream as _stream
from ._events.calendar import *
from ._events.domains import *
from ._events.mail import *
from ._events.security import *
from ._events.stream import *

__all__ = ["Event", "EventType"]
__all__ += _calendar.__all__
__all__ += _domains.__all__
__all__ += _mail.__all__
__all__ += _security.__all__
__all__ += _stream.__all__

Event: TypeAlias = (
    _stream.AnyStreamEvent
    | _mail.AnyMailEvent
    | _security.AnySecurityEvent
    | _domains.AnyDomainEvent
    | _calendar.AnyCalendarEvent
)

EventType: TypeAlias = Literal[
    _mail.MailEventType,
    _security.SecurityEventType,
    _domains.DomainEventType,
    _calendar.CalendarEventType,
]
"""The event types that have a class here, for `Subscribe(event_types=…)`. AgentMail adds new ones, so the field
`event_type` of an event is a plain string, and `Subscribe` accepts other types with a warning."""
