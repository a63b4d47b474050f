"""The memory of a client in a process that also has the server in it, where `tracemalloc` would take too long."""

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
"""What leads to other objects, and is not counted."""


def client_size(session: AgentMailSession) -> int:
    """Bytes of the package's objects that can be reached from a session, and of the plain data in them.

    What only a running task has in its local variables is not counted, nor is what other packages keep.
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
            elif type(thing) in (tuple, dict):  # of data that the collector need not look at
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
        except ValueError:  # it is empty
            return


def _is_of_the_package(cls: type[Any]) -> bool:
    module = cls.__module__
    return module.startswith("trio_agentmail.") and not module.startswith("trio_agentmail.testing")
