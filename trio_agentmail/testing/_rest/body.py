"""Fields of the body of a request, each of the kind that it must be."""

import re
from typing import Any

from .errors import invalid

__all__ = ["flag", "ids", "key", "line", "objects", "text", "texts"]

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""What would end a header."""

KEY = re.compile("[A-Za-z0-9._~-]{1,256}")


def text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if not isinstance(value, str | None):
        raise invalid(name, "a string")
    return value


def line(body: dict[str, Any], name: str) -> str | None:
    """A string that goes into a header."""
    value = text(body, name)
    if value is not None and CONTROL.search(value):
        raise invalid(name, "a string without control characters")
    return value


def flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise invalid(name, "true or false")
    return value


def texts(body: dict[str, Any], name: str) -> tuple[str, ...]:
    """A list of strings; a string alone is a list of one."""
    value = body.get(name, [])
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise invalid(name, "a string or a list of strings")
    return tuple(strings)


def ids(body: dict[str, Any], name: str, limit: int) -> tuple[str, ...]:
    """Ids that are there once each."""
    value = body.get(name)
    if not isinstance(value, list) or len(value) > limit:
        raise invalid(name, f"a list of at most {limit} ids")
    strings = texts(body, name)
    if len(set(strings)) < len(strings):
        raise invalid(name, "a list of ids without duplicates")
    return strings


def objects(body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects, without their fields that are null."""
    value = body.get(name, [])
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise invalid(name, "a list of objects")
    return [{field: item for field, item in part.items() if item is not None} for part in value]


def key(value: str | None, name: str) -> str | None:
    """An id that a client makes: a `client_id`, or an idempotency key."""
    if value is not None and not KEY.fullmatch(value):
        raise invalid(name, "1 to 256 letters, digits, and -._~")
    return value
