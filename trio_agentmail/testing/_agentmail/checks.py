"""Checks of arguments. Each check raises directly in the call that has the invalid argument."""

from collections.abc import Collection

__all__ = ["check_bytes", "check_name", "check_text", "check_texts", "has_lone_surrogate"]


def check_bytes(name: str, value: bytes) -> None:
    """Raise a `TypeError` unless a value is bytes."""
    if not isinstance(value, bytes):
        raise TypeError(f"{name} is bytes, not {type(value).__name__}")


def check_text(name: str, value: str | None, *, or_none: bool = True) -> None:
    """Raise a `TypeError` unless a value is a string or, if `or_none` is true, `None`."""
    if not (isinstance(value, str) or (value is None and or_none)):
        raise TypeError(f"{name} is a str, not {type(value).__name__}")


def check_name(name: str, value: str) -> None:
    """Check that a value is a non-empty string.

    Raises:
        TypeError: The value is not a string.
        ValueError: The string is empty.
    """
    check_text(name, value, or_none=False)
    if not value:
        raise ValueError(f"{name} is empty")


def check_texts(name: str, values: Collection[str]) -> None:
    """Raise a `TypeError` unless a value is a collection of strings. A single string is not accepted."""
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{name} is a collection of str, not {values!r}")


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text contains a lone surrogate, like half of an emoji, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
