"""What clients have done at a fake."""

import attrs

from trio_agentmail._settings import Subscribe

from ._wire.handshake import Handshake
from ._wire.request import Request

__all__ = ["Record"]


@attrs.define
class Record:
    """What clients have done at a `FakeAgentMail`, each list in order.

    Attributes:
        attempts: How many connections for a WebSocket were attempted, successful or not.
        handshakes: Every request for a WebSocket that was read, granted or not.
        frames: Every message that a client has sent, valid or not.
        subscriptions: Every valid `subscribe` frame, confirmed or not.
        close_codes: For every WebSocket that neither `drop_connections` nor a fault ended, once it has ended: the code
            of the client's close frame, or `None` if the client went without one.
        pings: The time of each ping of a client, in seconds by Trio's clock. A ping on a connection that is silent or
            being closed is not seen.
        requests: Every request to the REST API that was read.
    """

    attempts: int = 0
    handshakes: list[Handshake] = attrs.field(factory=list)
    frames: list[str | bytes] = attrs.field(factory=list)
    subscriptions: list[Subscribe] = attrs.field(factory=list)
    close_codes: list[int | None] = attrs.field(factory=list)
    pings: list[float] = attrs.field(factory=list)
    requests: list[Request] = attrs.field(factory=list)


def forget_all_but_the_last(record: Record, number: int) -> None:
    """Keep the last entries of each list."""
    for entries in (
        record.handshakes,
        record.frames,
        record.subscriptions,
        record.close_codes,
        record.pings,
        record.requests,
    ):
        del entries[:-number]
