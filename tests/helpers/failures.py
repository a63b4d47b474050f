"""Failures of connections, and streams that run into them."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import trio

from tests.helpers.streams import open_agentmail_stream
from trio_agentmail import ApiError, AuthenticationError, Disconnected, Event, PermissionDeniedError, Subscribed
from trio_agentmail.testing import FakeAgentMail

REFUSING_STATUSES = [300, 301, 302, 303, 307, 308, 400, 402, 404, 405, 406, 409, 410, 413, 422, 426, 431, 451, 499]
REFUSED_KEY = [(401, AuthenticationError), (403, PermissionDeniedError)]

NAMES_THAT_SAY_NEITHER = [("", ""), ("Teapot", "short and stout"), ("error", "something went wrong")]


def not_verified() -> ssl.SSLCertVerificationError:
    return ssl.SSLCertVerificationError(1, "self-signed certificate")


def api_error(status: int, **headers: str) -> ApiError:
    error = {401: AuthenticationError, 403: PermissionDeniedError}.get(status, ApiError)
    return error(status, {name.replace("_", "-"): value for name, value in headers.items()}, "")


@asynccontextmanager
async def stream(fake: FakeAgentMail, **arguments: Any) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
    """A stream whose first `Subscribed` has been taken."""
    async with open_agentmail_stream(backend=fake, **arguments) as events:
        assert isinstance(await anext(events), Subscribed)
        yield events


async def comes_back(events: trio.MemoryReceiveChannel[Event]) -> Disconnected:
    """Check that the subscription is lost and then in force again."""
    lost = await anext(events)
    assert isinstance(lost, Disconnected)
    assert isinstance(await anext(events), Subscribed)
    return lost


def times(fake: FakeAgentMail) -> list[float]:
    """Return the times of the handshakes, counted from the first."""
    return [round(handshake.at - fake.record.handshakes[0].at, 3) for handshake in fake.record.handshakes]


Fault = Callable[[FakeAgentMail], None]


def rejection(status: int) -> Fault:
    return lambda fake: fake.faults.reject_handshakes(status)


def refusal(name: str, message: str) -> Fault:
    return lambda fake: fake.faults.refuse_subscriptions(name, message)


def close(code: int) -> Fault:
    return lambda fake: fake.faults.close_instead_of_confirming(code)


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def time_of_day() -> float:
    return NOON.timestamp()
