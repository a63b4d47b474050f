"""The faults that can be ordered of the emulator: each is a method of the fake, and its arguments.

What is ordered comes over HTTP, and an argument that makes no sense is refused with a word on what would.
"""

import math
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from inspect import isawaitable
from typing import Any

import attrs

from trio_agentmail.testing._fake import FakeAgentMail
from trio_agentmail.testing._fake_chaos import CHAOS, GARBAGE

from .base import EmulatorBase

__all__ = ["CLOSE_CODES", "FAULTS", "REFUSALS", "BadOrder", "FaultKind", "order_fault"]


class BadOrder(Exception):
    """An order to the emulator is refused, with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


@attrs.frozen
class FaultKind:
    """A fault by the name by which it is ordered.

    Attributes:
        method: What it is in the fake; called with the emulator.
        required: The arguments that must be given.
        optional: Those that may be.
    """

    method: Callable[..., Awaitable[None] | None]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


REFUSALS = (300, 599)
"""The HTTP statuses that refuse a WebSocket, from the first to the last."""


def _reject(fake: FakeAgentMail, *, status: int, retry_after: int | None = None, **more: Any) -> None:
    low, high = REFUSALS
    if not low <= status <= high:
        raise BadOrder(400, f"status is an HTTP status that refuses, from {low} to {high}")
    fake.reject_handshakes(status, headers=_headers(retry_after), **more)


def _rest_error(fake: FakeAgentMail, *, status: int, retry_after: int | None = None, **more: Any) -> None:
    fake.fail_requests(status, headers=_headers(retry_after), **more)


def _headers(retry_after: int | None) -> list[tuple[str, str]]:
    return [] if retry_after is None else [("Retry-After", str(retry_after))]


async def _garbage(fake: FakeAgentMail) -> None:
    await fake.send_bytes(GARBAGE)


def _slow(fake: FakeAgentMail, *, rate: float) -> None:
    fake.slow_down(rate)


def _reorder(fake: FakeAgentMail, *, count: int) -> None:
    fake.reorder_pushes(count)


async def _outage(emulator: EmulatorBase, *, seconds: float | None = None) -> None:
    await _last(emulator, "outage", emulator.outage(), seconds)


async def _chaos(emulator: EmulatorBase, *, seed: int, seconds: float | None = None, **more: Any) -> None:
    await _last(emulator, "chaos", emulator.chaos(seed, **more), seconds)


async def _last(
    emulator: EmulatorBase, name: str, block: AbstractAsyncContextManager[object], seconds: float | None
) -> None:
    if name in emulator.lasting:
        raise BadOrder(409, f"the fault {name} is going on already, until its time is over or faults are cleared")
    await emulator.lasting.begin(name, block, math.inf if seconds is None else seconds)


FAULTS: Mapping[str, FaultKind] = {
    "cut": FaultKind(FakeAgentMail.drop_connections),
    "close": FaultKind(FakeAgentMail.drop_connections, ("code",), ("reason",)),
    "silent": FaultKind(FakeAgentMail.go_silent),
    "garbage": FaultKind(_garbage),
    "slow": FaultKind(_slow, ("rate",)),
    "refuse": FaultKind(FakeAgentMail.refuse_connections, (), ("times",)),
    "reject": FaultKind(_reject, ("status",), ("retry_after", "times")),
    "hang": FaultKind(FakeAgentMail.hang_handshakes, (), ("times",)),
    "withhold": FaultKind(FakeAgentMail.withhold_confirmations, (), ("times",)),
    "delay": FaultKind(FakeAgentMail.delay_pushes, ("seconds",), ("times",)),
    "duplicate": FaultKind(FakeAgentMail.duplicate_pushes, (), ("copies", "times")),
    "reorder": FaultKind(_reorder, ("count",)),
    "corrupt": FaultKind(FakeAgentMail.corrupt_pushes, (), ("times",)),
    "swallow": FaultKind(FakeAgentMail.swallow_pushes, (), ("times",)),
    "rest-error": FaultKind(_rest_error, ("status",), ("retry_after", "path", "times")),
    "rest-hang": FaultKind(FakeAgentMail.hang_requests, (), ("path", "times")),
    "rest-break": FaultKind(FakeAgentMail.break_requests, (), ("path", "times")),
    "outage": FaultKind(_outage, (), ("seconds",)),
    "chaos": FaultKind(_chaos, ("seed",), ("every", "faults", "seconds")),
}

# RFC 6455, 7.4: what may stand in a close frame.
CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})
MAX_CLOSE_REASON = 123
"""Bytes: a control frame has 125, and the code takes two."""


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and _is_number(value, low, high)


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "times": (lambda v: v == "all" or _is_whole(v, 1, 10**6), 'a number from 1 to 1000000, or "all"'),
    "count": (lambda v: _is_whole(v, 2, 1000), "a number from 2 to 1000"),
    "copies": (lambda v: _is_whole(v, 1, 1000), "a number from 1 to 1000"),
    "status": (lambda v: _is_whole(v, 200, 599), "an HTTP status from 200 to 599"),
    "retry_after": (lambda v: _is_whole(v, 0, 10**6), "a number of seconds from 0 to 1000000"),
    "seconds": (lambda v: _is_number(v, 0, 10**6), "a number of seconds from 0 to 1000000"),
    "rate": (lambda v: _is_whole(v, 1, 10**9), "a number of bytes in a second from 1 to 1000000000"),
    "code": (lambda v: _is_whole(v, 0, 4999) and v in CLOSE_CODES, "a close code that may be sent, like 1001 or 4000"),
    "reason": (
        lambda v: isinstance(v, str) and len(v.encode()) <= MAX_CLOSE_REASON,
        f"a text of at most {MAX_CLOSE_REASON} bytes",
    ),
    "path": (lambda v: isinstance(v, str), "a text"),
    "seed": (lambda v: _is_whole(v, 0, 10**18), "a whole number from 0 to 1000000000000000000"),
    "every": (lambda v: _is_number(v, 0.01, 10**6), "a number of seconds from 0.01 to 1000000"),
    "faults": (
        lambda v: isinstance(v, list) and v != [] and all(isinstance(name, str) and name in CHAOS for name in v),
        f"a list of some of {', '.join(CHAOS)}",
    ),
}


async def order_fault(emulator: EmulatorBase, fields: Mapping[str, Any]) -> None:
    """Make something go wrong.

    Args:
        fields: The name of the fault as `fault`, and its arguments.

    Raises:
        BadOrder: there is no such fault, an argument is missing or makes no sense, or a fault is going on already that
            there can be one of.
    """
    arguments = dict(fields)
    name = arguments.pop("fault", None)
    kind = FAULTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise BadOrder(400, f"fault is one of {', '.join(FAULTS)}")
    for argument in (*kind.required, *arguments):
        if argument not in (*kind.required, *kind.optional):
            raise BadOrder(400, f"the fault {name} takes no {_shown(argument)}")
        is_valid, what = CHECKS[argument]
        if not is_valid(arguments.get(argument)):
            raise BadOrder(400, f"{argument} is {what}")
    if arguments.get("times") == "all":
        arguments["times"] = None
    result = kind.method(emulator, **arguments)
    if isawaitable(result):
        await result


def _shown(name: str) -> str:
    return re.sub(r"\W", "?", name)[:40]
