"""The record of what clients have done at a fake."""

import attrs

from trio_agentmail._settings import Subscribe

from ._wire.handshake import Handshake
from ._wire.request import Request

__all__ = ["Record"]


@attrs.define
class Record:
    """The record of what clients have done at a `FakeAgentMail`. Each list is in order of time.

    Attributes:
        attempts: The number of attempts to connect for a WebSocket, successful or not.
        handshakes: Every request for a WebSocket that was read, accepted or not.
        frames: Every WebSocket message from a client, valid or not.
        subscriptions: Every valid `subscribe` frame, confirmed or not.
        close_codes: The code of the client's close frame, or `None` if there was none, for every WebSocket that has
            ended, except those that `drop_connections` or a fault ended.
        pings: The time of each ping from a client, in seconds of Trio's clock. Pings on a connection that is silent or
            being closed are not recorded.
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
    """Remove all but the last `number` entries of each list."""
    for entries in (
        record.handshakes,
        record.frames,
        record.subscriptions,
        record.close_codes,
        record.pings,
        record.requests,
    ):
        del entries[:-number]
