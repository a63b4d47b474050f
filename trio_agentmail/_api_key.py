"""The API key: fetched for each connection, and kept out of logs, reprs and exceptions."""

import inspect
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from .errors import AgentMailError

__all__ = ["ApiKey"]

REMEMBERED = 16
"""Number of recent keys to remove from text that the server sent. There are several only if the key changes."""


class Secret(str):
    """Text whose repr is hidden, because error reporters show the repr of every local variable in a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class ApiKey:
    """The source of the API key.

    The constructor never raises, so the caller can delete its own reference to the key before it calls `check`.

    Args:
        source: The key, a callable that returns it and is called for every connection, or `None` for
            `$AGENTMAIL_API_KEY`.
    """

    def __init__(self, source: str | Callable[[], str] | None) -> None:
        if source is None:
            source = os.environ.get("AGENTMAIL_API_KEY") or None
        self._source = Secret(source) if isinstance(source, str) else source
        self._key = Secret()
        self._recent: deque[str] = deque(maxlen=REMEMBERED)

    def check(self, default: str | None = None) -> None:
        """Validate the source without calling it.

        Args:
            default: The key to use if none was given and the environment variable is not set.

        Raises:
            TypeError: The source is neither a string nor a callable that returns one.
            ValueError: There is no key, or it contains characters that a header cannot carry.
        """
        if self._source is None and default is not None:
            self._source = Secret(default)
        if self._source is None:
            raise ValueError("no API key: set $AGENTMAIL_API_KEY, or pass api_key=…")
        if inspect.iscoroutinefunction(self._source):
            raise TypeError(ASYNC)
        problem = None if callable(self._source) else _problem(self._source)
        if problem is not None:
            self._source = None
            raise problem

    def ask(self) -> None:
        """Get the key for the next connection.

        Raises:
            Exception: The callable raised an exception, which is not changed.
            TypeError, ValueError: The callable returned an invalid key.
        """
        key = self._source() if callable(self._source) else self._source
        problem = _problem(key)
        if problem is not None:
            del key
            raise problem
        self._key = Secret(key)
        if self._key not in self._recent:
            self._recent.append(self._key)

    @property
    def authorization(self) -> str:
        """The value of the `Authorization` header for the next connection."""
        return Secret(f"Bearer {self._key}")

    def redact(self, failure: BaseException) -> None:
        """Remove the key from an error, because a server may echo it."""
        if isinstance(failure, AgentMailError):
            failure.args = tuple(map(self._without_key, failure.args))
            for name, value in vars(failure).items():
                setattr(failure, name, self._without_key(value))

    def redacted(self, text: str) -> str:
        """Return the text without the key, neither as it is nor escaped as in a `repr`."""
        for key in sorted(self._recent, key=len, reverse=True):  # longest first: one key may be a prefix of another
            escaped = key.replace("\\", "\\\\")
            for shown in (key, escaped, escaped.replace("'", "\\'")):
                text = text.replace(shown, "***")
        return text

    def _without_key(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.redacted(value)
        if isinstance(value, dict):
            return {self._without_key(name): self._without_key(item) for name, item in value.items()}
        return value


ASYNC = (
    "api_key takes a string or a synchronous function, but this function is async: fetch the key in a task of your "
    "own, and pass a function that returns the last key that was fetched"
)


def _problem(key: object) -> TypeError | ValueError | None:
    """Return the exception for an invalid key. The caller raises it, so that no frame of its traceback has the key."""
    if inspect.isawaitable(key):
        if inspect.iscoroutine(key):
            key.close()  # otherwise Python warns that the coroutine was never awaited
        return TypeError(ASYNC)
    if not isinstance(key, str):
        return TypeError(f"the API key must be a string or a callable that returns one, not {type(key).__name__}")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        return ValueError(
            "the API key is empty or contains white space or characters other than printable ASCII: "
            "check for a line break or a quotation mark that was copied with it"
        )
    return None
