"""Agent Armor: the results of its scans, and the events about them."""

from datetime import datetime
from typing import Literal, TypeAlias

import attrs

from .base import ServerEvent

__all__ = [
    "AgentArmorManualOverride",
    "AgentArmorReleaseActor",
    "AgentArmorResult",
    "MessageSecurity",
    "MessageSecurityCompletedEvent",
    "MessageSecurityOverride",
    "MessageSecurityOverrideEvent",
    "MessageSecurityReviewEvent",
]


@attrs.frozen(kw_only=True)
class AgentArmorReleaseActor:
    """Who released a message that Agent Armor held.

    Attributes:
        kind: `"api_key"` or `"console"`.
        api_key_id: The key's id, for `"api_key"`.
    """

    kind: str | None = None
    api_key_id: str | None = None


@attrs.frozen(kw_only=True)
class AgentArmorManualOverride:
    """The record of the release of a message that Agent Armor held.

    Attributes:
        override_id: The id of the release, which is also the `event_id` of its `MessageSecurityOverrideEvent`.
        reason: The reason that was given for the release.
        original_verdict: The verdict for which the message was held: `"review"`.
    """

    override_id: str | None = None
    actor: AgentArmorReleaseActor | None = None
    reason: str | None = None
    original_verdict: str | None = None
    released_at: datetime | None = None


@attrs.frozen(kw_only=True)
class AgentArmorResult:
    """The result of Agent Armor's scan of a message. It combines three classes of the official SDK.

    Attributes:
        status: `"pending"`, `"complete"` or `"unavailable"`. Always `"complete"` in a security event.
        verdict: When complete: `"clear"` or `"review"`.
        reason: When complete: a short explanation of the verdict.
        model: When complete: the Agent Armor release that produced the verdict, as an opaque string.
        completed_at: When complete: when the scan finished.
        manual_override: When complete: the release, for a `"review"` verdict in hold mode that was overridden.
        started_at: When pending: when the message was received. The deadline counts from here.
        deadline_at: When pending: when the scan gives up and the result becomes unavailable.
        unavailable_reason: When unavailable: `"unsupported_dsn"`, `"payload_too_large"`,
            `"no_scannable_content"`, `"enqueue_failed"`, `"scorer_failed"`, `"contract_error"` or
            `"deadline_exceeded"`.
    """

    status: str | None = None
    verdict: str | None = None
    reason: str | None = None
    model: str | None = None
    completed_at: datetime | None = None
    manual_override: AgentArmorManualOverride | None = None
    started_at: datetime | None = None
    deadline_at: datetime | None = None
    unavailable_reason: str | None = None


@attrs.frozen(kw_only=True)
class MessageSecurity:
    """The message that an Agent Armor result is about. Fetch the message for its content."""

    organization_id: str | None = None
    inbox_id: str | None = None
    message_id: str | None = None
    agent_armor: AgentArmorResult | None = None


@attrs.frozen(kw_only=True)
class MessageSecurityOverride:
    """The message that was released, and the record of the release. Fetch the message for its content."""

    organization_id: str | None = None
    inbox_id: str | None = None
    message_id: str | None = None
    manual_override: AgentArmorManualOverride | None = None


@attrs.frozen(kw_only=True)
class MessageSecurityCompletedEvent(ServerEvent):
    """Agent Armor, in monitor mode, reached a verdict on a received mail. Sent once per mail and inbox."""

    event_type: str = "message.security.completed"
    message: MessageSecurity


@attrs.frozen(kw_only=True)
class MessageSecurityReviewEvent(ServerEvent):
    """Agent Armor, in hold mode, holds a received mail. A `MessageReceivedEvent` follows when it is released."""

    event_type: str = "message.security.review"
    message: MessageSecurity


@attrs.frozen(kw_only=True)
class MessageSecurityOverrideEvent(ServerEvent):
    """A held mail was released. Its `MessageReceivedEvent` arrives as well, before or after this event."""

    event_type: str = "message.security.override"
    message: MessageSecurityOverride


AnySecurityEvent: TypeAlias = MessageSecurityCompletedEvent | MessageSecurityReviewEvent | MessageSecurityOverrideEvent

SecurityEventType: TypeAlias = Literal[
    "message.security.completed",
    "message.security.review",
    "message.security.override",
]
