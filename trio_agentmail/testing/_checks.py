"""Checks of arguments. They raise in the call of the test, before a task of the fake uses the value."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import h11

from ._agentmail.checks import check_bytes, check_text, check_texts, has_lone_surrogate

__all__ = [
    "check_bytes",
    "check_close",
    "check_response",
    "check_seconds",
    "check_text",
    "check_texts",
    "check_whole",
    "has_lone_surrogate",
]


def check_seconds(name: str, value: float, *, or_forever: bool = False) -> None:
    """Check a number of seconds.

    Args:
        or_forever: Whether `math.inf` is valid.

    Raises:
        TypeError: The value is not a number.
        ValueError: The value is negative, infinite or too large.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if not 0 <= value <= (math.inf if or_forever else 2**31):
        raise ValueError(f"{name} is 0 or more seconds{', or math.inf' if or_forever else ''}, not {value!r}")


def check_whole(name: str, value: int, low: int, high: float = math.inf) -> None:
    """Check a whole number.

    Raises:
        TypeError: The value is not a whole number.
        ValueError: The value is less than `low` or greater than `high`.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {low} {f'to {high}' if high < math.inf else 'or more'}, not {value!r}")


def check_response(
    status: int, headers: Mapping[str, str] | Sequence[tuple[str, str]], body: bytes
) -> tuple[tuple[str, str], ...]:
    """Check an HTTP response, and return its headers as pairs of names and values.

    Raises:
        TypeError: The status is not an integer, the headers are neither a mapping nor pairs, or the body is not bytes.
        ValueError: The response is not valid HTTP.
    """
    check_whole("status", status, 200, 999)
    check_bytes("body", body)
    pairs = _pairs(headers)
    # The server that will send the response uses h11, which would raise the same error later.
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nHost: fake\r\n\r\n")
    server.next_event()
    lengths = [] if any(name.lower() == "content-length" for name, _ in pairs) else [("Content-Length", str(len(body)))]
    try:
        server.send(h11.Response(status_code=status, headers=[*pairs, *lengths]))
        server.send(h11.Data(data=body))
        server.send(h11.EndOfMessage())
    except (h11.LocalProtocolError, UnicodeEncodeError) as exc:
        raise ValueError(f"this status, headers and body are not a valid HTTP response: {exc}") from None
    return pairs


def check_close(code: int, reason: str) -> None:
    """Check the code and the reason of a close frame.

    Raises:
        TypeError: The code is not a whole number, or the reason is not a string.
        ValueError: A close frame cannot carry them.
    """
    check_whole("code", code, 0, 2**16 - 1)
    check_text("reason", reason, or_none=False)
    if has_lone_surrogate(reason):
        raise ValueError("reason has a lone surrogate, which no close frame can carry")


def _pairs(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    pairs: Any = headers.items() if isinstance(headers, Mapping) else headers
    checked = tuple(tuple(pair) if isinstance(pair, tuple | list) else pair for pair in pairs)
    for pair in checked:
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(item, str) for item in pair):
            raise TypeError(f"headers are a mapping, or pairs of a name and a value, both str; not {pair!r}")
    return checked
