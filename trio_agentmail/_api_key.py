"""The API key: asked for when it is needed, and shown to nobody."""

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from .errors import AgentMailError

__all__ = ["ApiKey"]

REMEMBERED = 16
"""How many keys are taken out of what a server says, when they change."""


class ApiKey:
    """Where the key comes from.

    Args:
        source: The key, or a callable that returns it and is asked for every connection, or None for
            `$AGENTMAIL_API_KEY`.
        default: The key to use when `source` is None and the variable is not set.

    Raises:
        TypeError: `source` is neither.
        ValueError: there is no key, or it holds characters that a header cannot carry.
    """

    def __init__(self, source: str | Callable[[], str] | None, default: str | None) -> None:
        if source is None:
            source = os.environ.get("AGENTMAIL_API_KEY") or default
        if source is None:
            raise ValueError("no API key: set $AGENTMAIL_API_KEY, or pass api_key=…")
        if not callable(source):
            _check(source)
        self._source = source
        self._key = ""
        self._asked: deque[str] = deque(maxlen=REMEMBERED)

    def ask(self) -> None:
        """Find out the key for the next connection.

        Raises:
            Exception: what the callable raised.
            TypeError, ValueError: what it returned is no key.
        """
        self._key = _check(self._source() if callable(self._source) else self._source)
        if self._key not in self._asked:
            self._asked.append(self._key)

    def is_other_than(self, authorization: str) -> bool:
        """Find out the key again, and whether it is another one than in that header; as `ask`."""
        self.ask()
        return self.authorization != authorization

    @property
    def authorization(self) -> str:
        """The `Authorization` header of the next connection."""
        return f"Bearer {self._key}"

    def redact(self, failure: BaseException) -> None:
        """Take the key out of what a server said: one that repeats it to us must not get it into a log."""
        if isinstance(failure, AgentMailError):
            failure.args = tuple(map(self._without_key, failure.args))
            for name, value in vars(failure).items():
                setattr(failure, name, self._without_key(value))

    def _without_key(self, value: Any) -> Any:
        if isinstance(value, str):
            for key in sorted(self._asked, key=len, reverse=True):  # one may begin with another
                value = value.replace(key, "***")
        if isinstance(value, dict):
            return {self._without_key(name): self._without_key(item) for name, item in value.items()}
        return value


def _check(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the API key must be a string, or a callable that returns one, not {type(key).__name__}")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            "the API key is empty, or holds white space or characters that are not printable ASCII: "
            "check for a line end or a quote that was copied with it"
        )
    return key
