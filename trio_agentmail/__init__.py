"""The Trio-native client for AgentMail's real-time event stream."""

from typing import TYPE_CHECKING

from ._backend import Backend, WebSocket
from ._codec import decode_event
from ._journal.protocol import Journal
from ._session import AgentMailSession
from ._settings import AgentMailEnvironment, ReconnectPolicy, Recovery, Subscribe
from ._statistics import State, Statistics
from ._stream import open_agentmail_session, open_agentmail_stream
from .errors import (
    AgentMailError,
    ApiError,
    AuthenticationError,
    ConnectionFailedError,
    JournalError,
    JournalInUseError,
    JournalMismatchError,
    PermissionDeniedError,
    SubscriptionRejectedError,
)
from .events import (
    CalendarEventCreatedEvent,
    CalendarEventDeletedEvent,
    CalendarEventEndingEvent,
    CalendarEventRespondedEvent,
    CalendarEventStartingEvent,
    CalendarEventUpdatedEvent,
    CaughtUp,
    Disconnected,
    DomainVerifiedEvent,
    ErrorEvent,
    Event,
    EventType,
    Message,
    MessageBouncedEvent,
    MessageComplainedEvent,
    MessageDeliveredEvent,
    MessageOpenedEvent,
    MessageReceivedEvent,
    MessageRejectedEvent,
    MessageSecurityCompletedEvent,
    MessageSecurityOverrideEvent,
    MessageSecurityReviewEvent,
    MessageSentEvent,
    RecoveryFailed,
    Subscribed,
    ThreadItem,
    UnknownEvent,
)

if TYPE_CHECKING:
    from ._journal.sqlite_journal import DeadLetter, SQLiteJournal
else:

    def __getattr__(name: str) -> object:
        # Imported when they are asked for: SQLite, and what keeps a journal in it, is a good part of the whole package.
        if name not in ("DeadLetter", "SQLiteJournal"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ._journal import sqlite_journal

        value = globals()[name] = getattr(sqlite_journal, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__version__ = "0.1.0.dev0"

__all__ = [
    "AgentMailEnvironment",
    "AgentMailError",
    "AgentMailSession",
    "ApiError",
    "AuthenticationError",
    "Backend",
    "CalendarEventCreatedEvent",
    "CalendarEventDeletedEvent",
    "CalendarEventEndingEvent",
    "CalendarEventRespondedEvent",
    "CalendarEventStartingEvent",
    "CalendarEventUpdatedEvent",
    "CaughtUp",
    "ConnectionFailedError",
    "DeadLetter",
    "Disconnected",
    "DomainVerifiedEvent",
    "ErrorEvent",
    "Event",
    "EventType",
    "Journal",
    "JournalError",
    "JournalInUseError",
    "JournalMismatchError",
    "Message",
    "MessageBouncedEvent",
    "MessageComplainedEvent",
    "MessageDeliveredEvent",
    "MessageOpenedEvent",
    "MessageReceivedEvent",
    "MessageRejectedEvent",
    "MessageSecurityCompletedEvent",
    "MessageSecurityOverrideEvent",
    "MessageSecurityReviewEvent",
    "MessageSentEvent",
    "PermissionDeniedError",
    "ReconnectPolicy",
    "Recovery",
    "RecoveryFailed",
    "SQLiteJournal",
    "State",
    "Statistics",
    "Subscribe",
    "Subscribed",
    "SubscriptionRejectedError",
    "ThreadItem",
    "UnknownEvent",
    "WebSocket",
    "__version__",
    "decode_event",
    "open_agentmail_session",
    "open_agentmail_stream",
]
