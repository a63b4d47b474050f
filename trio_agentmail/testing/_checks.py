"""Arguments that make no sense are refused where they are given, and not later in some task of the fake."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import h11

__all__ = [
    "check_bytes",
    "check_close",
    "check_name",
    "check_response",
    "check_seconds",
    "check_text",
    "check_texts",
    "check_whole",
    "has_half_a_character",
]


def check_seconds(name: str, value: float, *, or_forever: bool = False) -> None:
    """
    Raises:
        TypeError: it is no number.
        ValueError: it is less than 0, or infinite, unless it may be.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if not 0 <= value <= (math.inf if or_forever else 2**31):
        raise ValueError(f"{name} is 0 or more seconds{', or math.inf' if or_forever else ''}, not {value!r}")


def check_whole(name: str, value: int, low: int, high: float = math.inf) -> None:
    """
    Raises:
        TypeError: it is no whole number.
        ValueError: it is too low or too high.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {low} {f'to {high}' if high < math.inf else 'or more'}, not {value!r}")


def check_response(
    status: int, headers: Mapping[str, str] | Sequence[tuple[str, str]], body: bytes
) -> tuple[tuple[str, str], ...]:
    """
    Returns:
        The headers, as pairs of names and values.

    Raises:
        TypeError: the status is no whole number, the headers are no mapping or pairs, or the body is not bytes.
        ValueError: HTTP has no such response.
    """
    check_whole("status", status, 200, 999)
    check_bytes("body", body)
    pairs = check_headers(headers)
    # Whoever is to send it would say the same, but later.
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nHost: fake\r\n\r\n")
    server.next_event()
    lengths = [] if any(name.lower() == "content-length" for name, _ in pairs) else [("Content-Length", str(len(body)))]
    try:
        server.send(h11.Response(status_code=status, headers=[*pairs, *lengths]))
        server.send(h11.Data(data=body))
        server.send(h11.EndOfMessage())
    except (h11.LocalProtocolError, UnicodeEncodeError) as exc:
        raise ValueError(f"HTTP has no response with this status, headers and body: {exc}") from None
    return pairs


def check_close(code: int, reason: str) -> None:
    check_whole("code", code, 0, 2**16 - 1)
    check_text("reason", reason, or_none=False)
    if has_half_a_character(reason):
        raise ValueError("reason has half a character, which no close frame carries")


def check_bytes(name: str, value: bytes) -> None:
    if not isinstance(value, bytes):
        raise TypeError(f"{name} is bytes, not {type(value).__name__}")


def check_text(name: str, value: str | None, *, or_none: bool = True) -> None:
    if not (isinstance(value, str) or (value is None and or_none)):
        raise TypeError(f"{name} is a str, not {type(value).__name__}")


def check_name(name: str, value: str) -> None:
    """
    Raises:
        TypeError: it is no str.
        ValueError: it is empty.
    """
    check_text(name, value, or_none=False)
    if not value:
        raise ValueError(f"{name} is empty")


def has_half_a_character(text: str) -> bool:
    """Whether it has a lone surrogate, as half an emoji is, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_texts(name: str, values: Collection[str]) -> None:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{name} is a collection of str, not {values!r}")


def check_headers(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """
    Returns:
        Pairs of names and values.

    Raises:
        TypeError: they are something else.
    """
    pairs: Any = headers.items() if isinstance(headers, Mapping) else headers
    checked = tuple(tuple(pair) if isinstance(pair, tuple | list) else pair for pair in pairs)
    for pair in checked:
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(item, str) for item in pair):
            raise TypeError(f"headers are a mapping, or pairs of a name and a value, both str; not {pair!r}")
    return checked
