"""An API key that tests find wherever it appears."""

import traceback
from collections.abc import Iterator

MARK = "SECRETMARK"
KEY = f"am_{MARK}0123456789"


def everything_in(exc: BaseException) -> Iterator[str]:
    """Yield everything that can be shown of an exception and of its causes and contexts."""
    yield "".join(traceback.format_exception(exc))
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        exc_ = waiting.pop()
        if exc_ is None or id(exc_) in seen:
            continue
        seen.add(id(exc_))
        yield "".join(traceback.format_exception(exc_))
        yield from (str(exc_), repr(exc_), repr(exc_.args), repr(vars(exc_)), repr(getattr(exc_, "__notes__", [])))
        waiting += [exc_.__cause__, exc_.__context__]
        if isinstance(exc_, BaseExceptionGroup):
            waiting += exc_.exceptions


def assert_no_secret(*things: object) -> None:
    """Check that the key appears in none of these, nor in their attributes, causes and tracebacks."""
    for thing in things:
        texts = [str(thing), repr(thing)]
        if isinstance(thing, BaseException):
            texts += everything_in(thing)
        if type(thing).__module__.startswith("trio_agentmail") and hasattr(thing, "__attrs_attrs__"):
            texts += [repr(getattr(thing, attribute.name)) for attribute in thing.__attrs_attrs__]
        assert [text for text in texts if MARK in text] == []
