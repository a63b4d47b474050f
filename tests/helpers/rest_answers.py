"""Answers of a REST API as they come over a network."""

import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import httpx2
import pytest
import trio

from tests.helpers.rest_api import Api, rest
from trio_agentmail import ApiError
from trio_agentmail._clock import ServerClock
from trio_agentmail.errors import RequestFailedError


def answers(*items: Any) -> Api:
    """Return an API that answers `/x` with each of these in turn. The last is repeated."""
    left = list(items)

    def answer(request: httpx2.Request) -> Any:
        item = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(item, Exception):
            raise item
        return item

    return Api({"/x": answer})


def clock() -> ServerClock:
    return ServerClock(time.time)


def refused(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()})


def kinds_of(cls: type[httpx2.RequestError]) -> Iterator[type[httpx2.RequestError]]:
    yield cls
    for kind in cls.__subclasses__():
        yield from kinds_of(kind)


LIMIT = 16 * 2**20


class Body(httpx2.AsyncByteStream):
    """A body in pieces, as it comes over the network."""

    def __init__(self, pieces: Sequence[bytes] | AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.taken = 0
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if isinstance(self._pieces, Sequence):
            for piece in self._pieces:
                await trio.lowlevel.checkpoint()
                self.taken += 1
                yield piece
        else:
            async for piece in self._pieces:
                self.taken += 1
                yield piece

    async def aclose(self) -> None:
        self.is_closed = True


def wire(*pieces: bytes, status: int = 200, **headers: str | bytes) -> httpx2.Response:
    """Return an answer that is read as if it came over a network."""
    raw = [
        (name.replace("_", "-").encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in headers.items()
    ]
    return httpx2.Response(status, headers=raw, stream=Body(pieces))


def always(answer: Callable[[], Any]) -> Api:
    """Return an API that always gives this answer to `/x`."""
    return Api({"/x": lambda _: answer()})


async def failure_of(answer: Callable[[], Any], **arguments: Any) -> tuple[Exception, Api]:
    """Return the exception of a request for `/x`, and the API."""
    api = always(answer)
    async with rest(api, **arguments) as asks:
        with pytest.raises((ApiError, RequestFailedError)) as caught:
            await asks.get("/x")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    return caught.value, api


def bomb(size: int) -> bytes:
    """Return `size` spaces, compressed to about a thousandth."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join(packer.compress(b" " * 2**20) for _ in range(size // 2**20)) + packer.flush()
