"""Descriptions of the arguments of faults, for the control API and the command line.

Each class describes one kind of argument: the values that it accepts, and its texts. A parameter of a fault has an
instance as `Annotated` metadata. The control API calls its `accepts`, and the command line makes a click parameter from
it. A parameter without such metadata can be given in Python only.
"""

import math
from collections.abc import Callable, Collection
from typing import Annotated, Any, Protocol, TypeAlias

import attrs

__all__ = [
    "CLOSE_CODES",
    "Argument",
    "CloseCode",
    "FaultNames",
    "Number",
    "Repetitions",
    "Seconds",
    "Seed",
    "Text",
    "Times",
    "Whole",
]

# RFC 6455, 7.4: the codes that a close frame may contain.
CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})

MAX_TIMES = 10**6
MAX_SECONDS = 10**6


class Argument(Protocol):
    """A kind of argument. `str()` of it completes the sentence "the argument is …"."""

    @property
    def help(self) -> str:
        """The help text of the command line's option."""

    def accepts(self, value: Any) -> bool:
        """Return whether a value from a JSON document is valid."""


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


@attrs.frozen
class Whole:
    """A whole number from `low` to `high`."""

    what: str
    low: int
    high: int
    help: str = ""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, int) and _is_number(value, self.low, self.high)

    def __str__(self) -> str:
        return f"{self.what} from {self.low} to {self.high}"


@attrs.frozen
class Number:
    """A number from `low` to `high`."""

    what: str
    low: float
    high: float
    help: str = ""

    def accepts(self, value: Any) -> bool:
        return _is_number(value, self.low, self.high)

    def __str__(self) -> str:
        return f"{self.what} from {self.low:g} to {self.high:.0f}"


@attrs.frozen
class Text:
    """A string of at most `max_bytes` bytes of UTF-8."""

    help: str
    max_bytes: float = math.inf

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and len(value.encode()) <= self.max_bytes

    def __str__(self) -> str:
        return "a string" if self.max_bytes == math.inf else f"a string of at most {self.max_bytes} bytes"


@attrs.frozen
class CloseCode:
    """A code that a close frame may contain."""

    help: str = "The close code."

    def accepts(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value in CLOSE_CODES

    def __str__(self) -> str:
        return "a close code that may be sent, like 1001 or 4000"


@attrs.frozen
class Repetitions:
    """The number of times that a fault happens. The control API and the command line write `None` as `"all"`."""

    help: str = 'How many times, or "all" until the faults are cleared.'

    def accepts(self, value: Any) -> bool:
        return value == "all" or (isinstance(value, int) and _is_number(value, 1, MAX_TIMES))

    def __str__(self) -> str:
        return f'a number from 1 to {MAX_TIMES}, or "all"'


@attrs.frozen
class Seed:
    """The seed of a random generator. By default, the command line draws one."""

    help: str = "The same seed gives the same faults at the same times. [default: random, and printed]"
    low: int = 0
    high: int = 10**18

    def accepts(self, value: Any) -> bool:
        return isinstance(value, int) and _is_number(value, self.low, self.high)

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@attrs.frozen
class FaultNames:
    """A list of faults for chaos to draw from.

    Args:
        names: Returns the names of all faults that chaos can draw. It is a function because the table of faults does
            not exist yet when its entries are made.
    """

    names: Callable[[], Collection[str]]

    @property
    def help(self) -> str:
        return f"Draw from these faults only: {', '.join(self.names())}. [default: all]"

    def accepts(self, value: Any) -> bool:
        names = self.names()
        return (
            isinstance(value, list) and value != [] and all(isinstance(name, str) and name in names for name in value)
        )

    def __str__(self) -> str:
        return f"a list of some of {', '.join(self.names())}"


Times: TypeAlias = Annotated[int | None, Repetitions()]
"""The number of connections, pushes or requests that a fault applies to. `None` means all, until `clear()`."""

Seconds: TypeAlias = Annotated[float, Number("a number of seconds", 0, MAX_SECONDS)]
