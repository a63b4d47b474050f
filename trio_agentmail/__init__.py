"""The Trio-native client for AgentMail's real-time event stream."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import journal as journal
    from ._backend import Backend, WebSocket
    from ._codec import decode_event
    from ._journal.protocol import Journal
    from ._journal.sqlite_journal import DeadLetter, SQLiteJournal
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
else:
    # Names are imported on first use. pytest imports this package in every run to load the plug-in, and this must not
    # import Trio. SQLite is needed only with a journal.

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in ("errors", "events", "journal"):
            return import_module(f".{name}", __name__)
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        modules = (import_module(f".{module}", __name__) for module in _MODULES)
        value = globals()[name] = next(getattr(module, name) for module in modules if name in module.__all__)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "errors", "events", "journal"})


_MODULES = (
    "errors",
    "events",
    "_settings",
    "_statistics",
    "_codec",
    "_backend",
    "_journal.protocol",
    "_session",
    "_stream",
    "_journal.sqlite_journal",
)
"""The modules that define the public names, in the order in which they are searched: the cheapest first."""

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
