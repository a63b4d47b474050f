"""What a session tells of its stream."""

from datetime import datetime
from typing import Literal

import attrs

__all__ = ["State", "Statistics"]

State = Literal["connecting", "subscribed", "waiting", "stopping", "closed"]


@attrs.frozen(kw_only=True)
class Statistics:
    """What has happened on a stream so far.

    Attributes:
        connections: Connections whose subscription was confirmed.
        received: Events that came from AgentMail, without the confirmations.
        delivered: Of the received, those that were handed to the channel.
        duplicates: Of the received, those that were not handed over, since they had been before.
        unknown: Of the received, those of which an `UnknownEvent` was made.
        recovered: Mails that were missed, found through the REST API, and handed to the channel or the journal.
        requests: Requests that were made to the REST API.
        remembered: Identities of delivered events that are remembered.
        missing_since: Since when mail may be missing: the begin of the earliest gap that is not closed yet. None: no
            gap is open.
        buffered: Events and notices that wait for the consumer now.
        last_received: When the last sign of life came. None before the first connection.
        last_error: What ended the last connection or attempt that failed, in words. None when the subscription has been
            in force since for `ReconnectPolicy.stable_after` seconds: a healthy stream has none.
        last_error_at: When that was. None: there is no `last_error`.
        next_attempt_in: While the state is "waiting": seconds to the next attempt.
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
