"""The API key: asked for when it is needed, and shown to nobody."""

import inspect
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from .errors import AgentMailError

__all__ = ["ApiKey"]

REMEMBERED = 16
"""How many keys are taken out of what a server says, when they change."""


class Secret(str):
    """Text without a repr: error reporters show the repr of each local variable of a traceback's frames."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class ApiKey:
    """Where the key comes from. Making one never fails, so that the caller can drop its own reference to the key.

    Args:
        source: The key, or a callable that returns it and is asked for every connection, or None for
            `$AGENTMAIL_API_KEY`.
    """

    def __init__(self, source: str | Callable[[], str] | None) -> None:
        if source is None:
            source = os.environ.get("AGENTMAIL_API_KEY") or None
        self._source = Secret(source) if isinstance(source, str) else source
        self._key = Secret()
        self._asked: deque[str] = deque(maxlen=REMEMBERED)

    def check(self, default: str | None = None) -> None:
        """Find out whether there is a key, as far as that can be told without asking for it.

        Args:
            default: The key to use when none was given and the variable is not set.

        Raises:
            TypeError: It is neither a string nor a callable that returns one.
            ValueError: There is no key, or it holds characters that a header cannot carry.
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
        """Find out the key for the next connection.

        Raises:
            Exception: What the callable raised.
            TypeError, ValueError: What it returned is no key.
        """
        key = self._source() if callable(self._source) else self._source
        problem = _problem(key)
        if problem is not None:
            del key
            raise problem
        self._key = Secret(key)
        if self._key not in self._asked:
            self._asked.append(self._key)

    @property
    def authorization(self) -> str:
        """The `Authorization` header of the next connection."""
        return Secret(f"Bearer {self._key}")

    def redact(self, failure: BaseException) -> None:
        """Take the key out of what a server said: one that repeats it to us must not get it into a log."""
        if isinstance(failure, AgentMailError):
            failure.args = tuple(map(self._without_key, failure.args))
            for name, value in vars(failure).items():
                setattr(failure, name, self._without_key(value))

    def redacted(self, text: str) -> str:
        """A text without the key, also where that stands as `repr` shows it."""
        for key in sorted(self._asked, key=len, reverse=True):  # one may begin with another
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
    "api_key takes a string or a plain function, and this function is async: fetch the key in a task of your own, "
    "and pass a function that returns what was fetched last"
)


def _problem(key: object) -> TypeError | ValueError | None:
    """What to raise if this is no key. It is raised elsewhere, so that no frame of the traceback holds the key."""
    if inspect.isawaitable(key):
        if inspect.iscoroutine(key):
            key.close()  # or Python warns that nobody awaited it
        return TypeError(ASYNC)
    if not isinstance(key, str):
        return TypeError(f"the API key must be a string, or a callable that returns one, not {type(key).__name__}")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        return ValueError(
            "the API key is empty, or holds white space or characters that are not printable ASCII: "
            "check for a line end or a quote that was copied with it"
        )
    return None
