"""The types of `AgentMailSession.state` and `AgentMailSession.statistics()`."""

from datetime import datetime
from typing import Literal

import attrs

__all__ = ["State", "Statistics"]

State = Literal["connecting", "subscribed", "waiting", "stopping", "closed"]


@attrs.frozen(kw_only=True)
class Statistics:
    """Statistics about a stream, from its opening until now.

    Attributes:
        connections: The number of connections whose subscription was confirmed.
        received: The number of events that AgentMail pushed. Confirmations are not counted.
        delivered: The number of events that were handed to the channel.
        duplicates: The number of events that were dropped because they had been delivered before.
        unknown: The number of received events that became an `UnknownEvent`.
        recovered: The number of missed mails that were found through the REST API and handed to the channel or the
            journal.
        requests: The number of requests to the REST API.
        remembered: The number of identities of delivered events that are remembered.
        missing_since: When the earliest open gap began. Since then, mail may be missing; None without a gap.
        buffered: The number of events and notices that wait for the consumer.
        last_received: When the last byte arrived from the server; None before the first connection.
        last_error: Why the last connection or attempt failed, in words. None once the subscription has been in force
            for `ReconnectPolicy.stable_after` seconds, so a healthy stream has none.
        last_error_at: When the `last_error` occurred; None if there is none.
        next_attempt_in: Seconds until the next attempt, while the state is "waiting"; otherwise None.
    """

    connections: int
    received: int
    delivered: int
    duplicates: int
    unknown: int
    recovered: int
    requests: int
    remembered: int
    missing_since: datetime | None
    buffered: int
    last_received: datetime | None
    last_error: str | None
    last_error_at: datetime | None
    next_attempt_in: float | None
