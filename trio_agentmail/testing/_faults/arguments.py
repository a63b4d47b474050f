"""How the arguments of faults are given from outside of Python: over the control API and on the command line.

Each class describes one kind of argument as data: what it accepts, and what it is called. A parameter of a fault has
one as `Annotated` metadata. The control API asks `accepts`; the command line makes an argument or an option of it. A
parameter without one can be given in Python only.
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

# RFC 6455, 7.4: the codes that a close frame may carry.
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
        return "a text" if self.max_bytes == math.inf else f"a text of at most {self.max_bytes} bytes"


@attrs.frozen
class CloseCode:
    """A code that a close frame may carry."""

    help: str = "The close code."

    def accepts(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value in CLOSE_CODES

    def __str__(self) -> str:
        return "a close code that may be sent, like 1001 or 4000"


@attrs.frozen
class Repetitions:
    """How often a fault strikes. The control API and the command line say `"all"` for what is `None` in Python."""

    help: str = 'How often; "all": from now on.'

    def accepts(self, value: Any) -> bool:
        return value == "all" or (isinstance(value, int) and _is_number(value, 1, MAX_TIMES))

    def __str__(self) -> str:
        return f'a number from 1 to {MAX_TIMES}, or "all"'


@attrs.frozen
class Seed:
    """The seed of a random generator. The command line draws one if none is given."""

    help: str = "The same seed gives the same faults at the same times. [default: one is drawn, and printed]"
    low: int = 0
    high: int = 10**18

    def accepts(self, value: Any) -> bool:
        return isinstance(value, int) and _is_number(value, self.low, self.high)

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


@attrs.frozen
class FaultNames:
    """Some of the faults that chaos draws from.

    Args:
        names: Returns their names. A function, since the table of faults is made after its entries.
    """

    names: Callable[[], Collection[str]]

    @property
    def help(self) -> str:
        return f"Only some of {', '.join(self.names())}. [default: all of them]"

    def accepts(self, value: Any) -> bool:
        names = self.names()
        return (
            isinstance(value, list) and value != [] and all(isinstance(name, str) and name in names for name in value)
        )

    def __str__(self) -> str:
        return f"a list of some of {', '.join(self.names())}"


Times: TypeAlias = Annotated[int | None, Repetitions()]
"""How many connections, pushes or requests a fault is for; `None`: all that follow, until the faults are cleared."""

Seconds: TypeAlias = Annotated[float, Number("a number of seconds", 0, MAX_SECONDS)]
