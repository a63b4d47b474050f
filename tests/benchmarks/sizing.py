"""The memory of a client that shares its process with the server, where `tracemalloc` would take too long."""

import gc
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from datetime import date, datetime
from types import BuiltinMethodType, CellType, FunctionType, MethodType
from typing import Any

from trio_agentmail import AgentMailSession

__all__ = ["client_size"]

DATA = (
    type(None),
    bool,
    int,
    float,
    str,
    bytes,
    bytearray,
    memoryview,
    tuple,
    list,
    dict,
    set,
    frozenset,
    deque,
    OrderedDict,
    date,
    datetime,
)
ON_THE_WAY = (MethodType, BuiltinMethodType, FunctionType, CellType)
"""Objects that are followed but not counted."""


def client_size(session: AgentMailSession) -> int:
    """Return the bytes of the package's objects that a session refers to, including the plain data in them.

    Objects of other packages are not counted, nor those that only a running task has in its local variables.
    """
    size = 0
    seen: set[int] = set()
    found: list[Any] = [session]
    while found:
        thing = found.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, ON_THE_WAY):
            found += _behind(thing)
        elif type(thing) in DATA or _is_of_the_package(type(thing)):
            size += sys.getsizeof(thing)
            if gc.is_tracked(thing):
                found += gc.get_referents(thing)
            elif type(thing) in (tuple, dict):  # containers of plain data, which the garbage collector does not track
                found += thing if type(thing) is tuple else (*thing, *thing.values())
    return size


def _behind(thing: Any) -> Iterator[Any]:
    if isinstance(thing, MethodType | BuiltinMethodType):
        yield thing.__self__
    elif isinstance(thing, FunctionType):
        yield from thing.__closure__ or ()
    else:
        try:
            yield thing.cell_contents
        except ValueError:  # the cell is empty
            return


def _is_of_the_package(cls: type[Any]) -> bool:
    module = cls.__module__
    return module.startswith("trio_agentmail.") and not module.startswith("trio_agentmail.testing")
